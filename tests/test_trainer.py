"""The daemon's hold on its worker: tiny scripts stand in for it, real processes without torch."""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MemoryReceiveStream

from p2pnode.node import trainer as module
from p2pnode.node.errors import TaskError, WorkerCrashed
from p2pnode.node.orders import (
    LINE_LIMIT,
    Begin,
    Epoch,
    Failed,
    Finished,
    Progress,
    Report,
    Setup,
    State,
    Threads,
    to_line,
)
from p2pnode.node.trainer import HEALTHY_SECONDS, LINE_SHOWN, ORDERS_LIMIT, RESTARTS, Trainer
from p2pnode.transport.manifest import Scores

SETUP = Setup(
    task="mnist",
    shard="0/3",
    epochs=1,
    batch_size=64,
    test_batch_size=1000,
    lr=1.0,
    seed=1,
    device="cpu",
    threads=1,
    data_dir=None,
    cache=Path("cache"),
    folder=Path("folder"),
    staleness=1.0,
    encoding="raw",
)
# A real process: generous on a busy machine, and never waited for where all is well.
PATIENCE = 30.0
FOREVER = "time.sleep(1000)"


def worker(*steps: str) -> tuple[str, ...]:
    """The command of a worker that takes these steps."""
    script = ["import os, signal, subprocess, sys, time", *steps]
    return (sys.executable, "-I", "-S", "-c", "\n".join(script))


def say(*reports: Report) -> str:
    """The step that reports these."""
    return f"os.write(1, {b''.join(map(to_line, reports))!r})"


def moan(text: str) -> str:
    """The step that writes on stderr."""
    return f"os.write(2, {text.encode()!r})"


def lives(folder: Path) -> str:
    """The step that counts the worker's lives: `life` is 1 in the first one."""
    path = str(folder / "lives")
    return f"f = open({path!r}, 'a'); f.write('x'); f.close(); life = os.path.getsize({path!r})"


def lived(folder: Path) -> int:
    """How many lives there were."""
    return (folder / "lives").stat().st_size


@dataclass
class Owner:
    """The daemon: what it was told, and a wait for more."""

    reports: list[Report] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    _news: trio.Event = field(default_factory=trio.Event)

    def reported(self, report: Report) -> None:
        self._tell(self.reports, report)

    def printed(self, line: str) -> None:
        self._tell(self.lines, line)

    def crashed(self, detail: str) -> None:
        self._tell(self.crashes, detail)

    def _tell(self, kind: list[Any], what: object) -> None:
        kind.append(what)
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for news that fulfil the condition."""
        while not condition():
            self._news = trio.Event()
            await self._news.wait()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crashed worker is started again at once."""
    monkeypatch.setattr(module, "RESTART_PAUSE", 0.0)


def run(
    command: tuple[str, ...],
    during: Callable[[Trainer, Owner], Awaitable[None]] | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> Owner:
    """Run the worker to its end; `during` works beside it, and its end cancels the trainer."""
    owner = Owner()

    async def main() -> None:
        trainer = Trainer(SETUP, owner, clock=clock, command=command)
        with trio.fail_after(PATIENCE):
            if during is None:
                await trainer.run()
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trainer.run)
                await during(trainer, owner)
                nursery.cancel_scope.cancel()

    trio.run(main)
    return owner


# ── reports and orders ───────────────────────────────────────────────────────────────────────


def test_reports_come_in_order() -> None:
    """Every report reaches the daemon, in the order in which the worker made them."""
    reports: list[Report] = [
        State("training"),
        *(Progress(1, n, 200, 1.5, None) for n in range(200)),
    ]
    owner = run(worker(say(*reports), say(Finished(1))))
    assert owner.reports == [*reports, Finished(1)]
    assert not owner.crashes


def test_orders_arrive_after_the_setup() -> None:
    """The first line is the setup, then the orders as they were given."""

    async def during(trainer: Trainer, owner: Owner) -> None:
        await owner.until(lambda: len(owner.lines) == 1)
        trainer.order(Begin(True))
        trainer.order(Threads(3))
        await owner.until(lambda: len(owner.lines) == 3)

    echo = "for line in sys.stdin: print(line, end='', file=sys.stderr, flush=True)"
    owner = run(worker(echo), during)
    assert owner.lines == [to_line(x).decode().strip() for x in (SETUP, Begin(True), Threads(3))]


def test_garbage_is_told_and_skipped() -> None:
    """A line on stdout that is no report costs nothing but a log line."""
    garbage = [b"hello\n", b"\xff\xfe\n", b'{"type": "Ready"}\n', b"\n", b"[1]\n"]
    steps = [f"os.write(1, {line!r})" for line in garbage]
    owner = run(worker(say(State("training")), *steps, say(Finished(1))))
    assert owner.reports == [State("training"), Finished(1)]
    assert len(owner.lines) == len(garbage)
    assert all("can't be read" in line for line in owner.lines)


def test_what_it_prints_becomes_log_lines() -> None:
    """stderr comes line by line, without empty ones; what isn't UTF-8 or too long is mended."""
    steps = [moan("one\ntwo \n\n"), "os.write(2, b'\\xff\\n')", moan("y" * 9000 + "\nlast")]
    owner = run(worker(*steps, say(Finished(1))))
    assert owner.lines == ["one", "two", "\N{REPLACEMENT CHARACTER}", "y" * LINE_SHOWN, "last"]


def test_megabytes_without_a_newline() -> None:
    """A worker that prints without end takes a line of memory, on stdout as on stderr."""
    endless = "for n in range(8 * 16): os.write({}, b'x' * 65536)"
    tracemalloc.start()
    try:
        owner = run(
            worker(endless.format(1), endless.format(2), "os.write(1, b'\\n')", say(Finished(1)))
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * LINE_LIMIT
    assert len(owner.lines) <= 2 * 8 + 2
    assert max(map(len, owner.lines)) <= LINE_SHOWN


@given(st.binary(max_size=100), st.lists(st.integers(0, 100)))
def test_lines_are_the_same_however_they_come(data: bytes, cuts: list[int]) -> None:
    """Any bytes, cut anywhere, give the lines that they have."""
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    lines: list[bytes] = []

    async def main() -> None:
        stream = MemoryReceiveStream()
        for start, end in pairwise(places):
            stream.put_data(data[start:end])
            await trio.lowlevel.checkpoint()
        stream.put_eof()
        await module._each_line(stream, lines.append)

    trio.run(main)
    assert b"\n".join(lines) == data.removesuffix(b"\n")


def test_a_worker_that_takes_no_orders() -> None:
    """Orders that it doesn't read are told and dropped; the daemon doesn't wait."""

    async def during(trainer: Trainer, owner: Owner) -> None:
        await owner.until(lambda: owner.reports)
        for _ in range(1 + ORDERS_LIMIT + 5):  # one is on its way in the pipe
            trainer.order(Threads(1))

    owner = run(worker(say(State("training")), FOREVER), during)
    assert owner.lines == ["the worker doesn't take orders"] * 5


def test_an_order_without_a_worker() -> None:
    """Before the worker is there an order is dropped."""
    owner = Owner()
    Trainer(SETUP, owner, clock=lambda: 0.0).order(Threads(1))
    assert not owner.lines


# ── ends ─────────────────────────────────────────────────────────────────────────────────────


def test_a_crash_is_followed_by_another_life(tmp_path: Path) -> None:
    """It goes on from its checkpoint; the log has the exit code and its last words."""
    steps = ["if life == 1: sys.exit('ValueError: bad luck')", say(Finished(1))]
    owner = run(worker(lives(tmp_path), *steps))
    assert owner.crashes == ["it ended with code 1; ValueError: bad luck"]
    assert owner.reports == [Finished(1)]
    assert lived(tmp_path) == 2


def test_crashes_in_a_row_end_the_node(tmp_path: Path) -> None:
    """A broken task isn't tried for ever, and the error has its last words."""
    command = worker(lives(tmp_path), "sys.exit('ValueError: bad luck')")
    with pytest.raises(WorkerCrashed, match=r"4 times in a row; it ended .* bad luck") as caught:
        run(command)
    assert "\n" not in str(caught.value)
    assert lived(tmp_path) == RESTARTS + 1


def test_the_last_words_are_those_of_this_life(tmp_path: Path) -> None:
    """A worker that is killed says nothing, whatever the one before it said; the signal is told."""
    steps = ["if life == 1: sys.exit('first')", "if life == 2: os.kill(os.getpid(), 9)"]
    owner = run(worker(lives(tmp_path), *steps, say(Finished(1))))
    assert owner.crashes == [
        "it ended with code 1; first",
        "killed by signal 9; no last words",
    ]


def test_a_long_life_is_forgiven(tmp_path: Path) -> None:
    """A crash now and then over days never adds up to the end."""
    time = iter(range(0, 10**9, int(HEALTHY_SECONDS) + 1))
    crashes = 3 * RESTARTS
    scores = Scores(0.5)
    done = say(Epoch(1, scores, scores, (), (), 1.0, 1.0))
    steps = [done, f"if life <= {crashes}: sys.exit(1)", say(Finished(1))]
    owner = run(worker(lives(tmp_path), *steps), clock=lambda: float(next(time)))
    assert len(owner.crashes) == crashes


def test_a_long_life_without_an_epoch_is_not(tmp_path: Path) -> None:
    """A task that crashes hours into each epoch isn't tried for ever."""
    time = iter(range(0, 10**9, int(HEALTHY_SECONDS) + 1))
    with pytest.raises(WorkerCrashed):
        run(worker(lives(tmp_path), "sys.exit(1)"), clock=lambda: float(next(time)))
    assert lived(tmp_path) == RESTARTS + 1


def test_ending_without_being_finished_is_a_crash(tmp_path: Path) -> None:
    """Exit code 0 isn't believed."""
    owner = run(worker(lives(tmp_path), "if life == 1: sys.exit()", say(Finished(1))))
    assert owner.crashes == ["it ended with code 0; no last words"]


def test_a_mistake_of_the_users_is_not_tried_again(tmp_path: Path) -> None:
    """Failed comes out as a TaskError of one sentence, after one life."""
    failed = Failed(str(TaskError("model() failed: no such layer")))
    with pytest.raises(TaskError) as caught:
        run(worker(lives(tmp_path), say(failed), "sys.exit(2)"))
    assert str(caught.value) == "The task can't be used: model() failed: no such layer"
    assert lived(tmp_path) == 1


def test_a_command_that_isn_t_there() -> None:
    """A worker that can't be started is an OSError that names it."""
    with pytest.raises(FileNotFoundError, match="no/such/python"):
        run(("no/such/python",))


def test_cancelled_means_gone() -> None:
    """The worker is killed and waited for, although it ignores SIGTERM; no zombie stays."""

    async def during(trainer: Trainer, owner: Owner) -> None:
        await owner.until(lambda: owner.lines)

    deaf = "for number in (15, 2, 1): signal.signal(number, signal.SIG_IGN)"
    owner = run(worker(deaf, "print(os.getpid(), file=sys.stderr, flush=True)", FOREVER), during)
    with pytest.raises(ProcessLookupError):
        os.kill(int(owner.lines[0]), 0)


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    """A named pipe: its reader sees an end when nobody has it open for writing any more."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return str(path)


def child(fifo: str, session: bool) -> str:
    """The step that starts a child which holds the worker's pipes, and the FIFO open for writing.

    It says "up" and waits for the FIFO's reader to go.
    """
    script = f"import os,time; f = os.open({fifo!r}, os.O_WRONLY); os.write(f, b'up'); {LOOK}"
    start = f"start_new_session={session}, close_fds=False"
    return f"subprocess.Popen([sys.executable, '-I', '-S', '-c', {script!r}], {start})"


LOOK = "import select; p = select.poll(); p.register(f, 0); p.poll()"


async def read(fifo: int) -> bytes:
    """What the FIFO's writer wrote; empty when it is gone."""
    await trio.lowlevel.wait_readable(fifo)
    return os.read(fifo, 10)


@pytest.mark.parametrize("how", ["cancelled", "crashed"])
def test_its_children_end_with_it(tmp_path: Path, fifo: str, how: str) -> None:
    """A data loader's processes are gone with the worker, whatever ended that."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    async def during(trainer: Trainer, owner: Owner) -> None:
        assert await read(reader) == b"up"
        if how == "crashed":
            trainer.order(Begin(True))
            await owner.until(lambda: owner.crashes)
            assert await read(reader) == b""

    steps = ["if life > 1: " + FOREVER, child(fifo, False), "sys.stdin.readline()"]
    run(worker(lives(tmp_path), *steps, "sys.stdin.readline()"), during)
    trio.run(read, reader)  # returns at the end of file: nobody holds the FIFO open any more
    os.close(reader)


def test_a_stray_child_doesn_t_hold_the_pipes(
    fifo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that left the worker's session may keep its pipes; the trainer goes on anyhow."""
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.05)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    owner = run(worker(child(fifo, True), say(Finished(1))))
    assert owner.reports == [Finished(1)]
    assert trio.run(read, reader) == b"up"
    os.close(reader)  # ends the child
