"""I/O: the models that a relay holds, on disk: the newest whole one of each author, within quotas.

    <peer ID>-<seq>.model, .note     a model, verified when it came, and its note (notes.py)
    part/<peer ID>-<seq>             a model on its way

A model that is there is whole and has its note: the note is written first, then the part renamed.
A newer model takes the older one's place; who has begun to fetch the older one goes on, as an open
file outlives its name, and its bytes count until nobody reads it. When there is no room, first go
parts that nobody fills and models that were replaced, then the oldest of the hosts that hold much.
So who holds little is not pushed out by who wants much, and many peers behind one address are one.
What changes the disk is for a thread; asking what is there isn't.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Collection, KeysView, Sequence
from dataclasses import dataclass
from pathlib import Path

from .admission import DISK, Offered, Refusal
from .errors import ShelfError
from .manifest import EXPIRY
from .messages import Run
from .notes import SUFFIXES, Stored, remove, whole, write
from .outgoing import Held
from .parts import PartFile, digest_file

# Room that stays free on the disk: a relay is a guest there, and others' logs must still fit.
RESERVE = 256 * 1024 * 1024
# No model is larger than this part of the space: a few authors can't take all of it.
SHARE = 4
# A host that holds at least the most ÷ this gives way like the one that holds most: of models of
# about one size the oldest should go.
MUCH = 2
# Models in all: their envelopes and manifests stay in memory, some 10 KiB each.
MODELS = 1024


@dataclass(slots=True)
class Part:
    """A model on its way; `busy`: it is being filled; else it goes at `until`."""

    path: Path
    model: bytes
    size: int
    host: str
    until: float
    busy: bool = True


class Shelf:
    """The index of the models here; `space` is how many bytes they may take in all.

    Raises ShelfError where the folder can't be used.
    """

    def __init__(self, folder: Path, space: int, wall: Callable[[], float]) -> None:
        self.space, self._folder, self._wall = space, folder, wall
        self._part_folder = folder / "part"
        try:
            self._part_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ShelfError(f"{folder}: {error.strerror}; remove what is there") from None
        self._lock = threading.Lock()  # models come in in threads, several at a time
        self._models: dict[str, Stored] = {}  # one of each author
        self._ids: dict[bytes, Held] = {}  # the same by envelope ID: clients ask often
        self._replaced: dict[bytes, int] = {}  # models still read by somebody, and their sizes
        self._parts: dict[str, Part] = {}  # one of each author
        self._scan()

    # -- what is there ---------------------------------------------------------------------------

    @property
    def most(self) -> int:
        """Bytes that one model may have."""
        return self.space // SHARE

    @property
    def taken(self) -> int:
        """Bytes in use, also by models on their way and those that are still read."""
        parts, models = list(self._parts.values()), list(self._models.values())
        taken = sum(part.size for part in parts) + sum(self._replaced.copy().values())
        return taken + sum(stored.held.manifest.size for stored in models)

    def free(self) -> int:
        """Bytes that models may take of the disk now."""
        return max(0, shutil.disk_usage(self._folder).free - RESERVE)

    def newest(self, peer: str) -> int:
        """The sequence number of a peer's model here; -1 for none."""
        stored = self._models.get(peer)
        return stored.held.manifest.seq if stored else -1

    def held(self) -> Sequence[Held]:
        """All models here, the newest first."""
        models = list(self._models.values())
        return [stored.held for stored in sorted(models, key=lambda s: -s.since)]

    def held_of(self, run: Run) -> Sequence[Held]:
        """Those of one run, the newest first."""
        return [held for held in self.held() if belongs(held, run)]

    def model_of(self, peer: str) -> Held | None:
        """A peer's model."""
        stored = self._models.get(peer)
        return stored.held if stored else None

    def find(self, model: bytes) -> Held | None:
        """The model with this envelope ID."""
        return self._ids.get(model)

    def readable(self, model: bytes) -> bool:
        """Whether who has begun to fetch this model may go on."""
        return model in self._replaced or model in self._ids

    # -- what comes and goes ---------------------------------------------------------------------

    def part(self, offered: Offered, host: str) -> PartFile:
        """The part file of a model from this host, with what an earlier try left; the room for it
        is made first. Raises Refusal, OSError."""
        author, size = offered.envelope.peer_id, offered.manifest.size
        path = self._part_folder / f"{author}-{offered.manifest.seq}"
        with self._lock:
            self._drop_part(author, but=path)
            try:
                self._make_room(author, size, host)
                self._check_disk(size)
            except Refusal:
                path.unlink(missing_ok=True)
                raise
            until = min(offered.manifest.expires, self._wall() + EXPIRY)
            self._parts[author] = Part(path, offered.envelope.id, size, host, until)
        return PartFile(path, offered.manifest)

    def file(self, offered: Offered, path: Path) -> None:
        """A whole model goes in the place of its author's older one."""
        peer, seq = offered.envelope.peer_id, offered.manifest.seq
        place = self._folder / f"{peer}-{seq}.model"
        held = Held(offered.envelope.data, offered.envelope.id, peer, offered.manifest, place)
        with self._lock:
            stored = Stored(held, self._parts[peer].host, self._wall())
            write(stored)
            path.replace(place)
            del self._parts[peer]
            old = self._models.get(peer)
            if old is not None:  # first, as it is looked at meanwhile
                self._replaced[old.held.id] = old.held.manifest.size
            self._index(stored)
            if old is not None:
                remove(old.held.path)

    def drop(self, model: bytes) -> bool:
        """This model is of no use; whether it was still here."""
        with self._lock:
            held = self.find(model)
            if held is not None:
                with contextlib.suppress(OSError):  # of a broken disk; nobody gets it any more
                    self._evict(held.peer)
        return held is not None

    def tidy(self, reading: Collection[bytes], coming: KeysView[bytes]) -> None:
        """What has expired goes. Only these models are still read; these are coming in, now (a
        view, as one may begin meanwhile)."""
        now = self._wall()
        with self._lock:
            for peer, stored in list(self._models.items()):
                if now >= stored.until:
                    self._evict(peer)
            for model in [model for model in self._replaced if model not in reading]:
                del self._replaced[model]
            for author, part in list(self._parts.items()):
                part.busy = part.model in coming
                if not part.busy and now >= part.until:
                    self._drop_part(author)

    # -- making room (with the lock) -------------------------------------------------------------

    def _make_room(self, author: str, size: int, host: str) -> None:
        """Room for one more model of so many bytes; raises Refusal where it is due to nobody."""
        self._parts.pop(author, None)
        while too_many := self._over(author, size):
            if self._drop_idle_part() or self._drop_replaced():
                continue
            victim = self._victim(author, host, size, by_number=too_many == "models")
            if victim is None:
                raise Refusal(
                    DISK, f"the relay is full, and all hold less than half of {size} bytes"
                )
            self._evict(victim)

    def _over(self, author: str, size: int) -> str:
        """Of what there would be too much: "bytes", "models", or "" for nothing."""
        if self.taken + size > self.space:
            return "bytes"
        return "models" if len({author, *self._models, *self._parts}) > MODELS else ""

    def _victim(self, author: str, host: str, size: int, *, by_number: bool) -> str | None:
        """Whose model goes: the oldest of the hosts that would hold much, the author's own last;
        None where none of them has anything to give."""
        load = Counter({host: 1 if by_number else size})
        for stored in self._models.values():
            load[stored.host] += 1 if by_number else stored.held.manifest.size
        for part in self._parts.values():
            load[part.host] += 1 if by_number else part.size
        much = max(load.values()) / MUCH
        choice = [s for s in self._models.values() if load[s.host] >= much]
        oldest = min(choice, key=lambda s: (s.held.peer == author, s.since), default=None)
        return oldest.held.peer if oldest else None

    def _check_disk(self, size: int) -> None:
        coming = sum(part.size for part in self._parts.values() if part.busy)
        free = shutil.disk_usage(self._folder).free - coming
        if free < size + RESERVE:
            raise Refusal(DISK, f"{size} bytes don't fit: {free} are free, {RESERVE} of them kept")

    def _drop_idle_part(self) -> bool:
        idle = next((author for author, part in self._parts.items() if not part.busy), None)
        if idle is not None:
            self._drop_part(idle)
        return idle is not None

    def _drop_part(self, author: str, but: Path | None = None) -> None:
        part = self._parts.get(author)
        if part is not None and part.path != but:
            del self._parts[author]
            part.path.unlink(missing_ok=True)

    def _drop_replaced(self) -> bool:
        """Who still reads the one replaced longest ago is told that it is gone."""
        oldest = next(iter(self._replaced), None)
        if oldest is not None:
            del self._replaced[oldest]
        return oldest is not None

    def _index(self, stored: Stored) -> None:
        """This is the author's model now."""
        old = self._models.get(stored.held.peer)
        if old is not None:
            del self._ids[old.held.id]
        self._models[stored.held.peer] = stored
        self._ids[stored.held.id] = stored.held

    def _evict(self, peer: str) -> None:
        held = self._models.pop(peer).held
        del self._ids[held.id]
        remove(held.path)

    # -- after a restart -------------------------------------------------------------------------

    def _scan(self) -> None:
        """Index what an earlier run left; remove what isn't whole, the newest, or within limits."""
        now = self._wall()
        for stored in sorted(whole(self._folder), key=lambda s: s.held.manifest.seq):
            if now < stored.until:
                self._index(stored)
        while self.taken > self.space or len(self._models) > MODELS:
            self._evict(min(self._models, key=lambda peer: self._models[peer].since))
        kept = {stored.held.path.stem for stored in self._models.values()}
        for path in self._folder.iterdir():
            if path.is_file() and not (path.suffix in SUFFIXES and path.stem in kept):
                path.unlink()
        for path in self._part_folder.iterdir():
            path.unlink()


def belongs(held: Held, run: Run) -> bool:
    """Whether this model is one of this run."""
    return (held.manifest.swarm, held.manifest.schema) == (run.swarm, run.schema)


def intact(held: Held) -> bool:
    """Whether a model's file is what its manifest says; reads all of it."""
    try:
        found = digest_file(held.path, held.manifest.chunk_size)
    except OSError:
        return False
    return found == (held.manifest.size, held.manifest.digests)
