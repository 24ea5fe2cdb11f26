"""CORE: one model on its way, as two small state machines that know no socket and no file.

`Download` is the receiver's side: which chunks are missing, asked for, arriving, here. `Upload` is
the sender's: which piece is next, and whether credit is left. A chunk's states, as a table:

    MISSING   --ask-->       ASKED
    ASKED     --piece-->     ASKED (part of it) or ARRIVED (all of it)
    ARRIVED   --verified-->  HERE
    ARRIVED   --refuted-->   MISSING
    ASKED     --give_up-->   MISSING     (the source is gone: what isn't verified by now
    ARRIVED   --give_up-->   MISSING      is asked for again, from the next one)

Credit is counted in pieces of at most 1 MiB: the receiver grants WINDOW at first and RENEW more
each time RENEW are dealt with, so a slow disk slows the sender and memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from .errors import TransferError
from .link import PIECE_LIMIT
from .manifest import Manifest

# Measured: 8 pieces of 1 MiB in flight, renewed every 4, fill the link; more only takes memory.
WINDOW, RENEW = 8, 4


class Chunk(Enum):
    """Where a chunk is."""

    MISSING = "missing"
    ASKED = "asked"
    ARRIVED = "arrived"
    HERE = "here"


_NEXT: dict[tuple[Chunk, str], Chunk] = {
    (Chunk.MISSING, "ask"): Chunk.ASKED,
    (Chunk.ASKED, "whole"): Chunk.ARRIVED,
    (Chunk.ARRIVED, "verified"): Chunk.HERE,
    (Chunk.ARRIVED, "refuted"): Chunk.MISSING,
    (Chunk.ASKED, "give_up"): Chunk.MISSING,
    (Chunk.ARRIVED, "give_up"): Chunk.MISSING,
    (Chunk.MISSING, "found"): Chunk.HERE,
}


@dataclass
class Download:
    """One model coming in. All positions are bytes in the file."""

    manifest: Manifest
    state: list[Chunk] = field(init=False)
    arrived: dict[int, int] = field(default_factory=dict)  # chunk → bytes of it so far
    outstanding: int = 0  # pieces granted and not yet here
    _unrenewed: int = 0
    _here: int = 0

    def __post_init__(self) -> None:
        self.state = [Chunk.MISSING] * self.manifest.chunks

    def _step(self, chunk: int, event: str) -> None:
        self.state[chunk] = _NEXT[self.state[chunk], event]

    def found(self, chunk: int) -> None:
        """An earlier try left this chunk whole on disk."""
        self._step(chunk, "found")
        self._here += 1

    def ask(self) -> tuple[tuple[int, int], ...]:
        """The missing chunks as (first, count) ranges, now asked for; empty if there are none."""
        ranges: list[tuple[int, int]] = []
        for chunk, state in enumerate(self.state):
            if state is not Chunk.MISSING:
                continue
            if ranges and sum(ranges[-1]) == chunk:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
            else:
                ranges.append((chunk, 1))
            self._step(chunk, "ask")
        self.outstanding = WINDOW
        self._unrenewed = 0
        return tuple(ranges)

    def piece(self, chunk: int, offset: int, length: int) -> tuple[int, bool]:
        """A piece came: its position in the file, and whether its chunk is now whole.

        Raises TransferError for what wasn't asked for, comes twice or exceeds the credit.
        """
        if not 0 <= chunk < len(self.state) or self.state[chunk] is not Chunk.ASKED:
            raise TransferError(f"chunk {chunk} was not asked for")
        whole = self.manifest.chunk_length(chunk)
        if offset != self.arrived.get(chunk, 0) or offset + length > whole:
            raise TransferError(f"chunk {chunk} came out of order or too long")
        if length != min(PIECE_LIMIT, whole - offset):
            raise TransferError(f"a piece of {length} bytes where a full one was due")
        if self.outstanding <= 0:
            raise TransferError("more pieces than the credit allows")
        self.outstanding -= 1
        self.arrived[chunk] = offset + length
        if offset + length == whole:
            del self.arrived[chunk]
            self._step(chunk, "whole")
        return chunk * self.manifest.chunk_size + offset, self.state[chunk] is Chunk.ARRIVED

    def verified(self, chunk: int) -> None:
        """The digest matches and the chunk is in the file."""
        self._step(chunk, "verified")
        self._here += 1

    def refuted(self, chunk: int) -> None:
        """The digest doesn't match."""
        self._step(chunk, "refuted")

    def renew(self) -> int:
        """A piece is dealt with: how many more to grant now (0 or RENEW)."""
        self._unrenewed += 1
        if self._unrenewed < RENEW:
            return 0
        self._unrenewed = 0
        self.outstanding += RENEW
        return RENEW

    def give_up(self) -> None:
        """The source is gone: what it was asked for is missing again."""
        self.arrived.clear()
        self.outstanding = 0
        for chunk, state in enumerate(self.state):
            if (state, "give_up") in _NEXT:
                self._step(chunk, "give_up")

    @property
    def done(self) -> bool:
        """Every chunk is verified and in the file."""
        return self._here == len(self.state)

    @property
    def bytes_here(self) -> int:
        """Bytes verified so far."""
        last_short = self.manifest.chunk_size - self.manifest.chunk_length(len(self.state) - 1)
        last = self.state[-1] is Chunk.HERE
        return self._here * self.manifest.chunk_size - (last_short if last else 0)


@dataclass
class Upload:
    """One model going out: the pieces that were asked for, as far as credit goes."""

    transfer: int
    manifest: Manifest
    ranges: tuple[tuple[int, int], ...]
    credit: int
    sent: int = 0  # bytes
    _pieces: Iterator[tuple[int, int, int]] = field(init=False, repr=False)
    _next: tuple[int, int, int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for first, count in self.ranges:
            if count < 1 or first + count > self.manifest.chunks:
                raise TransferError(f"chunks {first}+{count} of {self.manifest.chunks}")
        self._pieces = self._walk()
        self._next = next(self._pieces, None)

    def _walk(self) -> Iterator[tuple[int, int, int]]:
        for first, count in self.ranges:
            for chunk in range(first, first + count):
                whole = self.manifest.chunk_length(chunk)
                for offset in range(0, whole, PIECE_LIMIT):
                    yield chunk, offset, min(PIECE_LIMIT, whole - offset)

    def grant(self, pieces: int) -> None:
        """The receiver allows more."""
        self.credit += pieces

    @property
    def ready(self) -> bool:
        """Whether a piece may be sent now."""
        return self.credit > 0 and self._next is not None

    @property
    def done(self) -> bool:
        """Whether everything was sent."""
        return self._next is None

    @property
    def next_size(self) -> int:
        """Bytes of the next piece; 0 when there is none."""
        return self._next[2] if self._next is not None else 0

    def take(self) -> tuple[int, int, int]:
        """The next piece as (chunk, offset, length)."""
        if self._next is None or self.credit <= 0:
            raise TransferError("no piece may be sent now")
        piece, self._next = self._next, next(self._pieces, None)
        self.credit -= 1
        self.sent += piece[2]
        return piece
