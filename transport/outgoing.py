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
from .messages import Fetch, Ranges
from .transfer import Upload, bits

# Models that go to one peer at the same time: a receiver has no more downloads than that in all.
MODELS_LIMIT = 16
# Fetches of one peer at the same time: two of each model, so that one follows the other.
UPLOADS_LIMIT = 32
_NOWAIT = hasattr(os, "RWF_NOWAIT")  # Linux

Room: TypeAlias = Callable[[int, int, int, int], Piece]


@dataclass(frozen=True, slots=True)
class Held:
    """A model that can be served: its envelope as signed, and its file; `part`: the chunks that are
    here of one that is coming in (bits), None for all."""

    envelope: bytes
    id: bytes
    peer: str
    manifest: Manifest
    path: Path
    part: int | None = None

    def has(self, ranges: Ranges) -> bool:
        """Whether all of these chunks are here."""
        return self.part is None or not bits(ranges) & ~self.part


@dataclass
class OpenModel:
    """A model that a peer fetches, and its open file: it stays, also when the model is replaced,
    until the peer has all of it or goes on to the next one."""

    held: Held
    file: int
    sent: int = 0  # bytes
    fetches: int = 0  # under way


@dataclass
class OpenUpload:
    """One fetch."""

    upload: Upload
    model: OpenModel

    @property
    def held(self) -> Held:
        """What is fetched."""
        return self.model.held

    @property
    def file(self) -> int:
        """Where it is."""
        return self.model.file


class Outgoing:
    """All uploads of one session, by the receiver's transfer number."""

    def __init__(self) -> None:
        self.open: dict[int, OpenUpload] = {}
        self.models: dict[bytes, OpenModel] = {}  # by envelope ID, the last used at the end
        self._to_close: list[int] = []

    def start(self, fetch: Fetch, held: Held | None) -> bool:
        """Begin what a peer asks for; False if it can't be had. Raises TransferError."""
        known = self.models.get(fetch.model)
        held = held or (known.held if known else None)
        if held is None or len(self.open) >= UPLOADS_LIMIT or fetch.transfer in self.open:
            return False
        upload = Upload(fetch.transfer, held.manifest, fetch.ranges, fetch.credit)
        model = self._model(held) if held.has(fetch.ranges) else None
        if model is None:
            return False
        model.fetches += 1
        self.open[fetch.transfer] = OpenUpload(upload, model)
        return True

    def _model(self, held: Held) -> OpenModel | None:
        """The model, opened; None where that can't be."""
        model = self.models.pop(held.id, None)
        if model is None:
            for other in [m for m, o in self.models.items() if o.held.peer == held.peer]:
                self._close_idle(other)
            for other in list(self.models)[: max(0, len(self.models) + 1 - MODELS_LIMIT)]:
                self._close_idle(other)
            try:
                if len(self.models) + len(self._to_close) >= MODELS_LIMIT:
                    return None
                model = OpenModel(held, os.open(held.path, os.O_RDONLY))
            except OSError:  # a newer one took its place this moment
                return None
        model.held = held
        self.models[held.id] = model
        return model

    def _close_idle(self, model: bytes) -> None:
        if not self.models[model].fetches:
            self._to_close.append(self.models.pop(model).file)

    def forget(self, model: bytes) -> list[int]:
        """No more of a model: the fetches that this ends."""
        ended = [t for t, entry in self.open.items() if entry.held.id == model]
        for transfer in ended:
            self.end(transfer)
        if model in self.models:
            self._close_idle(model)
        return ended

    def grant(self, transfer: int, pieces: int) -> None:
        """The receiver allows more."""
        if transfer in self.open:
            self.open[transfer].upload.grant(pieces)

    def end(self, transfer: int) -> None:
        """No more of this upload."""
        if transfer in self.open:
            self.open.pop(transfer).model.fetches -= 1

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
        for model in list(self.models):
            self.forget(model)
        self._close_files()

    def _close_files(self) -> None:
        while self._to_close:
            os.close(self._to_close.pop())


async def read(entry: OpenUpload, room: Room) -> Piece | None:
    """The upload's next piece; None when the file is not what it was."""
    piece = room(entry.upload.transfer, *entry.upload.take())
    entry.model.sent += len(piece.body)
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
