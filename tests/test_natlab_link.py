"""The laboratory's long, thin, lossy cable: when frames arrive, without any device."""

from __future__ import annotations

import random

import pytest
from natlab_link import Cable, Way

FRAME = bytes(1250)  # a millisecond's worth at 10 Mbit/s


def way(**cable: float) -> Way:
    """One direction, with the same luck in each run."""
    return Way(Cable(**cable), random.Random(1))


def test_a_frame_takes_the_delay() -> None:
    """Nothing comes early, and what is due comes in order."""
    line = way(delay=0.05)
    for number in range(3):
        line.take(bytes([number]), number / 100)
    assert not list(line.arrived(0.0499))
    assert list(line.arrived(0.0601)) == [b"\0", b"\1"]
    assert list(line.arrived(9)) == [b"\2"]


def test_frames_leave_at_the_rate() -> None:
    """Those that come at once follow each other; after a pause the line is free again."""
    line = way(rate=10e6)
    for _ in range(10):
        line.take(FRAME, 1.0)
    assert [len(list(line.arrived(1 + n / 1000 + 1e-9))) for n in (1, 2, 5, 10)] == [1, 1, 3, 5]
    line.take(FRAME, 5.0)
    assert len(list(line.arrived(5.0011))) == 1


def test_a_full_queue_loses_what_comes_last() -> None:
    """More than the queue holds is gone, as at a router's narrow end."""
    line = way(rate=10e6, queue=0.02)
    for _ in range(100):
        line.take(FRAME, 1.0)
    assert line.full == pytest.approx(79, abs=1)
    assert len(list(line.arrived(9))) == 100 - line.full


def test_the_share_is_lost() -> None:
    """By chance, and the same in each run."""
    lines = [way(loss=0.01) for _ in range(2)]
    for line in lines:
        for _ in range(10_000):
            line.take(FRAME, 0.0)
    assert lines[0].lost == lines[1].lost == pytest.approx(100, abs=30)
