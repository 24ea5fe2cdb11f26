"""Which relays are tried: the user's own trackers' among strangers, bounded, failing ones later."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.node.candidates import (
    DIALS,
    RETRY_FIRST,
    RETRY_MOST,
    SOURCES_LIMIT,
    TROUBLES_LIMIT,
    Candidates,
    Places,
)
from p2pnode.transport.address import Address
from p2pnode.transport.nat.reach import ADDRESSES_LIMIT, RELAYS_LIMIT
from p2pnode.transport.peer_address import PeerAddress

ME, ALICE, BOB, CAROL = "me", "alice", "bob", "carol"
TRACKER = "tracker:5555"


def place(peer: str, number: int = 1) -> PeerAddress:
    """Where a relay stands; the core doesn't look into peer IDs."""
    return PeerAddress(peer, Address("10.0.0.1", number))


def make(seed: int = 1) -> Candidates:
    """Nothing is known yet."""
    return Candidates(ME, random.Random(seed))


def race(candidates: Candidates, now: float = 0.0, *busy: str) -> list[str]:
    """The relays that would be dialled."""
    return [chosen.peer for chosen in candidates.to_race(now, busy)]


def test_who_is_dialled_is_drawn_by_chance() -> None:
    """Four of all that are offered, other ones each time, none twice."""
    candidates = make()
    for number in range(100):
        candidates.offered(f"peer {number}", (place(f"peer {number}"),))
    seen = set()
    for _ in range(100):
        chosen = race(candidates)
        assert len(set(chosen)) == len(chosen) == DIALS
        seen |= set(chosen)
    assert len(seen) > 80


def test_an_offer_is_replaced_and_taken_back() -> None:
    """A source's last word counts; a relay that another source offers stays."""
    candidates = make()
    candidates.offered(TRACKER, (place(ALICE),))
    candidates.offered(BOB, (place(BOB),))
    assert sorted(race(candidates)) == [ALICE, BOB]
    candidates.offered(TRACKER, (place(CAROL),))
    assert sorted(race(candidates)) == [BOB, CAROL]
    candidates.offered(BOB, ())
    candidates.offered("never heard of", ())
    assert race(candidates) == [CAROL]
    assert candidates.offers(CAROL)
    assert not candidates.offers(BOB)


def test_thousands_of_strangers_crowd_no_tracker_out() -> None:
    """What a tracker offers is tried each time, also where it comes last; a peer offers itself."""
    candidates = make()
    for number in range(3 * SOURCES_LIMIT):
        name = f"peer {number}"
        candidates.offered(name, tuple(place(name, port) for port in range(1, 100)))
    candidates.offered(TRACKER, (place(ALICE),))
    for _ in range(50):
        chosen = race(candidates)
        assert chosen[0] == ALICE
        assert len(chosen) == DIALS
    assert len(candidates._peers) == SOURCES_LIMIT
    assert all(len(places) == ADDRESSES_LIMIT for places in candidates._peers.values())


def test_we_are_never_our_own_relay() -> None:
    """Our own peer ID counts as nothing, whoever offers it, wherever it stands."""
    candidates = make()
    candidates.offered(TRACKER, (place(ME), place(ALICE)))
    candidates.offered(ME, (place(ME),))
    candidates.follow(BOB, (place(ME),))
    assert race(candidates) == [ALICE]
    assert candidates.to_follow(0, ()) == []
    assert candidates.relays_of(BOB) == []


def test_an_address_that_fails_waits_longer_each_time() -> None:
    """About a second first, at most a minute; good service or another network end the wait."""
    candidates, now, most = make(), 0.0, RETRY_FIRST
    candidates.offered(TRACKER, (place(ALICE),))
    for _ in range(20):
        candidates.failed(place(ALICE), "refused", now)
        assert race(candidates, now + most / 2 - 0.01) == []
        assert race(candidates, now + most) == [ALICE]
        now, most = now + most, min(2 * most, RETRY_MOST)
    assert candidates.why(place(ALICE)) == "refused"
    candidates.worked(place(ALICE))
    assert candidates.why(place(ALICE)) == ""
    candidates.failed(place(ALICE), "refused", now)
    assert race(candidates, now + RETRY_FIRST) == [ALICE]
    candidates.failed(place(ALICE), "refused", now)
    candidates.changed()
    assert race(candidates, now) == [ALICE]


def test_a_relay_with_several_addresses() -> None:
    """One at a time: the first told, then the next; the one that failed less when all have."""
    candidates = make()
    first, second = place(ALICE, 1), place(ALICE, 2)
    candidates.offered(TRACKER, (first, second))
    assert candidates.to_race(0, ()) == [first]
    candidates.failed(first, "", 0)
    assert candidates.to_race(0, ()) == [second]
    candidates.failed(second, "", 0)
    assert candidates.to_race(0, ()) == []
    candidates.failed(first, "", 10)
    assert candidates.to_race(100, ()) == [second]


def test_a_busy_relay_is_left_alone() -> None:
    """What we have or dial already isn't dialled; also where two sources offer it."""
    candidates = make()
    candidates.offered(TRACKER, (place(ALICE, 1), place(BOB)))
    candidates.offered(ALICE, (place(ALICE, 2),))
    assert sorted(race(candidates)) == [ALICE, BOB]
    assert race(candidates, 0.0, ALICE) == [BOB]
    assert race(candidates, 0.0, ALICE, BOB) == []


def test_one_relay_for_all_that_lie_there() -> None:
    """A followed peer needs one of its relays; peers that share one need no second."""
    candidates = make()
    candidates.follow("p1", (place(ALICE), place(BOB)))
    candidates.follow("p2", (place(ALICE),))
    candidates.follow("p3", (place(CAROL), place(ALICE)))
    candidates.follow("p4", (place(CAROL),))
    assert [p.peer for p in candidates.to_follow(0, ())] == [ALICE, CAROL]
    assert [p.peer for p in candidates.to_follow(0, (BOB, ALICE))] == [CAROL]
    assert candidates.to_follow(0, (ALICE, CAROL)) == []
    candidates.failed(place(ALICE), "", 0)
    assert [p.peer for p in candidates.to_follow(0, ())] == [BOB, CAROL]
    assert candidates.followed_at(CAROL)
    for peer in ("p3", "p4"):
        candidates.follow(peer, ())
    assert not candidates.followed_at(CAROL)


_names = st.sampled_from([ME, ALICE, BOB, CAROL, *(f"p{n}" for n in range(20))])
_places = st.lists(st.builds(place, _names, st.integers(1, 3)), max_size=12).map(tuple)


@given(
    st.lists(st.tuples(st.sampled_from(["offered", "follow"]), _names, _places), max_size=30),
    st.lists(st.tuples(st.builds(place, _names, st.integers(1, 3)), st.floats(0, 100))),
    st.sets(_names),
)
def test_any_story(
    told: list[tuple[str, str, Places]], failures: list[tuple[PeerAddress, float]], busy: set[str]
) -> None:
    """Whatever is told and fails: few are dialled, each relay once, none busy, never ourselves."""
    candidates = make()
    for what, key, places in told:
        getattr(candidates, what)(key, places)
    for failing, now in failures:
        candidates.failed(failing, "refused", now)
    for now in (0.0, 50.0, 1000.0):
        raced, followed = race(candidates, now, *busy), candidates.to_follow(now, busy)
        assert len(raced) <= DIALS
        for chosen in (raced, [p.peer for p in followed]):
            assert len(set(chosen)) == len(chosen)
            assert not {*chosen} & {ME, *busy}
        assert all(candidates.offers(relay) for relay in raced)
        assert all(candidates.followed_at(p.peer) for p in followed)
    assert all(len(candidates.relays_of(peer)) <= RELAYS_LIMIT for _, peer, _ in told)


def test_what_is_remembered_is_bounded() -> None:
    """A source that names new addresses for ever fills no memory."""
    candidates = make()
    for number in range(3 * TROUBLES_LIMIT):
        candidates.failed(place(f"peer {number}"), "refused", 0)
    assert len(candidates._troubles) == TROUBLES_LIMIT
