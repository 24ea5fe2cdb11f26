"""CORE: what two peers say to each other, as frozen values ↔ bytes.

A message is a deterministic CBOR map whose "t" names its kind; the table at the end holds all of
them. Models travel by the receiver's asking: `offer` tells what there is, `fetch` asks for chunks
and grants credit, pieces follow as data frames, `credit` renews, `done` says that the model is
filed. `have` tells others who fetch the same model what they can have of it here. The receiver ends
a transfer with `stop`, the sender with `gone`; `reject` says why an offer or its bytes are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from . import wire
from .envelope import ENVELOPE_LIMIT
from .errors import WireError
from .link import CONTROL_LIMIT
from .manifest import DIGEST, DIGESTS_LIMIT, ENCODING_LIMIT, RAW, SWARM_LIMIT
from .wire import Fields, Value

PROTOCOL = 1
REASON_LIMIT = 64  # one word of admission.py's list
TEXT_LIMIT = 512  # a detail is read by people: a few lines at most
TASK_LIMIT = 256  # module:attribute or a file's path
# The tensors of a large model would fill the message: what is needed is the first difference. So
# many of so many characters fit it in any script (4 bytes a character).
TENSORS_LIMIT, TENSOR_TEXT_LIMIT = 256, 256
RANGES_LIMIT = DIGESTS_LIMIT // DIGEST // 2  # every second chunk of a manifest's most is missing
CREDIT_LIMIT = 1024  # pieces; a gigabyte in flight is more than any line needs
# Peers in one `peers`, and bytes of a signed record (as trackers have it): half a control message.
TOLD_LIMIT, RECORD_LIMIT, PEER_LIMIT = 32, 4096, 64
# Ranges in one `have`: many bound what reading costs; who has more gaps says it in several.
HAVE_LIMIT = 256
CHUNKS_LIMIT = DIGESTS_LIMIT // DIGEST  # of a manifest
ENCODINGS_LIMIT = 32  # five times what there are
COUNT_LIMIT = 2**32 - 1  # chunk and transfer numbers are 32 bits in the data header


@dataclass(frozen=True, slots=True)
class Run:
    """The run description: what peers must agree on to be able to average."""

    swarm: str
    task: str
    schema: bytes  # 32-byte fingerprint of all names, dtypes and shapes
    parameters: int
    tensors: tuple[str, ...]  # "name dtype shape", the first TENSORS_LIMIT of them


# What a relay says it trains: nothing, in a swarm whose name no real one can have.
RELAY_RUN = Run("", "relay", bytes(32), 0, ())


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message, both ways: the run, and the epoch of the newest own model (0: none).

    `encodings` are those of the models that this side can read; who says nothing reads raw ones.
    """

    run: Run
    epoch: int
    encodings: tuple[str, ...] = (RAW,)


@dataclass(frozen=True, slots=True)
class Bye:
    """The last message: why the link is closed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Offer:
    """I hold this model: the signed envelope of its manifest."""

    envelope: bytes


@dataclass(frozen=True, slots=True)
class Want:
    """Offer me the newest models that you hold, your own and others'."""


Ranges: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Send these chunks, as (first, count) ranges, as transfer number so and so."""

    transfer: int
    model: bytes  # envelope ID
    ranges: Ranges
    credit: int  # pieces that may be sent now


@dataclass(frozen=True, slots=True)
class Have:
    """I have these chunks more of a model that I fetch, too, or hold: you may have them of me."""

    model: bytes
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Credit:
    """So many more pieces of a transfer may be sent."""

    transfer: int
    pieces: int


@dataclass(frozen=True, slots=True)
class Stop:
    """From the receiver: send no more of this transfer."""

    transfer: int


@dataclass(frozen=True, slots=True)
class Gone:
    """From the sender: this transfer goes no further, the model is no longer here."""

    transfer: int


@dataclass(frozen=True, slots=True)
class Done:
    """Your model is verified and filed (or was already here)."""

    model: bytes


@dataclass(frozen=True, slots=True)
class Reject:
    """Your offer or your bytes are refused, and why."""

    model: bytes
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer with the same number."""

    number: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer."""

    number: int


@dataclass(frozen=True, slots=True)
class Peers:
    """Whom I am connected with: signed peer records, opaque here; and whom no longer (peer IDs)."""

    records: tuple[bytes, ...]
    left: tuple[str, ...]


Message: TypeAlias = (
    Hello
    | Bye
    | Offer
    | Want
    | Fetch
    | Have
    | Credit
    | Stop
    | Gone
    | Done
    | Reject
    | Ping
    | Pong
    | Peers
)


def _line(text: str, most: int) -> str:
    """A text as the other side accepts it: one printable line, cut."""
    return "".join(c if c.isprintable() else "?" for c in text)[:most]


def _run_value(run: Run) -> dict[str, Value]:
    return {
        "swarm": run.swarm,
        "task": run.task,
        "schema": run.schema,
        "parameters": run.parameters,
        "tensors": list(run.tensors),
    }


def _read_run(f: Fields) -> Run:
    tensors = f.items("tensors", TENSORS_LIMIT)
    return Run(
        swarm=f.text("swarm", SWARM_LIMIT),
        task=f.text("task", TASK_LIMIT),
        schema=f.bytes("schema", 32, 32),
        parameters=f.integer("parameters"),
        tensors=tuple(tensors.text(i, TENSOR_TEXT_LIMIT) for i in tensors),
    )


def _hello_value(m: Hello) -> dict[str, object]:
    value = {"version": PROTOCOL, "run": _run_value(m.run), "epoch": m.epoch}
    return value if m.encodings == (RAW,) else value | {"encodings": list(m.encodings)}


def _read_hello(f: Fields) -> Hello:
    version = f.integer("version")
    if version != PROTOCOL:
        raise WireError(f"the peer speaks version {version}, this node version {PROTOCOL}")
    return Hello(_read_run(f.map("run")), f.integer("epoch"), _read_encodings(f))


def _read_encodings(f: Fields) -> tuple[str, ...]:
    encodings = f.items("encodings", ENCODINGS_LIMIT)
    return tuple(encodings.text(i, ENCODING_LIMIT) for i in encodings) or (RAW,)


def _read_fetch(f: Fields) -> Fetch:
    flat = f.items("ranges", 2 * RANGES_LIMIT)
    numbers = [flat.integer(i, 0, COUNT_LIMIT) for i in flat]
    if len(numbers) % 2 or not numbers:
        raise WireError("fetch.ranges must be pairs of first and count")
    return Fetch(
        transfer=f.integer("transfer", 0, COUNT_LIMIT),
        model=_model(f),
        ranges=tuple(zip(numbers[::2], numbers[1::2], strict=True)),
        credit=f.integer("credit", 1, CREDIT_LIMIT),
    )


def _read_have(f: Fields) -> Have:
    f.list("ranges", 2 * HAVE_LIMIT)  # it may not be missing
    flat = f.items("ranges", 2 * HAVE_LIMIT)
    numbers = [flat.integer(i, 0, CHUNKS_LIMIT) for i in flat]
    if len(numbers) % 2:
        raise WireError("have.ranges must be pairs of first and count")
    ranges = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    if any(first + count > CHUNKS_LIMIT for first, count in ranges):
        raise WireError(f"have.ranges must be within the {CHUNKS_LIMIT} chunks of a model")
    return Have(_model(f), ranges)


def _read_peers(f: Fields) -> Peers:
    for key in ("records", "left"):
        f.list(key, TOLD_LIMIT)  # neither may be missing
    records, left = f.items("records", TOLD_LIMIT), f.items("left", TOLD_LIMIT)
    return Peers(
        tuple(records.bytes(i, 1, RECORD_LIMIT) for i in records),
        tuple(left.text(i, PEER_LIMIT) for i in left),
    )


def _model(f: Fields) -> bytes:
    return f.bytes("model", 32, 32)


def _transfer(f: Fields) -> int:
    return f.integer("transfer", 0, COUNT_LIMIT)


Writer: TypeAlias = Callable[..., dict[str, object]]
Reader: TypeAlias = Callable[[Fields], Message]

# kind → (class, its fields, how to read it)
_TABLE: dict[str, tuple[type[Message], Writer, Reader]] = {
    "hello": (
        Hello,
        _hello_value,
        _read_hello,
    ),
    "bye": (
        Bye,
        lambda m: {"reason": _line(m.reason, TEXT_LIMIT)},
        lambda f: Bye(f.text("reason", TEXT_LIMIT)),
    ),
    "offer": (
        Offer,
        lambda m: {"envelope": m.envelope},
        lambda f: Offer(f.bytes("envelope", 1, ENVELOPE_LIMIT)),
    ),
    "want": (Want, lambda m: {}, lambda f: Want()),
    "fetch": (
        Fetch,
        lambda m: {
            "transfer": m.transfer,
            "model": m.model,
            "ranges": [n for pair in m.ranges for n in pair],
            "credit": m.credit,
        },
        _read_fetch,
    ),
    "have": (
        Have,
        lambda m: {"model": m.model, "ranges": [n for pair in m.ranges for n in pair]},
        _read_have,
    ),
    "credit": (
        Credit,
        lambda m: {"transfer": m.transfer, "pieces": m.pieces},
        lambda f: Credit(_transfer(f), f.integer("pieces", 1, CREDIT_LIMIT)),
    ),
    "stop": (Stop, lambda m: {"transfer": m.transfer}, lambda f: Stop(_transfer(f))),
    "gone": (Gone, lambda m: {"transfer": m.transfer}, lambda f: Gone(_transfer(f))),
    "done": (Done, lambda m: {"model": m.model}, lambda f: Done(_model(f))),
    "reject": (
        Reject,
        lambda m: {
            "model": m.model,
            "reason": _line(m.reason, REASON_LIMIT),
            "detail": _line(m.detail, TEXT_LIMIT),
        },
        lambda f: Reject(_model(f), f.text("reason", REASON_LIMIT), f.text("detail", TEXT_LIMIT)),
    ),
    "ping": (Ping, lambda m: {"number": m.number}, lambda f: Ping(f.integer("number"))),
    "pong": (Pong, lambda m: {"number": m.number}, lambda f: Pong(f.integer("number"))),
    "peers": (
        Peers,
        lambda m: {"records": list(m.records), "left": list(m.left)},
        _read_peers,
    ),
}
_KINDS = {row[0]: kind for kind, row in _TABLE.items()}


def to_bytes(message: Message) -> bytes:
    """The message as bytes of at most CONTROL_LIMIT."""
    kind = _KINDS[type(message)]
    return wire.encode({"t": kind, **_TABLE[kind][1](message)})


def from_bytes(data: bytes) -> Message:
    """The message in these bytes; raises WireError for any others."""
    fields = Fields.parse(data, what="message", limit=CONTROL_LIMIT)
    kind = fields.text("t", 16)
    if kind not in _TABLE:
        raise WireError(f"an unknown kind of message: {kind!r}")
    return _TABLE[kind][2](fields)


def difference(mine: Run, theirs: Run) -> str | None:
    """Why two runs can't be averaged, in one readable line; None where they can."""
    if mine.swarm != theirs.swarm:
        return f"swarm: mine {mine.swarm!r}, theirs {theirs.swarm!r}"
    if mine.schema == theirs.schema:
        return None  # the same tensors: the task's name may differ (a path on another machine)
    parts = [f"task: mine {mine.task!r}, theirs {theirs.task!r}"] * (mine.task != theirs.task)
    parts.append(_tensor_difference(mine, theirs))
    return "; ".join(parts)


def _tensor_difference(mine: Run, theirs: Run) -> str:
    sizes = f"model: mine {mine.parameters:,} parameters, theirs {theirs.parameters:,}"
    pairs = (("mine", mine.tensors, theirs.tensors), ("theirs", theirs.tensors, mine.tensors))
    only = [
        f"only {whose} has {next(t for t in tensors if t not in others)}"
        for whose, tensors, others in pairs
        if set(tensors) - set(others)
    ]
    return "; ".join([sizes, *(only or [f"the first {len(mine.tensors)} tensors are the same"])])
