"""The models of one swarm on disk: our own newest, and the newest verified one of each peer.

    outbox/<name>.safetensors, .envelope      our own newest model, served to whoever asks
    mailbox/<peer ID>-<seq>.safetensors       a peer's newest model, verified
    mailbox/<peer ID>-<seq>.envelope          its signed manifest, as it came
    mailbox/part/<envelope ID>                a model on its way

Two processes share the mailbox and none waits: the daemon puts the envelope there first and then
renames the model into place, so a model that is there is whole and has its envelope; the worker
only reads. When a newer model comes, the older file is unlinked, which harms no reader that has it
open or mapped. The daemon keeps an index in memory, so asking what is there touches no disk.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..transport import envelope as envelopes
from ..transport.admission import DISK, Offered, Refusal
from ..transport.errors import TransportError
from ..transport.manifest import Manifest
from ..transport.outgoing import Held
from ..transport.parts import PartFile

# Room that stays free on the disk, for logs and checkpoints of everything else on the machine.
RESERVE = 64 * 1024 * 1024


class Mailbox:
    """The index of the models here; it is the exchange's `Library`."""

    def __init__(self, folder: Path, me: str, most_models: int) -> None:
        self._me, self._most = me, most_models
        self._outbox, self._inbox = folder / "outbox", folder / "mailbox"
        self._parts = self._inbox / "part"
        for place in (self._outbox, self._parts):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        return own + sorted(self._models.values(), key=lambda h: -h.manifest.created)

    def part(self, offered: Offered) -> PartFile:
        """The part file of an offered model, with what an earlier try left; raises Refusal."""
        size = offered.manifest.size
        free = shutil.disk_usage(self._parts).free
        if free < size + RESERVE:
            raise Refusal(DISK, f"{size} bytes don't fit: {free} bytes are free on the disk")
        return PartFile(self._parts / offered.envelope.id.hex(), offered.manifest)

    def file(self, offered: Offered, part: Path) -> None:
        """Move a whole model into the mailbox; the peer's older one goes."""
        peer, seq = offered.envelope.peer_id, offered.manifest.seq
        path = self._inbox / f"{peer}-{seq}.safetensors"
        _write(path.with_suffix(".envelope"), offered.envelope.data)
        part.replace(path)
        old = self._models.get(peer)
        self._models[peer] = Held(
            offered.envelope.data, offered.envelope.id, peer, offered.manifest, path
        )
        self._sequence[peer] = seq
        if old is not None:
            _remove(old.path)
        self._evict()

    # -- as the daemon sees it ---------------------------------------------------------------

    @property
    def own(self) -> Held | None:
        """Our own newest model."""
        return self._own

    def publish(self, path: Path, data: bytes) -> Held:
        """Our worker's new model with its sealed envelope: from now on it is the one we serve."""
        _write(path.with_suffix(".envelope"), data)
        held = _held(path, data)
        old, self._own = self._own, held
        if old is not None and old.path != path:
            _remove(old.path)
        return held

    def models(self) -> Sequence[Held]:
        """The peers' models here."""
        return list(self._models.values())

    def keep(self, schema: bytes) -> None:
        """Drop the models of another schema, left by an earlier run under the same name."""
        for peer, held in list(self._models.items()):
            if held.manifest.schema != schema:
                _remove(self._models.pop(peer).path)
        if self._own is not None and self._own.manifest.schema != schema:
            self._own = None

    def _evict(self) -> None:
        """Keep at most so many models; the oldest go first."""
        while len(self._models) > self._most:
            oldest = min(self._models.values(), key=lambda h: h.manifest.created)
            _remove(self._models.pop(oldest.peer).path)

    def _scan(self) -> None:
        """Index what an earlier run left; what is not whole is removed."""
        for path in self._inbox.glob("*.envelope"):
            held = _read(path)
            if held is None or held.manifest.seq <= self.newest(held.peer):
                _remove(path.with_suffix(".safetensors"))
                continue
            if (older := self._models.get(held.peer)) is not None:
                _remove(older.path)
            self._models[held.peer] = held
            self._sequence[held.peer] = held.manifest.seq
        own = [held for path in self._outbox.glob("*.envelope") if (held := _read(path))]
        self._own = max(own, key=lambda h: h.manifest.seq, default=None)
        keep = {self._own.path, self._own.path.with_suffix(".envelope")} if self._own else set()
        for path in self._outbox.iterdir():
            if path not in keep:
                path.unlink()
        for part in self._parts.iterdir():
            part.unlink()


def _read(path: Path) -> Held | None:
    """The model of an envelope on disk, if both are there and whole."""
    model = path.with_suffix(".safetensors")
    try:
        held = _held(model, path.read_bytes())
        return held if model.stat().st_size == held.manifest.size else None
    except (OSError, TransportError):
        return None


def _held(path: Path, data: bytes) -> Held:
    """Signatures were verified before a file came here, so they aren't again."""
    opened = envelopes.peek(data)
    return Held(data, opened.id, opened.peer_id, Manifest.from_bytes(opened.payload), path)


def _write(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    fresh = path.with_suffix(".tmp")
    fresh.write_bytes(data)
    fresh.replace(path)


def _remove(model: Path) -> None:
    """Remove a model, then its envelope."""
    for path in (model, model.with_suffix(".envelope")):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
