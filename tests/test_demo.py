"""The demo's parts: what it starts, how it follows, judges and ends. A whole run is in test_e2e."""

import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from p2pnode.cli import demo as demo_module
from p2pnode.cli.children import Start, end, processes
from p2pnode.cli.demo import INTERRUPTED, Member, demo, follow, judge, news, node_flags
from p2pnode.cli.errors import DemoFailed
from p2pnode.cli.parser import parse
from p2pnode.node import control
from p2pnode.node.home import Home
from p2pnode.node.status import EpochStatus, NodeStatus, TrainingStatus
from p2pnode.transport.manifest import Scores

PYTHON = (sys.executable, "-c")
IDLE = "import sys, time; print('ready', flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {IDLE}"


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The demo's folders go where pytest tidies up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def status(accuracy: float = 0.95, averaged: int = 2, state: str = "finished") -> NodeStatus:
    """What a node tells after one epoch."""
    epoch = EpochStatus(1, Scores(0.3, 0.9), Scores(0.2, accuracy), averaged, 5.0)
    return NodeStatus(
        version="0.1.0",
        peer="12D3KooWx",
        swarm="demo",
        task="mnist",
        shard="0/20",
        public="",
        listening="",
        reachability="unknown",
        uptime=0.0,
        training=TrainingStatus(state),
        history=(epoch,),
    )


async def ready(log: Path) -> None:
    """Wait until the process has written its first line."""
    with trio.fail_after(20):
        while not log.read_text():
            await trio.sleep(0.01)


def test_a_good_run_is_judged_good() -> None:
    """Every node averaged and ended above 90 %."""
    judge([("node 0", status()), ("node 1", status(0.91, 1))])


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (status(averaged=0), "averaged no model"),
        (status(accuracy=0.9), "ended at 90.00% accuracy, not above 90%"),
        (replace(status(), history=()), "averaged no model"),
    ],
)
def test_a_run_that_shows_too_little_is_judged_bad(bad: NodeStatus, says: str) -> None:
    """One bad node is enough, and it is named."""
    with pytest.raises(DemoFailed, match=f"node 1 {says}"):
        judge([("node 0", status()), ("node 1", bad)])


def test_nodes_are_started_as_a_person_would() -> None:
    """The flags are ones that the parser knows."""
    flags = node_flags(2, epochs=4, shards=20, tracker="127.0.0.1:5555")
    args = parse(["run", *flags])
    assert (args.shard, args.epochs, args.tracker) == ("2/20", "4", ["127.0.0.1:5555"])
    assert (args.stay, args.tui) == (True, False)


def test_log_lines_carry_the_nodes_name(tmp_path: Path) -> None:
    """Three logs share one terminal; a node that said nothing yet is left out."""

    async def main() -> list[str]:
        async with processes(PYTHON) as start:
            process = await start(tmp_path / "log", [IDLE])
            home = Home(tmp_path)
            silent = Member("node 0", home, tmp_path / "log", process)
            talking = Member("node 1", home, tmp_path / "log", process, status=status())
            return list(news([silent, talking]))

    lines = trio.run(main)
    assert len(lines) == 2
    assert all(line.startswith("node 1: ") for line in lines)


def test_children_are_gone_after_the_block(tmp_path: Path) -> None:
    """However it ends; they get SIGTERM, and their output is kept in their files."""
    seen: list[trio.Process] = []

    async def main() -> None:
        async with processes(PYTHON) as start:
            seen.append(await start(tmp_path / "a", [IDLE]))
            seen.append(await start(tmp_path / "b", [IDLE]))
            await ready(tmp_path / "a")
            await ready(tmp_path / "b")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trio.run(main)
    assert [process.returncode for process in seen] == [-signal.SIGTERM] * 2
    assert (tmp_path / "a").read_text() == "ready\n"


def test_children_are_gone_after_a_cancel(tmp_path: Path) -> None:
    """Cancel means gone: the wait for them is shielded."""
    seen: list[trio.Process] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with processes(PYTHON) as start:
                seen.append(await start(tmp_path / "a", [IDLE]))
                scope.cancel()
                await trio.sleep_forever()

    trio.run(main)
    assert seen[0].returncode is not None


def test_a_stubborn_child_is_killed(tmp_path: Path) -> None:
    """One that ignores SIGTERM gets the grace and not more."""

    async def main() -> int | None:
        async with processes(PYTHON) as start:
            process = await start(tmp_path / "a", [STUBBORN])
            await ready(tmp_path / "a")
            await end(process, grace=0.05)
            return process.returncode

    assert trio.run(main) == -signal.SIGKILL


def test_following_ends_when_the_node_has_finished(tmp_path: Path) -> None:
    """It asks through the control socket, also before there is one."""
    told = [status(state="training"), status()]

    async def main() -> NodeStatus | None:
        home = Home(tmp_path / "home")
        home.create()
        async with processes(PYTHON) as start, trio.open_nursery() as nursery:
            member = Member("node 0", home, tmp_path / "log", await start(tmp_path / "log", [IDLE]))
            nursery.start_soon(follow, member)
            await trio.sleep(0.3)
            tell = partial(_next, told)
            await nursery.start(control.serve, home.control_path(), tell)
            with trio.fail_after(10):
                while not member.finished:
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        return member.status

    assert trio.run(main) == status()


def _next(told: list[NodeStatus]) -> NodeStatus:
    return told.pop(0) if len(told) > 1 else told[0]


def test_a_node_that_ends_early_fails_the_demo_with_its_last_words(tmp_path: Path) -> None:
    """Its own line says more than any of ours."""

    async def main() -> None:
        home = Home(tmp_path / "home")
        home.create()
        async with processes(PYTHON) as start:
            process = await start(tmp_path / "log", ["print('p2pnode: no room'); exit(1)"])
            await process.wait()
            await follow(Member("node 0", home, tmp_path / "log", process))

    with pytest.raises(DemoFailed, match="node 0 ended with 1: p2pnode: no room"):
        trio.run(main)


def told(nodes: list[tuple[str, NodeStatus]] | None, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Let the training part give this at once; returns the folders that it was given."""
    folders: list[Path] = []

    async def train(folder: Path, *_: int) -> list[tuple[str, NodeStatus]] | None:
        folders.append(folder)
        return nodes

    monkeypatch.setattr(demo_module, "_train", train)
    return folders


def test_a_good_demo_ends_with_a_table_and_where_to_go_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0, and nothing is left on the disk."""
    nodes = [(f"node {n}", status()) for n in range(3)]
    folders = told(nodes, monkeypatch)
    assert demo(epochs=1, shards=20, keep=False) == 0
    out = capsys.readouterr().out
    assert "node 2" in out
    assert "p2pnode run --tracker" in out
    assert not folders[0].exists()


def test_a_bad_demo_keeps_the_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says where they are."""
    folders = told([("node 0", status(0.5))], monkeypatch)
    with pytest.raises(DemoFailed, match="the logs are in") as caught:
        demo(epochs=1, shards=20, keep=False)
    assert str(folders[0]) in str(caught.value)
    assert folders[0].exists()


def test_keep_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes' folders are there to be looked at."""
    folders = told([("node 0", status())], monkeypatch)
    assert demo(epochs=1, shards=20, keep=True) == 0
    assert folders[0].exists()


def test_an_interrupted_demo_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """It showed nothing, and leaves nothing."""
    folders = told(None, monkeypatch)
    assert demo(epochs=1, shards=20, keep=False) == INTERRUPTED
    assert not folders[0].exists()


def test_a_signal_ends_the_demo_and_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C in the middle: every process is gone before the demo is."""
    seen: list[trio.Process] = []

    async def tracker(folder: Path, start: object) -> str:
        return "127.0.0.1:1"

    async def node(folder: Path, start: Start, n: int, flags: Sequence[str]) -> Member:
        log = folder / f"{n}.log"
        seen.append(await start(log, [IDLE]))
        await ready(log)
        if n == 2:
            signal.raise_signal(signal.SIGINT)
        return Member(f"node {n}", Home(folder), log, seen[-1])

    monkeypatch.setattr(demo_module, "_start_tracker", tracker)
    monkeypatch.setattr(demo_module, "_start_node", node)
    monkeypatch.setattr(demo_module, "processes", partial(processes, PYTHON))
    assert demo(epochs=1, shards=20, keep=False) == INTERRUPTED
    assert [process.returncode for process in seen] == [-signal.SIGTERM] * 3


def test_a_demo_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Patience is limited, and the error says how long it was."""

    async def hang(*_: object) -> str:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(demo_module, "START", 0.05)
    monkeypatch.setattr(demo_module, "EPOCH", 0.0)
    monkeypatch.setattr(demo_module, "_start_tracker", hang)
    with pytest.raises(DemoFailed, match="not done after 0 seconds"):
        demo(epochs=1, shards=20, keep=False)
