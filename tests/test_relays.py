"""A home relay while one is needed, and the relays of peers that we can't reach.

Real exchanges and sessions over the in-memory network, in virtual time. The relays are made up:
they say hello and hold nothing, or misbehave (relay_users.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from fellows import virtual
from relay_users import PORT, Client, Line, Relay
from relaying import place

from lab import Lab, identity
from p2pnode.node.candidates import DIALS, RETRY_MOST
from p2pnode.node.race import DIAL_SECONDS
from p2pnode.node.relay_sessions import HELLO_SECONDS
from p2pnode.node.relays import (
    HOMES,
    LET_GO_SECONDS,
    LOOK_SECONDS,
    NEARER_SECONDS,
    REFUSED_SECONDS,
    RELAY_SESSIONS,
    RelayStatus,
)
from p2pnode.transport import admission
from p2pnode.transport.address import Address
from p2pnode.transport.identity import Identity
from p2pnode.transport.nat.reach import Claim, Confidence
from p2pnode.transport.peer_address import PeerAddress

TRACKER = "tracker:5555"
SOON = 2 * LOOK_SECONDS  # by then what can be done at once is done
# Peers that we follow; nobody looks into their IDs.
XENIA, YURI, ZOE = "xenia", "yuri", "zoe"


@dataclass
class Stage:
    """One client, and as many relays as the test starts."""

    lab: Lab
    folder: Path
    nursery: trio.Nursery
    client: Client

    async def relay(self, number: int, *, far: float = 0.0) -> Relay:
        """Start a relay; so many seconds away from the client."""
        relay = Relay(self.lab, number)
        self.client.line.far[relay.host] = far
        await self.nursery.start(relay.run)
        return relay

    def offer(self, *relays: Relay) -> None:
        """The tracker offers these."""
        self.client.relays.offered(TRACKER, tuple(relay.place for relay in relays))

    def follow(self, peer: str, *relays: Relay) -> None:
        """The models of this peer lie there."""
        self.client.relays.follow(peer, tuple(relay.place for relay in relays))

    def with_us(self, *relays: Relay) -> list[bool]:
        """With which of them we have exactly one session."""
        return [relay.clients == [self.client.me] for relay in relays]


Scene = Callable[[Stage], Awaitable[None]]
Play = Callable[[Scene], None]


@pytest.fixture
def play(tmp_path: Path, inline_threads: None) -> Play:
    """Runs a scene with a client that knows its model; nothing is left of it afterwards."""

    async def whole(scene: Scene) -> None:
        lab = Lab()
        async with trio.open_nursery() as nursery:
            network = lab.network(identity(1))
            client = Client(1, network, tmp_path / "1", nursery)
            client.prepare(Line(network))
            client.agree()
            await nursery.start(client.exchange.run)
            async with trio.open_nursery() as running:
                await running.start(client.relays.run)
                await scene(Stage(lab, tmp_path, nursery, client))
                running.cancel_scope.cancel()
            assert client.relays.claims(trio.current_time()) == ()
            assert client.relays.statuses() == ()
            assert not client.exchange.relays
            await trio.sleep(1)  # the relays hear of it
            assert not lab.links
            nursery.cancel_scope.cancel()

    return lambda scene: virtual(whole, scene)


# ── our home ─────────────────────────────────────────────────────────────────────────────────


def test_the_nearest_relay_becomes_our_home(play: Play) -> None:
    """All are dialled at once, the one that answers first stays, the others are left in peace."""

    async def scene(stage: Stage) -> None:
        far, near, farther = [await stage.relay(n, far=t) for n, t in ((2, 0.3), (3, 0.1), (4, 2))]
        stage.offer(far, near, farther)
        await trio.sleep(SOON)
        client = stage.client
        assert client.relays.home == near.place
        assert stage.with_us(far, near, farther) == [False, True, False]
        assert len({began for began, _ in client.line.dials}) == 1
        claim = Claim(near.place.address, Confidence.PROVED, relay=near.place.peer)
        assert client.relays.claims(trio.current_time()) == (claim,)
        assert client.announced == [near.place]
        assert client.relays.stores(near.place.peer)
        assert not client.relays.stores(far.place.peer)

    play(scene)


def test_what_people_see(play: Play) -> None:
    """The home, measured, and how many relays more; the log tells where our models lie."""

    async def scene(stage: Stage) -> None:
        assert stage.client.relays.detail == ""
        home, other = await stage.relay(2), await stage.relay(3)
        stage.offer(home)
        await trio.sleep(SOON)
        with stage.lab.slow(0.03):
            await trio.sleep(6)
        assert stage.client.relays.detail == f"our models lie at {home.place.address} (60 ms away)"
        stage.follow(XENIA, other)
        await trio.sleep(SOON)
        assert stage.client.relays.detail.endswith(", those of others come from 1 more")
        with stage.lab.slow(0.03):
            await trio.sleep(6)
        up, away = "connected", 0.06
        assert [
            replace(s, round_trip=round(s.round_trip or 0, 6))
            for s in stage.client.relays.statuses()
        ] == [
            RelayStatus(home.place.peer, str(home.place.address), "home", up, away),
            RelayStatus(other.place.peer, str(other.place.address), "followed", up, away),
        ]
        line = f"info: our models lie at relay {home.place.address} for who can't reach us"
        assert stage.client.lines == [line]

    play(scene)


def test_nobody_offers_a_relay(play: Play) -> None:
    """Nothing happens, and nothing is said."""

    async def scene(stage: Stage) -> None:
        await trio.sleep(1000)
        assert stage.client.relays.home is None
        assert not (stage.client.line.dials or stage.client.lines or stage.client.announced)

    play(scene)


def test_nobody_needs_a_relay(play: Play) -> None:
    """A node that can be reached dials none; once it needs one, there is one at once."""

    async def scene(stage: Stage) -> None:
        stage.client.needs = False
        relay = await stage.relay(2)
        stage.offer(relay)
        await trio.sleep(1000)
        assert not stage.client.line.dials
        stage.client.needs = True
        await trio.sleep(SOON)
        assert stage.client.relays.home == relay.place

    play(scene)


def test_a_home_that_is_not_needed_is_let_go(play: Play) -> None:
    """After half a minute, not at once: a peer that was lost for a moment costs no new home."""

    async def scene(stage: Stage) -> None:
        relay, client = await stage.relay(2), stage.client
        stage.offer(relay)
        await trio.sleep(SOON)
        for _ in range(5):
            client.needs = False
            await trio.sleep(LET_GO_SECONDS - SOON)
            assert client.relays.home == relay.place
            assert not client.relays.stores(relay.place.peer)
            client.needs = True
            await trio.sleep(SOON)
            assert client.relays.stores(relay.place.peer)
        assert client.announced == [relay.place]
        client.needs = False
        await trio.sleep(LET_GO_SECONDS + SOON)
        assert client.relays.home is None
        assert client.announced == [relay.place, None]
        assert stage.with_us(relay) == [False]
        assert len(client.line.dials) == 1
        assert not [line for line in client.lines if "lost" in line]

    play(scene)


def test_a_killed_relay_is_replaced_within_seconds(play: Play) -> None:
    """The next one is our home at once; the dead one is dialled later each time, once a minute."""

    async def scene(stage: Stage) -> None:
        first, second = await stage.relay(2), await stage.relay(3, far=1)
        stage.offer(first, second)
        await trio.sleep(SOON)
        assert stage.client.relays.home == first.place
        first.scope.cancel()
        await trio.sleep(1.2)
        assert stage.client.relays.home == second.place
        assert stage.client.announced == [first.place, second.place]
        lost = f"warning: lost our relay {first.place.address}: The connection is closed."
        assert lost in stage.client.lines
        await trio.sleep(100)
        assert stage.client.relays.home == second.place

    play(scene)


def test_a_dead_relay_is_tried_again_later_each_time(play: Play) -> None:
    """Where there is no other; the waits grow to a minute, and the log says it once."""

    async def scene(stage: Stage) -> None:
        relay = await stage.relay(2)
        stage.offer(relay)
        await trio.sleep(SOON)
        with stage.lab.cut(relay.host):
            await trio.sleep(600)
            times = [began for began, _ in stage.client.line.dials]
            waits = [later - earlier for earlier, later in pairwise(times[1:])]
            assert 10 < len(waits) < 30
            assert waits[0] < 3
            assert max(waits) < RETRY_MOST + 2 * LOOK_SECONDS
            assert sum(waits[-3:]) > 3 * RETRY_MOST / 2
            said = [line for line in stage.client.lines if "no relay answers" in line]
            assert len(said) == 1
            assert "connection refused" in said[0]
            assert stage.client.announced == [relay.place, None]
        await trio.sleep(RETRY_MOST + SOON)
        assert stage.client.relays.home == relay.place

    play(scene)


def test_a_changed_network_ends_all_waits(play: Play) -> None:
    """What failed in the network before is tried at once."""

    async def scene(stage: Stage) -> None:
        relay = await stage.relay(2)
        with stage.lab.cut(relay.host):
            stage.offer(relay)
            await trio.sleep(600)
        before = len(stage.client.line.dials)
        stage.client.relays.changed()
        await trio.sleep(0.1)
        assert len(stage.client.line.dials) == before + 1
        await trio.sleep(LOOK_SECONDS)
        assert stage.client.relays.home == relay.place

    play(scene)


def test_a_relay_that_flaps(play: Play) -> None:
    """One that hangs up after three seconds each time isn't dialled more often than a dead one."""

    async def scene(stage: Stage) -> None:
        relay = await stage.relay(2)
        relay.patience = 3.0
        stage.offer(relay)
        await trio.sleep(600)
        assert len(stage.client.line.dials) < 30
        relay.patience = 20.0  # longer than that is good service: it is dialled again at once
        await trio.sleep(RETRY_MOST + 25)
        before = len(stage.client.line.dials)
        await trio.sleep(230)
        assert len(stage.client.line.dials) - before >= 10

    play(scene)


def test_a_clearly_nearer_relay_takes_over(play: Play) -> None:
    """Looked for every five minutes; the old one serves half a minute longer, for those who
    follow us, and our models go to the new one alone."""

    async def scene(stage: Stage) -> None:
        old, near = await stage.relay(2, far=1.0), await stage.relay(3, far=0.5)
        stage.offer(old)
        await trio.sleep(SOON)
        stage.offer(old, near)
        await trio.sleep(NEARER_SECONDS / 2)
        assert stage.client.relays.home == old.place
        await trio.sleep(NEARER_SECONDS / 2 + SOON)
        assert stage.client.relays.home == near.place
        assert stage.with_us(old, near) == [True, True]
        assert [stage.client.relays.stores(r.place.peer) for r in (old, near)] == [False, True]
        await trio.sleep(LET_GO_SECONDS)
        assert stage.with_us(old, near) == [False, True]
        assert stage.client.announced == [old.place, near.place]

    play(scene)


def test_a_little_nearer_is_not_enough(play: Play) -> None:
    """The one that is there stays; what was looked at is hung up on, and no failure is noted."""

    async def scene(stage: Stage) -> None:
        old, near = await stage.relay(2, far=1.0), await stage.relay(3, far=0.8)
        stage.offer(old)
        await trio.sleep(SOON)
        stage.offer(old, near)
        await trio.sleep(5 * NEARER_SECONDS + 10)
        assert stage.client.relays.home == old.place
        assert stage.client.announced == [old.place]
        assert stage.client.dialled == [old.host] + 5 * [near.host]
        assert stage.with_us(old, near) == [True, False]

    play(scene)


def test_an_offer_that_is_taken_back(play: Play) -> None:
    """As long as the relay serves us it is our home; once it is gone it isn't dialled again."""

    async def scene(stage: Stage) -> None:
        relay = await stage.relay(2)
        stage.offer(relay)
        await trio.sleep(SOON)
        stage.offer()
        await trio.sleep(NEARER_SECONDS + SOON)
        assert stage.client.relays.home == relay.place
        relay.scope.cancel()
        await trio.sleep(SOON)
        assert stage.client.relays.home is None
        assert len(stage.client.line.dials) == 1

    play(scene)


def test_leaving(play: Play) -> None:
    """All sessions are closed at once, none is called lost, and none is made anew."""

    async def scene(stage: Stage) -> None:
        home, other = await stage.relay(2), await stage.relay(3)
        stage.offer(home, other)
        stage.follow(XENIA, home)
        stage.follow(YURI, other)
        await trio.sleep(SOON)
        stage.client.relays.leave()
        await trio.sleep(60)
        assert stage.with_us(home, other) == [False, False]
        assert not [line for line in stage.client.lines if "lost" in line]
        assert stage.client.relays.home is None

    play(scene)


# ── bad relays ───────────────────────────────────────────────────────────────────────────────


def test_somebody_else_answers(play: Play) -> None:
    """Who has another peer ID, or offers no relay, isn't spoken to; the right one is found."""

    async def scene(stage: Stage) -> None:
        impostor, right = await stage.relay(2), await stage.relay(3, far=0.5)
        claimed = PeerAddress(identity(4).peer_id, impostor.place.address)
        stage.client.relays.offered(TRACKER, (claimed, right.place))
        await trio.sleep(SOON)
        assert stage.client.relays.home == right.place
        assert impostor.clients == []

    play(scene)


def test_a_relay_that_says_nothing(play: Play) -> None:
    """It answers first and then is silent: after five seconds it counts as failed, and the next
    one is our home; it never was."""

    async def scene(stage: Stage) -> None:
        mute, right = await stage.relay(2), await stage.relay(3, far=0.5)
        mute.mute = True
        stage.offer(mute, right)
        await trio.sleep(HELLO_SECONDS)
        assert stage.client.relays.home is None
        assert [s.state for s in stage.client.relays.statuses()] == ["connecting"]
        await trio.sleep(SOON)
        assert stage.client.relays.home == right.place
        assert stage.client.announced == [right.place]
        await trio.sleep(1000)
        assert stage.with_us(mute, right) == [False, True]

    play(scene)


def test_a_relay_that_does_not_want_us(play: Play) -> None:
    """One that greets and then says why it won't serve us is never our home; another one is."""

    async def scene(stage: Stage) -> None:
        async with place(stage.lab, stage.folder) as closed:
            closed.strangers.add((stage.client.me, "main"))
            there = PeerAddress(closed.me, closed.address)
            right = await stage.relay(2, far=0.5)
            stage.client.relays.offered(TRACKER, (there, right.place))
            await trio.sleep(5)
            assert stage.client.relays.home == right.place
            assert stage.client.announced == [right.place]
            assert [line for line in stage.client.lines if "it serves members only" in line]

    play(scene)


def test_relays_that_swallow_everything(play: Play) -> None:
    """A filtered address is given up after five seconds; one that answers doesn't wait for it."""

    async def scene(stage: Stage) -> None:
        hole, right = await stage.relay(2), await stage.relay(3, far=1.5)
        with stage.lab.filtered(hole.host):
            stage.offer(hole)
            await trio.sleep(DIAL_SECONDS + LOOK_SECONDS + 0.1)
            said = f"no relay answers: {hole.place.address}: no answer in {DIAL_SECONDS:.0f} s"
            assert [line for line in stage.client.lines if said in line]
            stage.offer(hole, right)
            await trio.sleep(10)
            assert stage.client.relays.home == right.place

    play(scene)


def test_thousands_of_hostile_candidates(play: Play) -> None:
    """Ours isn't crowded out, and few are dialled at once; with our own ID nobody gets a dial."""

    async def scene(stage: Stage) -> None:
        relays, lab = stage.client.relays, stage.lab
        for number in range(3000):
            peer = Identity.from_seed(number.to_bytes(32, "big")).peer_id
            relays.offered(peer, (PeerAddress(peer, Address(f"10.9.0.{number % 200}", PORT)),))
        relays.offered(stage.client.me, (PeerAddress(stage.client.me, Address("10.9.1.1", PORT)),))
        lab.filtered_hosts |= {f"10.9.0.{number}" for number in range(0, 200, 2)}
        await trio.sleep(60)
        assert relays.home is None
        assert len(stage.client.line.dials) <= 60 * DIALS
        ours = await stage.relay(2)
        stage.offer(ours)
        await trio.sleep(DIAL_SECONDS + SOON)
        assert relays.home == ours.place
        assert "10.9.1.1" not in stage.client.dialled

    play(scene)


# ── those of others ──────────────────────────────────────────────────────────────────────────


def test_peers_at_three_relays(play: Play) -> None:
    """A session with each of their relays, one for all that lie there; also without a home."""

    async def scene(stage: Stage) -> None:
        one, two, three = [await stage.relay(n) for n in (2, 3, 4)]
        stage.client.needs = False
        stage.follow(XENIA, one)
        stage.follow(YURI, two, one)
        stage.follow(ZOE, three)
        stage.follow("wanda", three)
        await trio.sleep(SOON)
        relays = stage.client.relays
        assert [relays.via(p) for p in (XENIA, YURI, ZOE)] == [one.place, one.place, three.place]
        assert relays.via("wanda") == three.place
        assert relays.via("unknown") is None
        assert stage.with_us(one, two, three) == [True, False, True]
        assert relays.home is None
        assert not stage.client.announced
        assert {status.role for status in relays.statuses()} == {"followed"}

    play(scene)


def test_the_next_relay_of_a_followed_peer(play: Play) -> None:
    """When one is lost, the peer's models come from its other one; if that is all, as it comes
    back."""

    async def scene(stage: Stage) -> None:
        one, two = await stage.relay(2), await stage.relay(3)
        stage.follow(XENIA, one, two)
        await trio.sleep(SOON)
        assert stage.client.relays.via(XENIA) == one.place
        with stage.lab.cut(one.host):
            await trio.sleep(SOON)
            assert stage.client.relays.via(XENIA) == two.place
            stage.follow(XENIA, one)
            await trio.sleep(100)
            assert stage.client.relays.via(XENIA) is None
        await trio.sleep(RETRY_MOST + SOON)
        assert stage.client.relays.via(XENIA) == one.place

    play(scene)


def test_our_home_serves_those_that_lie_there(play: Play) -> None:
    """A followed peer with the same home needs no second session, whichever came first."""

    async def scene(stage: Stage) -> None:
        relay = await stage.relay(2)
        stage.offer(relay)
        await trio.sleep(SOON)
        stage.follow(XENIA, relay)
        await trio.sleep(SOON)
        assert stage.client.relays.via(XENIA) == relay.place
        stage.client.needs = False
        await trio.sleep(LET_GO_SECONDS + SOON)
        assert stage.with_us(relay) == [True]
        assert len(stage.client.line.dials) == 1

    play(scene)


def test_a_followed_relay_may_become_our_home(play: Play) -> None:
    """What we have already isn't dialled anew, if it is offered and none is clearly nearer."""

    async def scene(stage: Stage) -> None:
        stage.client.needs = False
        here, other, foreign = [await stage.relay(n, far=0.5) for n in (2, 3, 4)]
        stage.client.line.far[other.host] = 0.4
        stage.follow(XENIA, here)
        stage.follow(YURI, foreign)
        await trio.sleep(SOON)
        stage.offer(here, other)
        stage.client.needs = True
        await trio.sleep(SOON)
        assert stage.client.relays.home == here.place
        assert stage.with_us(here, other, foreign) == [True, False, True]

    play(scene)


def test_a_followed_peer_that_we_can_reach_again(play: Play) -> None:
    """Its relay is let go after half a minute, not at once."""

    async def scene(stage: Stage) -> None:
        relay = await stage.relay(2)
        for _ in range(3):
            stage.follow(XENIA, relay)
            await trio.sleep(LET_GO_SECONDS)
            stage.follow(XENIA)
            assert stage.client.relays.via(XENIA) is None
            await trio.sleep(LET_GO_SECONDS - SOON)
            assert stage.with_us(relay) == [True]
        await trio.sleep(2 * SOON)
        assert stage.with_us(relay) == [False]
        assert len(stage.client.line.dials) == 1

    play(scene)


def test_relays_are_few(play: Play) -> None:
    """However many relays peers name, so many sessions there are at most; our home has its own."""

    async def scene(stage: Stage) -> None:
        relays = [await stage.relay(number) for number in range(2, 30)]
        for relay in relays[1:]:
            stage.follow(f"peer at {relay.host}", relay)
        await trio.sleep(SOON)
        stage.offer(relays[0])
        await trio.sleep(SOON)
        assert stage.client.relays.home == relays[0].place
        assert sum(stage.with_us(*relays[1:])) == RELAY_SESSIONS - HOMES
        await trio.sleep(100)
        assert sum(stage.with_us(*relays)) <= RELAY_SESSIONS

    play(scene)


def test_the_model_is_not_built_yet(tmp_path: Path, inline_threads: None) -> None:
    """A home is found meanwhile: relays say hello at once, we when we know what we train."""

    async def main() -> None:
        lab = Lab()
        async with trio.open_nursery() as nursery:
            network = lab.network(identity(1))
            client = Client(1, network, tmp_path / "1", nursery)
            client.prepare(Line(network))
            stage = Stage(lab, tmp_path, nursery, client)
            await nursery.start(client.relays.run)
            relay = await stage.relay(2)
            stage.offer(relay)
            await trio.sleep(100)
            assert client.relays.home == relay.place
            assert client.relays_met == []
            client.agree()
            await trio.sleep(SOON)
            assert client.relays_met == [relay.place.peer]
            nursery.cancel_scope.cancel()

    virtual(main)


def test_models_go_on_when_a_relay_is_killed(tmp_path: Path, inline_threads: None) -> None:
    """Real relays, and two members that don't reach each other: seconds after the end of one relay
    new models come through the other, and a member is told where the models of the other lie."""

    async def main() -> None:
        lab = Lab()
        async with (
            place(lab, tmp_path) as first,
            place(lab, tmp_path, number=98) as second,
            trio.open_nursery() as nursery,
        ):
            alice, bob = [await member(lab, tmp_path, number, nursery) for number in (1, 2)]
            alice.tells(bob)
            places = [PeerAddress(relay.me, relay.address) for relay in (first, second)]
            for each in (alice, bob):
                each.relays.offered(TRACKER, (places[0],))
            model = alice.publish(1)
            await bob.until(lambda: bob.holds(model))
            assert alice.relays.home == bob.relays.via(alice.me) == places[0]
            for each in (alice, bob):
                each.relays.offered(TRACKER, tuple(places))
            first.stop()
            killed = trio.current_time()
            model = alice.publish(2)
            await bob.until(lambda: bob.holds(model))
            assert trio.current_time() - killed < 3
            assert alice.relays.home == places[1]
            await trio.sleep(SOON)
            assert bob.relays.via(alice.me) == places[1]
            nursery.cancel_scope.cancel()

    virtual(main)


async def member(lab: Lab, folder: Path, number: int, nursery: trio.Nursery) -> Client:
    """A running client."""
    network = lab.network(identity(number), f"10.0.0.{number}")
    client = Client(number, network, folder / str(number), nursery)
    client.prepare(Line(network))
    client.agree()
    await nursery.start(client.exchange.run)
    await nursery.start(client.relays.run)
    return client


def test_our_model_follows_us_home(play: Play) -> None:
    """It is offered to our home when that has become one, not to relays that we only follow."""

    async def scene(stage: Stage) -> None:
        home, other = await stage.relay(2), await stage.relay(3)
        stage.client.publish(1)
        stage.follow(XENIA, other)
        stage.offer(home)
        await trio.sleep(SOON)
        offered = stage.client.exchange._relayed._stored
        assert [session.peer for session in offered] == [home.place.peer]

    play(scene)


def test_a_relay_that_is_full(play: Play) -> None:
    """Our model lies at another one, however far; the near one is a home again once it has room."""

    async def scene(stage: Stage) -> None:
        near, far = await stage.relay(2, far=0.1), await stage.relay(3, far=1)
        near.refuses = admission.DISK
        stage.offer(near)
        client = stage.client
        client.publish(1)
        await trio.sleep(10)
        assert client.relays.home == near.place  # there is no other
        assert stage.with_us(near) == [True]
        stage.offer(near, far)
        await trio.sleep(SOON)
        assert client.relays.home == far.place
        assert client.stored_at == [(far.place.peer, client.exchange.own()[0].id)]
        await trio.sleep(LET_GO_SECONDS + SOON)
        assert stage.with_us(near, far) == [False, True]
        near.refuses = ""
        await trio.sleep(NEARER_SECONDS)
        assert client.relays.home == near.place
        assert client.stored_at[-1][0] == near.place.peer
        assert client.announced == [near.place, far.place, near.place]

    play(scene)


def test_all_relays_are_full(play: Play) -> None:
    """One of them stays our home, where others' models come from, and none is dialled for ever."""

    async def scene(stage: Stage) -> None:
        relays = [await stage.relay(n) for n in (2, 3)]
        for relay in relays:
            relay.refuses = admission.DISK
        stage.client.publish(1)
        stage.offer(*relays)
        await trio.sleep(10)
        assert stage.client.relays.home in [relay.place for relay in relays]
        await trio.sleep(2 * REFUSED_SECONDS)
        assert len(stage.client.dialled) < 10
        assert len(stage.client.announced) < 5
        relays[0].refuses = relays[1].refuses = ""
        stage.client.publish(2)
        stage.client.exchange.store()
        await trio.sleep(SOON)
        assert len(stage.client.stored_at) == 1

    play(scene)


def test_a_full_relay_that_restarts(play: Play) -> None:
    """Where there is no other, it is asked again as soon as it is back: it may have room now."""

    async def scene(stage: Stage) -> None:
        relay = await stage.relay(2)
        relay.refuses = admission.DISK
        stage.client.publish(1)
        stage.offer(relay)
        await trio.sleep(SOON)
        assert relay.offered
        relay.scope.cancel()
        await trio.sleep(1)
        await stage.relay(2)
        await trio.sleep(3 * SOON)
        assert [where for where, _ in stage.client.stored_at] == [relay.place.peer]

    play(scene)


def test_a_refusal_that_says_nothing_of_the_relay(play: Play) -> None:
    """A newer model is on its way there, or there are too many: it stays our home."""

    async def scene(stage: Stage) -> None:
        near, far = await stage.relay(2), await stage.relay(3, far=1)
        near.refuses = admission.STALE
        stage.client.publish(1)
        stage.offer(near, far)
        await trio.sleep(10)
        assert near.offered and stage.client.relays.home == near.place
        assert stage.client.announced == [near.place]

    play(scene)
