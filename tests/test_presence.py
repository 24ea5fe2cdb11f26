"""How a node is seen: what it announces where, and what it makes of its trackers' answers.

A real tracker and real clients over the in-memory network, in virtual time.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
import trio.lowlevel
from trio.testing import MockClock

from lab import Lab, identity
from p2pnode.node.config import load
from p2pnode.node.presence import LOOK_SECONDS, SIGHTS_BURST, Ears, Presence, Ways
from p2pnode.tracker.protocol import Announce, Welcome, parse_request, to_bytes
from p2pnode.tracker.record import PeerRecord, open_record
from p2pnode.tracker.registry import Registry
from p2pnode.tracker.server import TrackerServer
from p2pnode.transport.address import Address
from p2pnode.transport.link import Link
from p2pnode.transport.nat.direct import Direct
from p2pnode.transport.nat.hosts import Machine
from p2pnode.transport.nat.reach import Claim, Confidence, Reach
from p2pnode.transport.peer_address import PeerAddress

TRACKER, SECOND = Address("10.9.0.1", 5555), Address("10.9.0.2", 5555)
ANYWHERE = Address("0.0.0.0", 6001)
ALICE, BOB = identity(1).peer_id, identity(2).peer_id


@dataclass
class Neighbours:
    """The node's table of peers: who is listed where, by tracker."""

    listed: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    records: dict[tuple[str, str], PeerRecord] = field(default_factory=dict)

    def joined(self, tracker: str, peer: str, record: PeerRecord) -> None:
        self.records[tracker, peer] = record
        self.listed[tracker, peer] = tuple(map(str, record.addresses))

    def left(self, tracker: str, peer: str) -> None:
        del self.listed[tracker, peer]


class Way:
    """A way in that claims what a test says."""

    name, detail = "way", ""

    def __init__(self) -> None:
        self.claimed: tuple[Claim, ...] = ()
        self.changes = 0
        self.running = False

    def claims(self, now: float) -> tuple[Claim, ...]:
        return self.claimed

    async def run(self, *, task_status: Any) -> None:
        task_status.started()
        self.running = True
        try:
            await trio.sleep_forever()
        finally:
            self.running = False

    def changed(self) -> None:
        self.changes += 1


class Member:
    """A presence, its neighbours, and what it logged and was told."""

    def __init__(self, lab: Lab, number: int, *trackers: Address, **flags: Any) -> None:
        flags |= {"home": "/nowhere", "tracker": [str(t) for t in trackers]}
        config = load(flags, {})[0]
        self.neighbours, self.lines = Neighbours(), list[str]()
        self.wall = 1_800_000_000.0
        self.hosts = ["192.168.0.7"]
        self.network = lab.network(identity(number), f"10.0.0.{number}")
        self.way, self.direct = Way(), Direct(config.public)
        self.calls, self.gone = list[bytes](), list[set[str]]()
        self.relays: dict[str, tuple[PeerAddress, ...]] = {}
        used: list[Reach] = [self.direct, self.way] if "direct" in config.reach else [self.way]
        self.presence = Presence(
            config,
            identity(number),
            self.network,
            Ways(self.direct, used, lambda: config.relay),
            Ears(self.calls.append, self.relays.__setitem__, self.moved),
            machine=self.machine,
            clock=trio.current_time,
            wall=lambda: self.wall,
            chance=random.Random(number),
            log=lambda _level, line: self.lines.append(line),
        )

    def machine(self) -> Machine:
        """It talks from its network's host, and has others."""
        return Machine(frozenset([*self.hosts, self.network.host]), tuple(self.hosts))

    def moved(self, gone: Collection[str]) -> None:
        self.gone.append(set(gone))

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
    async def tracker(self, address: Address = TRACKER, **offers: Any) -> AsyncIterator[None]:
        """A tracker as long as the block."""
        server = TrackerServer(Registry(bytes(8)), **offers)
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
        **flags: Any,
    ) -> Member:
        member = Member(self.lab, number, *(trackers or (TRACKER,)), **flags)
        await self.nursery.start(member.run, bound)
        return member


def play(scene: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a scene in virtual time."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await scene(Stage(Lab(), nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


# ── what is announced ────────────────────────────────────────────────────────────────────────


def test_the_public_address_is_announced_alone() -> None:
    """Whoever says --public knows best."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            await stage.member(1, public="2.2.2.2:6000")
            bob = await stage.member(2)
            await trio.sleep(30)
            assert bob.sees(ALICE) == ("2.2.2.2:6000",)

    play(scene)


def test_without_one_the_address_is_guessed() -> None:
    """The host that the tracker saw and the machine's own, each with the port we listen on."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice = await stage.member(1)
            bob = await stage.member(2)
            await trio.sleep(1.5)
            assert bob.sees(ALICE) == ("10.0.0.1:6001", "192.168.0.7:6001")
            assert tuple(map(str, alice.presence.addresses())) == bob.sees(ALICE)

    play(scene)


def test_a_bound_address_is_announced_alone() -> None:
    """--listen with a host of this machine leaves nothing to guess."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            await stage.member(1, bound=Address("192.168.5.5", 6001))
            bob = await stage.member(2)
            await trio.sleep(30)
            assert bob.sees(ALICE) == ("192.168.5.5:6001",)

    play(scene)


def test_a_new_address_is_announced_at_once() -> None:
    """In another Wi-Fi the others hear in a second or two where we are now, and no longer are."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker(), stage.tracker(SECOND):
            alice = await stage.member(1, TRACKER, SECOND)
            bob = await stage.member(2, TRACKER, SECOND)
            await trio.sleep(30)
            alice.network.host = "10.7.7.7"
            alice.hosts[:] = ["172.16.3.3"]
            await trio.sleep(3 * LOOK_SECONDS)  # the trackers' sight comes a look after our own
            for tracker in (TRACKER, SECOND):
                assert bob.sees(ALICE, tracker) == ("10.7.7.7:6001", "172.16.3.3:6001")
            assert "this machine's addresses have changed: 172.16.3.3" in alice.lines

    play(scene)


def test_what_depends_on_an_address_ends_with_it() -> None:
    """Links from it are given up at once, all ways in look again, trackers are dialled anew."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice = await stage.member(1)
            await trio.sleep(10)
            (old,) = [link for link in stage.lab.links if link.dialled]
            assert (alice.gone, alice.way.changes) == ([], 0)
            alice.hosts[:] = ["192.168.0.8"]
            await trio.sleep(1.5 * LOOK_SECONDS)
            assert old in stage.lab.links  # the tracker is reached from another address
            assert (alice.gone, alice.way.changes) == ([{"192.168.0.7"}], 1)
            alice.hosts[:], alice.network.host = ["192.168.0.9"], "10.0.0.77"
            await trio.sleep(1.5 * LOOK_SECONDS)
            assert old not in stage.lab.links
            assert alice.presence.answering() == {str(TRACKER)}
            assert (alice.gone[1], alice.way.changes) == ({"192.168.0.8", "10.0.0.1"}, 2)
            alice.hosts.append("192.168.1.1")
            await trio.sleep(1.5 * LOOK_SECONDS)
            assert (alice.gone[2], alice.way.changes) == (set(), 3)

    play(scene)


def test_a_tracker_that_was_away_is_tried_at_once_in_another_network() -> None:
    """Not after the rest of a wait that began in the old one."""

    async def scene(stage: Stage) -> None:
        alice = await stage.member(1)
        await trio.sleep(300)
        async with stage.tracker():
            alice.hosts.append("192.168.9.9")
            await trio.sleep(2 * LOOK_SECONDS)
            assert alice.presence.answering() == {str(TRACKER)}

    play(scene)


def test_containers_that_come_and_go_are_no_change() -> None:
    """Addresses that aren't for others make nobody look again; a connection from one that is gone
    is still given up."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice = await stage.member(1)
            await trio.sleep(10)
            every = {"172.17.0.1"}
            alice.presence._look = lambda: Machine(
                frozenset([*alice.hosts, alice.network.host, *every]), tuple(alice.hosts)
            )
            await trio.sleep(10)
            every.clear()
            await trio.sleep(10)
            assert (alice.gone, alice.way.changes) == ([{"172.17.0.1"}], 0)

    play(scene)


def test_a_look_that_fails_changes_nothing() -> None:
    """Out of descriptors the system tells no addresses; they are still the same."""

    def out_of_descriptors() -> Machine:
        raise OSError(24, "Too many open files")

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice = await stage.member(1)
            await trio.sleep(5)
            before = alice.presence.addresses()
            alice.presence._look = out_of_descriptors
            await trio.sleep(5)
            assert (alice.presence.addresses(), alice.gone) == (before, [])

    play(scene)


def test_a_machine_without_a_way_out() -> None:
    """What isn't known isn't announced, and is as soon as it is."""

    async def scene(stage: Stage) -> None:
        alice = await stage.member(1)
        alice.hosts.clear()
        await trio.sleep(10)
        assert alice.presence.addresses() == ()
        alice.hosts.append("192.168.0.9")
        async with stage.tracker():
            bob = await stage.member(2)
            await trio.sleep(30)
            assert set(bob.sees(ALICE) or ()) == {"10.0.0.1:6001", "192.168.0.9:6001"}

    play(scene)


def test_all_ways_in_are_run_and_announced() -> None:
    """The surest first, within a second of each change; they end with the presence."""
    mapped, relay = Address("9.9.9.9", 6001), PeerAddress(BOB, Address("8.8.8.8", 6000))

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice = await stage.member(1)
            carol = await stage.member(3)
            await trio.sleep(10)
            assert alice.way.running
            assert tuple(alice.presence.ways) == (alice.direct, alice.way)
            alice.way.claimed = (
                Claim(mapped, Confidence.GIVEN),
                Claim(relay.address, Confidence.GIVEN, relay=relay.peer),
            )
            await trio.sleep(2 * LOOK_SECONDS)
            record = carol.neighbours.records[str(TRACKER), ALICE]
            assert record.addresses[0] == mapped
            assert (record.relays, record.relay) == ((relay,), False)
            alice.way.claimed = ()
            await trio.sleep(2 * LOOK_SECONDS)
            assert carol.neighbours.records[str(TRACKER), ALICE].relays == ()

    play(scene)


def test_a_way_that_is_switched_off_is_not_announced() -> None:
    """Without `direct` nobody is told of our addresses."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            await stage.member(1, reach="relay")
            bob = await stage.member(2)
            await trio.sleep(30)
            assert bob.sees(ALICE) == ()

    play(scene)


def test_who_relays_says_so() -> None:
    """As soon as it has an address; relays are told once each, and oneself is none."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice, bob = await stage.member(1, relay=True), await stage.member(2)
            twice = (Address("8.8.8.8", 6000), Address("7.7.7.7", 6000))
            alice.way.claimed = tuple(
                Claim(address, Confidence.GIVEN, relay=peer)
                for peer, address in ((BOB, twice[0]), (BOB, twice[1]), (ALICE, twice[0]))
            )
            await trio.sleep(2)
            record = bob.neighbours.records[str(TRACKER), ALICE]
            assert (record.relay, record.relays) == (True, (PeerAddress(BOB, twice[0]),))

    play(scene)


def test_the_numbers_of_records_grow() -> None:
    """However the clock is set, a record is newer than the one before."""
    alice = Member(Lab(), 1, TRACKER)
    numbers = []

    async def main() -> None:
        for wall in (1_800_000_000.0, 1_800_000_000.0, 1_000.0, 1_800_000_001.0):
            alice.wall = wall
            numbers.append(open_record(alice.presence.record(), signer=ALICE).record.seq)

    trio.run(main)
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 1_800_000_001_000


# ── what trackers say ────────────────────────────────────────────────────────────────────────


def test_two_trackers() -> None:
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


def test_an_unreachable_tracker() -> None:
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


def test_a_tracker_that_does_not_answer() -> None:
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


def test_without_a_tracker() -> None:
    """Nothing is waited for."""

    async def main() -> None:
        alice = Member(Lab(), 1)
        async with trio.open_nursery() as nursery:
            await nursery.start(alice.run, ANYWHERE)
            assert alice.presence.settled()
            assert alice.presence.listed() == 0
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_what_trackers_offer() -> None:
    """Their relays, told when they change, and their STUN servers."""

    async def scene(stage: Stage) -> None:
        place = PeerAddress(identity(99).peer_id, TRACKER)
        async with stage.tracker(relay=True, stun=3478), stage.tracker(SECOND):
            alice = await stage.member(1, TRACKER, SECOND)
            await trio.sleep(1)
            assert alice.relays == {str(TRACKER): (place,)}
            assert alice.presence.stuns() == (Address(TRACKER.host, 3478),)
        async with stage.tracker():
            await trio.sleep(20)
            assert (alice.relays, alice.presence.stuns()) == ({str(TRACKER): ()}, ())

    play(scene)


def test_calls_go_through_a_tracker_that_answers() -> None:
    """Only a tracker that answers is a courier, and it tells whom it lists."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker(SECOND):
            async with stage.tracker():
                alice = await stage.member(1, TRACKER, SECOND)
                bob = await stage.member(2, SECOND)
                await trio.sleep(2)
                first, second = alice.presence.couriers()
                assert (first.knows(BOB), second.knows(BOB)) == (False, True)
                await second.call(BOB, b"hello")
                await trio.sleep(1)  # it may be between two watches
                assert bob.calls == [b"hello"]
            await trio.sleep(1)
            assert alice.presence.couriers() == (second,)

    play(scene)


def test_a_nat_may_show_our_port() -> None:
    """Where trackers see us, with the port that we listen on, is a guess."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker(), stage.tracker(SECOND):
            alice = await stage.member(1, TRACKER, SECOND)
            assert alice.presence.guesses() == ()
            await trio.sleep(1)
            (guess,) = alice.presence.guesses()
            assert guess == Address(alice.network.host, ANYWHERE.port)

    play(scene)


def test_another_router_makes_the_ways_look_again() -> None:
    """A tracker that sees us elsewhere says that the NAT is another; who makes it up is heard a
    few times."""
    hosts = (f"9.9.9.{n}" for n in range(256))

    async def handler(link: Link) -> None:
        while True:
            question = parse_request(await link.receive())
            if isinstance(question, Announce):
                seen = Address(next(hosts), 40000)
                await link.send(to_bytes(Welcome(question.id, 1.0, seen)))

    async def scene(stage: Stage) -> None:
        network = stage.lab.network(identity(98), TRACKER.host)
        await stage.nursery.start(network.listen, TRACKER, {"tracker": handler})
        alice = await stage.member(1)
        await trio.sleep(0.5)
        assert alice.way.changes == 0  # the first sight is no change
        await trio.sleep(60)
        assert SIGHTS_BURST <= alice.way.changes <= SIGHTS_BURST + 1
        assert len(alice.presence.addresses()) <= 8

    play(scene)


# ── leaving ──────────────────────────────────────────────────────────────────────────────────


def test_leaving_is_heard_at_once() -> None:
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


def test_leaving_a_tracker_that_hangs() -> None:
    """The caller's scope ends it."""

    async def scene(stage: Stage) -> None:
        async with stage.mute_tracker():
            alice = await stage.member(1)
            await trio.sleep(1)
            with trio.move_on_after(0.8) as scope:
                await alice.presence.leave()
            assert scope.cancelled_caught

    play(scene)
