"""A tracker over the in-memory network, and peers that speak to it without a client."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import trio
from records import sealed
from trio.testing import MockClock

from lab import Lab, identity
from p2pnode.tracker.protocol import (
    Announce,
    Call,
    Events,
    Reply,
    Request,
    Watch,
    Welcome,
    parse_reply,
    to_bytes,
)
from p2pnode.tracker.registry import Registry
from p2pnode.tracker.server import TrackerServer
from p2pnode.transport.address import Address
from p2pnode.transport.link import Link

TRACKER = Address("10.0.0.1", 5555)


@dataclass
class Asker:
    """One peer's raw link to the tracker."""

    number: int
    link: Link
    ids: count[int] = field(default_factory=lambda: count(1))

    async def ask(self, request: Callable[[int], Request]) -> Reply:
        await self.link.send(to_bytes(request(next(self.ids))))
        return parse_reply(await self.link.receive())

    async def announce(self, seq: int = 1, *, swarm: str = "main", port: int = 6000) -> Reply:
        envelope = sealed(self.number, seq, swarm=swarm, port=port)
        return await self.ask(lambda id: Announce(id, envelope))

    async def watch(self, cursor: bytes = b"") -> Events:
        reply = await self.ask(lambda id: Watch(id, cursor))
        assert isinstance(reply, Events)
        return reply

    async def call(self, callee: str, envelope: bytes = b"hello") -> Reply:
        return await self.ask(lambda id: Call(id, callee, envelope))


@dataclass
class Stage:
    """A running tracker and a network around it."""

    lab: Lab
    server: TrackerServer
    lines: list[str]
    address: Address = TRACKER

    async def peer(self, number: int, host: str | None = None) -> Asker:
        network = self.lab.network(identity(number), host or f"10.0.1.{number}")
        return Asker(number, await network.dial(TRACKER, "tracker"))

    async def member(self, number: int, host: str | None = None, swarm: str = "main") -> Asker:
        asker = await self.peer(number, host)
        assert isinstance(await asker.announce(swarm=swarm), Welcome)
        return asker

    def rejects(self) -> dict[str, int]:
        return dict(self.server.status.rejects)


@asynccontextmanager
async def tracker() -> AsyncIterator[Stage]:
    """A tracker at TRACKER that runs as long as the block."""
    lab, lines = Lab(), list[str]()
    server = TrackerServer(Registry(secrets.token_bytes(8)), log=lines.append)
    network = lab.network(identity(200), TRACKER.host)
    async with trio.open_nursery() as nursery:
        assert await nursery.start(server.serve, network, TRACKER) == TRACKER
        yield Stage(lab, server, lines)
        nursery.cancel_scope.cancel()


def play(scene: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a scene with a tracker; time passes only where everyone waits."""

    async def main() -> None:
        async with tracker() as stage:
            await scene(stage)

    trio.run(main, clock=MockClock(autojump_threshold=0))
