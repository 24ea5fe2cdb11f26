"""I/O: the `Reach` named "mapping": a port that the home router forwards to us.

Strategy: the router is asked through PCP, NAT-PMP and UPnP side by side whether it is there, which
makes nothing. The first that answers is told to map the port, so that there is one mapping at most;
PCP has a small head start, then NAT-PMP. If it doesn't, the next one is told. A mapping is renewed
at half of its lease by doing the same again. In between the router is asked now and then whether it
has restarted. On the way out the mapping is ended; the lease ends by itself if we can't.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from secrets import token_bytes
from typing import Any, Final

import trio

from ..address import Address
from ..errors import MappingError, MappingRefused
from .gateway import Gateway, default_gateway
from .outlook import check_lease, check_outer, needless, summary
from .pcp import NONCE, Epoch, restarted
from .reach import Claim, Confidence
from .routers import NO_ANSWER, Heard, Lease, PcpRouter, PmpRouter, Router
from .upnp import UpnpRouter

LEASE_SECONDS: Final = 3600
"""Asked for: how long a killed node's mapping stays, at most."""
CHECK_SECONDS: Final = 60.0
"""Between looks whether there is a router, and whether it has restarted: one datagram each."""
RETRY_SECONDS: Final = 300.0
"""Until a network without such a router is asked again; when the network changes it is at once."""
REFUSED_SECONDS: Final = 900.0
"""Until one that refuses is: somebody would have to change its settings."""
LEAST_SECONDS: Final = 4.0
"""Between renewals, however short the leases are (RFC 6887 section 11.2.1)."""
HEAD_START_SECONDS: Final = 0.1
"""Of a protocol before the next one: what an answer's way at home takes, and more."""
LEAVE_SECONDS: Final = 0.6
"""For ending a mapping: a node is gone in 0.8 s."""
PROBE_SECONDS: Final = 2.9
"""For `p2pnode doctor`, who promises an answer of each part in three."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of asking for a router in one protocol: "answers", "no answer", or why not."""

    protocol: str
    outcome: str
    host: str | None = None  # its outer address, where the protocol tells it


@dataclass(frozen=True, slots=True)
class _Held:
    """A mapping that we have."""

    router: Router
    address: Address
    until: float
    renew: float
    heard: Heard
    asked: float  # when that was heard


class Mapped:
    """Others connect to a port of our router, which forwards it to the port that we listen on.

    `secret`: what nobody else knows. If it is the same in each life of a node, it can renew what it
    left behind when it was killed; others get it refused until the lease ends (PCP).
    """

    name = "mapping"

    def __init__(
        self,
        *,
        secret: bytes = b"",
        lease: int = LEASE_SECONDS,
        check: float = CHECK_SECONDS,
        find: Callable[[], Gateway | None] | None = None,
        routers: Callable[[Gateway], Sequence[Router]] | None = None,
        chance: random.Random | None = None,
    ) -> None:
        nonce = blake2b(secret or token_bytes(NONCE), digest_size=NONCE).digest()
        self._lease, self._check = lease, check
        self._find = find or default_gateway
        self._speak = routers or (lambda gateway: all_routers(gateway, nonce))
        self._chance = chance or random.Random()
        self._bound: Address | None = None
        self._place: tuple[Gateway, int] | None = None  # where, and for which port, we map
        self._routers: Sequence[Router] = ()
        self._held: _Held | None = None
        # What may stand in a router, answered or not: who was told, our port, the outer port.
        self._made: tuple[Router, int, int] | None = None
        self._why = "not asked for yet"
        self._troubles: dict[str, MappingError] = {}
        self._wish = 0  # the outer port that we had here; peers find us if it stays the same
        self._anew = False
        self._news = trio.Event()
        self._telling = trio.Lock()

    @property
    def detail(self) -> str:
        """What came of it, in one line."""
        if self._held is None:
            return self._why
        return f"{self._held.address}, by {self._held.router.protocol}"

    def bound(self, address: Address) -> None:
        """We listen here."""
        self._bound = address
        self._news.set()

    def changed(self) -> None:
        """The network has changed: map anew."""
        self._anew = True
        self._news.set()

    def claims(self, now: float) -> tuple[Claim, ...]:
        """The port of the router, while the lease lasts."""
        held = self._held
        if held is None or held.until <= now:
            return ()
        return (Claim(held.address, Confidence.GIVEN, held.until),)

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a mapping until cancelled, and end it then."""
        task_status.started()
        try:
            while True:
                self._news = trio.Event()
                pause = await self._look()
                with trio.move_on_after(pause):
                    await self._news.wait()
        finally:
            await self._end()

    async def _look(self) -> float:
        """Do what is due: the seconds until the next look."""
        gateway = self._find()
        why = needless(self._bound, gateway)
        place = None if why or not (gateway and self._bound) else (gateway, self._bound.port)
        if place != self._place:
            await self._move(place)
        self._why = why or self._why
        if place is None:
            return self._check  # a route may come later than the address; a look sends nothing
        anew, self._anew = self._anew, False
        if anew or not await self._stands():
            await self._search(place[1])
        return self._pause()

    async def _move(self, place: tuple[Gateway, int] | None) -> None:
        """Another network, or another port: what we had is ended, or ends by itself."""
        await self._end()
        self._place, self._wish, self._why = place, 0, "asking the router"
        self._routers = self._speak(place[0]) if place else ()

    def _pause(self) -> float:
        """Until the next look: soon where a router has mapped before, it may be starting."""
        if self._held is not None:
            due = self._held.renew - trio.current_time()
            return min(self._check, due) if due > 0 else self._check
        if any(isinstance(error, MappingRefused) for error in self._troubles.values()):
            return REFUSED_SECONDS
        return self._check if self._wish else RETRY_SECONDS

    # -- what stands in the router ---------------------------------------------------------------

    async def _stands(self) -> bool:
        """Whether there is a mapping, it isn't due, and the router still knows it."""
        held = self._held
        if held is None or trio.current_time() >= held.renew:
            return False
        try:
            heard = await held.router.ask()
        except MappingError:
            return True  # no news; if it is gone for good, the lease runs out
        if self._forgotten(held, heard):
            self._held = None
            return False
        self._held = replace(held, heard=heard, asked=trio.current_time())
        return True

    def _forgotten(self, held: _Held, heard: Heard) -> bool:
        """Whether the router has restarted since it was asked last, or has another address."""
        if (held.heard.host, held.heard.boot) != (heard.host, heard.boot):
            return True
        if held.heard.epoch is None or heard.epoch is None:
            return False
        before = Epoch(held.heard.epoch, held.asked)
        return restarted(before, Epoch(heard.epoch, trio.current_time()))

    async def _end(self) -> None:
        """Remove what stands in the router, also while we are being cancelled."""
        made, self._made, self._held = self._made, None, None
        if made is not None:
            router, inner, outer = made
            with trio.move_on_after(LEAVE_SECONDS, shield=True):
                with contextlib.suppress(MappingError):
                    await router.unmap(inner, outer)

    # -- looking for one that maps ---------------------------------------------------------------

    async def _search(self, inner: int) -> None:
        """Map, or renew: as before if that works, else through the first that will."""
        held = self._held
        if held is not None:
            await self._ask((held.router,), inner)
        if self._held is held:
            await self._ask(self._routers, inner)
        if self._held is not None and self._held.until <= trio.current_time():
            self._held = None
        if self._held is None:
            ranked = [router.protocol for router in self._routers]
            self._why = summary({p: self._troubles[p] for p in ranked if p in self._troubles})

    async def _ask(self, routers: Sequence[Router], inner: int) -> None:
        self._troubles = {}
        async with trio.open_nursery() as nursery:
            for rank, router in enumerate(routers):
                nursery.start_soon(self._try, rank, router, inner, nursery.cancel_scope)

    async def _try(self, rank: int, router: Router, inner: int, others: trio.CancelScope) -> None:
        try:
            heard = await router.ask()
            asked = trio.current_time()
            await trio.sleep(rank * HEAD_START_SECONDS)
            async with self._telling:
                self._held = await self._map(router, inner, heard, asked)
                others.cancel()
        except MappingError as error:
            self._troubles[router.protocol] = error

    async def _map(self, router: Router, inner: int, heard: Heard, asked: float) -> _Held:
        """Have it mapped. Raises MappingError."""
        if heard.host is not None:
            check_outer(heard.host)
        outer = self._wish or inner
        self._made = (router, inner, outer)
        lease = await router.map(inner, outer, self._lease)
        self._made = (router, inner, lease.port)
        try:
            check_lease(lease)
        except MappingError:
            await self._end()
            raise
        self._wish = lease.port
        return self._hold(router, lease, heard, asked)

    def _hold(self, router: Router, lease: Lease, heard: Heard, asked: float) -> _Held:
        now = trio.current_time()
        # RFC 6887 section 11.2.1: not all clients of a router at the same time.
        wait = max(LEAST_SECONDS, lease.lifetime * self._chance.uniform(1 / 2, 5 / 8))
        address = Address(lease.host, lease.port)
        return _Held(router, address, now + lease.lifetime, now + wait, heard, asked)


def all_routers(gateway: Gateway, nonce: bytes) -> tuple[Router, ...]:
    """The router in each protocol, the best one first."""
    return PcpRouter(gateway, nonce), PmpRouter(gateway), UpnpRouter(gateway)


# -- for people ------------------------------------------------------------------------------------


async def probe(
    gateway: Gateway | None = None, routers: Sequence[Router] | None = None
) -> tuple[Probe, ...]:
    """Ask for a router in each protocol, side by side; nothing is mapped. Under three seconds."""
    gateway = gateway or default_gateway()
    if routers is None:
        routers = all_routers(gateway, token_bytes(NONCE)) if gateway else ()
    found: dict[str, Probe] = {r.protocol: Probe(r.protocol, NO_ANSWER) for r in routers}
    with trio.move_on_after(PROBE_SECONDS):
        async with trio.open_nursery() as nursery:
            for router in routers:
                nursery.start_soon(_probe, router, found)
    return tuple(found.values())


async def _probe(router: Router, found: dict[str, Probe]) -> None:
    try:
        heard = await router.ask()
    except MappingError as error:
        found[router.protocol] = Probe(router.protocol, str(error.args[0]))
    else:
        found[router.protocol] = Probe(router.protocol, "answers", heard.host)
