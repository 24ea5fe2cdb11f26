"""What a node is doing at one moment: one frozen value for the screen, scripts and tests.

Strategy: the daemon fills a NodeStatus, the control socket carries its bytes, `p2pnode status`
draws it or prints it as JSON. The bytes are deterministic CBOR maps keyed by the field names
below, so a newer node can add fields without harm to an older screen. Numbers that aren't
finite (the loss of a diverged model) are written as null, which reads as "unknown", or 0.

Units: times and durations in seconds, sizes in bytes, rates in bytes a second, accuracy as a
fraction from 0 to 1. Texts are for people; `state` and `level` are also for programs.
docs/reference/status.md shows the JSON.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from ..transport import wire
from ..transport.errors import ManifestError, WireError
from ..transport.manifest import Scores
from ..transport.wire import Fields
from .errors import StatusError

HISTORY_LIMIT: Final = 64
"""Newest epochs kept: more than the tallest screen shows."""

EVENTS_LIMIT: Final = 50
"""Newest events kept, for the same reason."""

TEXT_LIMIT: Final = 1024
"""Characters of one text: some lines of a terminal; longer ones are cut when written."""

LIST_LIMIT: Final = 4096
"""Items of one list that a reader takes: far above the 50 peers a node holds."""

STATUS_LIMIT: Final = 1024 * 1024
"""Bytes of one status; a full one with 50 peers takes about 40 KiB."""


@dataclass(frozen=True, slots=True)
class TrackerStatus:
    """One tracker: `state` is "connecting", "connected" or "unreachable", `detail` says why."""

    address: str
    state: str
    detail: str = ""
    peers: int = 0


@dataclass(frozen=True, slots=True)
class WayStatus:
    """One way in for others: "mapping", "punching" or "relay", and what there is to say of it."""

    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class TrainingStatus:
    """The worker: `state` is "starting", "loading", "bootstrapping", "training", "testing",
    "averaging", "finished" or "failed"; `detail` says more in one line.

    `epoch` is the one in work, from 1; `epochs` is 0 when training goes on until stopped;
    `eta` counts to the end of the last epoch, or of this one when `epochs` is 0.
    """

    state: str = "starting"
    detail: str = ""
    epoch: int = 0
    epochs: int = 0
    batch: int = 0
    batches: int = 0
    samples_per_second: float = 0.0
    eta: float | None = None
    loss: float | None = None
    device: str = ""
    threads: int = 0
    parameters: int = 0


@dataclass(frozen=True, slots=True)
class EpochStatus:
    """One finished epoch: tests before and after averaging in `averaged` models."""

    epoch: int
    before: Scores
    after: Scores
    averaged: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One neighbour: `path` is how it is reached ("direct 1.2.3.4:6000", or "relay 1.2.3.4:5555"
    where its models come through a relay), `state` is "connected", "relayed", "connecting" or
    "lost".

    `epoch` is that of its newest model, `behind` how many epochs of training its model has less
    than ours (negative: more), `weight` its share in our last average (0 to 1), `silent` the
    time since it was last heard.
    """

    peer: str
    path: str
    state: str
    round_trip: float | None = None
    epoch: int | None = None
    behind: float | None = None
    weight: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    rate_in: float = 0.0
    rate_out: float = 0.0
    silent: float = 0.0


@dataclass(frozen=True, slots=True)
class MailboxStatus:
    """The newest verified model of each peer; `waiting` of them are not averaged in yet."""

    models: int = 0
    bytes: int = 0
    limit_models: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class TransferStatus:
    """One model on its way: `direction` is "in" or "out", `done` of `size` bytes are there."""

    peer: str
    direction: str
    epoch: int
    size: int
    done: int
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened `at` Unix seconds; `level` is "info", "warning" or "error"."""

    at: float
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """All of a node. `relay_in` and `relay_out` are bytes from and to relays, which are no peers';
    `public` is "" without a public address; `rejects` pairs a reason with how
    often something was refused for it; history and events run from old to new.
    """

    version: str
    peer: str
    swarm: str
    task: str
    shard: str
    public: str
    listening: str
    reachability: str
    uptime: float
    trackers: tuple[TrackerStatus, ...] = ()
    ways: tuple[WayStatus, ...] = ()
    training: TrainingStatus = TrainingStatus()
    history: tuple[EpochStatus, ...] = ()
    peers: tuple[PeerStatus, ...] = ()
    mailbox: MailboxStatus = MailboxStatus()
    transfers: tuple[TransferStatus, ...] = ()
    events: tuple[Event, ...] = ()
    rejects: tuple[tuple[str, int], ...] = ()
    relay_in: int = 0
    relay_out: int = 0

    def to_bytes(self) -> bytes:
        """The deterministic CBOR map that `from_bytes` reads. Raises StatusError."""
        try:
            return wire.encode(asdict(self, dict_factory=_portable))
        except WireError as error:
            raise StatusError(str(error)) from error

    @classmethod
    def from_bytes(cls, data: bytes) -> "NodeStatus":
        """The status in these bytes. Raises StatusError for any others."""
        try:
            return _node(Fields.parse(data, what="status", limit=STATUS_LIMIT))
        except (WireError, ManifestError) as error:
            raise StatusError(str(error)) from error

    def to_json(self) -> dict[str, Any]:
        """The same maps and lists with plain JSON values; `rejects` maps reasons to counts."""
        return asdict(self, dict_factory=_portable) | {"rejects": dict(self.rejects)}


def _portable(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: _portable_value(value) for key, value in fields}


def _portable_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return printable(value[:TEXT_LIMIT]) if isinstance(value, str) else value


def printable(text: str) -> str:
    """The text with "�" for line breaks, escapes, lone surrogates: safe on any terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


def _node(f: Fields) -> NodeStatus:
    return NodeStatus(
        version=_text(f, "version"),
        peer=_text(f, "peer"),
        swarm=_text(f, "swarm"),
        task=_text(f, "task"),
        shard=_text(f, "shard"),
        public=_text(f, "public"),
        listening=_text(f, "listening"),
        reachability=_text(f, "reachability"),
        uptime=f.number("uptime", default=0.0),
        trackers=tuple(_tracker(each) for each in _maps(f, "trackers")),
        ways=tuple(WayStatus(_text(w, "name"), _text(w, "detail")) for w in _maps(f, "ways")),
        training=_training(f.map("training")),
        history=tuple(_epoch(each) for each in _maps(f, "history")),
        peers=tuple(_peer(each) for each in _maps(f, "peers")),
        mailbox=_mailbox(f.map("mailbox")),
        transfers=tuple(_transfer(each) for each in _maps(f, "transfers")),
        events=tuple(_event(each) for each in _maps(f, "events")),
        rejects=_rejects(f),
        relay_in=f.integer("relay_in", default=0),
        relay_out=f.integer("relay_out", default=0),
    )


def _text(f: Fields, key: str) -> str:
    return f.text(key, TEXT_LIMIT)


def _maps(f: Fields, key: str) -> list[Fields]:
    items = f.items(key, LIST_LIMIT)
    return [items.map(i) for i in items]


def _tracker(f: Fields) -> TrackerStatus:
    return TrackerStatus(
        _text(f, "address"), _text(f, "state"), _text(f, "detail"), f.integer("peers")
    )


def _training(f: Fields) -> TrainingStatus:
    return TrainingStatus(
        state=_text(f, "state"),
        detail=_text(f, "detail"),
        epoch=f.integer("epoch"),
        epochs=f.integer("epochs"),
        batch=f.integer("batch"),
        batches=f.integer("batches"),
        samples_per_second=f.number("samples_per_second", default=0.0),
        eta=f.number("eta", default=None),
        loss=f.number("loss", default=None),
        device=_text(f, "device"),
        threads=f.integer("threads"),
        parameters=f.integer("parameters"),
    )


def _epoch(f: Fields) -> EpochStatus:
    return EpochStatus(
        epoch=f.integer("epoch"),
        before=_scores(f.map("before")),
        after=_scores(f.map("after")),
        averaged=f.integer("averaged"),
        seconds=f.number("seconds", default=0.0),
    )


def _scores(f: Fields) -> Scores:
    return Scores(f.number("loss"), f.number("accuracy", default=None))


def _peer(f: Fields) -> PeerStatus:
    return PeerStatus(
        peer=_text(f, "peer"),
        path=_text(f, "path"),
        state=_text(f, "state"),
        round_trip=f.number("round_trip", default=None),
        epoch=f.integer("epoch", default=None),
        behind=f.number("behind", default=None),
        weight=f.number("weight", default=None),
        bytes_in=f.integer("bytes_in"),
        bytes_out=f.integer("bytes_out"),
        rate_in=f.number("rate_in", default=0.0),
        rate_out=f.number("rate_out", default=0.0),
        silent=f.number("silent", default=0.0),
    )


def _mailbox(f: Fields) -> MailboxStatus:
    return MailboxStatus(
        f.integer("models"), f.integer("bytes"), f.integer("limit_models"), f.integer("waiting")
    )


def _transfer(f: Fields) -> TransferStatus:
    return TransferStatus(
        peer=_text(f, "peer"),
        direction=_text(f, "direction"),
        epoch=f.integer("epoch"),
        size=f.integer("size"),
        done=f.integer("done"),
        rate=f.number("rate", default=0.0),
    )


def _event(f: Fields) -> Event:
    return Event(f.number("at", default=0.0), _text(f, "level"), _text(f, "text"))


def _rejects(f: Fields) -> tuple[tuple[str, int], ...]:
    rejects = f.items("rejects", LIST_LIMIT)
    pairs = [rejects.items(i, 2) for i in rejects]
    return tuple((_text(pair, "0"), pair.integer("1")) for pair in pairs)
