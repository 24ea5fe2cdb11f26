"""What do smaller models cost? Bytes on the wire against accuracy, for every encoding.

Three peers train in step, in one process, with the worker's own code (node/session.py): each epoch
all train, each one's model goes to the two others' mailboxes, and all average them. So a run is the
same each time, and only the encoding differs. IID shards of MNIST, and shards that are dealt by
label (bench/skewed.py); several seeds. The accuracy is that of the averages of the last epochs,
which all peers have alike but for the rounding; a run's difference to `raw` with the same seed is
what counts. zstd loses nothing, so "+zstd" has the accuracy of the encoding before it, and only its
size is looked at.

Speed is that of one thread for a large model in a file that is in memory (the page cache).

    make bench NAME=encoding ARGS="--epochs 5 --seeds 2 --shards 20"
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from figures import Report, table

from p2pnode.node import encoding, weights
from p2pnode.node.averaging import Part, average, check
from p2pnode.node.encoding import Decoder
from p2pnode.node.home import cache_folder
from p2pnode.node.learner import Learner
from p2pnode.node.orders import Epoch, Model, Setup, State
from p2pnode.node.orders import Report as Told
from p2pnode.node.session import Session
from p2pnode.node.training import manifest_of
from p2pnode.transport.envelope import Kind, seal
from p2pnode.transport.identity import Identity
from p2pnode.transport.manifest import ENCODINGS, RAW, Scores
from p2pnode.transport.messages import Run

PEERS = 3
TASKS = {"IID": "mnist", "by label": str(Path(__file__).with_name("skewed.py")) + ":Skewed"}
LAST = 2
"""Epochs at the end whose accuracy counts, and that are tested: tests take longest."""

LARGE = (64, 1024, 1024)
"""Numbers of the model whose speed is measured: 268 MB."""


class Turn:
    """Lets one peer's thread run at a time, in turn: torch's random numbers are a process's."""

    def __init__(self, peers: int) -> None:
        self._peers, self._now, self._change = peers, 0, threading.Condition()
        self.broken = False

    def wait(self, number: int) -> None:
        """Wait for this peer's turn."""
        with self._change:
            self._change.wait_for(lambda: self._now == number or self.broken)
        if self.broken:
            raise SystemExit("another peer has failed")

    def end(self, number: int) -> None:
        """It is the next one's turn."""
        with self._change:
            self._now = (number + 1) % self._peers
            self._change.notify_all()

    def fail(self) -> None:
        """Wake all: there is no next turn."""
        with self._change:
            self.broken = True
            self._change.notify_all()


@dataclass
class Peer:
    """The daemon of one peer: it hands models over, and has the peers train in step."""

    number: int
    folder: Path
    turn: Turn
    peers: "list[Peer]"
    setup: Setup
    accuracy: list[float] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    _epoch: int = 1
    _tested: bool = False

    def report(self, report: Told) -> None:
        """All have trained before any averages, and all have averaged before any trains on."""
        match report:
            case Model():
                self._send(report)
            case State(state="averaging"):
                self._next()
            case Epoch():
                assert report.after.accuracy is not None
                assert len(report.averaged) == len(self.peers) - 1, report.refused
                self.accuracy.append(100 * report.after.accuracy)
                self._epoch, self._tested = self._epoch + 1, False
                self._next()

    def begin(self) -> bool:
        """No bootstrap."""
        return False

    def threads(self) -> int:
        """As they are."""
        return 0

    def _next(self) -> None:
        self.turn.end(self.number)
        self.turn.wait(self.number)

    def _send(self, model: Model) -> None:
        """Into the mailboxes of the others, as a daemon does."""
        name = self.setup.encoding
        packed = model.path.with_suffix(".packed")
        encoding.save(packed, self._session._learner.state(), f"{name}+zstd", 1)
        self.sizes = {name: model.path.stat().st_size, f"{name}+zstd": packed.stat().st_size}
        identity = Identity.from_seed(bytes([self.number + 1]) * 32)
        manifest = manifest_of(model, Run("main", "", bytes(32), 0, ()), None, time.time())
        name = f"{identity.peer_id}-{manifest.seq}.safetensors"
        for other in self.peers:
            if other is not self:
                path = other.folder / "mailbox" / name
                path.parent.mkdir(exist_ok=True)
                for old in path.parent.glob(f"{identity.peer_id}-*"):
                    old.unlink()
                envelope = seal(identity, Kind.MANIFEST, manifest.to_bytes())
                path.with_suffix(".envelope").write_bytes(envelope)
                path.hardlink_to(model.path)
        model.path.unlink()

    def _test(self) -> Scores:
        """Only what counts: after averaging, in the last epochs."""
        after, self._tested = self._tested, True
        counts = after and self.number == 0 and self._epoch > self.setup.epochs - LAST
        return Learner.test(self._session._learner) if counts else Scores(0.0, 0.0)

    def run(self) -> None:
        """Train to the end."""
        self.turn.wait(self.number)
        try:
            self._session = Session(self.setup, self)
            self._session._learner.test = self._test  # type: ignore[method-assign]
            self._session.run()
        except BaseException:
            self.turn.fail()
            raise
        self.turn.end(self.number)


def train(
    task: str, name: str, seed: int, args: argparse.Namespace
) -> tuple[float, dict[str, int]]:
    """One swarm; returns its accuracy in percent, and the bytes of a model, with zstd, too."""
    with tempfile.TemporaryDirectory() as where:
        turn, peers = Turn(PEERS), list[Peer]()
        for number in range(PEERS):
            folder = Path(where) / str(number)
            folder.mkdir()
            setup = _setup(number, folder, task, name, seed, args)
            peers.append(Peer(number, folder, turn, peers, setup))
        threads = [threading.Thread(target=peer.run) for peer in peers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if turn.broken:
            raise SystemExit(1)
    return statistics.fmean(peers[0].accuracy[-LAST:]), peers[0].sizes


def _setup(
    number: int, folder: Path, task: str, name: str, seed: int, args: argparse.Namespace
) -> Setup:
    return Setup(
        task=task,
        shard=f"{number}/{args.shards}",
        epochs=args.epochs,
        batch_size=64,
        test_batch_size=1000,
        lr=1.0,
        seed=seed,
        device=args.device,
        threads=args.threads,
        data_dir=None,
        cache=cache_folder(),
        folder=folder,
        staleness=1.0,
        encoding=name,
    )


def speeds(name: str) -> tuple[float, float, float]:
    """MB/s of a raw model for writing its file, looking through it, and averaging it in."""
    torch.manual_seed(1)
    state = {"weight": torch.randn(LARGE).mul_(0.02)}
    megabytes = weights.size(state) / 1e6
    with tempfile.TemporaryDirectory() as where:
        path = Path(where) / "model.safetensors"
        encoding.save(path, state, name, 1)  # warms up
        began = time.perf_counter()
        encoding.save(path, state, name, 1)
        written = time.perf_counter()
        with Decoder(path, name) as reader:
            check(reader, weights.schema(state))
            checked = time.perf_counter()
            average(state, 0.5, [Part(reader, 0.5)])
            averaged = time.perf_counter()
    times = (written - began, checked - written, averaged - checked)
    return (megabytes / times[0], megabytes / times[1], megabytes / times[2])


def main() -> None:
    """Train, then print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--shards", type=int, default=3, help="parts; three peers take 0, 1 and 2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    args = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = {}
    sizes: dict[str, int] = {}
    for seed in range(1, args.seeds + 1):
        for label, task in TASKS.items():
            for name in (name for name in ENCODINGS if "+" not in name):
                accuracy, found_sizes = train(task, name, seed, args)
                sizes |= found_sizes
                found.setdefault((label, name), []).append(accuracy)
                print(f"seed {seed}, {label}, {name}: {accuracy:.3f} %", file=sys.stderr)
    torch.set_num_threads(1)
    _show(found, sizes, {name: speeds(name) for name in ENCODINGS})


def _show(
    found: dict[tuple[str, str], list[float]],
    sizes: dict[str, int],
    fast: dict[str, tuple[float, float, float]],
) -> None:
    report = Report("encoding")
    head = ["encoding", "bytes", "of raw", *(f"{label} (− raw)" for label in TASKS)]
    rows: list[Sequence[str]] = [[*head, "write", "look", "average"]]
    for name in ENCODINGS:
        ratio = sizes[name] / sizes[RAW]
        report.figures[f"ratio_{name}"] = round(ratio, 4)
        cells = []
        for label in TASKS:
            if "+" in name:
                cells.append("as above")
                continue
            pairs = list(zip(found[label, name], found[label, RAW], strict=True))
            mean, lost = statistics.fmean(a for a, _ in pairs), [a - b for a, b in pairs]
            shown = f" ({' '.join(f'{x:+.2f}' for x in lost)})" if name != RAW else ""
            cells.append(f"{mean:.2f}{shown}")
            key = f"{label.replace(' ', '_')}_{name}"
            report.figures[key] = [round(accuracy, 4) for accuracy, _ in pairs]
            if name != RAW:
                label = f"{label}, {name}: accuracy − raw's"
                report.figure(f"lost_{key}", label, statistics.fmean(lost), "%", at_least=-0.2)
        report.figures[f"speed_{name}"] = [round(speed) for speed in fast[name]]
        rates = (f"{speed:,.0f} MB/s" for speed in fast[name])
        rows.append([name, f"{sizes[name]:,.0f}", f"{ratio:.3f}", *cells, *rates])
    least = min(sizes.values()) / sizes[RAW]
    report.figure("smallest", "bytes of the smallest ÷ raw", least, at_most=0.25)
    print(table(rows))
    report.show()


if __name__ == "__main__":
    main()
