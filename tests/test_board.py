"""What a node shows: counts, rates and results, from fakes that hold what the parts would hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import manifest
from statuses import peer_id

from p2pnode.node import orders
from p2pnode.node.board import (
    RATE_SECONDS,
    REASONS_LIMIT,
    TRANSFERS_LIMIT,
    Board,
    Facts,
    Rate,
)
from p2pnode.node.peers import KNOWN_LIMIT, Known
from p2pnode.node.status import (
    EVENTS_LIMIT,
    HISTORY_LIMIT,
    STATUS_LIMIT,
    TEXT_LIMIT,
    NodeStatus,
    PeerStatus,
    TrackerStatus,
    WayStatus,
)
from p2pnode.transport.manifest import Manifest, Scores

FACTS = Facts("0.1.0", peer_id(0), "main", "mnist", "0/3", 4, 64)
SCORES = Scores(0.5, 0.9)


@dataclass
class Session:
    """A session's counts."""

    peer: str
    dialled: bool = True
    punched: bool = False
    bytes_in: int = 0
    bytes_out: int = 0
    heard: float = 0.0
    round_trip: float | None = 0.01
    outgoing: Any = field(default_factory=lambda: SimpleNamespace(models={}))

    @property
    def link(self) -> Session:
        return self


@dataclass
class Node:
    """A board and everything that it looks at."""

    now: float = 100.0
    sessions: dict[str, Session] = field(default_factory=dict)
    relays: dict[str, Session] = field(default_factory=dict)
    incoming: dict[bytes, Any] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)
    held: dict[str, Manifest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.board = Board(FACTS, lambda: self.now, lambda: 1_800_000_000.0 + self.now)

    def models(self) -> list[Any]:
        return [SimpleNamespace(peer=peer, manifest=m) for peer, m in self.held.items()]

    def connect(self, number: int, **counts: Any) -> Session:
        """A session with this peer is in use."""
        session = Session(peer_id(number), **counts)
        known = Known(session.peer, self.now, self.now, "connected", "direct 1.2.3.4:6000")
        self.known[session.peer], self.sessions[session.peer] = known, session
        return session

    def status(self) -> NodeStatus:
        """The node now."""
        fake: Any = self
        return self.board.snapshot(
            public="2.2.2.2:6000",
            listening="0.0.0.0:6000",
            reachability=self.board.came_in(),
            trackers=[TrackerStatus("t:5555", "connected", "", 2)],
            ways=[WayStatus("mapping", "by the router")],
            peers=fake,
            exchange=fake,
            mailbox=fake,
        )

    def arrived(self) -> NodeStatus:
        """The same as a screen gets it by way of the control socket."""
        data = self.status().to_bytes()
        assert len(data) <= STATUS_LIMIT
        return NodeStatus.from_bytes(data)

    def peer(self, number: int) -> PeerStatus:
        """One peer of the status."""
        return {p.peer: p for p in self.status().peers}[peer_id(number)]


def epoch(
    number: int, averaged: dict[int, int] | None = None, refused: dict[int, int] | None = None
) -> orders.Epoch:
    """The report of an epoch of 40 seconds; `averaged` and `refused` are {peer: seq}."""
    return orders.Epoch(
        epoch=number,
        before=SCORES,
        after=SCORES,
        averaged=tuple(
            orders.Averaged(peer_id(n), seq, 0.25) for n, seq in (averaged or {}).items()
        ),
        refused=tuple(orders.Refused(peer_id(n), seq, "NaN") for n, seq in (refused or {}).items()),
        seconds=40.0,
        train_seconds=30.0,
    )


# ── the node and its training ────────────────────────────────────────────────────────────────


def test_what_does_not_change() -> None:
    """The facts, the addresses and the uptime."""
    node = Node()
    node.now += 7
    status = node.status()
    assert (status.version, status.peer, status.swarm) == ("0.1.0", peer_id(0), "main")
    assert (status.public, status.listening, status.uptime) == ("2.2.2.2:6000", "0.0.0.0:6000", 7)
    assert (status.training.state, status.training.epochs) == ("starting", 4)
    assert status.trackers[0].peers == 2


def test_the_worker_s_reports() -> None:
    """Ready, state and progress show in the training panel."""
    node = Node()
    node.board.ready(
        orders.Ready(1_199_882, 4_800_000, "00", (), 600, 100, "cpu", 2, epoch=3, age=2.5)
    )
    node.board.state(orders.State("training", "the disk is full"))
    node.board.progress(orders.Progress(4, 30, 60, 900.0, 0.25))
    shown = node.status().training
    assert (shown.device, shown.threads, shown.parameters) == ("cpu", 2, 1_199_882)
    assert (shown.state, shown.detail) == ("training", "the disk is full")
    assert (shown.epoch, shown.batch, shown.batches) == (4, 30, 60)
    assert (shown.samples_per_second, shown.loss, shown.eta) == (900.0, 0.25, None)


def test_when_it_ends() -> None:
    """After an epoch it is known how long the rest takes; when all is done nothing is left."""
    node = Node()
    node.board.epoch(epoch(1))
    node.board.progress(orders.Progress(2, 15, 60, 900.0, 0.25))
    assert node.status().training.eta == pytest.approx(40 * (0.75 + 2))
    node.board.state(orders.State("testing"))
    assert node.status().training.eta is not None
    node.board.state(orders.State("finished"))
    assert node.status().training.eta is None


def test_when_an_endless_run_s_epoch_ends() -> None:
    """With --epochs 0 the time is that to the end of this epoch."""
    node = Node()
    node.board = Board(Facts("", "", "main", "mnist", "0/3", 0, 64), lambda: 0.0, lambda: 0.0)
    node.board.epoch(epoch(7))
    node.board.progress(orders.Progress(8, 30, 60, 900.0, 0.25))
    assert node.status().training.eta == pytest.approx(20)


def test_the_history_is_bounded() -> None:
    """The newest epochs stay."""
    node = Node()
    for number in range(1, HISTORY_LIMIT + 10):
        node.board.epoch(epoch(number, {1: number}))
    history = node.status().history
    assert [entry.epoch for entry in history] == list(range(10, HISTORY_LIMIT + 10))
    assert history[-1].averaged == 1


def test_events_are_bounded() -> None:
    """The newest stay, and a long one is cut."""
    node = Node()
    for number in range(EVENTS_LIMIT + 5):
        node.board.event("info", f"{number} " + "x" * 5000)
    events = [event.text for event in node.arrived().events]
    assert len(events) == EVENTS_LIMIT
    assert events[-1].startswith(f"{EVENTS_LIMIT + 4} ")
    assert max(map(len, events)) == TEXT_LIMIT


@given(st.lists(st.text(max_size=3)))
def test_rejects_are_counted_by_reason(reasons: list[str]) -> None:
    """Nothing is lost, and however many reasons there are, the table stays small."""
    node = Node()
    for reason in reasons:
        node.board.reject(reason)
    assert sum(node.board.rejects.values()) == len(reasons)
    assert len(node.board.rejects) <= REASONS_LIMIT + 1


def test_endless_reasons_are_counted_together() -> None:
    """A flood of made-up reasons ends in one line."""
    node = Node()
    for number in range(1000):
        node.board.reject(f"reason {number:03}")
    rejects = dict(node.status().rejects)
    assert rejects["other"] == 1000 - REASONS_LIMIT
    assert rejects["reason 000"] == 1


# ── peers ────────────────────────────────────────────────────────────────────────────────────


def test_a_rate_is_a_mean_over_a_second() -> None:
    """Looking more often changes nothing, and a count that starts again isn't negative."""
    rate = Rate()
    assert rate.look(1000, 10.0) == 0
    assert rate.look(2000, 10.5) == 0
    assert rate.look(5000, 12.0) == 2000
    assert rate.look(6000, 12.0 + RATE_SECONDS / 2) == 2000
    assert rate.look(0, 14.0) == 0


def test_a_peer_s_bytes_and_rates() -> None:
    """They go on over several sessions; rates are those of the last second."""
    node = Node()
    session = node.connect(1, bytes_in=1000, bytes_out=10)
    node.status()
    node.now += 2
    session.bytes_in, session.heard = 5000, node.now - 0.5
    shown = node.peer(1)
    assert (shown.bytes_in, shown.rate_in, shown.bytes_out, shown.rate_out) == (5000, 2000, 10, 0)
    assert (shown.round_trip, shown.silent) == (0.01, 0.5)
    gone: Any = node.sessions.pop(peer_id(1))
    node.board.parted(gone)
    node.known[peer_id(1)].state = "lost"
    node.known[peer_id(1)].heard = node.now
    node.now += 3
    shown = node.peer(1)
    assert (shown.bytes_in, shown.rate_in, shown.state) == (5000, 0, "lost")
    assert (shown.round_trip, shown.silent) == (None, 3)
    node.connect(1, bytes_in=100)
    assert node.peer(1).bytes_in == 5100


def test_connected_peers_come_first() -> None:
    """Then those that we try to reach, then the lost ones; each group by ID."""
    node = Node()
    for number, state in enumerate(["lost", "connecting", "connected", "lost", "connected"]):
        node.known[peer_id(number)] = Known(peer_id(number), 0.0, 0.0, state)
    assert [p.peer[-1] for p in node.status().peers] == ["2", "4", "1", "0", "3"]


def test_a_peer_s_model_and_weight() -> None:
    """Its epoch, how far it is behind ours, and its share in our last average."""
    node = Node()
    node.connect(1)
    node.connect(2)
    node.board.age = 5.0
    node.held[peer_id(1)] = manifest(b"x", epoch=3, age=3.5)
    node.board.epoch(epoch(1, {1: 7}))
    shown, other = node.peer(1), node.peer(2)
    assert (shown.epoch, shown.behind, shown.weight) == (3, 1.5, 0.25)
    assert (other.epoch, other.behind, other.weight) == (None, None, None)
    node.board.epoch(epoch(2))
    assert node.peer(1).weight is None


def test_reachability() -> None:
    """Only peers that dialled us show that we can be reached, each once, and not through a hole."""
    node = Node()
    assert node.status().reachability == "nobody came in yet"
    for number, dialled in [(1, True), (2, False), (2, False)]:
        session: Any = Session(peer_id(number), dialled)
        node.board.met(session)
    hole: Any = Session(peer_id(3), dialled=False, punched=True)
    node.board.met(hole)
    assert node.status().reachability == "reached by 1 peer"


def test_bytes_through_relays() -> None:
    """Of the sessions that there are, and of those that are over."""
    node = Node()
    node.relays["r"] = Session(peer_id(3), bytes_in=5, bytes_out=7)
    over: Any = Session(peer_id(4), bytes_in=100, bytes_out=200)
    node.board.relay_parted(over)
    status = node.arrived()
    assert (status.relay_in, status.relay_out) == (105, 207)


def test_counts_of_peers_that_are_gone_are_bounded() -> None:
    """A stream of new identities doesn't fill the memory."""
    node = Node()
    for number in range(3 * KNOWN_LIMIT):
        session: Any = Session(f"made up {number}", dialled=False, bytes_in=1)
        node.board.met(session)
        node.board.parted(session)
        node.board.epoch(
            orders.Epoch(1, SCORES, SCORES, (orders.Averaged(session.peer, 1, 0.1),), (), 1.0, 1.0)
        )
    tables = (node.board._dialled_in, node.board._totals, node.board._seen)
    assert max(map(len, tables)) <= 2 * KNOWN_LIMIT + 2


# ── mailbox and transfers ────────────────────────────────────────────────────────────────────


def test_the_mailbox() -> None:
    """Its size, and how many models the worker hasn't looked at yet."""
    node = Node()
    for number in (1, 2, 3):
        node.held[peer_id(number)] = manifest(b"x" * 10, seq=number)
    node.board.epoch(epoch(1, {1: 1}, refused={2: 2}))
    shown = node.status().mailbox
    assert (shown.models, shown.bytes, shown.limit_models, shown.waiting) == (3, 30, 64, 1)


def coming(number: int, done: int, size: int = 100) -> Any:
    """A model that comes in."""
    return SimpleNamespace(
        author=peer_id(number),
        model=bytes([number]) * 32,
        offered=SimpleNamespace(manifest=manifest(b"x" * size, epoch=3)),
        download=SimpleNamespace(bytes_here=done),
    )


def going(done: int, size: int = 100) -> Any:
    """A model that goes out."""
    held = SimpleNamespace(id=bytes(32), manifest=manifest(b"x" * size, epoch=4))
    return SimpleNamespace(held=held, sent=done)


def test_transfers_in_and_out() -> None:
    """Each with its peer, its progress and its rate."""
    node = Node()
    session = node.connect(1)
    session.outgoing.models[b"7"] = going(20)
    node.incoming[b"m"] = coming(2, 0)
    node.status()
    node.now += 2
    node.incoming[b"m"] = coming(2, 60)
    session.outgoing.models[b"7"] = going(80)
    node.relays["r"] = relay = Session(peer_id(3))
    relay.outgoing.models[b"1"] = going(5)
    shown = [(t.peer[-1], t.direction, t.epoch, t.done, t.rate) for t in node.status().transfers]
    assert shown == [("2", "in", 3, 60, 30.0), ("1", "out", 4, 80, 30.0), ("3", "out", 4, 5, 0.0)]


def test_a_full_status_fits() -> None:
    """Fifty peers, everything in work, long texts: far below the limit."""
    node = Node()
    for number in range(50):
        session = node.connect(number)
        session.outgoing.models |= {bytes([n]): going(n) for n in range(16)}
        node.held[peer_id(number)] = manifest(b"x", epoch=number)
        node.incoming[bytes([number])] = coming(number, 1)
        node.board.epoch(epoch(number, dict.fromkeys(range(50), number)))
        node.board.event("warning", "\N{SNOWMAN}" * TEXT_LIMIT)
        node.board.reject(f"reason {number}")
    status = node.arrived()
    assert status == node.status()
    assert len(status.peers) == 50
    assert len(status.transfers) == TRANSFERS_LIMIT
    assert len(status.to_bytes()) < STATUS_LIMIT / 2
