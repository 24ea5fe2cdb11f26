"""How fast does a verified model travel? A 100 MB model between two processes over loopback.

Five ways in one run, in turn, each with a sender and a receiver process of its own:

    p2pnode      manifest (digests), signature, offer, chunks each verified, filed in the mailbox:
                 the node's own Exchange and Mailbox over its own TcpNetwork
    raw file     a TCP socket, received into a new file on the same disk
    raw memory   a TCP socket, received into memory that is there already
    pyzmq        send_pyobj and recv_pyobj of the same state dict
    obvious      torch.save into one signed CBOR message, asend and arecv over pynng

A time runs from the sender's first step to the moment the receiver has it all (in the mailbox, in
the file, in memory, as a state dict, as verified bytes). The medians of all rounds are compared.
Memory: by how much each process grew at most while the model travelled.

    make bench NAME=delivery ARGS="--megabytes 100 --rounds 15"
"""

import argparse
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from figures import Report, table
from rivals import (
    HOST,
    Cost,
    Meter,
    Place,
    receive_into_file,
    receive_into_memory,
    receive_obvious,
    receive_pyzmq,
    send_obvious,
    send_pyzmq,
    send_raw,
)

SCHEMA = bytes(32)  # the exchange only compares it
TENSOR = 1_000_000  # numbers in each tensor of the model: 4 MB
OURS = "p2pnode"
# The targets: our rate ÷ theirs.
TARGETS = {"raw file": 0.5, "pyzmq": 2.5, "obvious": 5.0}


# ── p2pnode ──────────────────────────────────────────────────────────────────────────────────


class Watch:
    """What a node would do with the exchange's news: here only the last step counts."""

    def __init__(self) -> None:
        import trio

        self.met_one, self.filed_one, self.delivered_one = trio.Event(), trio.Event(), trio.Event()

    def met(self, _session: Any) -> None:
        """The other one is there."""
        self.met_one.set()

    def filed(self, _offered: Any) -> None:
        """It is in the mailbox."""
        self.filed_one.set()

    def delivered(self, _session: Any, _held: Any) -> None:
        """The receiver says that it has it."""
        self.delivered_one.set()

    def parted(self, session: Any) -> None:
        """The other one is gone."""

    def rejected(self, reason: str, _peer: str, detail: str) -> None:
        """Must not happen here."""
        raise RuntimeError(f"rejected: {reason}, {detail}")

    def refused(self, _session: Any, reason: str, detail: str) -> None:
        """Must not happen here."""
        raise RuntimeError(f"refused: {reason}, {detail}")


@dataclass
class Peer:
    """The parts of a node that move models."""

    place: Place
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        import trio

        from p2pnode.node.mailbox import Mailbox
        from p2pnode.node.training import FILE_OVERHEAD
        from p2pnode.transport.exchange import Exchange, Terms
        from p2pnode.transport.identity import Identity
        from p2pnode.transport.messages import Run
        from p2pnode.transport.network import TcpNetwork

        self.identity = Identity.generate()
        me = self.identity.peer_id
        self.run = Run("bench", "bench", SCHEMA, 0, ())
        self.network = TcpNetwork(self.identity)
        self.mailbox = Mailbox(self.place.folder, me, 64)
        self.exchange = Exchange(
            me,
            self.mailbox,
            self.watch,
            clock=trio.current_time,
            wall=time.time,
            fan_out=8,
            max_peers=50,
            chance=random.Random(1),
        )
        self.exchange.agree(Terms(self.run, self.place.size + FILE_OVERHEAD))

    async def publish(self, path: Path) -> None:
        """What a node does with a new model of its worker's: digest, sign, offer."""
        import trio

        from p2pnode.node.orders import Model
        from p2pnode.node.training import manifest_of
        from p2pnode.transport.envelope import Kind, seal

        model, older = Model(1, 1.0, path, 1, None, None, None, ()), self.mailbox.own
        make = partial(manifest_of, model, self.run, older, time.time())
        manifest = await trio.to_thread.run_sync(make)
        data = seal(self.identity, Kind.MANIFEST, manifest.to_bytes())
        self.exchange.announce(await trio.to_thread.run_sync(self.mailbox.publish, path, data))
        if older is not None:
            await trio.to_thread.run_sync(self.mailbox.discard, older.path)


def send_p2pnode(control: Connection, place: Place, port: int) -> None:
    """A node whose worker writes a new model each round."""
    import trio

    from p2pnode.transport.address import Address

    async def send() -> None:
        peer = Peer(place)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            link = await peer.network.dial(Address(HOST, port), "peer")
            nursery.start_soon(peer.exchange.serve, link)
            await peer.watch.met_one.wait()
            while number := await trio.to_thread.run_sync(control.recv):
                path = place.folder / "outbox" / f"{number}.safetensors"
                await trio.to_thread.run_sync(shutil.copyfile, place.model, path)
                meter, start = Meter(), time.monotonic()
                peer.watch.delivered_one = trio.Event()
                await peer.publish(path)
                await peer.watch.delivered_one.wait()
                control.send((start, meter.cost()))
            nursery.cancel_scope.cancel()

    trio.run(send)


def receive_p2pnode(control: Connection, place: Place) -> None:
    """A node that files what it is offered."""
    import trio

    from p2pnode.transport.address import Address

    async def receive() -> None:
        peer = Peer(place)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            listen = partial(peer.network.listen, Address(HOST, 0), {"peer": peer.exchange.serve})
            control.send((await nursery.start(listen)).port)
            while await trio.to_thread.run_sync(control.recv):
                peer.watch.filed_one = trio.Event()
                meter = Meter()
                control.send("ready")
                await peer.watch.filed_one.wait()
                control.send((time.monotonic(), meter.cost()))
            nursery.cancel_scope.cancel()

    trio.run(receive)


# ── all of them in turn ──────────────────────────────────────────────────────────────────────


Role = Callable[..., None]

WAYS: dict[str, tuple[Role, Role]] = {
    OURS: (send_p2pnode, receive_p2pnode),
    "raw file": (send_raw, receive_into_file),
    "raw memory": (send_raw, receive_into_memory),
    "pyzmq": (send_pyzmq, receive_pyzmq),
    "obvious": (send_obvious, receive_obvious),
}


class Pair:
    """A sender and a receiver process of one way, and what was measured of them."""

    def __init__(self, way: str, model: Path, folder: Path) -> None:
        send, receive = WAYS[way]
        self.seconds: list[float] = []
        self.costs: dict[str, list[Cost]] = {"sender": [], "receiver": []}
        self._receiver = _start(receive, Place(model, _made(folder / f"{way} receiver")))
        port = self._receiver.recv()
        self._sender = _start(send, Place(model, _made(folder / f"{way} sender")), port)

    def round(self, number: int) -> None:
        """Deliver the model once; round 0 only warms up."""
        self._receiver.send(number + 1)
        self._receiver.recv()
        self._sender.send(number + 1)
        (start, sender), (end, receiver) = self._sender.recv(), self._receiver.recv()
        if number:
            self.seconds.append(end - start)
            self.costs["sender"].append(sender)
            self.costs["receiver"].append(receiver)

    def grown(self, side: str) -> int:
        """By how many bytes a side grew at most."""
        return max(cost.grown for cost in self.costs[side])

    def cpu(self) -> float:
        """CPU seconds of both sides for one delivery."""
        return sum(statistics.median(c.cpu for c in costs) for costs in self.costs.values())

    def stop(self) -> None:
        """Let both processes end."""
        self._sender.send(0)
        self._receiver.send(0)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _start(role: Role, *arguments: Any) -> Connection:
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.Process(target=role, args=(theirs, *arguments), daemon=True).start()
    theirs.close()
    return ours


def make_model(path: Path, nbytes: int) -> None:
    """Write a model of so many bytes, in a process of its own: torch stays out of the others."""
    import torch

    from p2pnode.node import weights

    state = {f"layer{n}.weight": torch.randn(TENSOR) for n in range(nbytes // (4 * TENSOR))}
    weights.save(path, state)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    args = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        maker = multiprocessing.Process(target=make_model, args=(model, args.megabytes * 10**6))
        maker.start()
        maker.join()
        pairs = {way: Pair(way, model, folder) for way in args.ways}
        for number in range(args.rounds + 1):
            for pair in pairs.values():
                pair.round(number)
        for pair in pairs.values():
            pair.stop()
        _show(pairs, model.stat().st_size)


def _show(pairs: dict[str, Pair], size: int) -> None:
    report = Report("delivery")
    rows = [("", "median", "fastest", "slowest", "rate", "CPU", "sender grew", "receiver grew")]
    for way, pair in pairs.items():
        median = statistics.median(pair.seconds)
        times = (median, min(pair.seconds), max(pair.seconds))
        grown = (f"{pair.grown(side) / 1e6:.0f} MB" for side in pair.costs)
        rate = f"{size / median / 1e9:.2f} GB/s"
        rows.append((way, *map(_ms, times), rate, _ms(pair.cpu()), *grown))
        report.figures[f"{way.replace(' ', '_')}_gb_s"] = round(size / median / 1e9, 4)
    rounds = len(next(iter(pairs.values())).seconds)
    print(f"a model of {size / 1e6:.1f} MB, {rounds} rounds; CPU is that of both sides\n")
    print(table(rows))
    if OURS in pairs:
        _compare(report, pairs)
    report.show()


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def _compare(report: Report, pairs: dict[str, Pair]) -> None:
    ours = statistics.median(pairs[OURS].seconds)
    for way, pair in pairs.items():
        if way != OURS:
            name, ratio = f"of_{way.replace(' ', '_')}", statistics.median(pair.seconds) / ours
            report.figure(name, f"rate of p2pnode ÷ {way}", ratio, at_least=TARGETS.get(way))
    for side in ("sender", "receiver"):
        grown = pairs[OURS].grown(side) / 1e6
        report.figure(f"{side}_growth_mb", f"the {side} node's memory grew", grown, "MB", digits=1)


if __name__ == "__main__":
    main()
