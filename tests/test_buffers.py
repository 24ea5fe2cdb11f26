"""Buffers are used again, and never by two at once."""

from __future__ import annotations

import pytest

from p2pnode.transport import buffers
from p2pnode.transport.buffers import Lease
from p2pnode.transport.link import HEADER_SIZE, PIECE_LIMIT


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> list[memoryview]:
    """The free buffers of this test alone."""
    fresh: list[memoryview] = []
    monkeypatch.setattr(buffers, "_free", fresh)
    return fresh


def test_a_buffer_holds_a_whole_piece() -> None:
    """Header and body."""
    assert len(Lease().memory) == HEADER_SIZE + PIECE_LIMIT


def test_a_buffer_is_used_again_when_its_lease_is_gone(free: list[memoryview]) -> None:
    """And not before."""
    one, two = Lease(), Lease()
    one.memory[0], two.memory[0] = 1, 2
    assert (one.memory[0], two.memory[0]) == (1, 2)
    del one
    assert len(free) == 1
    three = Lease()
    assert three.memory[0] == 1
    assert two.memory[0] == 2
    assert not free


def test_only_so_many_are_kept(free: list[memoryview]) -> None:
    """What more there was goes back to the system."""
    leases = [Lease() for _ in range(buffers.KEPT + 5)]
    leases.clear()
    assert len(free) == buffers.KEPT
