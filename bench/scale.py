"""What does it cost as it grows? Models from 1 MB on, and peers from 2 on, on this machine.

Sizes: one delivery between two processes, as in bench/delivery.py. Peers: one author delivers a
model to all others, a process each, at once; what grows is the number of copies, the receivers.
Time, CPU seconds of all processes, and memory (over sizes how much both processes grew at most,
over receivers the PSS of one process). The slope is that of a straight line through the
logarithms: 1 is linear, below 1 less than that.

    make bench NAME=scale ARGS="--megabytes 1 10 100 1000 4000 --svg docs/scale.svg"
"""

import argparse
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from chart import Line, Panel, chart
from delivery import OURS, make_model, measure
from figures import Report, table
from ours import Peer, Watch
from processes import made, start
from rivals import HOST, Meter, Place

# A straight line may rise so much steeper than 1 and still be linear: the noise of a busy machine.
LINEAR = 1.1
Row = tuple[float, float, float, float]  # how much, seconds, CPU seconds, MB of memory


class Count(Watch):
    """Counts the peers that are there, and those that have the model."""

    def __init__(self, peers: int) -> None:
        super().__init__()
        self._peers, self._met, self._delivered = peers, 0, 0

    def met(self, session: Any) -> None:
        """One more is there."""
        self._met += 1
        if self._met == self._peers:
            super().met(session)

    def delivered(self, session: Any, held: Any) -> None:
        """One more has it."""
        self._delivered += 1
        if self._delivered % self._peers == 0:
            super().delivered(session, held)


def author(control: Connection, place: Place, peers: int) -> None:
    """A node that publishes a model each round; all others have dialled it."""
    import shutil

    import trio

    from p2pnode.transport.address import Address

    async def publish() -> None:
        peer = Peer(place, Count(peers), fan_out=peers)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            listen = partial(peer.network.listen, Address(HOST, 0), {"peer": peer.exchange.serve})
            control.send((await nursery.start(listen)).port)
            await peer.watch.met_one.wait()
            while number := await trio.to_thread.run_sync(control.recv):
                path = place.folder / "outbox" / f"{number}.safetensors"
                await trio.to_thread.run_sync(shutil.copyfile, place.model, path)
                peer.watch.delivered_one = trio.Event()
                meter, start = Meter(), time.monotonic()
                await peer.publish(path)
                await peer.watch.delivered_one.wait()
                control.send((time.monotonic() - start, meter.cost().cpu, _pss()))
            nursery.cancel_scope.cancel()

    trio.run(publish)


def reader(control: Connection, place: Place, port: int) -> None:
    """A node that files what it is offered."""
    import trio

    from p2pnode.transport.address import Address

    async def read() -> None:
        peer = Peer(place)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            link = await peer.network.dial(Address(HOST, port), "peer")
            nursery.start_soon(peer.exchange.serve, link)
            while await trio.to_thread.run_sync(control.recv):
                control.send((time.process_time(), _pss()))
            nursery.cancel_scope.cancel()

    trio.run(read)


def _pss() -> float:
    """MB of this process in memory; what it shares counts in parts."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("Pss:"))


def deliver(nodes: int, megabytes: int, rounds: int) -> Row:
    """One author and all others: the medians of the rounds."""
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), Path(name) / "model.safetensors"
        maker = multiprocessing.Process(target=make_model, args=(model, megabytes * 10**6))
        maker.start()
        maker.join()
        first = start(author, Place(model, made(folder / "author")), nodes - 1)
        port = first.recv()
        others = [start(reader, Place(model, made(folder / f"{n}")), port) for n in range(1, nodes)]
        costs = [_round(first, others, number) for number in range(1, rounds + 2)][1:]
        for control in (first, *others):
            control.send(0)
    seconds, cpu, memory = (statistics.median(column) for column in zip(*costs, strict=True))
    return nodes - 1, seconds, cpu, memory


def _round(first: Connection, others: list[Connection], number: int) -> tuple[float, float, float]:
    before = _ask(others, number)
    first.send(number)
    seconds, cpu, own = first.recv()
    after = _ask(others, number)
    cpu += sum(a[0] - b[0] for a, b in zip(after, before, strict=True))
    return seconds, cpu, statistics.mean([own, *(memory for _, memory in after)])


def _ask(others: list[Connection], number: int) -> list[tuple[float, float]]:
    for control in others:
        control.send(number)
    return [control.recv() for control in others]


def size(megabytes: int, rounds: int) -> Row:
    """A delivery of so many MB."""
    pair = measure(megabytes, rounds, [OURS])[OURS]
    grown = sum(pair.grown(side) for side in pair.costs) / 1e6
    return megabytes, statistics.median(pair.seconds), pair.cpu(), max(grown, 0.1)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of a straight line through the logarithms (least squares)."""
    xs, ys = ([math.log(value) for value in column] for column in zip(*points, strict=True))
    x, y = statistics.mean(xs), statistics.mean(ys)
    rise = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return rise / sum((a - x) ** 2 for a in xs)


def show(report: Report, what: str, rows: Sequence[Row]) -> Panel:
    """A table, the slopes, and the panel of the chart."""
    units = ("seconds", "CPU seconds", "MB of memory")
    print(
        table([(what, *units), *([f"{value:,.3g}" for value in row] for row in rows)]), end="\n\n"
    )
    report.figures[what] = [[round(value, 6) for value in row] for row in rows]
    lines = [Line(unit, [(row[0], row[n]) for row in rows]) for n, unit in enumerate(units, 1)]
    for line in lines:
        name = f"{what}_{line.name.split()[0].lower()}_slope"
        label = f"slope of {line.name} over {what}"
        report.figure(name, label, slope(line.points), at_most=LINEAR)
    return Panel(f"What it costs over {what}", what, lines)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="*", default=[1, 4, 16, 64, 256, 1000])
    parser.add_argument("--peers", type=int, nargs="*", default=[2, 4, 8, 16, 32])
    parser.add_argument("--model", type=int, default=5, help="MB of the model for the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    report = Report("scale")
    sizes = show(report, "megabytes", [size(n, args.rounds) for n in args.megabytes])
    rows = [deliver(n, args.model, args.rounds) for n in args.peers]
    peers = show(report, "receivers", rows)
    if args.svg:
        args.svg.write_text(chart([sizes, peers]))
    report.show()


if __name__ == "__main__":
    main()
