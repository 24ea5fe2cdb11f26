"""I/O: the models going out over one session: open files, whose turn it is, the next piece.

Files are closed only from the task that reads them (in a thread), between two reads: a descriptor
that is closed while a thread reads may by then be somebody else's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import trio

from .link import Piece
from .manifest import Manifest
from .messages import Fetch
from .transfer import Upload

# Transfers to one peer at the same time: a receiver has no more downloads than that in all.
UPLOADS_LIMIT = 16
_NOWAIT = hasattr(os, "RWF_NOWAIT")  # Linux

Room: TypeAlias = Callable[[int, int, int, int], Piece]


@dataclass(frozen=True, slots=True)
class Held:
    """A model that can be served: its envelope as signed, and its file."""

    envelope: bytes
    id: bytes
    peer: str
    manifest: Manifest
    path: Path


@dataclass
class OpenUpload:
    """An upload and its open file."""

    upload: Upload
    held: Held
    file: int


class Outgoing:
    """All uploads of one session, by the receiver's transfer number."""

    def __init__(self) -> None:
        self.open: dict[int, OpenUpload] = {}
        self._to_close: list[int] = []

    def start(self, fetch: Fetch, held: Held | None) -> bool:
        """Begin what a peer asks for; False if it can't be had. Raises TransferError."""
        files = len(self.open) + len(self._to_close)
        if held is None or files >= UPLOADS_LIMIT or fetch.transfer in self.open:
            return False
        upload = Upload(fetch.transfer, held.manifest, fetch.ranges, fetch.credit)
        try:
            file = os.open(held.path, os.O_RDONLY)
        except OSError:  # a newer one took its place this moment
            return False
        self.open[fetch.transfer] = OpenUpload(upload, held, file)
        return True

    def grant(self, transfer: int, pieces: int) -> None:
        """The receiver allows more."""
        if transfer in self.open:
            self.open[transfer].upload.grant(pieces)

    def end(self, transfer: int) -> None:
        """No more of this upload."""
        if transfer in self.open:
            self._to_close.append(self.open.pop(transfer).file)

    def next(self) -> OpenUpload | None:
        """The next upload with credit, in turn. Only from the task that reads."""
        for transfer in [t for t, entry in self.open.items() if entry.upload.done]:
            self.end(transfer)
        self._close_files()
        for transfer, entry in self.open.items():
            if entry.upload.ready:
                self.open[transfer] = self.open.pop(transfer)  # to the end of the turn
                return entry
        return None

    def close(self) -> None:
        """End all. Only when no thread reads any more."""
        for transfer in list(self.open):
            self.end(transfer)
        self._close_files()

    def _close_files(self) -> None:
        while self._to_close:
            os.close(self._to_close.pop())


async def read(entry: OpenUpload, room: Room) -> Piece | None:
    """The upload's next piece; None when the file is not what it was."""
    piece = room(entry.upload.transfer, *entry.upload.take())
    position = piece.chunk * entry.upload.manifest.chunk_size + piece.offset
    try:
        read = _read_cached(entry.file, piece.body, position)
        if read < len(piece.body):
            read = await trio.to_thread.run_sync(os.preadv, entry.file, [piece.body], position)
    except OSError:  # a failing disk
        return None
    return piece if read == len(piece.body) else None


def _read_cached(file: int, body: memoryview | bytes, position: int) -> int:
    """Read at once what the kernel has in memory; how many bytes that was.

    A model is sent when it has just been written, so this is the usual case, and five times as
    fast as asking a thread. Any error means: ask the thread, which meets it again if it is the
    disk's. Many file systems can't tell at all (EOPNOTSUPP: tmpfs, overlayfs, NFS).
    """
    try:
        return os.preadv(file, [body], position, os.RWF_NOWAIT) if _NOWAIT else 0
    except OSError:
        return 0
