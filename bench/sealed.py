"""What does sealing cost? A model from one worker's tensors to another's, plain and sealed.

A round is all that happens to a model: the sender's worker writes it, its node digests, signs and
delivers it (the node's own Exchange, Mailbox and TcpNetwork), and the receiver's worker looks
through it block by block, as before averaging. Sealed, the first step encrypts and the last one
decrypts; what lies in between carries the same bytes either way. So the whole is compared, and the
parts are shown. Which goes first alternates, as what came before changes how the disk behaves.
Medians of all rounds.

    make bench NAME=sealed ARGS="--megabytes 5 100 1000 --rounds 9"
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from figures import Report, table
from ours import Peer
from processes import made, start
from rivals import HOST, Place

# With encryption ÷ without.
TARGET = 0.7
TENSOR = 1_000_000  # numbers in each tensor of the model: 4 MB
WAYS = ("plain", "sealed")
STEPS = ("write", "deliver", "read", "whole")


def keyring() -> Any:
    """What both workers seal and open with."""
    from p2pnode.node.keyring import Keyring
    from p2pnode.transport.membership.secrets import SwarmSecrets

    return Keyring("bench", SwarmSecrets("bench", bytes(32), bytes(32), ((1, bytes(32)),)))


def model(nbytes: int) -> dict[str, Any]:
    """The tensors of a model of so many bytes."""
    import torch

    one = torch.randn(TENSOR)
    count, rest = divmod(nbytes // 4, TENSOR)
    state = {f"layer{n}.weight": one + n for n in range(count)}
    return state | ({"last.bias": one[:rest].clone()} if rest else {})


def send(control: Connection, place: Place, nbytes: int, port: int) -> None:
    """A node and its worker, which writes a new model each round."""
    import trio

    from p2pnode.node import encoding
    from p2pnode.node.sealing import create_plain
    from p2pnode.transport.address import Address

    state, creating = model(nbytes), {"plain": create_plain, "sealed": keyring().create}

    async def main() -> None:
        peer = Peer(place)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            link = await peer.network.dial(Address(HOST, port), "peer")
            nursery.start_soon(peer.exchange.serve, link)
            await peer.watch.met_one.wait()
            number = 0
            while way := await trio.to_thread.run_sync(control.recv):
                number += 1
                path = place.folder / "outbox" / f"{number}.safetensors"
                began = time.monotonic()
                encoding.save(path, state, "raw", 1, creating[way])
                written = time.monotonic()
                peer.watch.delivered_one = trio.Event()
                await peer.publish(path)
                await peer.watch.delivered_one.wait()
                control.send((began, written))
            nursery.cancel_scope.cancel()

    trio.run(main)


def receive(control: Connection, place: Place) -> None:
    """A node that files what it is offered, and its worker, which looks through it."""
    import trio

    from p2pnode.transport.address import Address

    async def main() -> None:
        peer = Peer(place)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            listen = partial(peer.network.listen, Address(HOST, 0), {"peer": peer.exchange.serve})
            control.send((await nursery.start(listen)).port)
            while way := await trio.to_thread.run_sync(control.recv):
                peer.watch.filed_one = trio.Event()
                control.send("ready")
                await peer.watch.filed_one.wait()
                filed = time.monotonic()
                (held,) = peer.mailbox.models()
                look_through(held.path, way)
                control.send((filed, time.monotonic()))
            nursery.cancel_scope.cancel()

    trio.run(main)


def look_through(path: Path, way: str) -> None:
    """What a worker does with a model before it averages it."""
    from p2pnode.node import averaging
    from p2pnode.node.encoding import Decoder
    from p2pnode.node.sealing import PlainFile

    opening: Any = {"plain": PlainFile, "sealed": partial(keyring().open, "bench", ())}[way]
    with Decoder(path, "raw", opening) as reader:
        averaging.check(reader, reader.schema())


def measure(nbytes: int, rounds: int) -> dict[str, list[Sequence[float]]]:
    """The seconds of each step, of each round, of each way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = partial(Place, _size_of(folder / "size", nbytes))
        receiver = start(receive, place(made(folder / "receiver")))
        port = receiver.recv()
        sender = start(send, place(made(folder / "sender")), nbytes, port)
        found: dict[str, list[Sequence[float]]] = {way: [] for way in WAYS}
        for number in range(rounds + 1):  # the first only warms up
            for way in WAYS[:: 1 - number % 2 * 2]:
                receiver.send(way)
                receiver.recv()
                sender.send(way)
                (began, written), (filed, read) = sender.recv(), receiver.recv()
                if number:
                    found[way].append(
                        (written - began, filed - written, read - filed, read - began)
                    )
        sender.send("")
        receiver.send("")
    return found


def _size_of(path: Path, nbytes: int) -> Path:
    """A file of the model's size, sealed or not: the receiver takes no larger one."""
    path.touch()
    os.truncate(path, nbytes + nbytes // 1000 + 10**6)
    return path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="*", default=[5, 100, 1000])
    parser.add_argument("--rounds", type=int, default=20, help="fewer of large ones")
    args = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    report = Report("sealed")
    for megabytes in args.megabytes:
        rounds = max(3, min(args.rounds, 100 * args.rounds // megabytes))
        _show(report, megabytes, measure(megabytes * 10**6, rounds))
    report.show()


def _show(report: Report, megabytes: int, found: dict[str, list[Sequence[float]]]) -> None:
    medians = {
        way: [statistics.median(step) for step in zip(*rounds, strict=True)]
        for way, rounds in found.items()
    }
    rows = [("", *STEPS, "rate of the whole")]
    for way, steps in medians.items():
        rate = f"{megabytes / steps[-1] / 1e3:.2f} GB/s"
        rows.append((way, *(f"{1000 * step:.1f} ms" for step in steps), rate))
    print(f"a model of {megabytes} MB, {len(found['plain'])} rounds\n")
    print(table(rows), end="\n\n", flush=True)
    for step, plain, sealed in zip(STEPS, medians["plain"], medians["sealed"], strict=True):
        report.figure(
            f"{step}_{megabytes}",
            f"{megabytes} MB, {step}: rate sealed ÷ plain",
            plain / sealed,
            at_least=TARGET if step == "whole" else None,
        )


if __name__ == "__main__":
    main()
