"""The checkpoint: where a worker goes on after a crash, a restart or a NaN.

Strategy: one safetensors file with model and optimizer, whose metadata hold the rest as JSON and a
BLAKE3 digest of the tensors. A new one is written beside the old; the slow part, waiting for the
disk, is done by a thread while training goes on, and then the files are renamed: the old one is
kept as `checkpoint.previous` and read when the newest is damaged. Randomness needs no state: each
epoch seeds it anew from seed, shard and epoch.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from blake3 import blake3
from torch import Tensor

from ..transport.manifest import Scores
from . import records, weights
from .errors import CheckpointError, WeightsError

VERSION: Final = 1
METADATA: Final = "p2pnode"
"""Where the JSON stands in the file's metadata."""

MODEL: Final = "model."
OPTIMIZER: Final = "optimizer."
"""Prefixes of the tensors' names."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a checkpoint belongs to; another run can't go on from it."""

    task: str
    shard: str
    schema: str  # hex fingerprint of the model


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run has come.

    `seen` holds the newest sequence number looked at of each peer, `parents` the envelope IDs (hex)
    averaged in since the last model was sent, `before` and `after` the last tests done.
    """

    epoch: int
    age: float
    seen: dict[str, int]
    parents: tuple[str, ...]
    before: Scores | None
    after: Scores | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory: the model's and the optimizer's state, and the position."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    position: Position


class Store:
    """The checkpoints of one run in its folder."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.path = folder / "checkpoint.safetensors"
        self.previous = folder / "checkpoint.previous.safetensors"
        self._run = run
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; a thread brings it to the disk. Raises OSError (disk full)."""
        self.wait()
        part = self.path.with_suffix(".part")
        try:
            tensors, metadata = _pack(checkpoint, self._run)
            weights.write(part, tensors, metadata)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self._thread = threading.Thread(target=self._settle, args=(part,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises OSError if it isn't."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _settle(self, part: Path) -> None:
        try:
            _fsync(part)
            if self.path.exists():
                self.path.replace(self.previous)
            part.replace(self.path)
            _fsync(part.parent)
        except OSError as error:
            self._error = error

    def load(self) -> tuple[Checkpoint | None, str]:
        """Return the newest good checkpoint, or None for a fresh start; and what went wrong, or "".

        Raises CheckpointError if it belongs to another run.
        """
        self.wait()
        trouble = ""
        for path in (self.path, self.previous):
            try:
                return _unpack(*weights.load(path), self._run), trouble
            except FileNotFoundError:
                continue
            except WeightsError as error:
                trouble = f"damaged, went back to the one before ({error})"
        return None, trouble and "all checkpoints are damaged, starting afresh"


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ── to and from a file ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Document:
    """The metadata. `optimizer` is the state of `Checkpoint` with names in place of tensors."""

    version: int
    run: Run
    position: Position
    optimizer: Any
    digest: str


def _pack(checkpoint: Checkpoint, run: Run) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {MODEL + name: tensor for name, tensor in checkpoint.model.items()}
    optimizer = _flatten(checkpoint.optimizer, tensors)
    document = _Document(VERSION, run, checkpoint.position, optimizer, _digest(tensors))
    return tensors, {METADATA: records.dumps(records.to_document(document))}


def _unpack(tensors: dict[str, Tensor], metadata: dict[str, str], run: Run) -> Checkpoint:
    """Raises WeightsError for a damaged file, CheckpointError for another run's."""
    try:
        document = records.build(_Document, records.loads(metadata.get(METADATA, "")))
        optimizer = _unflatten(document.optimizer, tensors)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"not a checkpoint ({error})") from None
    if document.version != VERSION:
        raise CheckpointError(f"it has version {document.version}, this p2pnode reads {VERSION}")
    if document.digest != _digest(tensors):
        raise WeightsError("its digest doesn't match")
    _check_run(document.run, run)
    model = {
        name.removeprefix(MODEL): tensor
        for name, tensor in tensors.items()
        if name.startswith(MODEL)
    }
    return Checkpoint(model, optimizer, document.position)


def _check_run(theirs: Run, mine: Run) -> None:
    for field in fields(Run):
        if (other := getattr(theirs, field.name)) != getattr(mine, field.name):
            raise CheckpointError(
                f"it is of {field.name} {other}, not {getattr(mine, field.name)}; "
                "use another --swarm or --home, or remove the swarm's folder"
            )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = blake3()
    for name in sorted(tensors.keys() - weights.tied(tensors)):
        digest.update(weights.data(tensors[name]))
    return digest.hexdigest()


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON; its tensors go to `tensors` under new names."""
    match value:
        case Tensor():
            name = f"{OPTIMIZER}{len(tensors)}"
            tensors[name] = value
            return {"tensor": name}
        case dict():
            return {"dict": [[key, _flatten(item, tensors)] for key, item in value.items()]}
        case list() | tuple():
            return {type(value).__name__: [_flatten(item, tensors) for item in value]}
        case None | bool() | int() | float() | str():
            return value
    raise WeightsError(f"the optimizer's state has a {type(value).__name__}; tensors or numbers go")


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"dict": list(pairs)}:
            return {key: _unflatten(item, tensors) for key, item in pairs}
        case {"list": list(items)}:
            return [_unflatten(item, tensors) for item in items]
        case {"tuple": list(items)}:
            return tuple(_unflatten(item, tensors) for item in items)
    return value
