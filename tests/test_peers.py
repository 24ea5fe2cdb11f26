"""Peers come and go: a session with each while it is there, and no storm when it isn't."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from stations import (
    ALICE,
    BOB,
    CAROL,
    OTHER_TRACKER,
    PORT,
    TRACKER,
    Station,
    stage,
)

from lab import Lab, identity
from p2pnode.node import peers as module
from p2pnode.node.listings import LAN, member
from p2pnode.node.peers import (
    DETOUR_SECONDS,
    FORGET_SECONDS,
    NEWS_BURST,
    RETRY_FIRST,
    RETRY_MOST,
    STEADY_SECONDS,
    UNCONNECTED_SECONDS,
)
from p2pnode.node.race import DIAL_SECONDS, STAGGER_SECONDS
from p2pnode.tracker.record import PeerRecord
from p2pnode.transport.address import Address
from p2pnode.transport.peer_address import PeerAddress

# ── connecting ───────────────────────────────────────────────────────────────────────────────


def test_dials_until_somebody_is_there() -> None:
    """Each wait is about twice the one before, up to half a minute; then a session is in use."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        alice.hear_of(bob)
        await trio.sleep(180)
        assert alice.state_of(bob) == "connecting"
        most = 2 * RETRY_FIRST
        for wait in alice.waits:
            assert most / 2 <= wait <= most
            most = min(2 * most, RETRY_MOST)
        assert len(alice.waits) >= 8
        await bob.listen()
        await trio.sleep(RETRY_MOST + 1)
        assert alice.state_of(bob) == bob.state_of(alice) == "connected"
        assert alice.peers.known[BOB].path == f"direct {bob.address}"

    stage(check)


def test_news_of_a_peer_end_the_wait() -> None:
    """A peer that moved is dialled at its new address at once."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        alice.hear_of(bob, Address("10.0.0.99", PORT))
        await trio.sleep(100)
        await bob.listen()
        alice.hear_of(bob)
        await trio.sleep(0.1)
        assert alice.state_of(bob) == "connected"

    stage(check)


def test_the_first_address_that_answers_counts() -> None:
    """Refused, silent and foreign addresses hold up the right one for half a second at most."""

    async def check(_lab: Lab, alice: Station, bob: Station, carol: Station) -> None:
        await bob.listen()
        await carol.listen()
        hole = Address("10.0.0.98", PORT)
        alice.wire.holes.add(hole.host)
        alice.hear_of(bob, Address("10.0.0.97", PORT), hole, carol.address, bob.address)
        await trio.sleep(STAGGER_SECONDS - 0.1)
        assert alice.state_of(bob) == "connecting"
        await trio.sleep(0.2)
        assert alice.state_of(bob) == "connected"
        assert not alice.lines

    stage(check, 3)


def test_two_addresses_answer_at_once() -> None:
    """A slow one that answers beside a quick one: one link is used, nothing stays open."""

    async def check(lab: Lab, alice: Station, bob: Station) -> None:
        await bob.listen()
        slow = Address("10.0.0.98", PORT)
        lab.listeners[slow] = lab.listeners[bob.address]
        alice.wire.late[slow.host] = STAGGER_SECONDS
        alice.hear_of(bob, slow, bob.address)
        await trio.sleep(30)
        assert alice.state_of(bob) == bob.state_of(alice) == "connected"
        assert len(lab.links) == 2  # the two ends

    stage(check)


def test_a_peer_that_comes_while_we_dial_it() -> None:
    """Its other addresses aren't dialled then, and nothing is said of those that didn't answer."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        await alice.listen()
        holes = [Address(f"10.0.0.{n}", PORT) for n in (97, 98, 99)]
        alice.wire.holes |= {hole.host for hole in holes}
        alice.hear_of(bob, *holes)
        bob.hear_of(alice)
        await trio.sleep(2 * DIAL_SECONDS)
        assert alice.state_of(bob) == "connected"
        assert [address for _, address in alice.wire.dials] == holes[:1]
        assert not [line for line in alice.lines if "can't reach" in line]

    stage(check)


def test_why_a_peer_cannot_be_reached_is_said_once() -> None:
    """The log has one line for a peer that stays away, and another when the reason changes."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        alice.hear_of(bob)
        await trio.sleep(300)
        assert len(alice.lines) == 1
        assert "10.0.0.2:6000: connection refused" in alice.lines[0]
        alice.wire.holes.add(bob.address.host)
        await trio.sleep(300)
        assert len(alice.lines) == 2
        assert "no answer in 5 s" in alice.lines[1]

    stage(check)


def test_both_dial_at_once() -> None:
    """Two peers that hear of each other at the same moment have one session, over one link."""

    async def check(lab: Lab, alice: Station, bob: Station) -> None:
        await alice.listen()
        await bob.listen()
        alice.hear_of(bob)
        bob.hear_of(alice)
        await trio.sleep(30)
        assert alice.state_of(bob) == bob.state_of(alice) == "connected"
        assert (len(alice.exchange.sessions), len(bob.exchange.sessions)) == (1, 1)
        assert len(lab.links) == 2  # the two ends
        assert not [line for line in alice.lines + bob.lines if "lost" in line]

    stage(check)


def test_our_own_record_is_not_dialled() -> None:
    """A tracker that lists us to ourselves changes nothing."""

    async def check(_lab: Lab, alice: Station) -> None:
        await alice.listen()
        alice.hear_of(alice)
        await trio.sleep(60)
        assert not alice.peers.known
        assert not alice.wire.dials

    stage(check, 1)


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker that makes up peers fills the table and no more; who leaves makes room."""
    monkeypatch.setattr(module, "KNOWN_LIMIT", 5)

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        record = PeerRecord(swarm="main", seq=1, addresses=(), created=0.0)
        made_up = [identity(n).peer_id for n in range(10, 20)]
        for peer in made_up:
            alice.peers.joined(TRACKER, peer, record)
        await bob.listen()
        await trio.sleep(10)
        assert list(alice.peers.known) == made_up[:5]
        assert alice.state_of(bob) is None
        alice.peers.left(TRACKER, made_up[0])
        alice.hear_of(bob)
        await trio.sleep(10)
        assert alice.state_of(bob) == "connected"

    stage(check)


# ── losing ───────────────────────────────────────────────────────────────────────────────────


async def connect(alice: Station, bob: Station) -> None:
    """Alice has dialled Bob, and it has held for a while."""
    await bob.listen()
    alice.hear_of(bob)
    await trio.sleep(STEADY_SECONDS + 5)
    assert alice.state_of(bob) == "connected"


def test_a_lost_peer_is_dialled_again() -> None:
    """Soon at first, later each time, and it is a session again after the outage."""

    async def check(lab: Lab, alice: Station, bob: Station) -> None:
        await connect(alice, bob)
        with lab.cut(bob.address.host):
            lost = trio.current_time()
            await trio.sleep(50)
            assert alice.state_of(bob) == "lost"
            first, *_ = [when for when, _ in alice.wire.dials if when > lost]
            assert first - lost <= RETRY_FIRST
            assert alice.waits[1:] == sorted(alice.waits[1:])
            assert "lost" in alice.lines[0]
        await trio.sleep(RETRY_MOST)
        assert alice.state_of(bob) == "connected"

    stage(check)


def test_a_peer_that_comes_by_itself_is_not_dialled() -> None:
    """Whoever dialled, one session is enough; when it is lost, we dial."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        await connect(alice, bob)
        bob.hear_of(alice)
        await trio.sleep(60)
        assert not bob.wire.dials
        bob.exchange.sessions[ALICE].close("for the test")
        await trio.sleep(5)
        assert bob.wire.dials

    stage(check)


def test_nobody_is_dialled_without_room() -> None:
    """In a large swarm a full node doesn't knock at every door; with room again, it does."""

    async def check(_lab: Lab, alice: Station, bob: Station, carol: Station) -> None:
        alice.exchange._max_peers = 1
        await connect(alice, bob)
        await carol.listen()
        alice.hear_of(carol)
        await trio.sleep(100)
        assert {address for _, address in alice.wire.dials} == {bob.address}
        bob.hang_up()
        await trio.sleep(RETRY_MOST + 1)
        assert alice.state_of(carol) == "connected"

    stage(check, 3)


def test_peers_of_different_runs_do_not_dial_in_a_loop() -> None:
    """Each try is a session that ends at once; the waits grow all the same, on both sides."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        for one, other in [(alice, bob), (bob, alice)]:
            await one.listen()
            one.hear_of(other)
        await trio.sleep(600)
        assert len(alice.wire.dials) + len(bob.wire.dials) < 2 * 60
        assert max(alice.waits[-3:]) > RETRY_MOST / 4

    stage(check, schemas=[bytes(32), b"\1" * 32])


@contextmanager
def trackers_down(station: Station) -> Iterator[None]:
    """No tracker answers."""
    before, station.answering = station.answering, set()
    try:
        yield
    finally:
        station.answering = before


def test_a_peer_that_left_is_forgotten() -> None:
    """One that isn't connected at once, one that is when its session ends; no task stays."""

    async def check(_lab: Lab, alice: Station, bob: Station, carol: Station) -> None:
        await connect(alice, bob)
        alice.hear_of(carol)
        alice.peers.left(TRACKER, CAROL)
        alice.peers.left(TRACKER, BOB)
        assert alice.state_of(carol) is None
        await trio.sleep(300)
        assert alice.state_of(bob) == "connected"
        bob.hang_up()
        await trio.sleep(1)
        assert not alice.peers.known
        dials = len(alice.wire.dials)
        await trio.sleep(300)
        assert len(alice.wire.dials) == dials

    stage(check, 3)


def test_a_peer_is_known_as_long_as_one_tracker_lists_it() -> None:
    """Of two trackers the last one's word counts."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        alice.hear_of(bob)
        alice.hear_of(bob, tracker=OTHER_TRACKER)
        alice.peers.left(TRACKER, BOB)
        await trio.sleep(300)
        assert alice.state_of(bob) == "connecting"
        alice.peers.left(OTHER_TRACKER, BOB)
        assert alice.state_of(bob) is None

    stage(check)


def test_a_peer_that_no_tracker_lists() -> None:
    """One that only came to us is forgotten with its session."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        await connect(alice, bob)
        assert bob.state_of(alice) == "connected"
        alice.exchange.sessions[BOB].close("for the test")
        await trio.sleep(0.1)
        assert bob.state_of(alice) is None

    stage(check)


def test_the_trackers_are_down() -> None:
    """Connected peers stay; who can't be reached is forgotten after a minute, by our own clock."""

    async def check(_lab: Lab, alice: Station, bob: Station, carol: Station) -> None:
        await connect(alice, bob)
        alice.hear_of(carol)
        await trio.sleep(600)
        assert alice.state_of(carol) == "connecting"
        with trackers_down(alice):
            await trio.sleep(FORGET_SECONDS - 2)
            assert alice.state_of(carol) == "connecting"
            await trio.sleep(4)
            assert alice.state_of(carol) is None
            await trio.sleep(3600)
            assert alice.state_of(bob) == "connected"

    stage(check, 3)


def test_a_peer_that_dies_while_the_trackers_are_down() -> None:
    """It is dialled for a minute, then forgotten."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        await connect(alice, bob)
        with trackers_down(alice):
            bob.hang_up()
            await trio.sleep(FORGET_SECONDS - 2)
            assert alice.state_of(bob) == "lost"
            await trio.sleep(4)
            assert alice.state_of(bob) is None

    stage(check)


def test_our_own_network_was_away() -> None:
    """After an outage in which all were forgotten the tracker has nothing new to tell; whom it
    lists is known and connected again all the same."""

    async def check(lab: Lab, alice: Station, bob: Station) -> None:
        await connect(alice, bob)
        with lab.cut(alice.address.host), trackers_down(alice):
            await trio.sleep(600)
            assert not alice.peers.known
        await trio.sleep(5)
        assert alice.state_of(bob) == "connected"

    stage(check)


def test_the_word_of_a_dead_tracker_does_not_count() -> None:
    """A peer that only a tracker out of reach lists is forgotten while another tracker answers."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        alice.hear_of(bob, tracker=OTHER_TRACKER)
        alice.answering = {TRACKER}
        await trio.sleep(FORGET_SECONDS + 3)
        assert alice.state_of(bob) is None

    stage(check)


# ── sources ──────────────────────────────────────────────────────────────────────────────────


def test_the_newest_record_counts() -> None:
    """Whoever brings an older one later changes nothing, but lists the peer all the same."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        await bob.listen()
        alice.wire.holes.add("10.0.0.98")
        alice.hear_of(bob, seq=2)
        alice.hear_of(bob, Address("10.0.0.98", PORT), tracker=OTHER_TRACKER, seq=1)
        await trio.sleep(1)
        assert [address for _, address in alice.wire.dials] == [bob.address]
        alice.peers.left(TRACKER, BOB)
        bob.hang_up()
        await trio.sleep(60)
        assert alice.state_of(bob) == "lost"

    stage(check)


def test_a_peer_that_moves_while_it_is_dialled() -> None:
    """The old address isn't waited for: the new one is dialled at once."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        await bob.listen()
        old = Address("10.0.0.98", PORT)
        alice.wire.holes.add(old.host)
        alice.hear_of(bob, old)
        await trio.sleep(1)
        alice.hear_of(bob, seq=2)
        await trio.sleep(0.1)
        assert alice.state_of(bob) == "connected"
        assert len(alice.wire.dials) == 2

    stage(check)


def test_nobody_makes_us_knock_at_doors() -> None:
    """A peer that moves all the time is dialled no more often than a few times beyond the waits."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        for seq in range(1, 301):
            alice.hear_of(bob, Address("10.0.0.98", 1000 + seq), seq=seq)
            await trio.sleep(1)
        at_once = NEWS_BURST + 300 / 10
        assert len(alice.wire.dials) < at_once + 15

    stage(check)


def test_what_a_peer_lists_is_known_while_it_is_there() -> None:
    """With all trackers down, whom a connected peer lists stays known; when that peer is gone,
    it is tried for a while longer."""

    async def check(_lab: Lab, alice: Station, bob: Station, carol: Station) -> None:
        await connect(alice, bob)
        with trackers_down(alice):
            alice.hear_of(carol, tracker=member(BOB))
            await trio.sleep(600)
            assert alice.state_of(carol) == "connecting"
            alice.peers.left(TRACKER, BOB)
            bob.hang_up()
            alice.peers.lost(member(BOB), CAROL)
            await trio.sleep(FORGET_SECONDS - 2)
            assert alice.state_of(carol) == "connecting"
            await trio.sleep(4)
            assert alice.state_of(carol) is None
            assert not alice.peers._listings[CAROL].sources

    stage(check, 3)


def test_a_peer_that_nobody_sees_for_a_moment() -> None:
    """One that told us its own record is dialled again, though no tracker lists it."""

    async def check(lab: Lab, alice: Station, bob: Station) -> None:
        await alice.listen()
        await bob.listen()
        alice.hear_of(bob)
        await trio.sleep(1)
        bob.hear_of(alice, tracker=member(ALICE))
        with lab.cut(alice.address.host):
            bob.peers.lost(member(ALICE), ALICE)
            await trio.sleep(5)
            assert bob.state_of(alice) == "lost"
            alice.peers.left(TRACKER, BOB)
        await trio.sleep(10)
        assert bob.state_of(alice) == "connected"
        assert bob.wire.dials

    stage(check)


def test_the_local_network_s_addresses_come_first() -> None:
    """What is found there is dialled before the record's addresses, and no longer when it went."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        near = Address("192.168.1.2", PORT)
        alice.peers.found(BOB, (near,))
        alice.hear_of(bob)
        await trio.sleep(1)
        assert [address for _, address in alice.wire.dials][-2:] == [near, bob.address]
        with trackers_down(alice):
            await trio.sleep(600)
            assert alice.state_of(bob) == "connecting"
            alice.peers.lost(LAN, BOB)
            dials = len(alice.wire.dials)
            await trio.sleep(600)
        assert alice.state_of(bob) is None
        assert near not in [address for _, address in alice.wire.dials[dials + 1 :]]

    stage(check)


# ── detours ──────────────────────────────────────────────────────────────────────────────────

RELAY, OTHER_RELAY = (PeerAddress(CAROL, Address("10.0.0.9", port)) for port in (1, 2))


def test_a_door_that_never_answers_keeps_no_model_waiting() -> None:
    """While dialling goes on, the models come through a relay; no answer in time is needed."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        alice.wire.holes.add(bob.address.host)
        alice.hear_of(bob, relays=(RELAY,))
        await trio.sleep(DETOUR_SECONDS - 0.1)
        assert alice.helpers.unreached == {}
        await trio.sleep(0.2)
        assert alice.helpers.unreached == {BOB: (CAROL,)}
        assert len(alice.wire.dials) == 1

    stage(check)


def test_who_cannot_be_dialled_comes_through_its_relays() -> None:
    """Its relays are followed once dialling has failed, and its newer ones at once; a session
    ends that, and so does forgetting it."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        alice.hear_of(bob, relays=(RELAY,))
        await trio.sleep(0.1)
        assert alice.helpers.unreached == {BOB: (CAROL,)}
        alice.hear_of(bob, seq=2)
        assert alice.helpers.unreached == {BOB: ()}
        alice.hear_of(bob, seq=3, relays=(OTHER_RELAY,))
        assert alice.helpers.unreached == {BOB: (CAROL,)}
        await bob.listen()
        await trio.sleep(RETRY_MOST)
        assert alice.state_of(bob) == "connected"
        assert alice.helpers.unreached == {BOB: ()}
        bob.hang_up()
        await trio.sleep(1)
        assert alice.helpers.unreached == {BOB: (CAROL,)}
        alice.peers.left(TRACKER, BOB)
        assert alice.helpers.unreached == {BOB: ()}

    stage(check)


def test_who_cannot_be_dialled_counts_as_unconnected_after_a_while() -> None:
    """A peer that is about to dial us doesn't, nor one that is connected."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        alice.hear_of(bob)
        await trio.sleep(UNCONNECTED_SECONDS - 1)
        assert not alice.peers.unconnected
        await trio.sleep(2)
        assert alice.peers.unconnected == (BOB,)
        await bob.listen()
        await trio.sleep(RETRY_MOST)
        assert not alice.peers.unconnected
        bob.hang_up()
        await trio.sleep(UNCONNECTED_SECONDS + 1)
        assert alice.peers.unconnected == (BOB,)

    stage(check)


def test_a_relayed_peer_is_shown_as_such() -> None:
    """With the relay's address, as long as its models come through one."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        alice.hear_of(bob, relays=(RELAY,))
        await trio.sleep(2)
        alice.helpers.via[BOB] = RELAY
        await trio.sleep(2)
        assert alice.state_of(bob) == "relayed"
        assert alice.peers.known[BOB].path == "relay 10.0.0.9:1"
        del alice.helpers.via[BOB]
        await trio.sleep(2)
        assert alice.state_of(bob) == alice.peers.known[BOB].path == "connecting"
        alice.helpers.via[BOB] = RELAY
        await bob.listen()
        await trio.sleep(RETRY_MOST)
        assert alice.state_of(bob) == "connected"

    stage(check)


def test_a_hole_is_punched_where_dialling_fails() -> None:
    """The link that comes of it is a session like any other; where none does, dialling goes on."""

    async def check(lab: Lab, alice: Station, bob: Station) -> None:
        await bob.listen()
        alice.hear_of(bob, Address("10.0.0.98", PORT))
        await trio.sleep(10)
        assert len(alice.wire.dials) == len(alice.helpers.punched) > 1
        alice.helpers.hole = lambda: alice.wire.network.dial(bob.address, "peer", BOB)
        await trio.sleep(RETRY_MOST)
        assert alice.state_of(bob) == bob.state_of(alice) == "connected"
        assert len(lab.links) == 2  # the two ends

    stage(check)


def test_peers_that_relay_for_others_are_told_of() -> None:
    """Where they relay, while they are known and say so."""

    async def check(_lab: Lab, alice: Station, bob: Station) -> None:
        alice.hear_of(bob, relay=True)
        assert alice.helpers.relays == {BOB: (PeerAddress(BOB, bob.address),)}
        alice.hear_of(bob, seq=2)
        assert alice.helpers.relays == {BOB: ()}
        alice.hear_of(bob, seq=3, relay=True)
        alice.peers.left(TRACKER, BOB)
        assert alice.helpers.relays == {BOB: ()}

    stage(check)
