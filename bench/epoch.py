"""What does taking part cost the training? An epoch in a swarm ÷ the same loop in plain PyTorch.

Three phases in turn, several rounds, each with three processes that train at the same time, one
thread each, on the same cores, each epoch with one training and two tests:

    swarm    a tracker and three nodes that send, receive, verify and average each other's models
    plain    bench/plain.py, the loop that anyone would write
    tuned    the same with the worker's own tricks: tests in slices, the allocator's settings

The first epoch of each phase warms up and isn't counted. Memory is PSS, so that shared library
pages count once among those who share them: the peak of the sum over all processes of a peer
(daemon and worker), beside the peak of a plain process under the same conditions.

    make bench NAME=epoch ARGS="--shards 20 --epochs 3 --rounds 2"
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from figures import Report, table
from swarm import Node, processes, swarm

from p2pnode.node.home import cache_folder  # nothing here may import torch: see PSS
from p2pnode.node.trainer import MALLOC

PEERS = 3
SAMPLE = 1.0  # seconds between two looks at the memory: each takes milliseconds of CPU time
MEGABYTE = 1 << 20


@dataclass
class Cost:
    """What the phases of one kind took."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)  # bytes, one a peer and phase

    @property
    def median(self) -> float:
        """Seconds of an epoch."""
        return statistics.median(self.seconds)

    @property
    def memory(self) -> float:
        """Peak PSS in MB, the median over peers and phases."""
        return statistics.median(self.peaks) / MEGABYTE


def main() -> None:
    """Run all phases, then print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=20, help="parts of the training data")
    parser.add_argument("--epochs", type=int, default=3, help="a phase's, the first isn't counted")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    cache = cache_folder()  # the swarm, which comes first, unpacks MNIST into it
    phases: dict[str, Callable[[Cost], None]] = {
        "swarm": lambda cost: _swarm(args.shards, args.epochs, cost),
        "plain": lambda cost: _plain(args.shards, args.epochs, cache, cost, tuned=False),
        "tuned": lambda cost: _plain(args.shards, args.epochs, cache, cost, tuned=True),
    }
    costs = {name: Cost() for name in phases}
    for turn in range(args.rounds):
        for name, phase in phases.items():
            phase(costs[name])
            print(f"round {turn + 1}: {name} is done", file=sys.stderr)
    _show(costs)


def _swarm(shards: int, epochs: int, cost: Cost) -> None:
    flags = [
        ("--shard", f"{n}/{shards}", "--epochs", str(epochs), "--threads", "1")
        for n in range(PEERS)
    ]
    with tempfile.TemporaryDirectory() as where, swarm(Path(where), flags) as nodes:
        peaks = _watch([node.process for node in nodes])
        for node in nodes:
            node.check()
            cost.seconds += _counted(node)
        cost.peaks += peaks


def _counted(node: Node) -> list[float]:
    return [line["seconds"] for line in node.lines("epoch") if line["epoch"] > 1]


def _plain(shards: int, epochs: int, cache: Path, cost: Cost, *, tuned: bool) -> None:
    with _loops(shards, epochs, cache, tuned) as loops:
        for loop in loops:
            assert loop.stdout is not None
            loop.stdout.readline()  # ready
        for loop in loops:
            assert loop.stdin is not None
            loop.stdin.write("go\n")
            loop.stdin.flush()
        cost.peaks += _watch(loops)
        for loop in loops:
            lines = map(json.loads, loop.stdout or ())
            cost.seconds += [line["seconds"] for line in lines if line["epoch"] > 1]


@contextmanager
def _loops(
    shards: int, epochs: int, cache: Path, tuned: bool
) -> Iterator[list[subprocess.Popen[str]]]:
    program = str(Path(__file__).with_name("plain.py"))
    words = ["tuned"] if tuned else []
    environment = os.environ | (MALLOC if tuned else {})
    loops = [
        subprocess.Popen(
            [sys.executable, program, f"{n}/{shards}", str(epochs), str(cache), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for n in range(PEERS)
    ]
    try:
        yield loops
    finally:
        for loop in loops:
            loop.kill()
            loop.communicate()


def _watch(peers: Sequence[subprocess.Popen[bytes]] | Sequence[subprocess.Popen[str]]) -> list[int]:
    """Until all have ended: the peak PSS of each."""
    peaks = [0] * len(peers)
    while any(peer.poll() is None for peer in peers):
        for n, peer in enumerate(peers):
            peaks[n] = max(peaks[n], sum(map(_pss, processes(peer.pid))))
        time.sleep(SAMPLE)
    return peaks


def _pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line[:4] == "Pss:")


def _show(costs: dict[str, Cost]) -> None:
    rows: list[Sequence[str]] = [("", "epochs", "median", "fastest", "slowest", "peak PSS")]
    for name, cost in costs.items():
        times = (cost.median, min(cost.seconds), max(cost.seconds))
        seconds = (f"{value:.2f} s" for value in times)
        rows.append([name, str(len(cost.seconds)), *seconds, f"{cost.memory:.0f} MB"])
    print(table(rows))
    swarm_cost, plain, tuned = costs["swarm"], costs["plain"], costs["tuned"]
    report = Report("epoch")
    report.figure(
        "ratio", "epoch in a swarm ÷ plain loop", swarm_cost.median / plain.median, at_most=1.03
    )
    report.figure("ratio_tuned", "epoch in a swarm ÷ tuned loop", swarm_cost.median / tuned.median)
    extra = swarm_cost.memory - plain.memory
    report.figure(
        "memory", "a peer's memory over the plain loop's", extra, "MB", digits=0, at_most=120
    )
    extra = swarm_cost.memory - tuned.memory
    report.figure("memory_tuned", "a peer's memory over the tuned loop's", extra, "MB", digits=0)
    report.show()


if __name__ == "__main__":
    main()
