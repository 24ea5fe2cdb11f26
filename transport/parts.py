"""I/O: a model on its way into a file. Everything here blocks, so it runs in a thread.

A part file has its final size from the start and is filled chunk by chunk. Which chunks are whole
is not written down anywhere: a transfer that goes on later digests what is in the file, which is
fast (5 GB/s a thread) and can't be wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from blake3 import blake3

from .link import PIECE_LIMIT, Piece
from .manifest import Manifest

# An offer waits until all of a model is digested, so two threads do it. More would take more of the
# cores from the training for what is fast already.
DIGEST_THREADS = 2


@dataclass(frozen=True, slots=True)
class Arrival:
    """A piece, where it belongs in the file, and whether it completes its chunk."""

    piece: Piece
    position: int
    whole: bool


class PartFile:
    """One model's part file, opened for writing; raises OSError (disk full, no rights).

    `blank`: whatever is in the file is nothing of this model.
    """

    def __init__(self, path: Path, manifest: Manifest, *, blank: bool = False) -> None:
        self.path, self._manifest = path, manifest
        self._old = path.exists() and not blank
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._digests: dict[int, blake3] = {}  # chunks of several pieces, so far
        try:
            os.ftruncate(self._file, manifest.size)
        except BaseException:
            self.close()
            raise

    def find(self, chunks: Iterable[int]) -> list[int]:
        """Those of these chunks that an earlier try left whole; reads and digests them."""
        return [chunk for chunk in chunks if self._old and self._holds(chunk)]

    def _holds(self, chunk: int) -> bool:
        length = self._manifest.chunk_length(chunk)
        data = os.pread(self._file, length, chunk * self._manifest.chunk_size)
        return blake3(data).digest() == self._manifest.digest(chunk)

    def write(self, arrivals: Iterable[Arrival]) -> list[bool | None]:
        """For each piece: its chunk's digest matches, doesn't, or (None) isn't complete yet.

        A chunk of one piece, the usual case, is verified before it is written.
        """
        return [self._write(arrival) for arrival in arrivals]

    def _write(self, arrival: Arrival) -> bool | None:
        chunk, body = arrival.piece.chunk, arrival.piece.body
        digest = self._digests.pop(chunk, None) or blake3()
        digest.update(body)
        good = digest.digest() == self._manifest.digest(chunk) if arrival.whole else None
        if good is None:
            self._digests[chunk] = digest
        if good is not False:
            written = os.pwrite(self._file, body, arrival.position)
            if written != len(body):
                raise OSError(28, "no space left on the disk")
        return good

    def restart(self, chunks: Iterable[int]) -> None:
        """Their source is gone: these begin anew."""
        for chunk in chunks:
            self._digests.pop(chunk, None)

    def close(self) -> None:
        """Close; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def digest_file(path: Path, chunk_size: int) -> tuple[int, bytes]:
    """Size of a file and the BLAKE3-256 digests of its chunks, one after the other."""
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(DIGEST_THREADS) as threads:
        size = os.fstat(file.fileno()).st_size
        starts = range(0, size, chunk_size)
        digests = threads.map(lambda start: _digest(file, start, chunk_size, size), starts)
        return size, b"".join(digests)


def _digest(file: FileIO, start: int, chunk_size: int, size: int) -> bytes:
    """The digest of the chunk that starts here in a file of this size."""
    digest, end = blake3(), min(start + chunk_size, size)
    buffer = memoryview(bytearray(min(PIECE_LIMIT, end - start)))
    while start < end:
        read = os.preadv(file.fileno(), [buffer[: end - start]], start)
        if not read:
            raise OSError(f"{file.name} became shorter while it was read")
        digest.update(buffer[:read])
        start += read
    return digest.digest()
