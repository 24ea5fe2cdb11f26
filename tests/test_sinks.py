"""The transfers coming in over one session: numbers, and what isn't due."""

from __future__ import annotations

import pytest

from p2pnode.transport.errors import TransferError
from p2pnode.transport.link import Piece
from p2pnode.transport.sinks import Sinks
from p2pnode.transport.transfer import WINDOW


class Bucket:
    """Takes pieces."""

    def __init__(self) -> None:
        self.chunks: list[int] = []
        self.ended = 0

    def put(self, piece: Piece) -> None:
        self.chunks.append(piece.chunk)

    def end(self) -> None:
        self.ended += 1


def piece(transfer: int, chunk: int = 0) -> Piece:
    """A piece of that transfer."""
    return Piece(transfer, chunk, 0, b"x")


def test_pieces_go_where_they_were_asked_for() -> None:
    """Each transfer has its own number and its own sink."""
    sinks, one, two = Sinks(), Bucket(), Bucket()
    first, second = sinks.open(one), sinks.open(two)
    for transfer, chunk in ((first, 5), (second, 6), (first, 7)):
        sinks.put(piece(transfer, chunk))
    assert (one.chunks, two.chunks) == ([5, 7], [6])


def test_numbers_are_never_used_twice() -> None:
    """Also after a transfer was closed: a late piece can't reach another one."""
    sinks = Sinks()
    first = sinks.open(Bucket())
    sinks.close(first, early=True)
    assert sinks.open(Bucket()) != first


@pytest.mark.parametrize("transfer", [0, 2, 2**32 - 1])
def test_pieces_that_nobody_asked_for(transfer: int) -> None:
    """A piece of a transfer that never was is the peer's mistake."""
    sinks = Sinks()
    sinks.open(Bucket())
    with pytest.raises(TransferError, match=f"transfer {transfer}, which is not open"):
        sinks.put(piece(transfer))


def test_pieces_that_crossed_our_stop_are_dropped() -> None:
    """As many as were allowed when we stopped; one more is the peer's mistake."""
    sinks, bucket = Sinks(), Bucket()
    transfer = sinks.open(bucket)
    assert sinks.close(transfer, early=True)
    for _ in range(WINDOW):
        sinks.put(piece(transfer))
    with pytest.raises(TransferError):
        sinks.put(piece(transfer))
    assert bucket.chunks == []


def test_nothing_comes_after_the_end() -> None:
    """When a transfer is whole, or the peer said that it is gone, no piece may follow."""
    sinks, bucket = Sinks(), Bucket()
    whole, gone = sinks.open(bucket), sinks.open(bucket)
    assert sinks.close(whole, early=False)
    sinks.gone(gone)
    assert bucket.ended == 1
    for transfer in (whole, gone):
        assert not sinks.close(transfer, early=True)
        with pytest.raises(TransferError):
            sinks.put(piece(transfer))


def test_the_end_of_the_session_ends_all() -> None:
    """Each open sink hears once that no more will come."""
    sinks, buckets = Sinks(), [Bucket(), Bucket()]
    for bucket in buckets:
        sinks.open(bucket)
    sinks.gone(1)
    sinks.end()
    sinks.end()
    assert [bucket.ended for bucket in buckets] == [1, 1]
