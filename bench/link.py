"""Models over a long, lossy line: 100 Mbit/s, 50 ms there and back, 1 % of all packets lost.

Two nodes' exchanges, each in a network namespace of its own (tests/natlab.py, as root), and between
them a process that delays, drops and queues packets (tests/natlab_link.py). In turn over the same
line: a model by p2pnode, from digest to mailbox, and as many bytes over one plain TCP connection,
which stays open as p2pnode's does. How well TCP takes losses depends on its congestion control, so
each is measured.

Then: a newer model while one is half sent (what of it was sent in vain), and how fast a loop of
PyTorch trains while models travel.

    sudo make bench NAME=link ARGS="--megabytes 40 --rounds 5"
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from delivery import make_model
from figures import Report, table
from ours import Peer, Watch
from rivals import Place

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from natlab import NatLab, missing
from natlab_link import Cable
from natlab_machines import Host

PORT, PLAIN_PORT = 6000, 7000
BLOCK = 1 << 18
# Reno takes each loss for a full queue: it reaches a thirtieth here, so it gets less to send. Cubic
# does about the same, but many kernels allow it in no network but the machine's own.
SMALLER = {"bbr": 1, "reno": 10}
TARGET = 0.85
TRAIN_SECONDS = 8.0


# ── p2pnode ──────────────────────────────────────────────────────────────────────────────────


class Telling(Watch):
    """Tells which models are in the mailbox, and when."""

    def __init__(self, control: Connection) -> None:
        super().__init__()
        self._control = control

    def filed(self, offered: Any) -> None:
        """It is there."""
        self._control.send((offered.manifest.seq, time.monotonic()))


def receiver(control: Connection, place: Place, host: str) -> None:
    """A node that files what it is offered, and tells when."""
    import trio

    from p2pnode.transport.address import Address

    async def receive() -> None:
        peer = Peer(place, Telling(control))
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            handlers: Any = {"peer": peer.exchange.serve}
            await nursery.start(partial(peer.network.listen, Address(host, PORT), handlers))
            control.send("ready")
            await trio.sleep_forever()

    trio.run(receive)


def sender(control: Connection, place: Place, host: str) -> None:
    """A node that publishes when it is told; answers with (number, start, bytes sent before)."""
    import trio

    from p2pnode.transport.address import Address

    async def send() -> None:
        peer = Peer(place)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            link = await peer.network.dial(Address(host, PORT), "peer")
            nursery.start_soon(peer.exchange.serve, link)
            await peer.watch.met_one.wait()
            (session,) = peer.exchange.sessions.values()
            control.send("ready")
            number = 0
            while await trio.to_thread.run_sync(control.recv):
                number += 1
                path = place.folder / "outbox" / f"{number}.safetensors"
                os.link(place.model, path)
                start, before = time.monotonic(), session.bytes_out
                await peer.publish(path)
                assert peer.mailbox.own is not None
                control.send((peer.mailbox.own.manifest.seq, start, before))
            nursery.cancel_scope.cancel()

    trio.run(send)


# ── one plain TCP connection ─────────────────────────────────────────────────────────────────


def plain_receiver(control: Connection, place: Place, host: str) -> None:
    """Read as many bytes as a model has, again and again, and tell when they are there."""
    with socket.create_server((host, PLAIN_PORT)) as door:
        control.send("ready")
        connection, _ = door.accept()
    while True:
        left = place.size
        while left:
            left -= len(connection.recv(min(BLOCK, left)))
        control.send(time.monotonic())


def plain_sender(control: Connection, place: Place, host: str) -> None:
    """Send as many bytes when told; answers with when it began."""
    data = place.model.read_bytes()
    with socket.create_connection((host, PLAIN_PORT)) as connection:
        control.send("ready")
        while control.recv():
            control.send(time.monotonic())
            connection.sendall(data)


# ── training meanwhile ───────────────────────────────────────────────────────────────────────


def training(control: Connection) -> None:
    """Train a small network for as many seconds as told; answers with batches a second."""
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(21632, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    x, y = torch.randn(64, 1, 28, 28), torch.randint(10, (64,))
    while seconds := control.recv():
        batches, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            batches += 1
        control.send(batches / seconds)


# ── all of it ────────────────────────────────────────────────────────────────────────────────


_processes: list[Any] = []


def start(role: Any, *arguments: Any, at: Host | None = None) -> Connection:
    """A process on that machine: a child is born in the namespace of the thread that starts it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=role, args=(theirs, *arguments), daemon=True)
    if at is None:
        process.start()
    else:
        with at.inside():
            process.start()
    _processes.append(process)
    theirs.close()
    return ours


def stop() -> None:
    """End all of them."""
    for process in _processes:
        process.kill()
        process.join()
    _processes.clear()


class Line:
    """Both machines with their processes."""

    def __init__(self, lab: NatLab, name: str, control: str, loss: float, args: Any) -> None:
        here, there = (lab.public(f"{name}-{side}") for side in ("a", "b"))
        for host in (here, there):
            host.sysctl("ipv4.tcp_congestion_control", control)
        here.line(Cable(args.delay / 2000, loss, args.mbit * 1e6))
        model = args.folder / f"model-{SMALLER[control]}"
        places = [Place(model, args.folder / f"{name}-{side}") for side in ("a", "b")]
        for place in places:
            place.folder.mkdir()
        self.size = places[0].size
        self.plain = [start(plain_receiver, places[1], there.address, at=there)]
        self.nodes = [start(receiver, places[1], there.address, at=there)]
        for pair in (self.plain, self.nodes):
            pair[0].recv()
        self.plain.append(start(plain_sender, places[0], there.address, at=here))
        self.nodes.append(start(sender, places[0], there.address, at=here))
        for pair in (self.plain, self.nodes):
            pair[1].recv()

    def send_plain(self) -> float:
        """Seconds for the bytes of a model."""
        self.plain[1].send(True)
        began = self.plain[1].recv()
        return float(self.plain[0].recv() - began)

    def publish(self) -> tuple[int, float, int]:
        """A new model goes out: its number, when, and what was sent before."""
        self.nodes[1].send(True)
        number, began, before = self.nodes[1].recv()
        return number, began, before

    def filed(self) -> tuple[int, float]:
        """The next model that is in the mailbox: its number, and when."""
        number, when = self.nodes[0].recv()
        return number, when

    def send_model(self) -> float:
        """Seconds for a model, from its digests to the mailbox."""
        _, began, _ = self.publish()
        return self.filed()[1] - began

    def replace(self) -> tuple[int, int]:
        """Two newer models while one is half sent: models filed, and bytes sent for all three."""
        half = self.send_model() / 2
        numbers = []
        first = self.publish()
        numbers.append(first[0])
        for _ in range(2):
            time.sleep(half / 2)
            numbers.append(self.publish()[0])
        came = [self.filed()[0]]
        while came[-1] != numbers[-1]:
            came.append(self.filed()[0])
        self.nodes[1].send(True)  # what it had sent by then
        sent = self.nodes[1].recv()[2] - first[2]
        self.filed()
        return len(came), sent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--delay", type=float, default=50.0, help="there and back, ms")
    parser.add_argument("--loss", type=float, default=1.0, help="of a hundred packets each way")
    parser.add_argument("--control", nargs="*", default=list(SMALLER), choices=list(SMALLER))
    args = parser.parse_args()
    if reason := missing():
        raise SystemExit(f"this bench needs the laboratory: {reason}")
    multiprocessing.set_start_method("spawn")
    with tempfile.TemporaryDirectory() as name, NatLab() as lab:
        args.folder = Path(name)
        for part in sorted({SMALLER[control] for control in args.control}):
            size = args.megabytes * 10**6 // part
            making = (args.folder / f"model-{part}", size)
            maker = multiprocessing.Process(target=make_model, args=making)
            maker.start()
            maker.join()
        measure(lab, args)


def measure(lab: NatLab, args: Any) -> None:
    """All lines in turn."""
    report = Report("link")
    rows: list[tuple[str, ...]] = [("", "model", "plain TCP", "p2pnode", "ratio")]
    for control in args.control:
        for loss in (args.loss, 0.0):
            name = f"{control}-{'loss' if loss else 'clean'}"
            line = Line(lab, name, control, loss / 100, args)
            times = [(line.send_plain(), line.send_model()) for _ in range(args.rounds + 1)][1:]
            plain, ours = (statistics.fmean(column) for column in zip(*times, strict=True))
            rates = (8 * line.size / seconds / 1e6 for seconds in (plain, ours))
            label = f"{control}, {loss:g} % lost"
            shown = (f"{rate:.1f} Mbit/s" for rate in rates)
            rows.append((label, f"{line.size / 1e6:.0f} MB", *shown, f"{plain / ours:.3f}"))
            figure = f"rate of p2pnode ÷ one plain TCP stream, {label}"
            target = TARGET if loss else None
            report.figure(f"{name}_of_plain", figure, plain / ours, at_least=target)
            if control == args.control[0] and loss:
                _replace(report, line)
                _train(report, line)
            stop()
    print(f"{args.mbit:g} Mbit/s, {args.delay:g} ms, {args.rounds} rounds\n")
    print(table(rows))
    report.show()


def _replace(report: Report, line: Line) -> None:
    came, sent = line.replace()
    report.figures["replaced_filed"] = came
    wasted = (sent - came * line.size) / line.size
    label = "sent in vain when two newer ones follow one half sent, in models"
    report.figure("wasted_models", label, wasted)


def _train(report: Report, line: Line) -> None:
    worker = start(training)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for busy in (False, False, True, False, True):
        worker.send(TRAIN_SECONDS)
        while busy and not worker.poll():
            line.send_model()
        rates[busy].append(worker.recv())
    worker.send(0)
    ratio = statistics.fmean(rates[True]) / statistics.fmean(rates[False][1:])
    report.figure("training", "batches a second while models travel ÷ without", ratio)


if __name__ == "__main__":
    main()
