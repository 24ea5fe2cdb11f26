"""What does a relay cost? Throughput beside the direct way, memory, and the loss of one.

Each part starts processes of its own over loopback, with the node's own parts in them:

    throughput   several authors keep one model each on the way to a receiver: directly, and through
                 a relay, in turn, in each round with fresh processes. From the first step to the
                 last model verified in the receiver's mailbox; as each comes, its author publishes
                 the next. The ratio is that of the medians.
    memory       PSS of a relay process, empty, then with so many models of as many authors, who
                 have stored them one after the other and have gone. The models are on disk.
    loss         an author and a receiver use the same relay, and another one is offered, too. It is
                 killed (SIGKILL). Time from then to the first model, published after that, that is
                 in the receiver's mailbox: through the other one.

    make bench NAME=relay ARGS="--rounds 5 --held 100"
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import roles
from figures import Report, table

AUTHORS = 4  # models in flight
# Models of each author in a round, by their megabytes. All of them must be within the burst of
# offers that a relay makes (48); the first of each isn't timed.
MODELS = {5: 10, 100: 4}
LOSS_MEGABYTES, LOSS_PAUSE = 5, 0.2  # a model, and the time between two
SETTLE = 3.0  # seconds until a relay has tidied up
PATIENCE = 60.0  # seconds until a process that says nothing is said to hang
LEAST, LEAST_A_PEER = 0.5, 10.0  # the targets: of the direct way's rate, and MB/s


@dataclass
class Child:
    """A process, and the pipe to it."""

    process: Any
    control: Connection

    def hear(self) -> Any:
        """What it says next."""
        if not self.control.poll(PATIENCE):
            raise RuntimeError(f"{self.process.name} says nothing for {PATIENCE:.0f} s")
        return self.control.recv()

    def ask(self, question: Any) -> Any:
        """Its answer."""
        self.control.send(question)
        return self.hear()


class Children:
    """The processes of one part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._all: list[Child] = []

    def start(self, role: Callable[..., None], *arguments: Any) -> Child:
        """One more."""
        ours, theirs = multiprocessing.Pipe()
        name = role.__name__
        process = multiprocessing.Process(
            target=role, args=(theirs, *arguments), name=name, daemon=True
        )
        process.start()
        theirs.close()
        self._all.append(Child(process, ours))
        return self._all[-1]

    def place(self, name: str) -> Path:
        """A folder of its own."""
        place = self.folder / f"{name}-{len(self._all)}"
        place.mkdir()
        return place

    def relay(self, space: int) -> tuple[Child, str]:
        """A relay with so many bytes of disk, and its place."""
        child = self.start(roles.relay, self.place("relay"), space)
        return child, child.hear()

    def stop(self) -> None:
        """End all."""
        for child in self._all:
            child.process.kill()
            child.process.join()


@contextmanager
def children() -> Iterator[Children]:
    """Processes with a folder, for a while."""
    with tempfile.TemporaryDirectory() as name:
        made = Children(Path(name))
        try:
            yield made
        finally:
            made.stop()


@contextmanager
def model_of(megabytes: int) -> Iterator[Path]:
    """A file of so many megabytes that nothing compresses."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model"
        with path.open("wb") as file:
            for _ in range(megabytes):
                file.write(os.urandom(10**6))
        yield path


# ── throughput ───────────────────────────────────────────────────────────────────────────────


def carry(model: Path, each: int, *, relayed: bool) -> float:
    """Bytes a second of `each` models of all authors, after one of each that isn't timed."""
    size = model.stat().st_size
    with children() as made:
        place = made.relay(16 * AUTHORS * size)[1] if relayed else ""
        receiver = made.start(roles.receiver, made.place("receiver"), place, size)
        place = receiver.hear() or place
        service = "relay" if relayed else "peer"
        authors = made.start(roles.authors, model, place, service, AUTHORS)
        names = authors.hear()
        _round(authors, receiver, names, 1)
        began = time.time()
        return size * AUTHORS * each / (_round(authors, receiver, names, each) - began)


def _round(authors: Child, receiver: Child, names: list[str], each: int) -> float:
    """All authors publish `each` models, the next as the one before has come; when it is over."""
    left, end = Counter(dict.fromkeys(names, each)), 0.0
    for name in names:
        authors.control.send(name)
    while left.total():
        name, end = receiver.hear()
        left[name] -= 1
        if left[name]:
            authors.control.send(name)
    return end


def throughput(report: Report, rounds: int) -> None:
    """The direct way and the relay in turn, for each size."""
    rows = [("", "models", "direct", "through a relay", "slowest", "fastest")]
    for megabytes, each in MODELS.items():
        rates: dict[bool, list[float]] = {False: [], True: []}
        with model_of(megabytes) as model:
            for _ in range(rounds):
                for relayed, found in rates.items():
                    found.append(carry(model, each, relayed=relayed) / 1e6)
        direct, relayed = (statistics.median(found) for found in rates.values())
        shown = (direct, relayed, min(rates[True]), max(rates[True]))
        rows.append((f"{megabytes} MB", str(AUTHORS * each), *(f"{x:.0f} MB/s" for x in shown)))
        label = f"of the direct way's rate, models of {megabytes} MB"
        report.figure(f"of_direct_{megabytes}_mb", label, relayed / direct, at_least=LEAST)
        label = f"a peer's share of it, models of {megabytes} MB"
        share = relayed / AUTHORS
        report.figure(
            f"a_peer_{megabytes}_mb", label, share, "MB/s", digits=0, at_least=LEAST_A_PEER
        )
    print(f"{AUTHORS} authors, one model of each on the way, {rounds} rounds\n\n{table(rows)}")


# ── memory ───────────────────────────────────────────────────────────────────────────────────


def memory(report: Report, held: int, megabytes: int) -> None:
    """PSS with no model, one, and so many."""
    found = []
    with model_of(megabytes) as model, children() as made:
        relay, place = made.relay(int(1.1 * (held + 1) * megabytes * 10**6))
        filler = made.start(roles.fill, model, place)
        for more in (0, 1, held - 1):
            began = time.time()
            if more:
                filler.control.send(more)
                while not filler.control.poll(PATIENCE):
                    if time.time() - began > held * PATIENCE:
                        raise RuntimeError("the relay takes no models")
                filler.hear()
            time.sleep(SETTLE)
            found.append(relay.ask("memory") / 1e6)
        stored = [path for path in made.folder.rglob("*.model") if path.stat().st_size]
    empty, one, full = found
    count = f"{len(stored)} models of {megabytes} MB"
    report.figure("empty_mb", "PSS of a relay without models", empty, "MB", digits=1)
    report.figure("one_mb", "with one model", one, "MB", digits=1)
    report.figure("full_mb", f"with {count}", full, "MB", digits=1)
    report.figure("held", "models on its disk", len(stored), digits=0, at_least=held)


# ── a lost relay ─────────────────────────────────────────────────────────────────────────────


def loss(model: Path) -> float:
    """Seconds from the end of a relay to the first new model through the other one."""
    size = model.stat().st_size
    with children() as made:
        (first, first_place), (_, second_place) = made.relay(64 * size), made.relay(64 * size)
        author = made.start(roles.member, made.place("author"), model, LOSS_PAUSE)
        receiver = made.start(roles.member, made.place("receiver"), model, 0.0)
        name = author.hear()
        receiver.hear()
        for child in (author, receiver):
            child.control.send(("offer", [first_place]))
        _until_filed(author, receiver, name, time.time())
        for child in (author, receiver):
            child.control.send(("offer", [first_place, second_place]))
        time.sleep(0.5)
        killed = time.time()
        first.process.kill()
        return _until_filed(author, receiver, name, killed) - killed


def _until_filed(author: Child, receiver: Child, name: str, after: float) -> float:
    """When the first model came that was published after this; the author's home is followed, as
    if a tracker told of it."""
    until = time.time() + PATIENCE
    while time.time() < until:
        for child in multiprocessing.connection.wait([author.control, receiver.control], 1.0):
            what, *said = child.recv()  # type: ignore[union-attr]
            if what == "home" and child is author.control:
                receiver.control.send(("follow", name, said[0]))
            if what == "filed" and said[0] > after:
                return float(said[1])
    raise RuntimeError("no model came through the other relay")


def losses(report: Report, rounds: int) -> None:
    """Several times."""
    with model_of(LOSS_MEGABYTES) as model:
        found = sorted(loss(model) for _ in range(rounds))
    label = f"from a relay's kill to the first model of {LOSS_MEGABYTES} MB through another"
    report.figure("replaced_s", label, statistics.median(found), "s", digits=2)
    report.figure("replaced_slowest_s", f"the slowest of {rounds}", found[-1], "s", digits=2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--held", type=int, default=100, help="models that the relay holds")
    parser.add_argument("--held-megabytes", type=int, default=100, help="the size of each")
    parser.add_argument("--parts", nargs="*", default=["throughput", "memory", "loss"])
    args = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    report = Report("relay")
    needed = 1.5 * args.held * args.held_megabytes * 10**6
    if "memory" in args.parts and shutil.disk_usage(tempfile.gettempdir()).free < needed:
        parser.error(f"memory needs {needed / 1e9:.0f} GB of disk: give a smaller --held")
    if "throughput" in args.parts:
        throughput(report, args.rounds)
    if "memory" in args.parts:
        memory(report, args.held, args.held_megabytes)
    if "loss" in args.parts:
        losses(report, args.rounds)
    report.show()


if __name__ == "__main__":
    main()
