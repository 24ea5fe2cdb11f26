"""Peers with a tracker client on an in-memory network, and what they were told."""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from records import peer, sealed
from trio.testing import MockClock

from lab import Lab, identity
from p2pnode.tracker.client import TrackerClient
from p2pnode.tracker.protocol import Bye, Leave, Request, Welcome, parse_request, to_bytes
from p2pnode.tracker.record import PeerRecord
from p2pnode.tracker.registry import TTL, Registry
from p2pnode.tracker.server import TrackerServer
from p2pnode.transport.address import Address
from p2pnode.transport.link import Link, Network

TRACKER = Address("10.0.0.1", 5555)
SEEN = Address("9.9.9.9", 9)


@dataclass
class Player:
    """One peer with a client: what it announced and what it was told."""

    number: int
    network: Network
    address: Address = TRACKER
    port: int = 6000
    seq: int = 0
    heard: list[str] = field(default_factory=list)
    calls: list[tuple[float, bytes]] = field(default_factory=list)
    ahead: float = 0.0
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = TrackerClient(
            self.network,
            self.address,
            swarm="main",
            peer=peer(self.number),
            rng=random.Random(self.number),
            wall=lambda: trio.current_time() + self.ahead,
            log=self.lines.append,
        )
        self.ended = trio.Event()
        self.scope = trio.CancelScope()

    def record(self) -> bytes:
        self.seq += 1
        return sealed(self.number, self.seq, port=self.port)

    def joined(self, who: str, record: PeerRecord) -> None:
        self.heard.append(f"+{who[-4:]}:{record.addresses[0].port}")

    def left(self, who: str) -> None:
        self.heard.append(f"-{who[-4:]}")

    def called(self, envelope: bytes) -> None:
        self.calls.append((trio.current_time(), envelope))

    async def run(self) -> None:
        with self.scope:
            await self.client.run(self.record, self.joined, self.left, self.called)
        self.ended.set()

    def status(self) -> str:
        return self.client.state.status

    def news(self) -> list[str]:
        """What was heard since the last call."""
        heard, self.heard = self.heard, []
        return sorted(heard)


def came(number: int, port: int = 6000) -> str:
    """How a Player notes that a peer joined or moved."""
    return f"+{peer(number)[-4:]}:{port}"


def gone(number: int) -> str:
    """How a Player notes that a peer left."""
    return f"-{peer(number)[-4:]}"


@dataclass
class Stage:
    """A network, a nursery, and a tracker that can be killed and started."""

    lab: Lab
    nursery: trio.Nursery

    def player(self, number: int) -> Player:
        player = Player(number, self.lab.network(identity(number), f"10.0.1.{number}"))
        self.nursery.start_soon(player.run)
        return player

    @asynccontextmanager
    async def tracker(
        self, registry: Registry | None = None, *, relay: bool = False, stun: int = 0
    ) -> AsyncIterator[TrackerServer]:
        """A tracker as long as the block; without a registry it is one started anew."""
        registry = registry or Registry(secrets.token_bytes(8))
        server = TrackerServer(registry, relay=relay, stun=stun, wall=trio.current_time)
        network = self.lab.network(identity(200), TRACKER.host)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, network, TRACKER)
            yield server
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def liar(self, answer: Callable[[Request], bytes | None]) -> AsyncIterator[list[Request]]:
        """A tracker that answers each question with the bytes of `answer`, or not at all."""
        questions: list[Request] = []

        async def handler(link: Link) -> None:
            while True:
                questions.append(parse_request(await link.receive()))
                data = answer(questions[-1])
                if data is not None:
                    await link.send(data)

        network = self.lab.network(identity(200), TRACKER.host)
        async with trio.open_nursery() as nursery:
            await nursery.start(network.listen, TRACKER, {"tracker": handler})
            yield questions
            nursery.cancel_scope.cancel()


def play(scene: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a scene; time passes only where everyone waits."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await scene(Stage(Lab(), nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def welcome(question: Request) -> bytes:
    """A right answer to announce and leave."""
    if isinstance(question, Leave):
        return to_bytes(Bye(question.id))
    return to_bytes(Welcome(question.id, TTL, SEEN))
