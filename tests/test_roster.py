"""What a peer knows of its swarm: signed records only, and nobody gone for a tracker's restart."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import peer, sealed, signed

from p2pnode.tracker import roster as module
from p2pnode.tracker.roster import Roster

OWN = 9


def new() -> Roster:
    """The empty roster of peer OWN in swarm main."""
    return Roster("main", peer(OWN))


def test_new_and_moved_peers_are_news() -> None:
    """A record is news when its peer is new or its addresses are; a sign of life is not."""
    roster = new()
    assert roster.learn(sealed(1, 1)) == signed(1, 1)
    assert roster.learn(sealed(1, 1)) is None
    assert roster.learn(sealed(1, 2)) is None
    assert roster.learn(sealed(1, 3, port=7000)) == signed(1, 3, port=7000)
    assert (len(roster), roster.rejects) == (1, ())


def test_the_own_record_is_not_listed() -> None:
    """A peer does not find itself."""
    roster = new()
    assert roster.learn(sealed(OWN)) is None
    assert (len(roster), roster.rejects) == (0, ())


def test_wrong_records_are_skipped_and_counted() -> None:
    """Altered, foreign swarm, replayed, garbage: each leaves the roster as it was."""
    roster = new()
    roster.learn(sealed(1, 5))
    altered = sealed(2)[:-1] + bytes([sealed(2)[-1] ^ 1])
    wrong = [altered, sealed(2, swarm="other"), sealed(1, 4, port=666), b"\xff", b""]
    assert [roster.learn(data) for data in wrong] == [None] * 5
    assert len(roster) == 1
    assert roster.rejects == (
        ("bad-signature", 1), ("malformed", 2), ("other-swarm", 1), ("stale", 1),
    )  # fmt: skip


def test_made_up_peers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker that signs for peers of its own making fills no memory."""
    monkeypatch.setattr(module, "PEERS_PER_SWARM", 2)
    roster = new()
    for number in range(1, 5):
        roster.learn(sealed(number))
    assert (len(roster), roster.rejects) == (2, (("too-many", 2),))
    assert roster.learn(sealed(1, 2, port=7)) is not None


def test_forgetting() -> None:
    """Only a known peer can leave; later it may come again, with any seq."""
    roster = new()
    roster.learn(sealed(1, 5))
    assert roster.forget(peer(1))
    assert not roster.forget(peer(1))
    assert roster.learn(sealed(1, 4)) is not None


def test_doubt_ends_with_a_record_or_with_time() -> None:
    """Who is listed again stays; who is not has left when the time is over, not before."""
    roster = new()
    roster.learn(sealed(1))
    roster.learn(sealed(2))
    roster.doubt(until=30.0)
    roster.learn(sealed(1, 2))
    assert roster.sweep(29.9) == []
    assert roster.sweep(30.0) == [peer(2)]
    assert roster.sweep(1e9) == []
    assert len(roster) == 1


def test_a_doubt_can_be_prolonged_and_not_be_raised_by_that() -> None:
    """When the tracker was away meanwhile, the doubted get new time; the others need none."""
    roster = new()
    roster.learn(sealed(1))
    roster.doubt(until=30.0)
    roster.learn(sealed(2))
    roster.prolong(until=60.0)
    assert roster.sweep(59.0) == []
    assert roster.sweep(60.0) == [peer(1)]
    assert roster.sweep(1e9) == []


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_any_bytes_are_learned_or_counted(data: bytes) -> None:
    """The fuzz sentence: news, or a count more."""
    roster = new()
    assert roster.learn(data) is not None or roster.rejects == (("malformed", 1),)
