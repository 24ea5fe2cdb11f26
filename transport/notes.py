"""I/O: the note beside each model that a relay holds: whose it is, from which host, since when.

Written whole or not at all, and before the model itself comes to its place; so a model with a note
is whole, unless its disk has spoilt it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import envelope as envelopes
from . import wire
from .envelope import ENVELOPE_LIMIT
from .errors import TransportError
from .manifest import EXPIRY, Manifest
from .outgoing import Held
from .wire import Fields

# A note: an envelope, and a line.
NOTE_LIMIT = ENVELOPE_LIMIT + 1024
HOST_LIMIT = 64  # characters of an IP address, or of a network's
SUFFIXES = (".model", ".note")


@dataclass(frozen=True, slots=True)
class Stored:
    """A model here; `since` is Unix seconds by our clock."""

    held: Held
    host: str
    since: float

    @property
    def until(self) -> float:
        """When it goes: its author's word, but never later than a day."""
        return min(self.held.manifest.expires, self.since + EXPIRY)


def whole(folder: Path) -> Iterator[Stored]:
    """The models in a folder that have their note and their size."""
    for path in folder.glob("*.note"):
        with contextlib.suppress(OSError, TransportError):
            stored = _read(path)
            held = stored.held
            ours = path.stem == f"{held.peer}-{held.manifest.seq}"
            if ours and held.path.stat().st_size == held.manifest.size:
                yield stored


def _read(path: Path) -> Stored:
    """Signatures were verified before a note was written, so they aren't again."""
    note = Fields.parse(path.read_bytes(), what="note", limit=NOTE_LIMIT)
    data = note.bytes("envelope", 1, ENVELOPE_LIMIT)
    opened = envelopes.peek(data)
    manifest = Manifest.from_bytes(opened.payload)
    held = Held(data, opened.id, opened.peer_id, manifest, path.with_suffix(".model"))
    return Stored(held, note.text("host", HOST_LIMIT), note.number("since"))


def write(stored: Stored) -> None:
    """So that it is there whole or not at all."""
    note = {"envelope": stored.held.envelope, "host": stored.host, "since": float(stored.since)}
    fresh = stored.held.path.with_suffix(".tmp")
    fresh.write_bytes(wire.encode(note))
    fresh.replace(stored.held.path.with_suffix(".note"))


def remove(model: Path) -> None:
    """Remove a model, then its note."""
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            model.with_suffix(suffix).unlink()
