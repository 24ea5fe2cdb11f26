"""How long does a small message take while models travel? Two nodes over loopback, both ways.

Each of the two sends the other one model after the other, digests and verification included, and
asks for a pong all the time (an offer goes the same way: first into the queue of control messages,
then into the connection). The same is asked before, when nothing else travels. In the phases
between, both are idle again.

    make bench NAME=latency ARGS="--megabytes 100 --seconds 6 --rounds 3"
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from delivery import make_model
from figures import Report, table
from ours import Peer
from rivals import HOST, Place

# Between two questions: often enough for a p99, and not a load of its own.
PAUSE = 0.01
# Who isn't answered by then counts as this.
PATIENCE = 5.0
TARGET = 5.0
IDLE, BUSY = "idle", "full transfer"


def node(control: Connection, place: Place, port: int) -> None:
    """A node that pings, and publishes while told to; port 0 listens, another is dialled."""
    import trio

    from p2pnode.transport.address import Address

    async def publish(peer: Peer, sent: list[int]) -> None:
        for number in range(1, 1 << 30):
            path = place.folder / "outbox" / f"{number}.safetensors"
            os.link(place.model, path)
            peer.watch.delivered_one = trio.Event()
            await peer.publish(path)
            await peer.watch.delivered_one.wait()
            sent.append(number)

    async def ping(session: Any, trips: list[float]) -> None:
        while True:
            answered = trio.Event()

            def note(seconds: float, answered: trio.Event = answered) -> None:
                trips.append(seconds)
                answered.set()

            session.on_round_trip = note
            session.ping()
            with trio.move_on_after(PATIENCE):
                await answered.wait()
            await trio.sleep(PAUSE)

    async def phase(peer: Peer, busy: bool, seconds: float) -> tuple[list[float], int]:
        (session,) = peer.exchange.sessions.values()
        trips: list[float] = []
        sent: list[int] = []
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                if busy:
                    nursery.start_soon(publish, peer, sent)
                nursery.start_soon(ping, session, trips)
        return trips, len(sent)

    async def live() -> None:
        peer = Peer(place)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            if port:
                link = await peer.network.dial(Address(HOST, port), "peer")
                nursery.start_soon(peer.exchange.serve, link)
            else:
                handlers: Any = {"peer": peer.exchange.serve}
                listen = partial(peer.network.listen, Address(HOST, 0), handlers)
                control.send((await nursery.start(listen)).port)
            await peer.watch.met_one.wait()
            while told := await trio.to_thread.run_sync(control.recv):
                control.send(await phase(peer, *told))
            nursery.cancel_scope.cancel()

    trio.run(live)


def _start(place: Place, port: int) -> Connection:
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.Process(target=node, args=(theirs, place, port), daemon=True).start()
    return ours


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    trips: dict[str, list[float]] = {IDLE: [], BUSY: []}
    models = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        maker = multiprocessing.Process(target=make_model, args=(model, args.megabytes * 10**6))
        maker.start()
        maker.join()
        places = [Place(model, folder / side) for side in "ab"]
        for place in places:
            place.folder.mkdir()
        nodes = [_start(places[0], 0)]
        nodes.append(_start(places[1], nodes[0].recv()))
        for _ in range(args.rounds):
            for busy, kept in ((False, trips[IDLE]), (True, trips[BUSY])):
                for control in nodes:
                    control.send((busy, args.seconds))
                for control in nodes:
                    some, sent = control.recv()
                    kept += some
                    models += sent
        for control in nodes:
            control.send(None)
        size = model.stat().st_size
    rate = models * size / (args.rounds * args.seconds) / 1e6
    _show(trips, rate)


def _show(trips: dict[str, list[float]], rate: float) -> None:
    report = Report("latency")
    rows: list[tuple[str, ...]] = [("", "round trips", "median", "p90", "p99", "slowest")]
    p99 = {}
    for name, some in trips.items():
        hundredths = statistics.quantiles(some, n=100)
        p99[name] = hundredths[98]
        shown = (statistics.median(some), hundredths[89], p99[name], max(some))
        rows.append((name, str(len(some)), *(f"{1000 * s:.2f} ms" for s in shown)))
        report.figures[f"{name.split()[0]}_median_ms"] = round(1000 * shown[0], 3)
        report.figures[f"{name.split()[0]}_p99_ms"] = round(1000 * shown[2], 3)
    print(table(rows))
    report.figure("models_mb_s", "models meanwhile, both ways together", rate, "MB/s", digits=0)
    ratio = p99[BUSY] / p99[IDLE]
    report.figure("p99_ratio", "p99 under full transfer ÷ p99 idle", ratio, at_most=TARGET)
    medians = statistics.median(trips[BUSY]) / statistics.median(trips[IDLE])
    report.figure("median_ratio", "the same of the medians", medians)
    report.show()


if __name__ == "__main__":
    main()
