"""A relay in the laboratory, and peers that use it.

async with place(lab, tmp_path) as relay, fellows(lab, tmp_path, 2) as (alice, bob):
    model = alice.publish(1)
    await relay.join(alice)
    await relay.join(bob)
    await bob.until(lambda: bob.holds(model))
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from fellows import MOST, PATIENCE, Fellow, Rogue, fellows, host_of, virtual
from models import NOW

from lab import Lab, identity
from p2pnode.transport.address import Address
from p2pnode.transport.link import Network
from p2pnode.transport.network import TcpNetwork
from p2pnode.transport.outgoing import Held
from p2pnode.transport.pace import Limits
from p2pnode.transport.relay import Relay
from p2pnode.transport.session import Session
from p2pnode.transport.shelf import Shelf

# The relay's key, and the last part of its address.
NUMBER = 99


@dataclass
class Place:
    """A relay and where it stands; it serves whoever isn't in `strangers`."""

    network: Network
    folder: Path
    nursery: trio.Nursery
    space: int = 4 * MOST
    number: int = NUMBER
    strangers: set[tuple[str, str]] = field(default_factory=set)  # peer, swarm
    lines: list[str] = field(default_factory=list)
    now: float = NOW + 60
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.me = identity(self.number).peer_id

    async def start(self, host: str) -> None:
        """Open the shelf and the door; again after `stop`."""
        self.shelf = Shelf(self.folder, self.space, lambda: self.now)
        self.relay = Relay(
            self.shelf,
            admits=lambda peer, swarm: bool(swarm) and (peer, swarm) not in self.strangers,
            clock=trio.current_time,
            wall=lambda: self.now,
            chance=random.Random(self.number),
            log=lambda _level, line: self.lines.append(line),
            limits=self.limits,
        )
        self._scope = trio.CancelScope()
        self.address = await self.nursery.start(self._live, host)

    async def _live(self, host: str, *, task_status: trio.TaskStatus[Address]) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.relay.run)
                await self.network.listen(
                    Address(host, 0), {"relay": self.relay.serve}, task_status=task_status
                )

    def stop(self) -> None:
        """All at once, as when its process ends."""
        self._scope.cancel()

    async def join(self, fellow: Fellow) -> Session:
        """A peer dials the relay; when both have said hello, its session."""
        await self.dial(fellow)
        await fellow.until(lambda: self.me in fellow.exchange.relays and self.of(fellow).agreed)
        await self.until(lambda: self.relay._clients[fellow.me].session.agreed)
        return self.of(fellow)

    async def dial(self, fellow: Fellow) -> None:
        """A peer dials the relay, whatever comes of it."""
        link = await fellow.network.dial(self.address, "relay", self.me)

        async def talk() -> None:
            try:
                fellow.note_end(await fellow.exchange.serve_relay(link))
            finally:
                await link.aclose()

        fellow.nursery.start_soon(talk)

    async def rogue(self, lab: Lab, number: int, *, greets: bool = True) -> Rogue:
        """A client of the test's own making."""
        network = lab.network(identity(number), host_of(lab, number))
        made = Rogue(number, await network.dial(self.address, "relay", self.me))
        if greets:
            await made.greet()
        return made

    def of(self, fellow: Fellow) -> Session:
        """The peer's session with this relay."""
        return fellow.exchange.relays[self.me]

    def holds(self, *models: Held) -> bool:
        """Whether these lie here."""
        return all(self.shelf.find(model.id) is not None for model in models)

    @property
    def rejects(self) -> Counter[str]:
        """What clients did wrong, by reason."""
        return Counter(dict(self.relay.status.rejects))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until this is so; a relay reports to nobody, so it is looked at."""
        with trio.fail_after(PATIENCE):
            while not holds():
                await trio.sleep(0.01)


@asynccontextmanager
async def place(
    lab: Lab | None, folder: Path, *, space: int = 4 * MOST, number: int = NUMBER
) -> AsyncIterator[Place]:
    """A relay in the laboratory (or, without one, over TCP on this machine)."""
    key = identity(number)
    host = host_of(lab, number)
    network: Network = lab.network(key, host) if lab else TcpNetwork(key)
    async with trio.open_nursery() as nursery:
        made = Place(network, folder / f"relay-{number}", nursery, space, number)
        await made.start(host)
        yield made
        nursery.cancel_scope.cancel()


def leave(relay: Place, *some: Fellow) -> None:
    """These peers are gone from the relay."""
    for fellow in some:
        relay.of(fellow).close("gone")


async def store(relay: Place, author: Fellow, seq: int = 1, **fields: Any) -> Held:
    """This peer's new model lies at the relay."""
    model = author.publish(seq, **fields)
    if relay.me in author.exchange.relays:
        author.exchange.announce(model)
    else:
        await relay.join(author)
    await author.until(lambda: (relay.me, model.id) in author.stored_at)
    return model


def scene(
    folder: Path,
    check: Callable[..., Any],
    count: int,
    *,
    space: int = 4 * MOST,
    schedule: int = 0,
) -> None:
    """Run `check(lab, relay, peers…)` with so many peers in the laboratory, in virtual time."""

    async def main() -> None:
        lab = Lab()
        async with (
            place(lab, folder, space=space) as relay,
            fellows(lab, folder, count) as everyone,
        ):
            await check(lab, relay, *everyone)

    virtual(main, schedule=schedule)
