"""How a node is seen: what it announces where, and what it makes of its trackers' answers.

A real tracker and real clients over the in-memory network, in virtual time.
"""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from lab import Lab, identity
from p2pnode.node import presence
from p2pnode.node.config import load
from p2pnode.node.presence import ADDRESS_SECONDS, Presence
from p2pnode.tracker.record import PeerRecord, open_record
from p2pnode.tracker.registry import Registry
from p2pnode.tracker.server import TrackerServer
from p2pnode.transport.address import Address
from p2pnode.transport.link import Link

TRACKER, SECOND = Address("10.9.0.1", 5555), Address("10.9.0.2", 5555)
ANYWHERE = Address("0.0.0.0", 6001)
ALICE, BOB = identity(1).peer_id, identity(2).peer_id


@dataclass
class Neighbours:
    """The node's table of peers: who is listed where, by tracker."""

    listed: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    def joined(self, tracker: str, peer: str, record: PeerRecord) -> None:
        self.listed[tracker, peer] = tuple(map(str, record.addresses))

    def left(self, tracker: str, peer: str) -> None:
        del self.listed[tracker, peer]


class Member:
    """A presence, its neighbours, and what it logged."""

    def __init__(self, lab: Lab, number: int, *trackers: Address, public: str = "") -> None:
        flags: dict[str, Any] = {"home": "/nowhere", "tracker": [str(t) for t in trackers]}
        if public:
            flags["public"] = public
        self.neighbours, self.lines = Neighbours(), list[str]()
        self.wall = 1_800_000_000.0
        self.presence = Presence(
            load(flags, {})[0],
            identity(number),
            lab.network(identity(number), f"10.0.0.{number}"),
            clock=trio.current_time,
            wall=lambda: self.wall,
            chance=random.Random(number),
            log=lambda _level, line: self.lines.append(line),
        )

    async def run(self, bound: Address, *, task_status: trio.TaskStatus[None]) -> None:
        neighbours: Any = self.neighbours
        await self.presence.run(bound, neighbours, task_status=task_status)

    def sees(self, peer: str, tracker: Address = TRACKER) -> tuple[str, ...] | None:
        """Where a tracker says that this peer is."""
        return self.neighbours.listed.get((str(tracker), peer))


@dataclass
class Stage:
    """A network, its trackers and nodes."""

    lab: Lab
    nursery: trio.Nursery

    @asynccontextmanager
    async def tracker(self, address: Address = TRACKER) -> AsyncIterator[None]:
        """A tracker as long as the block."""
        server = TrackerServer(Registry(bytes(8)))
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, self.lab.network(identity(99), address.host), address)
            yield
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def mute_tracker(self, address: Address = TRACKER) -> AsyncIterator[None]:
        """One that accepts links and never answers."""

        async def handler(_link: Link) -> None:
            await trio.sleep_forever()

        network = self.lab.network(identity(98), address.host)
        async with trio.open_nursery() as nursery:
            await nursery.start(network.listen, address, {"tracker": handler})
            yield
            nursery.cancel_scope.cancel()

    async def member(
        self,
        number: int,
        *trackers: Address,
        bound: Address = ANYWHERE,
        public: str = "",
    ) -> Member:
        member = Member(self.lab, number, *(trackers or (TRACKER,)), public=public)
        await self.nursery.start(member.run, bound)
        return member


@pytest.fixture
def own_hosts(monkeypatch: pytest.MonkeyPatch, inline_threads: None) -> list[str | None]:
    """The machine's outgoing address, in a list so that a test can change it."""
    hosts: list[str | None] = ["192.168.0.7"]
    monkeypatch.setattr(presence, "outgoing_host", lambda _towards: hosts[-1])
    return hosts


def play(scene: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a scene in virtual time."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await scene(Stage(Lab(), nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


# ── what is announced ────────────────────────────────────────────────────────────────────────


def test_the_public_address_is_announced_alone(own_hosts: Any) -> None:
    """Whoever says --public knows best."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            await stage.member(1, public="2.2.2.2:6000")
            bob = await stage.member(2)
            await trio.sleep(30)
            assert bob.sees(ALICE) == ("2.2.2.2:6000",)

    play(scene)


def test_without_one_the_address_is_guessed(own_hosts: Any) -> None:
    """The host that the tracker saw and the machine's own, each with the port we listen on."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice = await stage.member(1)
            bob = await stage.member(2)
            await trio.sleep(1.5)
            assert bob.sees(ALICE) == ("10.0.0.1:6001", "192.168.0.7:6001")
            assert tuple(map(str, alice.presence.addresses())) == bob.sees(ALICE)

    play(scene)


def test_a_bound_address_is_announced_alone(own_hosts: Any) -> None:
    """--listen with a host of this machine leaves nothing to guess."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            await stage.member(1, bound=Address("192.168.5.5", 6001))
            bob = await stage.member(2)
            await trio.sleep(30)
            assert bob.sees(ALICE) == ("192.168.5.5:6001",)

    play(scene)


def test_a_new_address_is_announced(own_hosts: Any) -> None:
    """In another Wi-Fi the others hear within seconds where we are now, and no longer are."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker(), stage.tracker(SECOND):
            await stage.member(1, TRACKER, SECOND)
            bob = await stage.member(2, TRACKER, SECOND)
            await trio.sleep(30)
            own_hosts.append("172.16.3.3")
            await trio.sleep(ADDRESS_SECONDS + 1)
            for tracker in (TRACKER, SECOND):
                assert bob.sees(ALICE, tracker) == ("172.16.3.3:6001", "10.0.0.1:6001")

    play(scene)


def test_a_machine_without_a_way_out(own_hosts: Any) -> None:
    """What isn't known isn't announced, and is as soon as it is."""
    own_hosts.append(None)

    async def scene(stage: Stage) -> None:
        alice = await stage.member(1)
        await trio.sleep(10)
        assert alice.presence.addresses() == ()
        own_hosts.append("192.168.0.9")
        async with stage.tracker():
            bob = await stage.member(2)
            await trio.sleep(30)
            assert set(bob.sees(ALICE) or ()) == {"10.0.0.1:6001", "192.168.0.9:6001"}

    play(scene)


def test_the_numbers_of_records_grow(own_hosts: Any) -> None:
    """However the clock is set, a record is newer than the one before."""
    alice = Member(Lab(), 1, TRACKER)
    numbers = []

    async def main() -> None:
        for wall in (1_800_000_000.0, 1_800_000_000.0, 1_000.0, 1_800_000_001.0):
            alice.wall = wall
            numbers.append(open_record(alice.presence._record(), signer=ALICE).record.seq)

    trio.run(main)
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 1_800_000_001_000


# ── what trackers say ────────────────────────────────────────────────────────────────────────


def test_two_trackers(own_hosts: Any) -> None:
    """Both list us and tell of others, and each is named in what is passed on."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker(), stage.tracker(SECOND):
            alice = await stage.member(1, TRACKER, SECOND)
            bob = await stage.member(2, SECOND)
            await trio.sleep(2)
            assert alice.neighbours.listed.keys() == {(str(SECOND), BOB)}
            assert bob.sees(ALICE, SECOND)
            assert alice.presence.answering() == {str(TRACKER), str(SECOND)}
            assert alice.presence.settled()
            assert alice.presence.listed() == 1
            statuses = [(s.address, s.state, s.peers) for s in alice.presence.statuses()]
            assert statuses == [(str(TRACKER), "connected", 0), (str(SECOND), "connected", 1)]

    play(scene)


def test_an_unreachable_tracker(own_hosts: Any) -> None:
    """It is told once and asked again for ever; meanwhile nothing is to be expected of it."""

    async def scene(stage: Stage) -> None:
        alice = await stage.member(1)
        await trio.sleep(600)
        assert alice.presence.answering() == set()
        assert alice.presence.settled()
        assert len(alice.lines) == 1
        assert "refused" in alice.lines[0]
        async with stage.tracker():
            await trio.sleep(20)
            assert alice.presence.answering() == {str(TRACKER)}

    play(scene)


def test_a_tracker_that_does_not_answer(own_hosts: Any) -> None:
    """Connected but silent it leaves the question open who is there, at first."""

    async def scene(stage: Stage) -> None:
        async with stage.mute_tracker():
            alice = await stage.member(1)
            await trio.sleep(6)
            assert not alice.presence.settled()
            await trio.sleep(6)
            assert alice.presence.settled()
            assert alice.presence.answering() == set()

    play(scene)


def test_without_a_tracker(own_hosts: Any) -> None:
    """The log says that nobody will find this node; nothing else is in its way."""

    async def main() -> None:
        alice = Member(Lab(), 1)
        async with trio.open_nursery() as nursery:
            await nursery.start(alice.run, ANYWHERE)
            assert alice.presence.settled()
            assert alice.presence.listed() == 0
            assert "--tracker" in alice.lines[0]
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


# ── leaving ──────────────────────────────────────────────────────────────────────────────────


def test_leaving_is_heard_at_once(own_hosts: Any) -> None:
    """Trackers are told, so the others don't wait for a TTL; one that is away costs nothing."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice = await stage.member(1, TRACKER, SECOND)
            bob = await stage.member(2)
            await trio.sleep(5)
            assert bob.sees(ALICE)
            before = trio.current_time()
            await alice.presence.leave()
            assert trio.current_time() == before
            await trio.sleep(0.5)
            assert bob.sees(ALICE) is None

    play(scene)


def test_leaving_a_tracker_that_hangs(own_hosts: Any) -> None:
    """The caller's scope ends it."""

    async def scene(stage: Stage) -> None:
        async with stage.mute_tracker():
            alice = await stage.member(1)
            await trio.sleep(1)
            with trio.move_on_after(0.8) as scope:
                await alice.presence.leave()
            assert scope.cancelled_caught

    play(scene)


def test_a_name_server_that_hangs_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looking up the tracker's name may take a minute; stopping the node doesn't wait for it."""
    looking, enough = threading.Event(), threading.Event()

    def look(_towards: Address) -> None:
        looking.set()
        enough.wait()

    monkeypatch.setattr(presence, "outgoing_host", look)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(Member(Lab(), 1, TRACKER).run, ANYWHERE)
            await trio.to_thread.run_sync(looking.wait)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert not enough.is_set()
    enough.set()
