"""Punching: two that can't dial each other meet, and nobody can misuse it.

Strategy: stations in the in-memory network, in virtual time, with trackers that hand on calls after
a delay. A station's address outside is the one that it listens on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from lab import Lab, LabLink, identity
from p2pnode.node.punch_limits import CALLER, REST_FIRST
from p2pnode.node.puncher import TRIES, TURN_SECONDS, Puncher
from p2pnode.tracker.errors import Reason, Refused
from p2pnode.transport.address import Address
from p2pnode.transport.envelope import peek
from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.link import Link
from p2pnode.transport.nat.calls import Call, Step
from p2pnode.transport.nat.punch import ANSWER_SECONDS, PUNCH_SECONDS
from p2pnode.transport.nat.punching import Punched

WALL = 1_800_000_000.0
# The numbers of two keys, the lower peer ID first, and somebody else.
LOW, HIGH, EVE = *sorted((1, 2), key=lambda n: identity(n).peer_id), 3
# One try: a round trip through the tracker, the punch, and what connecting takes.
TRY_SECONDS = ANSWER_SECONDS + PUNCH_SECONDS


def host(number: int) -> str:
    """A station's."""
    return f"198.51.100.{number}"


@dataclass
class Told:
    mapped: Address


@dataclass
class Tracker:
    """Hands on calls, each a little later; `lost` are steps that it forgets."""

    stations: dict[str, Station] = field(default_factory=dict)
    delay: float = 0.1
    refuses: Reason | None = None
    absent: set[str] = field(default_factory=set)
    lost: set[Step] = field(default_factory=set)
    calls: list[tuple[float, bytes]] = field(default_factory=list)
    nursery: trio.Nursery | None = None

    def knows(self, peer: str) -> bool:
        return peer not in self.absent

    async def call(self, peer: str, envelope: bytes) -> None:
        self.calls.append((trio.current_time(), envelope))
        await trio.sleep(self.delay)
        if self.refuses is not None:
            raise Refused(self.refuses)
        assert self.nursery is not None
        self.nursery.start_soon(self._deliver, peer, envelope)
        await trio.sleep(self.delay)

    async def _deliver(self, peer: str, envelope: bytes) -> None:
        await trio.sleep(self.delay)
        if peer in self.stations and Call.from_bytes(peek(envelope).payload).step not in self.lost:
            self.stations[peer].puncher.heard(envelope)

    def steps(self, peer: str) -> list[Step]:
        """What was said to this peer."""
        calls = [Call.from_bytes(peek(envelope).payload) for _, envelope in self.calls]
        return [call.step for call in calls if call.to == peer]


class Station:
    """A node as far as punching matters."""

    def __init__(self, lab: Lab, number: int, trackers: list[Tracker]) -> None:
        self.identity, self.host = identity(number), host(number)
        self.peer = self.identity.peer_id
        self.network = lab.network(self.identity, self.host)
        self.where = Address(self.host, 6000)
        self.trackers = trackers
        self.strangers: set[str] = set()
        self.links: list[Link] = []
        self.over = trio.Event()
        self.lines: list[str] = []
        self.punched = Punched(
            lambda: [Address("192.0.2.1", 3478)],
            needed=lambda: True,
            clock=trio.current_time,
            ask=self._ask,
        )
        self.puncher = Puncher(
            self.network,
            self.identity,
            "main",
            self.punched,
            trackers=lambda: self.trackers,
            guesses=lambda: (Address("192.168.1.10", 6000), self.where),
            knows=lambda peer: peer not in self.strangers,
            on_link=self.serve,
            wall=lambda: WALL + trio.current_time(),
            log=lambda _, line: self.lines.append(line),
        )

    @asynccontextmanager
    async def _ask(self, _server: Address, _local: Address) -> AsyncIterator[Told]:
        yield Told(self.where)

    async def serve(self, link: Link) -> None:
        """A link that came in, at the listener or through another's call."""
        self.links.append(link)
        self.puncher.met(link.peer)
        await self.over.wait()

    async def start(self, nursery: trio.Nursery) -> None:
        where = await nursery.start(self.network.listen, self.where, {"peer": self.serve})
        self.punched.bound(where)
        await nursery.start(self.punched.run)
        await nursery.start(self.puncher.run)
        for tracker in self.trackers:
            tracker.stations[self.peer] = self


@dataclass
class World:
    """Two stations (more on demand), each behind a NAT of its own."""

    lab: Lab
    trackers: list[Tracker]
    nursery: trio.Nursery
    low: Station = field(init=False)
    high: Station = field(init=False)

    async def station(self, number: int) -> Station:
        self.lab.filtered_hosts.add(host(number))
        station = Station(self.lab, number, list(self.trackers))
        await station.start(self.nursery)
        return station


def living(check: Callable[[World], Awaitable[None]], trackers: int = 1) -> None:
    """Run `check(world)` in virtual time; nothing may be left of any attempt."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(Lab(), [Tracker() for _ in range(trackers)], nursery)
            for tracker in world.trackers:
                tracker.nursery = nursery
            world.low, world.high = await world.station(LOW), await world.station(HIGH)
            await trio.sleep(1)
            await check(world)
            for station in (world.low, world.high):
                assert not station.puncher._running
                assert not station.puncher._expected
                station.over.set()
            assert not world.lab.knocks
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def linked(here: Link, there: Link) -> None:
    """Both hold the two ends of one link."""
    await here.send(b"through")
    assert await there.receive() == b"through"
    assert here.dialled != there.dialled
    assert here.punched and there.punched


async def both(world: World) -> tuple[Link | None, Link | None]:
    """Both try, as nodes do that fail to dial each other: what the attempts gave."""
    got: dict[str, Link | None] = {}

    async def attempt(me: Station, other: Station) -> None:
        got[me.peer] = await me.puncher.attempt(other.peer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt, world.low, world.high)
        nursery.start_soon(attempt, world.high, world.low)
    return got[world.low.peer], got[world.high.peer]


# ── it works ─────────────────────────────────────────────────────────────────────────────────


def test_two_behind_nats_meet() -> None:
    """The lower ID calls and has the link in hand; the other one's comes through `on_link`."""

    async def check(world: World) -> None:
        here, nothing = await both(world)
        assert nothing is None
        assert isinstance(here, LabLink)
        (there,) = world.high.links
        assert (here.peer, there.peer) == (world.high.peer, world.low.peer)
        assert here.dialled
        await linked(here, there)
        assert world.trackers[0].steps(world.high.peer) == [Step.CALL, Step.GO]
        assert world.trackers[0].steps(world.low.peer) == [Step.ANSWER]

    living(check)


@pytest.mark.parametrize("delay", [0.01, 0.1, 0.5])
def test_both_connect_at_the_same_moment(delay: float) -> None:
    """Half the round trip after `go`, however long it is."""

    async def check(world: World) -> None:
        world.trackers[0].delay = delay
        began = trio.current_time()
        await both(world)
        first, second = (time for time, *_ in world.lab.punches)
        assert second - first == pytest.approx(0, abs=1e-3)
        assert first - began == pytest.approx(6 * delay, abs=1e-3)

    living(check)


def test_only_public_addresses_are_named_and_connected_to() -> None:
    """The machine's address at home is of no use outside, and nobody's business."""

    async def check(world: World) -> None:
        await both(world)
        for _, who, targets in world.lab.punches:
            assert targets == ((world.high if who == world.low.host else world.low).where,)

    living(check)


def test_the_higher_id_calls_where_the_other_doesn_t() -> None:
    """The other side may know of no trouble: after ten seconds the call comes from here."""

    async def check(world: World) -> None:
        began = trio.current_time()
        link = await world.high.puncher.attempt(world.low.peer)
        assert link is not None
        assert TURN_SECONDS <= trio.current_time() - began < TURN_SECONDS + 1
        assert not link.dialled  # who dialled is a matter of IDs, not of who called
        await linked(link, world.low.links[0])

    living(check)


def test_two_that_call_at_once_agree() -> None:
    """The lower ID's call stands, the other one drops its own and answers."""

    async def check(world: World) -> None:
        got: list[Link | None] = []

        async def high() -> None:
            got.append(await world.high.puncher.attempt(world.low.peer))

        world.trackers[0].delay = 0.3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(high)
            await trio.sleep(TURN_SECONDS + 0.1)  # its call is on the way
            here = await world.low.puncher.attempt(world.high.peer)
        assert here is not None
        assert got == [None]
        assert not world.high.lines  # its own call was no failure
        await linked(here, world.high.links[0])

    living(check)


def test_one_whose_nat_lets_us_in_finds_the_link_at_its_door() -> None:
    """We land at its listener; its own attempt ends with that."""

    async def check(world: World) -> None:
        world.lab.filtered_hosts.discard(world.high.host)
        here, nothing = await both(world)
        assert nothing is None
        assert here is not None
        await linked(here, world.high.links[0])
        assert len(world.high.links) == 1

    living(check)


def test_several_trackers_carry_one_attempt() -> None:
    """Each call comes several times and counts once; one that knows nobody does no harm."""

    async def check(world: World) -> None:
        world.trackers[1].delay = 0.7
        world.trackers[2].refuses = Reason.ABSENT
        here, _ = await both(world)
        assert here is not None
        assert len(world.high.links) == 1
        assert len(world.lab.punches) == 2

    living(check, trackers=3)


def test_a_lost_go_costs_one_try() -> None:
    """The callee waits in vain and the caller connects alone; the next try is whole."""

    async def check(world: World) -> None:
        world.trackers[0].lost = {Step.GO}

        async def found_again() -> None:
            await trio.sleep(2)
            world.trackers[0].lost = set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(found_again)
            here, _ = await both(world)
        assert here is not None
        assert len(world.trackers[0].steps(world.high.peer)) > 2

    living(check)


# ── it doesn't work ──────────────────────────────────────────────────────────────────────────


def test_nats_that_can_t_be_punched_cost_three_tries() -> None:
    """Bounded in time; then the peer is left alone for minutes, and a line says why."""

    async def check(world: World) -> None:
        with world.lab.symmetric(world.low.host):
            began = trio.current_time()
            assert await both(world) == (None, None)
            assert trio.current_time() - began < TRIES * TRY_SECONDS
            assert len(world.lab.punches) == 2 * TRIES
            for station in (world.low, world.high):
                assert ["both NATs keep it out" in line for line in station.lines] == [True]
            said = len(world.trackers[0].calls)
            assert await both(world) == (None, None)
            await trio.sleep(REST_FIRST / 2)
            assert await both(world) == (None, None)
            assert len(world.trackers[0].calls) == said
            await trio.sleep(REST_FIRST)
            await both(world)
            assert len(world.trackers[0].calls) > said

    living(check)


def test_a_peer_that_has_moved_is_tried_at_once() -> None:
    """What failed in its old network may work in the new one."""

    async def check(world: World) -> None:
        with world.lab.symmetric(world.low.host):
            await both(world)
        world.low.puncher.moved(world.high.peer)
        world.high.puncher.moved(world.low.peer)
        await trio.sleep(60)  # what it may answer a minute
        assert (await both(world))[0] is not None

    living(check)


def test_in_another_network_everybody_is_tried_again() -> None:
    """It may have been our own NAT that was in the way."""

    async def check(world: World) -> None:
        with world.lab.symmetric(world.low.host):
            await both(world)
        world.low.punched.changed()
        await trio.sleep(60)
        link = await world.low.puncher.attempt(world.high.peer)
        assert link is not None
        await linked(link, world.high.links[0])

    living(check)


def test_a_link_that_came_in_at_the_door_is_no_failure() -> None:
    """Its session may take a while to begin: no further try, no rest, no word of a hole."""

    async def check(world: World) -> None:
        with world.lab.symmetric(world.low.host):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(both, world)
                await trio.sleep(1)
                world.low.strangers.add(world.high.peer)
                world.high.strangers.add(world.low.peer)
        assert len(world.lab.punches) == 2
        assert not world.low.lines + world.high.lines

    living(check)


@pytest.mark.parametrize("reason", [Reason.ABSENT, Reason.MALFORMED, Reason.TOO_OFTEN])
def test_a_tracker_that_hands_nothing_on_costs_a_round_trip(reason: Reason) -> None:
    """The peer has no watch, or the tracker is an older one; it may be tried again soon."""

    async def check(world: World) -> None:
        world.trackers[0].refuses = reason
        began = trio.current_time()
        assert await world.low.puncher.attempt(world.high.peer) is None
        assert trio.current_time() - began < 0.5
        world.trackers[0].refuses = None
        assert await world.low.puncher.attempt(world.high.peer) is not None

    living(check)


def test_where_no_tracker_knows_the_peer_nothing_is_tried() -> None:
    """At once, on both sides."""

    async def check(world: World) -> None:
        world.trackers[0].absent = {world.low.peer, world.high.peer}
        began = trio.current_time()
        assert await both(world) == (None, None)
        assert trio.current_time() == began
        assert not world.trackers[0].calls

    living(check)


def test_a_peer_that_answers_no_calls_is_asked_once() -> None:
    """An older one, or one that has lost its tracker: a few seconds, then a rest."""

    async def check(world: World) -> None:
        world.high.strangers.add(world.low.peer)
        began = trio.current_time()
        assert await world.low.puncher.attempt(world.high.peer) is None
        assert trio.current_time() - began == pytest.approx(ANSWER_SECONDS)
        assert len(world.trackers[0].calls) == 1
        assert "doesn't answer" in world.low.lines[0]

    living(check)


def test_a_session_ends_an_attempt() -> None:
    """The peer has come in another way: nothing goes on, and nothing is left."""

    async def check(world: World) -> None:
        for after in (0.05, 0.25, 0.45, 0.65, 1.5):
            with world.lab.symmetric(world.low.host):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(both, world)
                    await trio.sleep(after)
                    world.low.puncher.met(world.high.peer)
                    world.high.puncher.met(world.low.peer)
                    with trio.fail_after(0.1):
                        while world.low.puncher._running or world.high.puncher._running:
                            await trio.sleep(0.01)
            assert not world.lab.knocks

    living(check)


@pytest.mark.parametrize("after", [0.0, 0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.601, 0.65, 1.0])
def test_cancelled_at_any_moment_nothing_is_left(after: float) -> None:
    """A node that stops, or forgets the peer, while an attempt is anywhere."""

    async def check(world: World) -> None:
        with trio.move_on_after(after):
            link = await world.low.puncher.attempt(world.high.peer)
            assert link is not None
            await link.aclose()
        await trio.sleep(TRY_SECONDS)
        for link in world.high.links:
            with pytest.raises(LinkClosed):
                await link.receive()

    living(check)


# ── what others may do ───────────────────────────────────────────────────────────────────────


def call(to: Station, addresses: tuple[Address, ...], created: float = 0.0) -> Call:
    """Eve calls somebody."""
    now = WALL + trio.current_time() + created
    return Call(
        swarm="main",
        to=to.peer,
        step=Step.CALL,
        nonce=bytes(16),
        addresses=addresses,
        created=now,
        expires=now + 20,
    )


async def lure(world: World, target: Station, addresses: tuple[Address, ...], at: float) -> None:
    """Eve calls, and says go."""
    eve, said = identity(EVE), call(target, addresses, at)
    target.puncher.heard(said.sealed(eve))
    await trio.sleep(0.5)
    go = replace(said, step=Step.GO, created=said.created + 0.1)
    target.puncher.heard(go.sealed(eve))
    await trio.sleep(PUNCH_SECONDS + 1)


def test_nobody_is_lured_into_its_own_network() -> None:
    """Private addresses, this machine's, its own door: whatever Eve names, nothing is sent."""

    async def check(world: World) -> None:
        inside = ("10.0.0.1", "192.168.1.1", "127.0.0.1", "169.254.169.254")
        named = tuple(Address(host, 80) for host in inside)
        await lure(world, world.low, named, 0.0)
        await lure(world, world.low, (world.low.where,), 5.0)
        assert not world.lab.punches

    living(check)


def test_a_stranger_that_calls_gets_no_link() -> None:
    """Eve names Bob's address: whoever is there isn't Eve."""

    async def check(world: World) -> None:
        world.lab.filtered_hosts.discard(world.high.host)
        await lure(world, world.low, (world.high.where,), 0.0)
        assert len(world.lab.punches) == 1
        assert not world.low.links + world.high.links

    living(check)


def test_a_peer_outside_of_the_swarm_is_not_answered() -> None:
    """Nor one that we are connected with."""

    async def check(world: World) -> None:
        world.low.strangers.add(identity(EVE).peer_id)
        await lure(world, world.low, (Address("203.0.113.9", 80),), 0.0)
        assert not world.lab.punches
        assert not world.trackers[0].calls

    living(check)


def test_one_that_calls_again_and_again_is_answered_seldom() -> None:
    """It makes us connect a few times, and then once in half a minute."""

    async def check(world: World) -> None:
        victim = (Address("203.0.113.9", 80),)
        for number in range(20):
            await lure(world, world.low, victim, 0.2 * number)
        lasted = trio.current_time()
        assert len(world.lab.punches) <= CALLER[1] + lasted * CALLER[0] + 1

    living(check)


def test_a_recorded_call_is_worth_nothing() -> None:
    """A tracker says again what it has heard, in any order."""

    async def check(world: World) -> None:
        here, _ = await both(world)
        assert here is not None
        await here.aclose()
        before = len(world.lab.punches), len(world.trackers[0].calls)
        for _, envelope in list(world.trackers[0].calls) * 2:
            world.low.puncher.heard(envelope)
            world.high.puncher.heard(envelope)
            await trio.sleep(PUNCH_SECONDS)
        assert (len(world.lab.punches), len(world.trackers[0].calls)) == before

    living(check)


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_whatever_a_tracker_hands_us(calls: list[bytes]) -> None:
    """Any bytes at all change nothing."""

    async def check(world: World) -> None:
        for data in calls:
            world.low.puncher.heard(data)
        await trio.sleep(1)
        assert not world.lab.punches

    living(check)


def test_a_call_that_comes_too_early_or_too_late() -> None:
    """Before the node has started answering, and after it has ended."""

    async def main() -> None:
        tracker = Tracker()
        station = Station(Lab(), LOW, [tracker])
        station.puncher.heard(call(station, (), 0.0).sealed(identity(EVE)))
        async with trio.open_nursery() as nursery:
            await nursery.start(station.puncher.run)
            nursery.cancel_scope.cancel()
        station.puncher.heard(call(station, (), 1.0).sealed(identity(EVE)))
        assert not tracker.calls
        assert not station.puncher._running

    trio.run(main, clock=MockClock(autojump_threshold=0))
