"""The limits on model bytes, against what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from fellows import fellows, host_of, noise, virtual
from hypothesis import given
from hypothesis import strategies as st
from relaying import NUMBER, Place

from lab import Lab, identity
from p2pnode.transport.link import PIECE_LIMIT
from p2pnode.transport.pace import SLACK_SECONDS, Limits, Pace
from p2pnode.transport.session import PING_SECONDS

RATE = 1_000_000.0


def test_without_a_limit_nothing_waits() -> None:
    """The default: any number of bytes at once."""
    for pace in (Limits().up, Limits().down):
        assert not pace.limited
        assert [pace.wait(PIECE_LIMIT, 5.0) for _ in range(1000)] == [0.0] * 1000


def test_what_comes_at_once_waits_its_time() -> None:
    """Pieces follow each other at the rate; what is idle saves up a moment's bytes."""
    pace = Pace(RATE)
    piece = PIECE_LIMIT / RATE
    waits = [pace.wait(PIECE_LIMIT, 1000.0) for _ in range(4)]
    assert pace.limited
    assert waits == pytest.approx([n * piece - SLACK_SECONDS for n in (1, 2, 3, 4)])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, PIECE_LIMIT)), min_size=1))
def test_the_rate_holds_whatever_the_sizes(steps: list[tuple[int, int]]) -> None:
    """Whoever waits as told never passes more than a moment's bytes and rate × time."""
    pace, now, passed = Pace(RATE), 0.0, 0
    for pause, size in steps:
        now += pause
        now += pace.wait(size, now)
        passed += size
        assert passed <= RATE * (SLACK_SECONDS + now) + 1e-3


def test_sessions_move_on_in_turn() -> None:
    """Each waits for its own piece before it counts in the next: all get the same."""
    pace, due, passed = Pace(RATE), dict.fromkeys("abc", 0.0), dict.fromkeys("abc", 0)
    for _ in range(60):
        session = min(due, key=due.__getitem__)
        due[session] += pace.wait(PIECE_LIMIT, due[session])
        passed[session] += 1
    assert set(passed.values()) == {20}
