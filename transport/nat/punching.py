"""I/O: the `Reach` named "punching": where the NAT shows the port that we listen on.

A STUN server is asked over TCP from the listening port. What it sees is where others aim when they
punch; a full-cone NAT lets everybody in there, so it is claimed as well, as a guess, if it is the
same port as inside or stays the same (a symmetric NAT's is another each time: nobody should dial
it). While others reach us anyway nobody is asked, until a call needs to know. The connection stays
open for the time that an attempt takes: a NAT keeps a port for as long as a connection uses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import trio

from ..address import Address
from ..errors import StunError
from .reach import Claim, Confidence
from .stun import tcp_binding

LOOK_SECONDS: Final = 60.0
"""From one look to the next: routers are restarted, and a claim that is wrong costs dialling."""

CLAIM_SECONDS: Final = 1.5 * LOOK_SECONDS
"""A claim outlives one look that fails."""

HOLD_SECONDS: Final = 10.0
"""For so long the connection stays: an attempt takes seven. Trackers have 128 places for all."""

ASK_SECONDS: Final = 2.0
"""For one server: a connection and an answer take two round trips."""

RETRY_SECONDS: Final = 5.0
"""Until servers that told nothing are asked again."""

PAUSE_SECONDS: Final = 1.0
"""Until it is looked again whether there is somebody to ask, and something to ask for: trackers
have just been dialled when a node starts."""


class Binding(Protocol):
    """What a server says."""

    @property
    def mapped(self) -> Address:
        """From where it sees the connection."""


@dataclass(frozen=True, slots=True)
class _Sight:
    """What a server saw, since when it has been the same, and when it was seen last."""

    address: Address
    first: float
    last: float

    @property
    def until(self) -> float:
        """So long it is believed."""
        return self.last + CLAIM_SECONDS


Ask: TypeAlias = Callable[[Address, Address], AbstractAsyncContextManager[Binding]]


class Punched:
    """Others connect to where our NAT shows the listening port, while we connect to them.

    `servers` gives the STUN servers that there are, `needed` whether nobody is known to come in
    another way, `clock` the time of the claims.
    """

    name = "punching"

    def __init__(
        self,
        servers: Callable[[], Iterable[Address]],
        *,
        needed: Callable[[], bool],
        clock: Callable[[], float],
        ask: Ask = tcp_binding,
    ) -> None:
        self._servers, self._needed, self._clock, self._ask = servers, needed, clock, ask
        self.networks = 0  # how many there have been before this one
        self._local: Address | None = None
        self._seen: _Sight | None = None
        self._wanted = self._held = False
        self._again, self._looked = trio.Event(), trio.Event()

    def bound(self, address: Address) -> None:
        """We listen here."""
        self._local = address
        self._again.set()

    @property
    def local(self) -> Address | None:
        """Where we listen."""
        return self._local

    @property
    def detail(self) -> str:
        """Where the port is seen, for people."""
        return f"seen at {self._seen.address} from outside" if self._seen else ""

    def claims(self, now: float) -> tuple[Claim, ...]:
        """The address that a server sees, where others may be let in."""
        seen = self._seen
        if seen is None or self._local is None or seen.until <= now:
            return ()
        steady = seen.address.port == self._local.port or seen.last - seen.first >= LOOK_SECONDS
        return (Claim(seen.address, Confidence.GUESSED, seen.until),) if steady else ()

    def changed(self) -> None:
        """What was seen was another network."""
        self.networks += 1
        self._seen = None
        self._again.set()

    async def sight(self) -> Address | None:
        """Where the listening port is seen; None where nobody says so within two seconds.

        What was seen within the last minute is told at once, and looked at again meanwhile.
        """
        if not self._held and any(True for _ in self._servers()):
            self._wanted = True
            self._again.set()
            if self._looked.is_set():
                self._looked = trio.Event()
            if self._known() is None:
                with trio.move_on_after(ASK_SECONDS):
                    await self._looked.wait()
        return self._known()

    def _known(self) -> Address | None:
        return self._seen.address if self._seen and self._seen.until > self._clock() else None

    async def run(self, *, task_status: Any) -> None:
        """Look, and look again after a while, until cancelled."""
        task_status.started()
        try:
            while True:
                self._again = trio.Event()
                pause = PAUSE_SECONDS
                if (self._needed() or self._wanted) and any(True for _ in self._servers()):
                    pause = LOOK_SECONDS if await self._look() else RETRY_SECONDS
                with trio.move_on_after(pause):
                    await self._again.wait()
        finally:
            self._seen = None

    async def _look(self) -> bool:
        """Ask one server after another until one has told."""
        self._wanted = False
        if self._local is None:
            return False
        # IPv6 has no NAT as a rule, so of [::] it's the IPv4 port that one has to ask about.
        host = "0.0.0.0" if self._local.host == "::" else self._local.host
        local = Address(host, self._local.port)
        for server in self._servers():
            if await self._hear(server, local):
                return True
        self._looked.set()
        return False

    async def _hear(self, server: Address, local: Address) -> bool:
        """Ask one server and hold that connection for a while; whether it told anything."""
        told = False
        with contextlib.suppress(StunError), trio.move_on_after(ASK_SECONDS) as asking:
            async with self._ask(server, local) as binding:
                told = True
                asking.deadline = trio.current_time() + HOLD_SECONDS
                await self._hold(binding.mapped)
        return told

    async def _hold(self, address: Address) -> None:
        """This was seen; stay until there is a reason to look again."""
        now, before = self._clock(), self._seen
        first = before.first if before is not None and before.address == address else now
        self._seen = _Sight(address, first, now)
        self._held = True
        self._looked.set()
        try:
            await self._again.wait()
        finally:
            self._held = False
