"""CORE: the transfers coming in over one session: which number is whose, and what isn't due.

Numbers are ours and never used twice. A piece of a transfer that we have stopped may have crossed
our `stop`, so as many as were allowed by then are dropped in silence; all others that nobody
waits for are the peer's mistake.
"""

from __future__ import annotations

from typing import Protocol

from .errors import TransferError
from .link import Piece
from .transfer import WINDOW


class Sink(Protocol):
    """Where the pieces of one transfer go."""

    def put(self, piece: Piece) -> None:
        """Take a piece; raises TransferError for one that isn't due."""

    def end(self) -> None:
        """No more will come from this session."""


class Sinks:
    """All transfers that we have asked one peer for."""

    def __init__(self) -> None:
        self._open: dict[int, Sink] = {}
        self._last = 0
        self._crossing = 0  # pieces of stopped transfers that may still come

    def open(self, sink: Sink) -> int:
        """A new transfer's number; its pieces go to the sink."""
        self._last += 1
        self._open[self._last] = sink
        return self._last

    def close(self, transfer: int, *, early: bool) -> bool:
        """We need no more of it; `early` where more may come. Whether it was still open."""
        if self._open.pop(transfer, None) is None:
            return False
        self._crossing += WINDOW if early else 0
        return True

    def put(self, piece: Piece) -> None:
        """Pass a piece on; raises TransferError for one that isn't due."""
        sink = self._open.get(piece.transfer)
        if sink is not None:
            sink.put(piece)
        elif 0 < piece.transfer <= self._last and self._crossing > 0:
            self._crossing -= 1
        else:
            raise TransferError(f"a piece of transfer {piece.transfer}, which is not open")

    def gone(self, transfer: int) -> None:
        """The peer sends no more of it."""
        sink = self._open.pop(transfer, None)
        if sink is not None:
            sink.end()

    def end(self) -> None:
        """The session is over."""
        for transfer in list(self._open):
            self.gone(transfer)
