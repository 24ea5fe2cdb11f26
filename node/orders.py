"""What the daemon and its worker process say to each other: one JSON object a line.

Strategy: orders go down the worker's stdin, reports come up from its stdout. Each is a frozen
value; a line is its fields plus "type", the name of its class. Reading is strict: any line gives
a value or WorkerProtocolError. JSON knows no NaN, so a loss that isn't finite is sent as None.

This module imports neither torch nor trio, so both processes can use it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

from ..transport.manifest import Scores
from . import records
from .errors import WorkerProtocolError

LINE_LIMIT: Final = 1024 * 1024
"""Bytes of a line: room for 256 refused models in any script, the longest list there is."""

TEXT_LIMIT: Final = 400
"""Characters of a reason or a detail; longer ones are cut."""

FAILED_LIMIT: Final = 4_000
"""Characters of a failure: people read it, and an exception of the user's may hold megabytes."""

PROGRESS_INTERVAL: Final = 0.25
"""Seconds between two Progress: smooth for the eye, nothing for the device."""

STATES: Final = ("loading", "bootstrapping", "training", "testing", "averaging", "finished")


# ── orders: daemon → worker ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Audience:
    """Some members that alone can read our models: a secret, wrapped for each of them (hex)."""

    secret: str = field(repr=False)
    recipients: tuple[str, ...]
    wraps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Secrets:
    """A private swarm's secrets (hex), in Setup and whenever there are newer ones; keyring.py."""

    peer: str  # our own peer ID
    swarm: str
    owner: str
    root: str = field(repr=False)
    generations: dict[str, str] = field(repr=False)  # number → secret, numbers rising
    x25519: str = field(repr=False)  # our own private keys, "" for none
    hybrid: str = field(repr=False)
    audience: Audience | None


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
    encoding: str  # of the models that are sent, one of transport.manifest.ENCODINGS
    secrets: Secrets | None = None


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
    tensors: tuple[str, ...]  # "name dtype shape", as many as a peer's hello carries
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
    """Where the epoch is: every PROGRESS_INTERVAL seconds at most, and after its last batch."""

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
    encoding: str
    recipients: tuple[str, ...] = ()  # who alone can read it, none for all


@dataclass(frozen=True, slots=True)
class Epoch:
    """An epoch is done; its checkpoint is on its way to the disk."""

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


Order: TypeAlias = Setup | Begin | Threads | Secrets
Report: TypeAlias = State | Ready | Began | Progress | Model | Epoch | Finished | Failed

_ORDERS: Final = {kind.__name__: kind for kind in get_args(Order)}
_REPORTS: Final = {kind.__name__: kind for kind in get_args(Report)}


def to_line(value: Order | Report) -> bytes:
    """Return the value as one line, newline included. Raises WorkerProtocolError if too long."""
    document = {"type": type(value).__name__, **records.to_document(value)}
    line = records.dumps(document).encode() + b"\n"
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
        document = records.loads(line)
        if not isinstance(document, dict) or document.get("type") not in tuple(kinds):
            raise ValueError(f"its type is none of {', '.join(kinds)}")
        return records.build(kinds[document.pop("type")], document)
    except (ValueError, OverflowError) as error:
        raise WorkerProtocolError(str(error)) from None
