"""What does one model for ten peers cost its author? Its upload, the time, and the CPU time.

An author and so many peers, a process each, all connected with all over loopback. The author
publishes a model: digests, manifest, signature, offers; it ends when all have it in the mailbox.
Two ways, in turn in each round, with fresh processes:

    shared   as it is: the peers tell one another which chunks they have
    plain    each fetches all of it from the author, as small models always come

`--up` holds what each process sends within so many MB a second, as home lines do: without it all
share the cores of one machine, which no swarm would, and sending costs next to nothing.

    make bench NAME=sources ARGS="--peers 10 --megabytes 100 --rounds 5"
    make bench NAME=sources ARGS="--megabytes 50 --up 12.5 --rounds 3"
"""

import argparse
import multiprocessing
import statistics
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import roles
from figures import Report, table
from relay import Child, children, model_of
from rivals import Meter

COPIES = 2.0  # the target: what the author sends at most, in models
PEERS = 50  # at most; all of them are offered the model
WAYS = ("shared", "plain")


def node(control: Connection, folder: Path, size: int, up: float, shared: bool) -> None:
    """The parts of a node that move models. It tells where it listens, is told whom to dial, and
    then what to publish, if it is the author; it tells what that has cost."""
    import trio

    from p2pnode.node.mailbox import Mailbox
    from p2pnode.transport import sources
    from p2pnode.transport.identity import Identity
    from p2pnode.transport.pace import Limits, Pace
    from p2pnode.transport.peer_address import PeerAddress

    if not shared:
        sources.FEW = 1 << 30

    async def main() -> None:
        identity, filed = Identity.generate(), trio.Event()
        mailbox = Mailbox(folder, identity.peer_id, roles.MODELS)
        limits = Limits(Pace(up * 1e6))
        peer = roles.Peer(
            mailbox, size, lambda _offered: filed.set(), identity, fan_out=PEERS, limits=limits
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            handlers: Any = {"peer": peer.exchange.serve}
            bound = await nursery.start(peer.network.listen, roles.ANYWHERE, handlers)
            control.send(str(PeerAddress(identity.peer_id, bound)))
            for place in map(PeerAddress.parse, await roles.told(control)):
                link = await peer.network.dial(place.address, "peer", place.peer)
                nursery.start_soon(peer.exchange.serve, link)
            expected = await roles.told(control)
            while len(peer.exchange.met()) < expected:
                await trio.sleep(0.01)
            control.send("ready")
            path, meter = await roles.told(control), Meter()
            sent = _sent(peer)
            if path is not None:
                began = time.time()
                await _publish(peer, mailbox, path)
                control.send(began)
            else:
                await filed.wait()
                control.send(time.time())
            await roles.told(control)  # all have it
            control.send((_sent(peer) - sent, meter.cost().cpu))
            await roles.told(control)
            nursery.cancel_scope.cancel()

    trio.run(main)


def _sent(peer: roles.Peer) -> int:
    return sum(session.bytes_out for session in peer.exchange.met())


async def _publish(peer: roles.Peer, mailbox: Any, path: Path) -> None:
    """Digest, sign, offer."""
    import trio

    from p2pnode.node.orders import Model
    from p2pnode.node.training import manifest_of
    from p2pnode.transport.envelope import Kind, seal

    model = Model(1, 1.0, path, 1, None, None, None, (), "raw")
    make = partial(manifest_of, model, roles.RUN, None, time.time())
    manifest = await trio.to_thread.run_sync(make)
    data = seal(peer.identity, Kind.MANIFEST, manifest.to_bytes())
    peer.exchange.announce(mailbox.publish(path, data))


def spread(model: Path, peers: int, up: float, *, shared: bool) -> tuple[float, float, float]:
    """Seconds until all have it, the author's upload in models, CPU seconds of all."""
    size = model.stat().st_size
    with children() as made:
        nodes: list[Child] = []
        places: list[str] = []
        for _ in range(peers + 1):
            nodes.append(made.start(node, made.place("node"), size, up, shared))
            places.append(nodes[-1].hear())
            nodes[-1].control.send(places[:-1])
        for child in nodes:
            child.control.send(peers)
        for child in nodes:
            child.hear()
        author, *others = nodes
        for child in others:
            child.control.send(None)
        copy = made.folder / "node-0" / "outbox" / "1.safetensors"
        copy.write_bytes(model.read_bytes())
        author.control.send(copy)
        began = author.hear()
        ended = max(child.hear() for child in others)
        for child in nodes:
            child.control.send("done")
        (sent, cpu), *rest = [child.hear() for child in nodes]
        return ended - began, sent / size, cpu + sum(more for _, more in rest)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=10)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[100])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--up", type=float, default=0.0, help="MB/s that each process may send")
    args = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    report = Report("sources")
    rows = [("", "", "median", "fastest", "slowest", "CPU", "author sent", "most")]
    for megabytes in args.megabytes:
        with model_of(megabytes) as model:
            found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
            for _ in range(args.rounds):
                for way, results in found.items():
                    results.append(spread(model, args.peers, args.up, shared=way == "shared"))
        for way, results in found.items():
            rows.append((f"{megabytes} MB", way, *_row(results)))
        _figures(report, megabytes, found)
    limit = f", each sends at most {args.up:g} MB/s" if args.up else ""
    print(f"one model to {args.peers} peers, {args.rounds} rounds{limit}; CPU is that of all\n")
    print(table(rows, left=(0, 1)))
    report.show()


def _row(results: list[tuple[float, float, float]]) -> list[str]:
    seconds, copies, cpu = zip(*results, strict=True)
    middle = statistics.median
    times = [f"{1000 * x:.0f} ms" for x in (middle(seconds), min(seconds), max(seconds))]
    sent = [f"{x:.2f} copies" for x in (middle(copies), max(copies))]
    return [*times, f"{1000 * middle(cpu):.0f} ms", *sent]


def _figures(
    report: Report, megabytes: int, found: dict[str, list[tuple[float, float, float]]]
) -> None:
    (time_, copies, cpu), (plain_time, plain_copies, plain_cpu) = (
        [statistics.median(column) for column in zip(*found[way], strict=True)] for way in WAYS
    )
    of, name = f"models of {megabytes} MB", f"{megabytes}_mb"
    report.figure(f"copies_{name}", f"copies that the author sends, {of}", copies, at_most=COPIES)
    label = f"of its upload with plain copies, {of}"
    report.figure(f"of_plain_upload_{name}", label, copies / plain_copies)
    report.figure(
        f"of_plain_time_{name}", f"of the time that plain copies take, {of}", time_ / plain_time
    )
    report.figure(f"of_plain_cpu_{name}", f"of the CPU time that they take, {of}", cpu / plain_cpu)


if __name__ == "__main__":
    main()
