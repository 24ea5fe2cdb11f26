"""Real processes for the end-to-end tests: a tracker and nodes as a person would start them.

    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker()
        alice = swarm.node("alice", tracker, shard="0/3")
        alice.wait(lambda status: status.history)

Waiting polls the node's control socket: real processes have no clock of ours. Everything that was
started is gone when the block ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from p2pnode.node.control import Control
from p2pnode.node.errors import ControlError
from p2pnode.node.home import Home
from p2pnode.node.status import NodeStatus
from p2pnode.transport.address import Address
from p2pnode.transport.identity import Identity

T = TypeVar("T")
P2PNODE = (sys.executable, "-m", "p2pnode.cli.main")
# Generous: two cores may be busy with other tests, and torch takes seconds to import.
PATIENCE = 150.0
LOOK = 0.05


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def p2pnode(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    where = ("--home", str(home)) if home else ()
    return subprocess.run(
        [*P2PNODE, *arguments, *where],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


class Machine(Protocol):
    """Where a process runs: the words before its command, and the address it is reached at."""

    enter: tuple[str, ...]
    address: str


class Process:
    """A running p2pnode process and its output."""

    def __init__(self, log: Path, *arguments: str, at: Machine | None = None) -> None:
        self.log, self.arguments, self.at = log, arguments, at
        self.start()

    def start(self) -> None:
        """Start (again); the output is appended."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*(self.at.enter if self.at else ()), *P2PNODE, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """All output so far."""
        return self.log.read_text("utf-8", "replace")

    def says(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches."""
        return _until(lambda: re.search(pattern, self.text), repr(pattern), self)

    def kill(self) -> None:
        """kill -9, as by the out-of-memory killer: the process alone, its worker isn't asked."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Signal and wait: exit code, seconds."""
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(timeout=PATIENCE)
        return code, time.monotonic() - began

    def finish(self) -> int:
        """Wait for the end: exit code."""
        return self.process.wait(timeout=PATIENCE)

    def end(self) -> None:
        """Whatever it does, it is gone afterwards."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class NodeProcess(Process):
    """`p2pnode run`, its home and its status."""

    def __init__(self, home: Home, log: Path, *arguments: str, at: Machine | None = None) -> None:
        self.home = home
        super().__init__(log, "run", "--home", str(home.path), "--no-tui", *arguments, at=at)

    @property
    def peer(self) -> str:
        """Its peer ID."""
        return Identity.load(self.home.key).peer_id

    def worker(self) -> int:
        """Its training process; any of the daemon's threads may have started it."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return next(int(pid) for task in tasks for pid in task.read_text().split())

    def status(self) -> NodeStatus | None:
        """Its status; None while it isn't up."""
        try:
            with Control(self.home.control_path()) as control:
                return control.status()
        except ControlError:
            return None

    def wait(self, condition: Callable[[NodeStatus], object]) -> NodeStatus:
        """Wait until the status fulfils the condition."""

        def look() -> NodeStatus | None:
            status = self.status()
            return status if status is not None and condition(status) else None

        return _until(look, f"{self.home.path.name} to get there", self)


def _until(look: Callable[[], T | None], what: str, process: Process) -> T:
    deadline = time.monotonic() + PATIENCE
    while (found := look()) is None:
        alive = process.process.poll() is None
        assert alive and time.monotonic() < deadline, f"waited for {what}\n{process.text}"
        time.sleep(LOOK)
    return found


class Swarm:
    """All processes of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[Process] = []

    def tracker(
        self,
        port: int | None = None,
        *arguments: str,
        name: str = "tracker",
        at: Machine | None = None,
    ) -> str:
        """Start a tracker, on this machine or another: its address."""
        host, port = (at.address, port or 5555) if at else ("127.0.0.1", port or free_port())
        address = str(Address(host, port))
        home = self.folder / name
        process = Process(
            self.folder / f"{name}.log",
            *("tracker", "serve", "--home", str(home), "--listen", address, *arguments),
            at=at,
        )
        self._running.append(process)
        process.says("listening on")
        self.tracker_process = process
        return address

    def node(
        self, name: str, tracker: str | None, *arguments: str, at: Machine | None = None
    ) -> NodeProcess:
        """Start a node with a home of its own; on another machine as its user would, port 6000."""
        home = Home(self.folder / name)
        home.create()
        Identity.generate().save(home.key)
        there = ("--tracker", tracker) if tracker else ()
        here = () if at else ("--listen", "127.0.0.1:0")
        log = self.folder / f"{name}.log"
        node = NodeProcess(home, log, *here, *there, *arguments, at=at)
        self._running.append(node)
        return node

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._running:
            process.end()
