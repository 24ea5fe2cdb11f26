"""What the daemon and its worker process say to each other: one JSON object a line.

Orders go down the worker's stdin, reports come up from its stdout. Each is a frozen value; a line
is the value's fields plus "type", the name of its class. Reading is strict: any line gives a value
or WorkerProtocolError. JSON knows no NaN, so a number that isn't finite is sent as None.

This module imports neither torch nor trio, so both processes can use it.
"""

import json
import math
import os
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeAlias, get_args, get_origin, get_type_hints

from ..transport.errors import TransportError
from ..transport.manifest import Scores
from .errors import WorkerProtocolError

# A line holds at most a list of tensors (TENSORS_LIMIT of them) or of averaged peers.
LINE_LIMIT = 1024 * 1024
# Ready lists this many tensors at most, enough to show where two models differ.
TENSORS_LIMIT = 2_000
# Progress comes at most this often: smooth for the eye, nothing for the device.
PROGRESS_INTERVAL = 0.25

STATES = ("loading", "bootstrapping", "training", "testing", "averaging", "finished")


# ── orders: daemon → worker ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Setup:
    """The first order: what to train, on what, and where the files are."""

    task: str  # "mnist", "module:attribute" or "path/file.py:attribute"
    shard: str  # "I/N"
    epochs: int  # 0 = endless
    batch_size: int
    test_batch_size: int
    lr: float
    seed: int
    device: str  # "auto", "cpu", "cuda", "cuda:N" or "mps"
    threads: int  # 0 = as torch chooses
    data_dir: Path | None  # the user's data, None for what the package carries
    cache: Path  # unpacked data, shared by all nodes of this user
    folder: Path  # this swarm's mailbox, outbox and checkpoint
    staleness: float  # exponent of the weight of older models; 0 = all equal


@dataclass(frozen=True, slots=True)
class Begin:
    """Start training, the answer to Ready."""

    bootstrap: bool  # start from the models in the mailbox if they are ahead


@dataclass(frozen=True, slots=True)
class Threads:
    """Use this many CPU threads from the next epoch on."""

    threads: int


# ── reports: worker → daemon ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Averaged:
    """One model of the last average and its share in it (all shares and the own one sum to 1)."""

    peer: str
    seq: int
    weight: float


@dataclass(frozen=True, slots=True)
class Refused:
    """One model that was not averaged in, and why. An own broken model has peer ""."""

    peer: str
    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class State:
    """What the worker does now (one of STATES) and, where there is something to tell, a line."""

    state: str
    detail: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state {self.state!r} is none of {', '.join(STATES)}")


@dataclass(frozen=True, slots=True)
class Ready:
    """Model and data are loaded; the worker waits for Begin."""

    parameters: int
    model_bytes: int  # bytes of all tensors of the model, tied ones once
    schema: str  # fingerprint of the tensors' names, types and shapes, hex
    tensors: tuple[str, ...]  # "name dtype shape", at most TENSORS_LIMIT of them
    samples: int
    test_samples: int
    device: str
    threads: int
    epoch: int  # epochs done by an earlier run; 0 = a fresh start
    age: float  # epochs of training in the weights


@dataclass(frozen=True, slots=True)
class Began:
    """The first epoch starts, from this epoch and age; `sources` are the peers started from."""

    epoch: int
    age: float
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the epoch is, at most every PROGRESS_INTERVAL seconds."""

    epoch: int
    batch: int
    batches: int
    samples_per_second: float
    loss: float | None


@dataclass(frozen=True, slots=True)
class Model:
    """A model to send, right after its training; `before` and `after` are the last tests done."""

    epoch: int
    age: float
    path: Path
    samples: int
    loss: float | None
    before: Scores | None
    after: Scores | None
    parents: tuple[str, ...]  # envelope IDs (hex) averaged in since the last Model


@dataclass(frozen=True, slots=True)
class Epoch:
    """An epoch is done and its checkpoint is written."""

    epoch: int
    before: Scores
    after: Scores
    averaged: tuple[Averaged, ...]
    refused: tuple[Refused, ...]
    seconds: float
    train_seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """All epochs are done; the worker exits with code 0."""

    epochs: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A mistake of the user's, one line; the worker exits with code 2 and must not be restarted."""

    text: str


Order: TypeAlias = Setup | Begin | Threads
Report: TypeAlias = (
    State | Ready | Began | Progress | Model | Epoch | Finished | Failed
)  # fmt: skip

_ORDERS = {kind.__name__: kind for kind in get_args(Order)}
_REPORTS = {kind.__name__: kind for kind in get_args(Report)}


def to_line(value: Order | Report) -> bytes:
    """Return the value as one line, newline included. Raises WorkerProtocolError if too long."""
    document = {"type": type(value).__name__, **asdict(value)}
    line = json.dumps(document, default=os.fspath, allow_nan=False).encode() + b"\n"
    if len(line) > LINE_LIMIT:
        raise WorkerProtocolError(f"{len(line)} bytes, at most {LINE_LIMIT}")
    return line


def parse_order(line: bytes) -> Order:
    """Read one line from the daemon. Raises WorkerProtocolError."""
    order: Order = _parse(line, _ORDERS)
    return order


def parse_report(line: bytes) -> Report:
    """Read one line from the worker. Raises WorkerProtocolError."""
    report: Report = _parse(line, _REPORTS)
    return report


def _parse(line: bytes, kinds: dict[str, Any]) -> Any:
    if len(line) > LINE_LIMIT:
        raise WorkerProtocolError(f"{len(line)} bytes, at most {LINE_LIMIT}")
    try:
        document = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WorkerProtocolError(f"not JSON ({error})") from None
    if not isinstance(document, dict) or document.get("type") not in tuple(kinds):
        raise WorkerProtocolError(f"its type is none of {', '.join(kinds)}")
    kind = kinds[document.pop("type")]
    return _build(kind, document, kind.__name__)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} isn't a JSON number")


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _build(kind: Any, document: Any, where: str) -> Any:
    """Make a frozen value of a JSON object: every field right, none missing, none unknown."""
    if not isinstance(document, dict):
        raise WorkerProtocolError(f"{where} isn't an object")
    types = _types(kind)
    required = {field.name for field in fields(kind) if field.default is MISSING}
    if wrong := (document.keys() - types.keys()) | (required - document.keys()):
        raise WorkerProtocolError(f"{where} has a missing or unknown field {min(wrong)!r}")
    try:
        return kind(
            **{name: _read(types[name], document[name], f"{where}.{name}") for name in document}
        )
    except (ValueError, TransportError) as error:
        raise WorkerProtocolError(f"{where}: {error}") from None


def _read(kind: Any, value: Any, where: str) -> Any:
    if get_origin(kind) is UnionType:  # always "X | None" here
        return None if value is None else _read(get_args(kind)[0], value, where)
    if get_origin(kind) is tuple and isinstance(value, list):  # always "tuple[X, ...]" here
        item = get_args(kind)[0]
        return tuple(_read(item, entry, f"{where}[{n}]") for n, entry in enumerate(value))
    if is_dataclass(kind):
        return _build(kind, value, where)
    if kind is Path and type(value) is str:
        return Path(value)
    if kind is float and type(value) in (int, float) and abs(value) < math.inf:
        return float(value)
    if kind is not type(value):
        raise WorkerProtocolError(f"{where} has the wrong type ({type(value).__name__})")
    return value
