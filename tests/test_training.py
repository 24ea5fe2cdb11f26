"""Between worker and swarm: what a worker reports is signed, offered, shown and waited for.

A fake worker makes the reports and fakes stand for exchange and start; the mailbox is real.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from blake3 import blake3
from models import SCHEMA, body, file
from sealing import OLD, SECRETS, Member
from trio.testing import MockClock

from lab import identity
from p2pnode.node import orders
from p2pnode.node import training as module
from p2pnode.node.board import Board, Facts
from p2pnode.node.config import load
from p2pnode.node.errors import HomeError, TaskError
from p2pnode.node.mailbox import Mailbox
from p2pnode.node.seals import Seals
from p2pnode.node.training import (
    ENCODED_MORE,
    FILE_OVERHEAD,
    PUBLISH_SECONDS,
    SHARE_SECONDS,
    Training,
)
from p2pnode.transport.envelope import Kind, peek
from p2pnode.transport.exchange import Terms
from p2pnode.transport.identity import Identity
from p2pnode.transport.manifest import EXPIRY, Manifest, Scores
from p2pnode.transport.messages import Run
from p2pnode.transport.outgoing import Held
from p2pnode.transport.veil import plain

ME, ALICE, BOB = (identity(n) for n in (1, 2, 3))
WALL = 1_800_000_000.0
SCORES = Scores(0.5, 0.9)
LINGER = 10.0
RUN_SYNC = trio.to_thread.run_sync  # the real one


@dataclass(frozen=True)
class Peer:
    """A session."""

    peer: str


@dataclass
class Exchange:
    """What the exchange was told; it offers everything to everybody who is connected."""

    sessions: list[Peer] = field(default_factory=list)
    terms: Terms | None = None
    offers: list[Held] = field(default_factory=list)

    def agree(self, terms: Terms) -> None:
        self.terms = terms

    def in_use(self) -> set[Peer]:
        return set(self.sessions)

    def announce(self, held: Held) -> set[Peer]:
        self.offers.append(held)
        return set(self.sessions)


@dataclass
class Start:
    """Waits so long, then lets the epoch begin."""

    seconds: float = 0.0

    async def wait(self, _log: object) -> bool:
        await trio.sleep(self.seconds)
        return True


class Worker:
    """The trainer with a worker that does what the test says, and notes its orders."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self.orders: list[orders.Order] = []
        self.done = trio.Event()
        self.failure: Exception | None = None

    def order(self, order: orders.Order) -> None:
        self.orders.append(order)

    async def run(self) -> None:
        await self.done.wait()
        if self.failure is not None:
            raise self.failure

    def finish(self) -> None:
        self._training.reported(orders.Finished(1))
        self.done.set()


class Node:
    """A training and its surroundings."""

    def __init__(self, folder: Path, seals: Seals | None = None, **flags: Any) -> None:
        config, _ = load({"home": str(folder), "linger": str(LINGER), **flags}, {})
        self.folder, self.wall = folder, WALL
        self.lines: list[tuple[str, str]] = []
        self.exchange, self.start = Exchange(), Start()
        self.mailbox = Mailbox(folder, ME.peer_id, 64, seals.unveil if seals else plain)
        self.board = Board(
            Facts("", "", "main", "mnist", "0/1", 4, 64), trio.current_time, lambda: self.wall
        )
        exchange: Any = self.exchange
        start: Any = self.start
        self.training = Training(
            config,
            ME,
            folder,
            self.mailbox,
            exchange,
            start,
            self.board,
            clock=trio.current_time,
            wall=lambda: self.wall,
            log=lambda level, line: self.lines.append((level, line)),
            seals=seals,
        )
        self.setup: orders.Setup = self.training.trainer._setup
        self.worker = Worker(self.training)
        fake_trainer: Any = self.worker
        self.training.trainer = fake_trainer

    def report(self, *reports: orders.Report) -> None:
        for report in reports:
            self.training.reported(report)

    def train(self, epoch: int, **fields: Any) -> Path:
        """The worker has trained an epoch: its model's path."""
        path = self.folder / "outbox" / f"{epoch}-77.safetensors"
        path.write_bytes(body(epoch))
        known: dict[str, Any] = {
            "epoch": epoch,
            "age": float(epoch),
            "path": path,
            "samples": 600,
            "loss": 0.25,
            "before": SCORES,
            "after": None,
            "parents": (),
            "encoding": "raw",
        }
        self.report(orders.Model(**known | fields))
        return path

    @property
    def offered(self) -> list[Manifest]:
        """The manifests of the models offered so far."""
        return [held.manifest for held in self.exchange.offers]

    def said(self, level: str) -> list[str]:
        return [line for of, line in self.lines if of == level]


def ready(threads: int = 2, **fields: Any) -> orders.Ready:
    """A worker is ready."""
    known: dict[str, Any] = {
        "parameters": 1000,
        "model_bytes": 4000,
        "schema": SCHEMA.hex(),
        "tensors": ("fc.weight F32 10x100",),
        "samples": 600,
        "test_samples": 100,
        "device": "cpu",
        "threads": threads,
        "epoch": 0,
        "age": 0.0,
    }
    return orders.Ready(**known | fields)


@pytest.fixture(autouse=True)
def fair(monkeypatch: pytest.MonkeyPatch, inline_threads: None) -> list[int]:
    """What is fair now, the last of the list."""
    threads = [2]
    monkeypatch.setattr(module, "fair_threads", lambda: threads[-1])
    return threads


def run(
    folder: Path, scene: Callable[[Node], Awaitable[None]], ends: bool = False, **flags: Any
) -> Node:
    """Play a scene beside a training, which then ends by itself or is cancelled."""
    nodes: list[Node] = []

    async def main() -> None:
        nodes.append(Node(folder, **flags))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nodes[0].training.run)
            await scene(nodes[0])
            if not ends:
                nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return nodes[0]


# ── a worker is ready ────────────────────────────────────────────────────────────────────────


def test_a_ready_worker_settles_the_run(tmp_path: Path) -> None:
    """Peers are told what is trained, and the first epoch begins when the start says so."""

    async def scene(node: Node) -> None:
        node.start.seconds = 3.0
        node.report(ready(tensors=("w", "b\n")))
        terms = node.exchange.terms
        assert terms is not None
        assert (terms.run.swarm, terms.run.task, terms.run.schema) == ("main", "mnist", SCHEMA)
        most = 4000 + 4000 // ENCODED_MORE + FILE_OVERHEAD
        assert (terms.run.parameters, terms.most) == (1000, most)
        assert terms.run.tensors == ("w", "b\N{REPLACEMENT CHARACTER}")
        await trio.sleep(2.9)
        assert not node.worker.orders
        await trio.sleep(0.2)
        assert node.worker.orders == [orders.Begin(True)]

    run(tmp_path, scene)


def test_a_worker_that_was_started_again_begins_again(tmp_path: Path) -> None:
    """The crash is told and counted; the new worker gets its order, too."""

    async def scene(node: Node) -> None:
        node.report(ready())
        await trio.sleep(1)
        node.training.crashed("killed by signal 9; no last words")
        node.report(ready(epoch=3))
        await trio.sleep(1)
        assert node.worker.orders == [orders.Begin(True)] * 2
        assert node.board.rejects["worker crash"] == 1
        assert "killed by signal 9" in node.said("error")[0]

    run(tmp_path, scene)


def test_what_an_earlier_run_left(tmp_path: Path) -> None:
    """Models of another schema go; our newest model of this one stays."""

    async def first(node: Node) -> None:
        node.report(ready())
        node.train(5)
        await trio.sleep(1)

    async def again(node: Node) -> None:
        node.report(ready())
        assert [held.manifest.epoch for held in node.mailbox.held()] == [5]

    async def other(node: Node) -> None:
        file(node.mailbox, 2, 1)
        node.report(ready(schema="11" * 32))
        assert not node.mailbox.held()

    for scene in (first, again, other):
        run(tmp_path, scene)


# ── models ───────────────────────────────────────────────────────────────────────────────────


def test_a_model_is_signed_and_offered(tmp_path: Path) -> None:
    """The manifest says what the worker said; its digests are those of the file."""

    async def scene(node: Node) -> None:
        node.report(ready())
        parents = ("aa" * 32, "bb" * 32)
        path = node.train(3, parents=parents, age=2.5, encoding="bf16")
        await trio.sleep(0.1)
        (held,) = node.exchange.offers
        assert node.mailbox.own == held
        assert held.path == path
        opened = peek(held.envelope).verify(Kind.MANIFEST)
        m = Manifest.from_bytes(opened.payload)
        assert (opened.peer_id, m) == (ME.peer_id, held.manifest)
        assert (m.swarm, m.schema, m.epoch, m.age) == ("main", SCHEMA, 3, 2.5)
        assert (m.samples, m.loss, m.before, m.after) == (600, 0.25, SCORES, None)
        assert (m.seq, m.created, m.expires) == (int(WALL * 1000), WALL, WALL + EXPIRY)
        assert (m.size, m.digests) == (len(body(3)), blake3(body(3)).digest())
        assert m.encoding == "bf16"
        assert m.parents == (b"\xaa" * 32, b"\xbb" * 32)
        assert m.previous is None

    run(tmp_path, scene)


def test_each_model_follows_the_one_before(tmp_path: Path) -> None:
    """Numbers grow, also where the clock stands still, and each names the envelope before it."""

    async def scene(node: Node) -> None:
        node.report(ready())
        for epoch in (1, 2, 3):
            node.train(epoch)
            await trio.sleep(1)
        first, second, third = node.exchange.offers
        assert first.manifest.seq < second.manifest.seq < third.manifest.seq
        assert [m.previous for m in node.offered] == [None, first.id, second.id]

    run(tmp_path, scene)


def test_a_lost_clock_after_a_restart(tmp_path: Path) -> None:
    """A machine that woke up in 1970 still signs models that its peers take for newer."""

    async def before(node: Node) -> None:
        node.report(ready())
        node.train(1)
        await trio.sleep(1)

    async def after(node: Node) -> None:
        node.wall = 42.0
        node.report(ready())
        node.train(2)
        await trio.sleep(1)

    first, second = run(tmp_path, before).offered + run(tmp_path, after).offered
    assert second.seq == first.seq + 1
    assert second.created == 42.0


def test_the_newest_model_wins_the_slot(tmp_path: Path) -> None:
    """Epochs that end faster than models can be sent are skipped, and leave nothing on disk."""

    async def scene(node: Node) -> None:
        node.report(ready())
        await trio.sleep(0.1)
        for epoch in range(1, 6):
            node.train(epoch)
        await trio.sleep(PUBLISH_SECONDS + 0.1)
        assert [m.epoch for m in node.offered] == [1, 5]
        assert node.mailbox.own is not None
        assert node.mailbox.own.manifest.epoch == 5
        assert {path.stem for path in (tmp_path / "outbox").iterdir()} == {"5-77"}

    run(tmp_path, scene)


def test_models_are_offered_at_most_so_often(tmp_path: Path) -> None:
    """A worker whose epochs take a moment doesn't flood its peers."""

    async def scene(node: Node) -> None:
        node.report(ready())
        for epoch in range(1, 101):
            node.train(epoch)
            await trio.sleep(0.1)
        assert len(node.offered) <= 10 / PUBLISH_SECONDS + 2

    run(tmp_path, scene)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that can't be published is told and dropped; training and the next model go on."""
    publish = Mailbox.publish

    def full(_self: Mailbox, _path: Path, _data: bytes) -> Held:
        raise OSError(28, "No space left on device")

    async def scene(node: Node) -> None:
        node.report(ready())
        monkeypatch.setattr(Mailbox, "publish", full)
        lost = node.train(1)
        await trio.sleep(1)
        assert not lost.exists()
        assert node.board.rejects["disk"] == 1
        assert "epoch 1" in node.said("error")[0]
        monkeypatch.setattr(Mailbox, "publish", publish)
        node.train(2)
        await trio.sleep(1)
        assert [m.epoch for m in node.offered] == [2]

    run(tmp_path, scene)


def test_stopping_does_not_wait_for_a_slow_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is being digested when the node stops is left."""
    monkeypatch.setattr(trio.to_thread, "run_sync", RUN_SYNC)
    reading, gone = threading.Event(), threading.Event()

    def slow(*_: object) -> Manifest:
        reading.set()
        gone.wait()
        raise OSError

    monkeypatch.setattr(module, "manifest_of", slow)

    async def main() -> None:
        node = Node(tmp_path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.training.run)
            node.report(ready())
            node.train(1)
            await trio.to_thread.run_sync(reading.wait)
            nursery.cancel_scope.cancel()
        gone.set()

    trio.run(main)


# ── the end ──────────────────────────────────────────────────────────────────────────────────


def of(somebody: Identity) -> Any:
    """The session with this peer."""
    return Peer(somebody.peer_id)


async def finish(node: Node) -> None:
    """Two peers are connected, and the last epoch is done."""
    node.exchange.sessions = [of(ALICE), of(BOB)]
    node.report(ready())
    node.train(1)
    node.worker.finish()


def test_the_end_waits_for_the_last_model(tmp_path: Path) -> None:
    """The node ends when everybody who was offered the last model has it or refused it."""

    async def scene(node: Node) -> None:
        await finish(node)
        await trio.sleep(3)
        assert [m.epoch for m in node.offered] == [1]
        node.training.answered(of(ALICE), node.mailbox.own)
        await trio.sleep(3)
        node.training.answered(of(BOB))
        assert trio.current_time() - node.board._began == pytest.approx(6)

    node = run(tmp_path, scene, ends=True)
    assert node.said("info")[-1] == "training is done after 1 epoch"


def ended_after(folder: Path, scene: Callable[[Node], Awaitable[None]]) -> float:
    """Seconds of virtual time until the training ended by itself."""
    ended: list[float] = []

    async def main() -> None:
        node = Node(folder)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene, node)
            await node.training.run()
            ended.append(trio.current_time() - began)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return ended[0]


def test_the_end_does_not_wait_for_ever(tmp_path: Path) -> None:
    """A peer that says nothing is given `linger` seconds."""
    assert ended_after(tmp_path, finish) == pytest.approx(LINGER, abs=0.1)


def test_the_end_does_not_wait_for_who_is_gone(tmp_path: Path) -> None:
    """A peer that was lost will not answer; an answer to an older model is none."""

    async def scene(node: Node) -> None:
        older = file(node.mailbox, 2, 1)
        await finish(node)
        await trio.sleep(2)
        held = next(h for h in node.mailbox.models() if h.id == older.envelope.id)
        node.training.answered(of(ALICE), held)
        await trio.sleep(2)
        node.exchange.sessions.clear()

    assert ended_after(tmp_path, scene) == pytest.approx(4, abs=0.1)


def test_alone_the_end_comes_at_once(tmp_path: Path) -> None:
    """With nobody to wait for, the last model is signed and stays in the outbox."""

    async def scene(node: Node) -> None:
        node.report(ready())
        node.train(1)
        node.worker.finish()

    assert ended_after(tmp_path, scene) <= PUBLISH_SECONDS + 0.1
    own = Mailbox(tmp_path, ME.peer_id, 64).own
    assert own is not None
    assert own.manifest.epoch == 1


def test_the_user_s_mistake_comes_out(tmp_path: Path) -> None:
    """A TaskError ends the training; nothing lingers."""

    async def scene(node: Node) -> None:
        node.worker.failure = TaskError("no such module")
        node.worker.done.set()

    with pytest.raises(ExceptionGroup) as caught:
        ended_after(tmp_path, scene)
    assert caught.group_contains(TaskError, match="no such module")


# ── threads ──────────────────────────────────────────────────────────────────────────────────


def test_threads_follow_the_nodes_on_this_machine(tmp_path: Path, fair: list[int]) -> None:
    """They are cores ÷ nodes, told once when that changes."""

    async def scene(node: Node) -> None:
        assert node.setup.threads == 2
        node.report(ready())
        await trio.sleep(3 * SHARE_SECONDS)
        fair.append(1)
        await trio.sleep(3 * SHARE_SECONDS)
        fair.append(2)
        await trio.sleep(3 * SHARE_SECONDS)
        ordered = [o for o in node.worker.orders if isinstance(o, orders.Threads)]
        assert ordered == [orders.Threads(1), orders.Threads(2)]
        assert len([line for line in node.said("info") if "threads: " in line]) == 2

    run(tmp_path, scene)


def test_a_new_worker_gets_the_threads_of_now(tmp_path: Path, fair: list[int]) -> None:
    """Its setup is that of the first one."""

    async def scene(node: Node) -> None:
        node.report(ready(2))
        fair.append(1)
        await trio.sleep(2 * SHARE_SECONDS)
        node.worker.orders.clear()
        node.report(ready(2))
        assert node.worker.orders == [orders.Threads(1)]

    run(tmp_path, scene)


def test_threads_that_the_user_chose_stay(tmp_path: Path, fair: list[int]) -> None:
    """--threads isn't shared."""

    async def scene(node: Node) -> None:
        assert node.setup.threads == 7
        node.report(ready(7))
        fair.append(1)
        await trio.sleep(60)
        assert node.worker.orders == [orders.Begin(True)]

    run(tmp_path, scene, threads="7")


def test_nodes_that_can_t_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime folder may go when the user logs out; the threads stay as they are."""

    def gone() -> int:
        raise HomeError("/run/user/1000 is gone")

    async def scene(node: Node) -> None:
        node.report(ready())
        monkeypatch.setattr(module, "fair_threads", gone)
        await trio.sleep(60)
        assert node.worker.orders == [orders.Begin(True)]

    run(tmp_path, scene)


# ── what is shown ────────────────────────────────────────────────────────────────────────────


def test_the_start_is_told(tmp_path: Path) -> None:
    """From whose models, or from which checkpoint, training begins; nothing for a fresh start."""

    async def scene(node: Node) -> None:
        node.report(orders.Began(0, 0.0, ()))
        node.report(orders.Began(3, 2.5, ()))
        node.report(orders.Began(0, 7.0, (ALICE.peer_id, BOB.peer_id)))
        node.report(orders.Began(0, 7.0, (BOB.peer_id,)))
        checkpoint, models, model = node.said("info")
        assert model == f"starts from the model of another peer: …{BOB.peer_id[-8:]}"
        assert checkpoint == "goes on from the checkpoint of epoch 3"
        assert "average of 2 models" in models
        assert ALICE.peer_id[-8:] in models
        assert node.board.age == 7.0

    run(tmp_path, scene)


def test_an_epoch_and_its_refusals(tmp_path: Path) -> None:
    """Results go to the history; what wasn't averaged is counted and told."""
    refused = (
        orders.Refused(ALICE.peer_id, 3, "NaN in fc.weight"),
        orders.Refused("", 4, "training gave NaN"),
    )

    async def scene(node: Node) -> None:
        node.report(orders.Epoch(4, SCORES, SCORES, (), refused, 40.0, 30.0))
        assert node.board.history[-1].epoch == 4
        assert dict(node.board.rejects) == {"not averaged": 1, "own model broken": 1}
        first, second = node.said("warning")
        assert "NaN in fc.weight" in first
        assert "our own model" in second

    run(tmp_path, scene)


def test_states_progress_and_prints(tmp_path: Path) -> None:
    """The worker's state shows; a detail is a warning; what a task prints is a log line."""

    async def scene(node: Node) -> None:
        node.report(orders.State("training"), orders.Progress(1, 3, 60, 900.0, None))
        node.report(orders.State("averaging", "no checkpoint: the disk is full"))
        node.training.printed("hello")
        assert (node.board.training.state, node.board.training.batch) == ("averaging", 3)
        assert node.said("warning") == ["no checkpoint: the disk is full"]
        assert node.said("info") == ["worker: hello"]

    run(tmp_path, scene)


# ── a private swarm ──────────────────────────────────────────────────────────────────────────


def test_what_others_hear_of_a_private_swarm(tmp_path: Path) -> None:
    """Members hear what is trained, under an opaque name; relays hear that there is something."""

    async def scene(node: Node) -> None:
        node.report(ready())
        terms = node.exchange.terms
        assert terms is not None
        blinded = SECRETS.blind(SCHEMA)
        assert terms.run == Run(SECRETS.id, "mnist", blinded, 1000, ("fc.weight F32 10x100",))
        assert terms.relayed == Run(SECRETS.id, "private", blinded, 0, ())
        assert terms.most > 4000 + module.FILE_OVERHEAD

    run(tmp_path, scene, seals=Seals(ME.peer_id, Member()))


def test_a_private_model_is_offered_veiled(tmp_path: Path) -> None:
    """The envelope says nothing to strangers, the mailbox has the true manifest."""

    async def scene(node: Node) -> None:
        node.report(ready())
        node.train(1, recipients=(ME.peer_id,))
        await trio.sleep(1)
        (held,) = node.exchange.offers
        assert (held.manifest.epoch, held.manifest.samples, held.manifest.loss) == (1, 600, 0.25)
        assert (held.manifest.schema, held.manifest.swarm) == (SCHEMA, SECRETS.id)
        assert held.manifest.recipients == (ME.peer_id,)
        outer = Manifest.from_bytes(peek(held.envelope).payload)
        assert (outer.epoch, outer.samples, outer.loss, outer.recipients) == (0, 0, None, ())
        assert outer.sealed is not None

    run(tmp_path, scene, seals=Seals(ME.peer_id, Member()))


def test_the_worker_hears_of_new_secrets(tmp_path: Path) -> None:
    """With its setup, at once when they change, and again when a new worker is ready."""
    member = Member(OLD)

    async def scene(node: Node) -> None:
        assert node.setup.secrets is not None
        assert node.setup.secrets.generations.keys() == {"1"}
        node.report(ready())
        node.worker.orders.clear()
        node.training.rekey()
        assert node.worker.orders == [], "nothing has changed"
        member.secrets = SECRETS
        node.training.rekey()
        (told,) = node.worker.orders
        assert isinstance(told, orders.Secrets)
        assert told.generations.keys() == {"1", "2"}
        node.worker.orders.clear()
        node.report(ready())
        assert told in node.worker.orders

    run(tmp_path, scene, seals=Seals(ME.peer_id, member))


def test_an_open_swarm_has_no_secrets(tmp_path: Path) -> None:
    """Nothing of all this is there."""

    async def scene(node: Node) -> None:
        assert node.setup.secrets is None
        node.report(ready())
        node.training.rekey()
        assert not any(isinstance(order, orders.Secrets) for order in node.worker.orders)
        assert node.exchange.terms is not None
        assert node.exchange.terms.relayed is None

    run(tmp_path, scene)
