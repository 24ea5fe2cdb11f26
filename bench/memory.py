"""What memory does a large model need? In a node that fetches many at once, and in a worker.

Fetching: 16 authors (one process, an address each) publish a model each, and one receiver fetches
all at once. What counts is by how much the receiver's process grows at most (RSS).
Averaging: a process that has a model of its own averages K others in, from their files. What counts
is by how much it grows at most; a file's pages that are mapped count, too.

    make bench NAME=memory ARGS="--megabytes 100 --fetches 16 --models 1 4 16"
"""

import argparse
import multiprocessing
import shutil
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from delivery import make_model
from figures import Report
from ours import Peer, Watch
from processes import made, start
from rivals import Meter, Place

# By how much a node may grow, in MB, whatever the size and the number of the models; a worker by
# one model more.
GROWTH = 64


class Count(Watch):
    """Counts the models that are filed."""

    def __init__(self, models: int) -> None:
        super().__init__()
        self._left = models

    def filed(self, offered: Any) -> None:
        """One more."""
        self._left -= 1
        if not self._left:
            super().filed(offered)


def authors(control: Connection, place: Place, count: int) -> None:
    """So many nodes in one process, on 127.0.0.1 and the next addresses: a host each."""
    import trio

    from p2pnode.transport.address import Address

    async def publish() -> None:
        async with trio.open_nursery() as nursery:
            peers = []
            for number in range(count):
                folder = place.folder / str(number)
                folder.mkdir()
                peer = Peer(Place(place.model, folder))
                await nursery.start(peer.exchange.run)
                where, handlers = Address(f"127.0.0.{number + 1}", 0), {"peer": peer.exchange.serve}
                listen = partial(peer.network.listen, where, handlers)
                address = await nursery.start(listen)
                peers.append(peer)
                control.send((address.host, address.port))
            await trio.to_thread.run_sync(control.recv)  # the receiver has met all
            for peer in peers:
                path = peer.place.folder / "outbox" / "1.safetensors"
                await trio.to_thread.run_sync(shutil.copyfile, place.model, path)
                await peer.publish(path)
            await trio.to_thread.run_sync(control.recv)
            nursery.cancel_scope.cancel()

    trio.run(publish)


def receiver(control: Connection, place: Place, addresses: list[tuple[str, int]]) -> None:
    """A node that fetches from all of them at once."""
    import trio

    from p2pnode.transport.address import Address

    async def fetch() -> None:
        peer = Peer(place, Count(len(addresses)))
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            for host, port in addresses:
                peer.watch.met_one = trio.Event()
                link = await peer.network.dial(Address(host, port), "peer")
                nursery.start_soon(peer.exchange.serve, link)
                await peer.watch.met_one.wait()
            meter, start = Meter(), time.monotonic()
            control.send("ready")
            await peer.watch.filed_one.wait()
            control.send((meter.cost().grown, time.monotonic() - start))
            nursery.cancel_scope.cancel()

    trio.run(fetch)


def fetch(model: Path, folder: Path, count: int) -> tuple[float, float]:
    """By how many MB the receiver grew, and how long it took."""
    first, others = start(authors, Place(model, made(folder / "authors")), count), []
    others = [first.recv() for _ in range(count)]
    second = start(receiver, Place(model, made(folder / "receiver")), others)
    second.recv()
    first.send("go")
    grown, seconds = second.recv()
    first.send("end")
    return grown / 1e6, seconds


def average(control: Connection, model: Path, others: list[Path]) -> None:
    """A worker's step: its own model in memory, the others in files."""
    import torch
    from safetensors.torch import load_file

    from p2pnode.node import averaging
    from p2pnode.node.encoding import Decoder

    torch.set_num_threads(1)
    state = {name: tensor.clone() for name, tensor in load_file(model).items()}
    averaging.finite(state)
    meter = Meter()
    readers = [Decoder(path, "raw") for path in others]
    for reader in readers:
        averaging.check(reader, readers[0].schema())
    share = 1 / (1 + len(readers))
    averaging.average(state, share, [averaging.Part(reader, share) for reader in readers])
    control.send(meter.cost().grown / 1e6)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--fetches", type=int, default=16)
    parser.add_argument("--models", type=int, nargs="*", default=[1, 4, 16])
    args = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    report = Report("memory")
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), Path(name) / "model.safetensors"
        maker = multiprocessing.Process(target=make_model, args=(model, args.megabytes * 10**6))
        maker.start()
        maker.join()
        grown, seconds = fetch(model, folder, args.fetches)
        what = f"fetching {args.fetches} × {args.megabytes} MB at once"
        report.figure(
            "fetching_mb", f"{what}: the node grew", grown, "MB", digits=1, at_most=GROWTH
        )
        report.figure("fetching_s", f"{what} took", seconds, "s", digits=2)
        for count in args.models:
            others = [model] if count == 1 else _copies(model, folder, count)
            most = args.megabytes + GROWTH
            label = f"averaging {count} × {args.megabytes} MB: the worker grew"
            grown = start(average, model, others).recv()
            report.figure(f"averaging_{count}_mb", label, grown, "MB", digits=1, at_most=most)
    report.show()


def _copies(model: Path, folder: Path, count: int) -> list[Path]:
    """So many files with the model, so that their pages are not the same."""
    paths = [folder / f"copy-{number}.safetensors" for number in range(count)]
    for path in paths:
        if not path.exists():
            shutil.copyfile(model, path)
    return paths


if __name__ == "__main__":
    main()
