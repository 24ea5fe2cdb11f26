"""The models of one swarm on disk: our own newest, and the newest verified one of each peer.

    outbox/<name>.safetensors, .envelope      our own newest model, served to whoever asks
    mailbox/<peer ID>-<seq>.safetensors       a peer's newest model, verified
    mailbox/<peer ID>-<seq>.envelope          its signed manifest, as it came
    mailbox/part/<peer ID>-<seq>              a model on its way
    mailbox/spare                             a file whose model has been replaced

Two processes share the mailbox and none waits: the daemon puts the envelope there first and then
renames the model into place, so a model that is there is whole and has its envelope; the worker
only reads. When a newer model comes, the older file is taken away, which harms no reader that has
it open or mapped: it becomes the next part only when nobody has. That saves fresh files, which cost
a page fault for every 4 KiB. The daemon keeps an index in memory, so asking what is there touches
no disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..transport import envelope as envelopes
from ..transport.admission import DISK, Offered, Refusal
from ..transport.errors import TransportError
from ..transport.manifest import Manifest
from ..transport.outgoing import Held
from ..transport.parts import PartFile
from ..transport.veil import Unveil, plain

# Room that stays free on the disk, for logs and checkpoints of everything else on the machine.
RESERVE = 64 * 1024 * 1024
# Peers whose last number is remembered, the last to come: far more than models are kept. A model
# may be fetched once more; a table that grows with every peer that ever came may not.
NUMBERS_LIMIT = 4096
# Parts of models that stay for a later try: twice what comes in at the same time.
PARTS_LIMIT = 32
_SUFFIXES = (".safetensors", ".envelope")


class Mailbox:
    """The index of the models here; it is the exchange's `Library`."""

    def __init__(self, folder: Path, me: str, most_models: int, unveil: Unveil = plain) -> None:
        self._me, self._most, self._unveil = me, most_models, unveil
        self._outbox, self._inbox = folder / "outbox", folder / "mailbox"
        self._parts, self._spare = self._inbox / "part", self._inbox / "spare"
        for place in (self._outbox, self._parts):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()  # models are filed in threads, several at a time
        self._sequence: dict[str, int] = {}
        self._models: dict[str, Held] = {}
        self._own: Held | None = None
        self._scan()

    # -- as the exchange sees it -------------------------------------------------------------

    def newest(self, peer: str) -> int:
        """The highest sequence number filed from a peer; -1 for none."""
        return self._sequence.get(peer, -1)

    def held(self) -> Sequence[Held]:
        """All models here, our own first, then by when they were made, newest first."""
        own = [self._own] if self._own else []
        return own + sorted(self.models(), key=lambda h: -h.manifest.created)

    def part(self, offered: Offered) -> PartFile:
        """The part file of an offered model, with what an earlier try left; raises Refusal."""
        path = self._parts / f"{offered.envelope.peer_id}-{offered.manifest.seq}"
        with self._lock:
            self._sweep_parts(offered.envelope.peer_id, path)
            size, free = offered.manifest.size, shutil.disk_usage(self._parts).free
            if free < size + RESERVE:
                self._spare.unlink(missing_ok=True)  # it may fit next time
                raise Refusal(
                    DISK, f"{size} bytes don't fit: {free} are free, {RESERVE} of them kept"
                )
            blank = not path.exists()
            if blank and _unused(self._spare):
                self._spare.replace(path)
        return PartFile(path, offered.manifest, blank=blank)

    def file(self, offered: Offered, part: Path) -> None:
        """Move a whole model into the mailbox; the peer's older one goes."""
        peer, seq = offered.envelope.peer_id, offered.manifest.seq
        path = self._inbox / f"{peer}-{seq}.safetensors"
        held = Held(offered.envelope.data, offered.envelope.id, peer, offered.manifest, path)
        with self._lock:
            if seq <= self.newest(peer):  # two models with one number: the first one counts
                part.unlink()
                return
            _write(path.with_suffix(".envelope"), held.envelope)
            part.replace(path)
            self._index(held)
            self._evict()

    # -- as the daemon sees it ---------------------------------------------------------------

    @property
    def own(self) -> Held | None:
        """Our own newest model."""
        return self._own

    def publish(self, path: Path, data: bytes) -> Held:
        """Our worker's new model with its sealed envelope: from now on it is the one we serve."""
        _write(path.with_suffix(".envelope"), data)
        self._own = held = _held(path, data, self._unveil)
        return held

    def discard(self, path: Path) -> None:
        """Our worker's model at this path isn't served: a newer one came, or it failed."""
        if self._own is None or self._own.path != path:
            _remove(path)

    def models(self) -> Sequence[Held]:
        """The peers' models here."""
        return list(self._models.values())

    def keep(self, schema: bytes) -> None:
        """Drop the models of another schema, left by an earlier run under the same name."""
        with self._lock:
            for held in self.models():
                if held.manifest.schema != schema:
                    _remove(self._models.pop(held.peer).path)
                    del self._sequence[held.peer]
        if self._own is not None and self._own.manifest.schema != schema:
            _remove(self._own.path)
            self._own = None

    # -- inside ------------------------------------------------------------------------------

    def _index(self, held: Held) -> None:
        """This is the peer's model now; the older one goes."""
        old = self._models.get(held.peer)
        self._models[held.peer] = held
        self._sequence[held.peer] = held.manifest.seq
        if old is not None:
            with contextlib.suppress(FileNotFoundError):
                old.path.replace(self._spare)
            _remove(old.path)

    def _evict(self) -> None:
        """Keep at most so many models, the newest, and so many numbers."""
        while len(self._models) > self._most:
            oldest = min(self._models.values(), key=lambda h: h.manifest.created)
            _remove(self._models.pop(oldest.peer).path)
        while len(self._sequence) > NUMBERS_LIMIT:
            del self._sequence[next(peer for peer in self._sequence if peer not in self._models)]

    def _sweep_parts(self, peer: str, wanted: Path) -> None:
        """Of each peer only the newest part stays, and of all the last PARTS_LIMIT written to."""
        parts = sorted(self._parts.iterdir(), key=lambda part: -part.stat().st_mtime_ns)
        for number, part in enumerate(parts, 2):  # the wanted one is the first
            superseded = part.name.rpartition("-")[0] == peer
            if part != wanted and (superseded or number > PARTS_LIMIT):
                part.unlink()

    def _scan(self) -> None:
        """Index what an earlier run left; what is not whole or not the newest is removed.

        So are peers' models from before this boot: after a power cut a file may have its name and
        size, and zeros for what hadn't reached the disk. Our own is verified by whoever fetches it.
        """
        booted = _booted()
        for held in sorted(_whole(self._inbox, self._unveil), key=lambda h: h.manifest.seq):
            if held.path.stat().st_mtime >= booted:
                self._index(held)
        self._evict()
        own = [held for held in _whole(self._outbox, self._unveil) if held.peer == self._me]
        self._own = max(own, key=lambda h: h.manifest.seq, default=None)
        _clear(self._inbox, self.models())
        _clear(self._outbox, [self._own] if self._own else [])
        _clear(self._parts, [])


def _whole(folder: Path, unveil: Unveil) -> Iterator[Held]:
    """The models in a folder that have their envelope and their size."""
    for path in folder.glob("*.envelope"):
        with contextlib.suppress(OSError, TransportError):
            held = _held(path.with_suffix(".safetensors"), path.read_bytes(), unveil)
            if held.path.stat().st_size == held.manifest.size:
                yield held


def _booted() -> float:
    """When this machine started, in Unix seconds by its clock of now; 0 where none can tell."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _held(path: Path, data: bytes, unveil: Unveil) -> Held:
    """Signatures were verified before a file came here, so they aren't again."""
    opened = envelopes.peek(data)
    manifest = unveil(Manifest.from_bytes(opened.payload))
    return Held(data, opened.id, opened.peer_id, manifest, path)


def _clear(folder: Path, kept: Iterable[Held]) -> None:
    """Remove every file but these models and their envelopes."""
    names = {held.path.stem for held in kept}
    for path in folder.iterdir():
        if path.is_file() and (path.stem not in names or path.suffix not in _SUFFIXES):
            path.unlink()


def _unused(path: Path) -> bool:
    """Whether the file is there and nobody has it open or mapped; False where none can tell.

    The kernel gives a write lease (fcntl(2), Linux) only for such a file. It is given back at once;
    should somebody open the file in that moment, they wait, and we get a signal that does nothing.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        with path.open("r+b", buffering=0) as file:
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    fresh = path.with_suffix(".tmp")
    fresh.write_bytes(data)
    fresh.replace(path)


def _remove(model: Path) -> None:
    """Remove a model, then its envelope."""
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            model.with_suffix(suffix).unlink()
