"""How long until the command line answers? The verbs that a person types most, and scripts poll.

Each verb is started several times, in turn with a bare Python, and its imports are listed once:
none may import torch. `status` asks a node that really runs.

    make bench NAME=startup ARGS="--rounds 11"
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from figures import Report, table
from swarm import P2PNODE, swarm

SECONDS = 0.3
PATIENCE = 60.0
BARE = "python -c pass"


def main() -> None:
    """Start a node, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    rounds: int = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, swarm(Path(folder), [("--epochs", "0")]) as nodes:
        home = ("--home", str(nodes[0].home))
        verbs = {
            "--help": (*P2PNODE, "--help"),
            "config": (*P2PNODE, "config", *home),
            "id": (*P2PNODE, "id", *home),
            "status --json": (*P2PNODE, "status", "--json", *home),
        }
        _wait_for(verbs["status --json"])
        imports = {verb: _imports(command) for verb, command in verbs.items()}
        times = _times({**verbs, BARE: (sys.executable, "-c", "pass")}, rounds)
    _show(times, imports)


def _wait_for(command: Sequence[str]) -> None:
    until = time.monotonic() + PATIENCE
    while subprocess.run(command, capture_output=True, check=False).returncode:
        if time.monotonic() > until:
            raise RuntimeError("the node didn't start")


def _imports(command: Sequence[str]) -> set[str]:
    python, *rest = command
    done = subprocess.run([python, "-X", "importtime", *rest], capture_output=True, text=True)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def _times(commands: dict[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {verb: [] for verb in commands}
    for _ in range(rounds):
        for verb, command in commands.items():
            began = time.monotonic()
            subprocess.run(command, capture_output=True, check=True)
            times[verb].append(time.monotonic() - began)
    return times


def _show(times: dict[str, list[float]], imports: dict[str, set[str]]) -> None:
    rows: list[Sequence[str]] = [("", "median", "fastest", "slowest", "imports torch")]
    report = Report("startup")
    for verb, seconds in times.items():
        values = (statistics.median(seconds), min(seconds), max(seconds))
        torch = {True: "yes", False: "no"}["torch" in imports.get(verb, ())]
        rows.append([verb, *(f"{value:.3f} s" for value in values), torch])
        if verb != BARE:
            name = verb.strip("-").replace(" --", "_")
            report.figure(name, f"p2pnode {verb}", values[0], "s", at_most=SECONDS)
            loaded = float("torch" in imports[verb])
            report.figure(f"{name}_torch", f"p2pnode {verb}: imports torch", loaded, at_most=0)
    print(table(rows))
    report.show()


if __name__ == "__main__":
    main()
