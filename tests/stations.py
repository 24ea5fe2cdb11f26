"""Nodes without models, as far as meeting each other goes: an exchange, peers, and the tests' word.

Real exchanges and sessions over the in-memory network, in virtual time; the trackers are the tests.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock

from lab import Lab, LabLink, identity
from p2pnode.node.detours import Detours
from p2pnode.node.peers import Peers
from p2pnode.tracker.record import PeerRecord
from p2pnode.transport.address import Address
from p2pnode.transport.admission import Offered
from p2pnode.transport.exchange import Exchange, Terms
from p2pnode.transport.link import Handlers, Service
from p2pnode.transport.messages import Run
from p2pnode.transport.outgoing import Held
from p2pnode.transport.parts import PartFile
from p2pnode.transport.peer_address import PeerAddress
from p2pnode.transport.session import Session

TRACKER, OTHER_TRACKER = "t1:5555", "t2:5555"
ALICE, BOB, CAROL = (identity(n).peer_id for n in (1, 2, 3))
PORT = 6000


class Shelf:
    """A library without models."""

    def newest(self, peer: str) -> int:
        return -1

    def held(self) -> Sequence[Held]:
        return ()

    def part(self, offered: Offered) -> PartFile:
        raise AssertionError("no model is fetched in these tests")

    def file(self, offered: Offered, part: Path) -> None:
        raise AssertionError("no model is fetched in these tests")


@dataclass
class Wire:
    """A host's network: notes when what was dialled; some hosts swallow all packets, or delay."""

    network: Any
    dials: list[tuple[float, Address]] = field(default_factory=list)
    holes: set[str] = field(default_factory=set)
    late: dict[str, float] = field(default_factory=dict)

    async def dial(self, address: Address, service: Service, expect: str | None = None) -> LabLink:
        self.dials.append((trio.current_time(), address))
        if address.host in self.holes:
            await trio.sleep_forever()
        await trio.sleep(self.late.get(address.host, 0))
        link: LabLink = await self.network.dial(address, service, expect)
        return link

    async def punch(self, *arguments: Any) -> Any:
        return await self.network.punch(*arguments)

    async def listen(self, address: Address, handlers: Handlers, *, task_status: Any) -> None:
        await self.network.listen(address, handlers, task_status=task_status)


@dataclass
class Helpers:
    """Relays and hole punching as peers.py sees them: what it said, and what they answer."""

    unreached: dict[str, tuple[str, ...]] = field(default_factory=dict)  # peer → its relays' IDs
    relays: dict[str, tuple[PeerAddress, ...]] = field(default_factory=dict)
    via: dict[str, PeerAddress] = field(default_factory=dict)
    hole: Callable[[], Awaitable[Any]] | None = None  # what punching gives
    punched: list[str] = field(default_factory=list)

    def detours(self) -> Detours:
        return Detours(
            self._unreached,
            self.relays.__setitem__,
            punch=self._punch,
            via=self.via.get,
        )

    def _unreached(self, peer: str, relays: tuple[PeerAddress, ...]) -> None:
        self.unreached[peer] = tuple(relay.peer for relay in relays)

    async def _punch(self, peer: str) -> Any:
        self.punched.append(peer)
        return await self.hole() if self.hole else None


class Station:
    """One node as far as peers matter; it is its exchange's observer."""

    def __init__(self, lab: Lab, number: int, nursery: trio.Nursery, schema: bytes) -> None:
        self.peer, self.address = identity(number).peer_id, Address(f"10.0.0.{number}", PORT)
        self.wire = Wire(lab.network(identity(number), self.address.host))
        self.answering = {TRACKER, OTHER_TRACKER}
        self.lines: list[str] = []
        self.helpers = Helpers()
        self._nursery, self._scope = nursery, trio.CancelScope()
        self.exchange = Exchange(
            self.peer,
            Shelf(),
            self,
            clock=trio.current_time,
            wall=trio.current_time,
            fan_out=8,
            max_peers=50,
            chance=random.Random(number),
        )
        self.exchange.agree(Terms(Run("main", "mnist", schema, 1, ()), 1000))
        self.peers = Peers(
            self.wire,
            self.exchange,
            clock=trio.current_time,
            chance=random.Random(number),
            answering=lambda: self.answering,
            log=lambda _level, line: self.lines.append(line),
            detours=self.helpers.detours(),
        )

    async def start(self) -> None:
        """Connect to others; nobody reaches us yet."""
        await self._nursery.start(self.exchange.run)
        await self._nursery.start(self.peers.run)

    async def listen(self) -> None:
        """From now on others reach us."""

        async def life(*, task_status: trio.TaskStatus[Address]) -> None:
            with self._scope:
                await self.wire.listen(
                    self.address, {"peer": self._welcome}, task_status=task_status
                )

        await self._nursery.start(life)

    async def _welcome(self, link: Any) -> None:
        await self.exchange.serve(link)

    def hang_up(self) -> None:
        """End all sessions, and be out of reach."""
        self._scope.cancel()
        for session in self.exchange.sessions.values():
            session.close("gone")

    def hear_of(
        self, other: Station, *addresses: Address, tracker: str = TRACKER, **fields: Any
    ) -> None:
        """A tracker, or another source, tells where somebody is."""
        known: dict[str, Any] = {"seq": 1, "addresses": addresses or (other.address,)}
        record = PeerRecord(swarm="main", created=0.0, **known | fields)
        self.peers.joined(tracker, other.peer, record)

    def state_of(self, other: Station) -> str | None:
        """What is known of somebody."""
        known = self.peers.known.get(other.peer)
        return known.state if known else None

    @property
    def waits(self) -> list[float]:
        """The times between dials."""
        return [later - sooner for (sooner, _), (later, _) in pairwise(self.wire.dials)]

    # -- Observer --------------------------------------------------------------------------------

    def met(self, session: Session) -> None:
        self.peers.met(session)

    def parted(self, session: Session) -> None:
        self.peers.parted(session)

    def filed(self, offered: Offered) -> None: ...

    def delivered(self, session: Session, held: Held) -> None: ...

    def rejected(self, reason: str, peer: str, detail: str) -> None: ...

    def refused(self, session: Session, reason: str, detail: str) -> None: ...

    def stores(self, session: Session) -> bool:
        return False

    def stored(self, session: Session, held: Held) -> None: ...

    def relay_met(self, session: Session) -> None: ...

    def relay_parted(self, session: Session) -> None: ...


def stage(
    check: Callable[..., Awaitable[None]],
    count: int = 2,
    schemas: Sequence[bytes] = (),
    kind: type[Station] = Station,
) -> None:
    """Run a check with so many stations, started but not listening, in virtual time."""

    async def main() -> None:
        lab = Lab()
        async with trio.open_nursery() as nursery:
            stations = [
                kind(lab, n, nursery, schemas[n - 1] if schemas else bytes(32))
                for n in range(1, count + 1)
            ]
            for station in stations:
                await station.start()
            await check(lab, *stations)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
