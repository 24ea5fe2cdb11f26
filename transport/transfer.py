"""CORE: one model on its way, as small state machines that know no socket and no file.

`Download` is the receiver's view of the chunks: which are missing, asked for, arriving, here. `Ask`
is one fetch: what is still to come by it, and its credit. `Upload` is the sender's side: which
piece is next, and whether credit is left. Who is asked for what is for sources.py. A chunk's
states, as a table:

    MISSING   --ask-->       ASKED
    ASKED     --again-->     ASKED       (another source is asked, too: the first is late)
    ASKED     --whole-->     ARRIVED
    ARRIVED   --verified-->  HERE
    ARRIVED   --refuted-->   MISSING
    ASKED     --give_up-->   MISSING     (the source is gone)

Credit is counted in pieces of at most 1 MiB: the receiver grants WINDOW at first and RENEW more
each time RENEW are dealt with, so a slow disk slows the sender and memory stays bounded.

Sets of chunks are the bits of an integer: of the most chunks that there can be, it has 1 kB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from .errors import TransferError
from .link import PIECE_LIMIT
from .manifest import Manifest

# Measured: 8 pieces of 1 MiB in flight, renewed every 4, fill the link; more only takes memory.
WINDOW, RENEW = 8, 4


def bits(ranges: Iterable[tuple[int, int]]) -> int:
    """The set of the chunks in these (first, count) ranges."""
    chunks = 0
    for first, count in ranges:
        chunks |= ((1 << count) - 1) << first
    return chunks


def ranges_of(chunks: int) -> Iterator[tuple[int, int]]:
    """A set of chunks as (first, count) ranges, in order."""
    start = 0
    while chunks:
        gap = (chunks & -chunks).bit_length() - 1
        count = ((chunks >> gap) + 1 & ~(chunks >> gap)).bit_length() - 1
        yield start + gap, count
        chunks >>= gap + count
        start += gap + count


class Chunk(Enum):
    """Where a chunk is."""

    MISSING = "missing"
    ASKED = "asked"
    ARRIVED = "arrived"
    HERE = "here"


_NEXT: dict[tuple[Chunk, str], Chunk] = {
    (Chunk.MISSING, "ask"): Chunk.ASKED,
    (Chunk.ASKED, "again"): Chunk.ASKED,
    (Chunk.ASKED, "whole"): Chunk.ARRIVED,
    (Chunk.ARRIVED, "verified"): Chunk.HERE,
    (Chunk.ARRIVED, "refuted"): Chunk.MISSING,
    (Chunk.ASKED, "give_up"): Chunk.MISSING,
    (Chunk.MISSING, "found"): Chunk.HERE,
}


@dataclass(eq=False)
class Ask:
    """One fetch: these chunks of one source. All positions are bytes in the file."""

    manifest: Manifest
    chunks: int
    since: float = 0.0
    outstanding: int = 0  # pieces granted and not yet here
    left: int = field(init=False)  # pieces not dealt with
    _so_far: dict[int, int] = field(init=False)  # chunk → bytes of it so far
    _ungranted: int = field(init=False)
    _unrenewed: int = 0

    def __post_init__(self) -> None:
        coming = [c for first, count in self.ranges for c in range(first, first + count)]
        self._so_far = dict.fromkeys(coming, 0)
        self.left = sum(-(-self.manifest.chunk_length(chunk) // PIECE_LIMIT) for chunk in coming)
        self._ungranted = self.left

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """What is asked for, as (first, count) ranges."""
        return tuple(ranges_of(self.chunks))

    @property
    def coming(self) -> Iterable[int]:
        """The chunks that aren't whole yet, in the order in which they come."""
        return self._so_far.keys()

    def piece(self, chunk: int, offset: int, length: int) -> tuple[int, bool]:
        """A piece came: its position in the file, and whether its chunk is now whole.

        Raises TransferError for what wasn't asked for, comes twice or exceeds the credit.
        """
        so_far = self._so_far.get(chunk)
        if so_far is None:
            raise TransferError(f"chunk {chunk} was not asked for")
        whole = self.manifest.chunk_length(chunk)
        if offset != so_far or offset + length > whole:
            raise TransferError(f"chunk {chunk} came out of order or too long")
        if length != min(PIECE_LIMIT, whole - offset):
            raise TransferError(f"a piece of {length} bytes where a full one was due")
        if self.outstanding <= 0:
            raise TransferError("more pieces than the credit allows")
        self.outstanding -= 1
        self._so_far[chunk] = offset + length
        if offset + length == whole:
            del self._so_far[chunk]
        return chunk * self.manifest.chunk_size + offset, offset + length == whole

    def grant(self, most: int = WINDOW) -> int:
        """How many pieces may come now, more than before."""
        more = min(most, self._ungranted)
        self._ungranted -= more
        self.outstanding += more
        return more

    def renew(self) -> int:
        """A piece is dealt with: how many more to grant now, at most RENEW."""
        self.left -= 1
        self._unrenewed += 1
        if self._unrenewed < RENEW:
            return 0
        self._unrenewed = 0
        return self.grant(RENEW)


@dataclass
class Download:
    """One model coming in: where each of its chunks is."""

    manifest: Manifest
    state: list[Chunk] = field(init=False)
    missing: int = field(init=False)  # the chunks that nobody is asked for
    here: int = 0  # the chunks that are verified and in the file
    _asked: dict[int, Ask] = field(default_factory=dict)  # chunk → by whom it is to come

    def __post_init__(self) -> None:
        self.state = [Chunk.MISSING] * self.manifest.chunks
        self.missing = self.all

    @property
    def all(self) -> int:
        """Every chunk."""
        return (1 << self.manifest.chunks) - 1

    def _step(self, chunk: int, event: str) -> None:
        before, after = self.state[chunk], _NEXT[self.state[chunk], event]
        self.state[chunk] = after
        if Chunk.MISSING in (before, after):
            self.missing ^= 1 << chunk
        if after is Chunk.HERE:
            self.here |= 1 << chunk

    def found(self, chunk: int) -> None:
        """An earlier try left this chunk whole on disk."""
        self._step(chunk, "found")

    def ask(self, chunks: int, now: float = 0.0) -> Ask:
        """Ask a source for these, which are missing or asked for by now."""
        ask = Ask(self.manifest, chunks, now)
        for chunk in ask.coming:
            self._step(chunk, "ask" if self.state[chunk] is Chunk.MISSING else "again")
            self._asked[chunk] = ask
        return ask

    def asked(self, chunk: int) -> Ask | None:
        """By which fetch a chunk is to come, if it is."""
        return self._asked[chunk] if self.state[chunk] is Chunk.ASKED else None

    def takes(self, ask: Ask, chunk: int) -> bool:
        """Whether a piece of this chunk is of use: one that is a whole chunk from whoever sends it
        first, others from whom the chunk was asked last, so that no two write one chunk."""
        single = self.manifest.chunk_size <= PIECE_LIMIT
        return self.state[chunk] is Chunk.ASKED and (single or self._asked[chunk] is ask)

    def whole(self, chunk: int) -> None:
        """Its last piece is here."""
        self._step(chunk, "whole")

    def verified(self, chunk: int) -> None:
        """The digest matches and the chunk is in the file."""
        self._step(chunk, "verified")

    def refuted(self, chunk: int) -> None:
        """The digest doesn't match."""
        self._step(chunk, "refuted")

    def give_up(self, ask: Ask) -> None:
        """The source is gone: what was to come from it, and from nobody else, is missing again."""
        for first, count in ask.ranges:
            for chunk in range(first, first + count):
                if self.asked(chunk) is ask:
                    self._step(chunk, "give_up")

    @property
    def done(self) -> bool:
        """Every chunk is verified and in the file."""
        return self.here == self.all

    @property
    def bytes_here(self) -> int:
        """Bytes verified so far."""
        last = self.manifest.chunks - 1
        short = self.manifest.chunk_size - self.manifest.chunk_length(last)
        return self.here.bit_count() * self.manifest.chunk_size - short * (self.here >> last)


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
