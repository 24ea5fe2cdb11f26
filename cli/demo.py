"""`p2pnode demo`: a tracker and three nodes as real processes on this machine, on one screen.

Strategy: the demo does what a person would do. It makes a home for each, starts `tracker serve`
and three times `run`, looks at each node through its control socket as `p2pnode status` does, and
ends them all when the last has trained its last epoch. The nodes `--stay` until then, so that
what they know is still there to be asked. Whatever happens to the demo, it takes them with it.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import trio
from rich.console import Console, RenderableType

from ..node.control import Control
from ..node.errors import ControlError, leaves
from ..node.home import Home
from ..node.status import NodeStatus
from ..transport.identity import Identity
from .children import Start, processes
from .errors import DemoFailed
from .logs import Log, to_stdout, write_news
from .serve import stop_on_signal
from .tui import drawable, live, render_demo, summary

NODES: Final = 3
"""The fewest of which each hears from more than one."""

ACCURACY: Final = 0.9
"""What every node must reach. One epoch on a twentieth of MNIST gets there."""

LOOK: Final = 0.25
"""Seconds between two looks at a node, as often as the screen is drawn."""

START: Final = 120.0
EPOCH: Final = 120.0
"""Seconds for the start and for each epoch: ten times what two slow cores take."""

INTERRUPTED: Final = 130

NEXT: Final = """
The three nodes met through the tracker, trained on their own parts of MNIST and averaged the
models that they sent each other; nobody waited and nobody was in charge. To do it yourself:

  p2pnode tracker serve                     on a machine that the others can reach
  p2pnode init                              on every machine, once
  p2pnode run --tracker HOST:5555 --public HOST:6000 --shard 0/3
                                            and 1/3, 2/3 on the others

docs/tutorial.md goes on from here: your own model, your own data, peers that come and go.
"""


@dataclass(slots=True)
class Member:
    """One of the demo's nodes, and what it told last."""

    name: str
    home: Home
    output: Path
    process: trio.Process
    log: Log = field(default_factory=Log)
    status: NodeStatus | None = None

    @property
    def finished(self) -> bool:
        """Whether it has trained its last epoch."""
        return self.status is not None and self.status.training.state == "finished"


Told: TypeAlias = list[tuple[str, NodeStatus]]


def demo(*, epochs: int, shards: int, keep: bool) -> int:
    """Run it all and return the exit code. Raises DemoFailed where it didn't show what it should.

    `keep` leaves the folder with the nodes' homes and logs, as does a failure.
    """
    with _folder(keep) as folder:
        nodes = _run(folder, epochs, shards)
        if nodes is None:
            return INTERRUPTED
        Console().print(summary(nodes))
        if keep:
            print(f"The nodes' folders and logs are in {folder}.")
        judge(nodes)
    print(NEXT)
    return 0


def _run(folder: Path, epochs: int, shards: int) -> Told | None:
    """In trio; nurseries wrap errors in groups, and one sentence is enough."""
    try:
        return trio.run(_train, folder, epochs, shards)
    except BaseExceptionGroup as group:
        failed = [error for error in leaves(group) if isinstance(error, DemoFailed)]
        raise failed[0] if failed else group from None


def judge(nodes: Sequence[tuple[str, NodeStatus]]) -> None:
    """Raise DemoFailed unless every node averaged at least once and ended above ACCURACY."""
    for name, status in nodes:
        if not any(epoch.averaged for epoch in status.history):
            raise DemoFailed(f"{name} averaged no model of another node")
        reached = status.history[-1].after.accuracy or 0.0
        if reached <= ACCURACY:
            raise DemoFailed(f"{name} ended at {reached:.2%} accuracy, not above {ACCURACY:.0%}")


@contextmanager
def _folder(keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="p2pnode-demo-"))
    try:
        yield folder
    except DemoFailed as error:
        raise DemoFailed(f"{error.args[0]}; the logs are in {folder}") from error.__cause__
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)


async def _train(folder: Path, epochs: int, shards: int) -> Told | None:
    """Start everything, show it, end it. Returns what the nodes told last; None if interrupted."""
    told: Told | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signal, nursery.cancel_scope)
        async with processes() as start:
            with _patience(START + EPOCH * epochs):
                tracker = await _start_tracker(folder, start)
                members = [
                    await _start_node(folder, start, n, node_flags(n, epochs, shards, tracker))
                    for n in range(NODES)
                ]
                await _show(members, f"tracker {tracker}")
                told = [(member.name, await _ask(member)) for member in members]
        nursery.cancel_scope.cancel()
    return told


def node_flags(number: int, epochs: int, shards: int, tracker: str) -> list[str]:
    """What a person would type after `p2pnode run` on this machine."""
    return [
        *("--shard", f"{number}/{shards}"),
        *("--tracker", tracker, "--listen", "127.0.0.1:0", "--swarm", "demo"),
        *("--epochs", str(epochs), "--stay", "--no-tui"),
    ]


async def _start_tracker(folder: Path, start: Start) -> str:
    """Its address: the port is any free one, so its own first line tells it."""
    log = folder / "tracker.log"
    home = str(folder / "tracker")
    process = await start(log, ["tracker", "serve", "--home", home, "--listen", "127.0.0.1:0"])
    while True:
        if found := re.search(r"listening on (\S+)\n", log.read_text("utf-8", "replace")):
            return found[1]
        _check_alive("the tracker", process, log)
        await trio.sleep(LOOK)


async def _start_node(folder: Path, start: Start, number: int, flags: Sequence[str]) -> Member:
    name = f"node {number}"
    home, log = Home(folder / f"node-{number}"), folder / f"node-{number}.log"
    home.create()
    Identity.generate().save(home.key)
    return Member(name, home, log, await start(log, ["run", "--home", str(home.path), *flags]))


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise DemoFailed(f"it was not done after {seconds:.0f} seconds") from None


async def _show(members: Sequence[Member], tracker_line: str) -> None:
    """Show the nodes until all of them have finished."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_screen if drawable() else _lines, members, tracker_line)
        async with trio.open_nursery() as following:
            for member in members:
                following.start_soon(follow, member)
        nursery.cancel_scope.cancel()


async def _screen(members: Sequence[Member], tracker_line: str) -> None:
    def draw(width: int, height: int) -> RenderableType:
        statuses = [(member.name, member.status) for member in members]
        return render_demo(statuses, tracker_line, width=width, height=height)

    await live(draw, console=Console())


async def _lines(members: Sequence[Member], tracker_line: str) -> None:
    to_stdout(f"{tracker_line}\n".encode())
    await write_news(lambda: news(members), to_stdout)


def news(members: Sequence[Member]) -> Iterator[str]:
    """The new log lines of all nodes, each with its node's name in front."""
    for member in members:
        for line in member.log.news(member.status) if member.status else ():
            yield f"{member.name}: {line}"


async def follow(member: Member) -> None:
    """Keep what a node tells, until it has trained its last epoch. Raises DemoFailed if it ends."""
    while not member.finished:
        await trio.sleep(LOOK)
        with suppress(ControlError):  # not there yet, or just gone
            member.status = await _ask(member)
        _check_alive(member.name, member.process, member.output)


async def _ask(member: Member) -> NodeStatus:
    def ask() -> NodeStatus:
        with Control(member.home.control_path()) as node:
            return node.status()

    return await trio.to_thread.run_sync(ask)


def _check_alive(name: str, process: trio.Process, log: Path) -> None:
    if process.poll() is not None:
        words = log.read_text("utf-8", "replace").strip() or "it said nothing"
        raise DemoFailed(f"{name} ended with {process.returncode}: {words.splitlines()[-1]}")
