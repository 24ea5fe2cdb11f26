"""How good do the models get? Three peers, a third of MNIST each, all settings at their defaults.

The mean accuracy over the peers after averaging, epoch by epoch, beside what the prototype reached
with the same model, data, optimizer and shards. How busy the machine is changes the time it takes,
and hardly the accuracy.

    make bench NAME=accuracy ARGS="--epochs 10"
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import Report, table
from swarm import LOOK, Node, swarm

# The prototype, measured in the same way: percent after so many epochs.
PROTOTYPE = {1: 97.42, 3: 98.43, 5: 98.79, 10: 99.02}
# Between two runs with other seeds such a mean differs by about this much: percentage points.
TOLERANCE = 0.1


def main() -> None:
    """Train, then print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--shards", type=int, default=3, help="parts; three peers take 0, 1 and 2")
    args = parser.parse_args()
    flags = [("--shard", f"{n}/{args.shards}", "--epochs", str(args.epochs)) for n in range(3)]
    with tempfile.TemporaryDirectory() as folder, swarm(Path(folder), flags) as nodes:
        epochs = _until_done(nodes)
    _show(epochs)


def _until_done(nodes: Sequence[Node]) -> list[list[dict[str, Any]]]:
    """Wait for all nodes to end; their epochs."""
    told = 0
    while any(node.process.poll() is None for node in nodes):
        time.sleep(LOOK)
        done = min(len(node.lines("epoch")) for node in nodes)
        if done > told:
            told = done
            print(f"epoch {done} is done everywhere", file=sys.stderr)
    for node in nodes:
        node.check()
    return [node.lines("epoch") for node in nodes]


def _show(epochs: list[list[dict[str, Any]]]) -> None:
    report = Report("accuracy")
    head = ["epoch", *(f"peer {n}" for n in range(len(epochs)))]
    rows: list[Sequence[str]] = [[*head, "mean before", "mean after", "models averaged"]]
    for each in zip(*epochs, strict=True):
        before = _mean(e["before"]["accuracy"] for e in each)
        after = _mean(e["after"]["accuracy"] for e in each)
        peers = (f"{100 * e['after']['accuracy']:.2f}" for e in each)
        averaged = " ".join(str(e["averaged"]) for e in each)
        rows.append([str(each[0]["epoch"]), *peers, f"{before:.2f}", f"{after:.2f}", averaged])
        _compare(report, each[0]["epoch"], after)
    print("accuracy in % of the 10,000 test images; peers after averaging\n")
    print(table(rows))
    report.show()


def _mean(values: Any) -> float:
    return 100 * statistics.fmean(values)


def _compare(report: Report, epoch: int, after: float) -> None:
    known = PROTOTYPE.get(epoch)
    if known is None:
        report.figures[f"after_{epoch}"] = round(after, 4)
        return
    least = round(known - TOLERANCE, 2)
    label = f"mean after averaging, epoch {epoch} (prototype {known:.2f})"
    report.figure(f"after_{epoch}", label, after, "%", digits=2, at_least=least)


if __name__ == "__main__":
    main()
