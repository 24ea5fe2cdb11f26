"""A swarm of real processes on this machine: `with swarm(folder, flags) as nodes`.

It does what a person would type: `p2pnode tracker serve`, then `p2pnode run` with a home for each
node. Settings in the environment are taken away, so that the defaults are measured.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pnode.node.home import Home
from p2pnode.transport.identity import Identity

P2PNODE = (sys.executable, "-P", "-m", "p2pnode.cli.main")
LOOK = 0.05  # seconds between two looks at a process or a file: costs nothing measurable
START = 60.0  # seconds until a tracker must be there


@dataclass
class Node:
    """One running `p2pnode run --log-json`."""

    home: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def checkpoint(self) -> Path:
        """The file that the worker writes at the start and at the end of each epoch."""
        return self.home / "swarms" / "main" / "checkpoint.safetensors"

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The log's lines of one kind ("epoch", "event") so far."""
        whole = self.log.read_text().rpartition("\n")[0]
        return [entry for line in whole.splitlines() if (entry := _entry(line)).get("kind") == kind]

    def check(self) -> None:
        """Raise RuntimeError with its last words if it ended with an error."""
        if self.process.poll():
            raise RuntimeError(f"a node ended: {self.log.read_text().strip().splitlines()[-1:]}")


@contextmanager
def swarm(folder: Path, flags: Sequence[Sequence[str]]) -> Iterator[list[Node]]:
    """A tracker and a node for each list of `p2pnode run` flags; all end with the block."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        tracker = _start_tracker(folder, running)
        yield [_start_node(folder / f"node-{n}", tracker, f, running) for n, f in enumerate(flags)]
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def processes(pid: int) -> list[int]:
    """A process and all its descendants."""
    try:  # any of its threads may have started a child
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(p for text in lists for child in text.split() for p in processes(int(child)))]


def start(log: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a process, its output in a file."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("P2PNODE_")}
    with log.open("wb") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )


def _start_tracker(folder: Path, running: list[subprocess.Popen[bytes]]) -> str:
    """Its address, from its own first line."""
    home, log = folder / "tracker", folder / "tracker.log"
    command = (*P2PNODE, "tracker", "serve", "--home", str(home), "--listen", "127.0.0.1:0")
    running.append(start(log, command))
    until = time.monotonic() + START
    while time.monotonic() < until:
        if found := re.search(r"listening on (\S+)\n", log.read_text()):
            return found[1]
        time.sleep(LOOK)
    raise RuntimeError(f"the tracker didn't start: {log.read_text()}")


def _start_node(
    path: Path, tracker: str, flags: Sequence[str], running: list[subprocess.Popen[bytes]]
) -> Node:
    home, log = Home(path), path.with_suffix(".log")
    home.create()
    Identity.generate().save(home.key)
    where = ("--home", str(path), "--tracker", tracker, "--listen", "127.0.0.1:0", "--log-json")
    running.append(start(log, (*P2PNODE, "run", *where, *flags)))
    return Node(path, log, running[-1])


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
