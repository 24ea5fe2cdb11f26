"""I/O: `p2pnode doctor`: looking at this machine's place in the network, everything at once.

Strategy: doctor comes as a stranger: with a key that nobody knows, in a swarm of its own, so that
neither trackers nor peers take it for the node. Where no node runs it opens the node's door itself
and lets the trackers dial it back; where one runs it asks that one. Each part has its time, and
what has found nothing by the end is left out. Judging is diagnosis.py's.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeAlias

import trio

from ..tracker.checks import price
from ..tracker.contact import Contact
from ..tracker.errors import Refused, TrackerError
from ..tracker.protocol import Announce, Bye, Leave, Welcome
from ..tracker.record import PeerRecord
from ..tracker.state import reason
from ..tracker.verdict import DIALBACK_SECONDS, NONCE_MOST, PAYMENT, DialBack, Outcome, Verdict
from ..transport.address import Address
from ..transport.envelope import Kind, seal
from ..transport.errors import DialError, ListenError, TransportError
from ..transport.identity import Identity
from ..transport.link import Link, Network, Service
from ..transport.nat.behaviour import Behaviour
from ..transport.nat.direct import Direct
from ..transport.nat.reach import announced
from ..transport.peer_address import PeerAddress
from .config import Config
from .findings import DialledBack, Door, Findings, Knock, Mapping, Met, Wishes
from .status import NodeStatus

CONTACT_SECONDS: Final = 4.0
"""For a connection and its handshake, and for an answer: three round trips, slow ones."""

SECONDS: Final = 11.0
"""For everything: who asks where it hurts shouldn't wait longer."""

KNOCKS: Final = 2
"""The first connection is slower, as both sides get what they need for it."""

Behave: TypeAlias = Callable[[Sequence[Address], Address], Awaitable[Behaviour]]


@dataclass(frozen=True, slots=True)
class Tools:
    """What doctor looks with, beside the network."""

    hosts: Callable[[], tuple[str, ...]]
    """The addresses of this machine, the most useful first."""
    status: Callable[[], NodeStatus | None]
    """Of the node that runs with this home; may block."""
    mapping: Callable[[Address], Awaitable[Mapping]]
    """Whether the router would forward a port to where we listen."""
    udp: Behave
    tcp: Behave
    """What STUN servers tell of the NAT, from a local address."""
    wall: Callable[[], float] = time.time


class Doctor:
    """One examination; `found` is what is known so far."""

    def __init__(
        self, config: Config, key: bool, identity: Identity, network: Network, tools: Tools
    ) -> None:
        """`identity` is the stranger's, and `network` uses it; `key`: whether the node has one."""
        self._config, self._network, self._tools = config, network, tools
        self._identity = identity
        self._swarm = f"doctor-{secrets.token_hex(8)}"
        self._seq = 0
        self._heard: set[bytes] = set()
        self.found = Findings(
            wishes=Wishes(config.reach, config.lan, len(config.peer)),
            key=key,
            door=Door(config.listen, "free"),
        )

    async def examine(self) -> Findings:
        """Look at everything, within SECONDS."""
        with trio.move_on_after(SECONDS):
            status = await trio.to_thread.run_sync(self._tools.status, abandon_on_cancel=True)
            given = [*self._config.tracker, *_trackers(status)]
            trackers = tuple(Met(a, "no answer in time") for a in dict.fromkeys(given))
            self._note(hosts=self._tools.hosts(), status=status, trackers=trackers)
            async with trio.open_nursery() as nursery:
                await self._open_door(nursery)
                await self._look_around()
                nursery.cancel_scope.cancel()
        return self.found

    def _note(self, **changes: Any) -> None:
        self.found = replace(self.found, **changes)

    # -- our door --------------------------------------------------------------------------------

    async def _open_door(self, nursery: trio.Nursery) -> None:
        """Listen where the node would, or see why not."""
        status, listen = self.found.status, self._config.listen
        if status is not None:
            at = Address.parse(status.listening) if status.listening else listen
            door = Door(at, "ours")
        else:
            try:
                bound = await nursery.start(self._network.listen, listen, {"peer": self._hear})
                door = Door(bound, "free")
            except ListenError as error:
                door = Door(listen, "shut", str(error.args[0]))
        self._note(door=door)

    async def _hear(self, link: Link) -> None:
        """Somebody is at the door: a tracker that says a nonce, or a peer, which finds nobody."""
        with trio.move_on_after(DIALBACK_SECONDS):
            self._heard.add(await link.receive())

    # -- everything at once ----------------------------------------------------------------------

    async def _look_around(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_for_mapping)
            for address in self._config.peer:
                nursery.start_soon(self._knock, "peers", "peer", address, None)
            answered = {tracker.address: trio.Event() for tracker in self.found.trackers}
            for address, event in answered.items():
                nursery.start_soon(self._visit, nursery, address, event)
            for event in answered.values():
                await event.wait()
            self._look_at_offers(nursery)

    def _look_at_offers(self, nursery: trio.Nursery) -> None:
        """What trackers offer can be looked at once they have told of it."""
        stun = (tracker.stun for tracker in self.found.trackers if tracker.stun)
        servers = tuple(dict.fromkeys([*self._config.stun, *stun]))
        self._note(servers=len(servers))
        if servers:
            nursery.start_soon(self._look_at_nat, "udp", self._tools.udp, servers)
            nursery.start_soon(self._look_at_nat, "tcp", self._tools.tcp, servers)
        for relay in (tracker.relay for tracker in self.found.trackers if tracker.relay):
            nursery.start_soon(self._knock, "relays", "relay", relay.address, relay.peer)

    async def _look_for_mapping(self) -> None:
        self._note(mapping=await self._tools.mapping(self.found.door.address))

    async def _look_at_nat(self, over: str, behave: Behave, servers: Sequence[Address]) -> None:
        """NATs are IPv4's; a machine that has no IPv4 address has none, and is asked of IPv6."""
        four = any("." in host for host in self.found.hosts)
        with contextlib.suppress(TransportError):
            self._note(**{over: await behave(servers, Address("0.0.0.0" if four else "::", 0))})

    async def _knock(
        self, field: str, service: Service, address: Address, expect: str | None
    ) -> None:
        """Whether somebody answers there, and how fast, at the better of two times."""
        try:
            times = [await self._time(service, address, expect) for _ in range(KNOCKS)]
            knock = Knock(address, min(times))
        except (TransportError, OSError) as error:
            knock = Knock(address, None, reason(error, address))
        self._note(**{field: (*getattr(self.found, field), knock)})

    async def _time(self, service: Service, address: Address, expect: str | None) -> float:
        """Seconds until a connection stands; it is closed at once. Raises LinkError, OSError."""
        asked = trio.current_time()
        with _in_time():
            link = await self._network.dial(address, service, expect)
        seconds = trio.current_time() - asked
        await link.aclose()
        return seconds

    # -- one tracker -----------------------------------------------------------------------------

    async def _visit(self, nursery: trio.Nursery, address: Address, answered: trio.Event) -> None:
        """Announce the stranger, note what is offered, be dialled back, leave."""
        try:
            with _in_time():
                link = await self._network.dial(address, "tracker")
            contact = Contact(link)
            nursery.start_soon(_listen, contact)
            try:
                seen = await self._greet(contact, address, link.peer)
                answered.set()
                await self._ask_back(contact, seen)
                await contact.ask(Leave, Bye, CONTACT_SECONDS)
            finally:
                await link.aclose()
        except (TransportError, TrackerError, OSError) as error:
            if not answered.is_set():
                self._meet(Met(address, reason(error, address)))
        finally:
            answered.set()

    async def _greet(self, contact: Contact, address: Address, peer: str) -> Address:
        """Announce twice: the first time we learn where we are seen, the second one is timed."""
        first = await contact.ask(self._announce(()), Welcome, CONTACT_SECONDS)
        announce = self._announce(self._ways_in(first.seen))
        asked, told = trio.current_time(), self._tools.wall()
        welcome = await contact.ask(announce, Welcome, CONTACT_SECONDS)
        round_trip = trio.current_time() - asked
        met = Met(
            address,
            round_trip=round_trip,
            seen=welcome.seen,
            relay=PeerAddress(peer, address) if welcome.relay else None,
            stun=Address(address.host, welcome.stun) if welcome.stun else None,
            skew=welcome.time - told - round_trip / 2 if welcome.time is not None else None,
        )
        self._meet(met)
        return welcome.seen

    def _meet(self, met: Met) -> None:
        trackers = (met if t.address == met.address else t for t in self.found.trackers)
        self._note(trackers=tuple(trackers))

    def _ways_in(self, seen: Address) -> tuple[Address, ...]:
        """What a node would announce to who sees it there."""
        if self.found.door.state != "free":
            return ()
        direct = Direct(self._config.public)
        direct.bound(self.found.door.address)
        direct.has(self.found.hosts)
        direct.saw("tracker", seen.host)
        return announced(direct.claims(0.0))

    def _announce(self, addresses: tuple[Address, ...]) -> Callable[[int], Announce]:
        self._seq += 1
        record = PeerRecord(
            swarm=self._swarm, seq=self._seq, addresses=addresses, created=self._tools.wall()
        )
        envelope = seal(self._identity, Kind.PEER_RECORD, record.to_bytes())
        return partial(Announce, envelope=envelope)

    async def _ask_back(self, contact: Contact, seen: Address) -> None:
        """Let the tracker dial the first of our addresses that it would dial at all."""
        ways = self._ways_in(seen)
        fit = next((way for way in ways if price(way.host, seen.host) is not None), None)
        if fit is not None:
            found = await self._dialled_back(contact, fit, seen)
        elif ways:
            found = DialledBack(ways[0], None, f"{ways[0]} means nothing to the tracker")
        else:
            return
        self._note(dialbacks=(*self.found.dialbacks, found))

    async def _dialled_back(self, contact: Contact, address: Address, seen: Address) -> DialledBack:
        """What came of it; a tracker that says it came must have said our nonce at the door."""
        nonce = secrets.token_bytes(NONCE_MOST)
        payment = bytes(PAYMENT if price(address.host, seen.host) else 0)
        ask = partial(DialBack, address=address, nonce=nonce, payment=payment)
        try:
            word = (await contact.ask(ask, Verdict, DIALBACK_SECONDS + CONTACT_SECONDS)).outcome
        except Refused as error:
            return DialledBack(address, None, str(error.args[0]))
        if word not in set(Outcome) or (word == Outcome.REACHABLE and nonce not in self._heard):
            return DialledBack(address, None, f"the tracker says {word}, and wasn't heard")
        return DialledBack(address, Outcome(word), Outcome(word).sentence)


def _trackers(status: NodeStatus | None) -> list[Address]:
    """Those of the running node."""
    return [Address.parse(tracker.address) for tracker in status.trackers] if status else []


async def _listen(contact: Contact) -> None:
    """Hand out answers until the end; whoever still waits is told of it."""
    with contextlib.suppress(TransportError, TrackerError):
        await contact.listen()


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """At most CONTACT_SECONDS. Raises DialError."""
    try:
        with trio.fail_after(CONTACT_SECONDS):
            yield
    except trio.TooSlowError:
        raise DialError(f"no connection in {CONTACT_SECONDS:.0f} s") from None
