"""How fast does a verified model travel? Between two processes over loopback, small and large.

Six ways in one run, in turn, each with a sender and a receiver process of its own:

    p2pnode      manifest (digests), signature, offer, chunks each verified, filed in the mailbox:
                 the node's own Exchange and Mailbox over its own TcpNetwork
    raw file     a TCP socket, received into a new file on the same disk
    raw memory   a TCP socket, received into memory that is there already
    pyzmq        send_pyobj and recv_pyobj of the same state dict
    grpc         a gRPC stream with chunks of pickled arrays, as p2pfl sends
    obvious      torch.save into one signed CBOR message, asend and arecv over pynng

A time runs from the sender's first step to the moment the receiver has it all (in the mailbox, in
the file, in memory, as a state dict, as arrays, as verified bytes). The medians of all rounds are
compared. Memory: by how much each process grew at most while the model travelled.

    make bench NAME=delivery ARGS="--megabytes 5 100 1000 4000 --rounds 15"
"""

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from figures import Report, table
from ours import receive_p2pnode, send_p2pnode
from processes import made, start
from rivals import (
    Cost,
    Place,
    receive_into_file,
    receive_into_memory,
    receive_obvious,
    receive_pyzmq,
    send_obvious,
    send_pyzmq,
    send_raw,
)
from rivals_grpc import receive_grpc, send_grpc

TENSOR = 1_000_000  # numbers in each tensor of the model: 4 MB
OURS = "p2pnode"
# The targets: our rate ÷ theirs.
TARGETS = {"raw file": 0.8, "raw memory": 0.4, "pyzmq": 4.5, "grpc": 2.0, "obvious": 5.0}
# From this size on the raw ways are targets: below, a round trip or two weigh more than the bytes.
LARGE = 100
# By how much a node may grow, in MB, whatever the size of the model.
GROWTH = 64
# Larger models go the raw ways only: the others hold a model several times in memory.
LARGEST_OBJECT = 1000
RAW = (OURS, "raw file", "raw memory")


# ── all of them in turn ──────────────────────────────────────────────────────────────────────


Role = Callable[..., None]

WAYS: dict[str, tuple[Role, Role]] = {
    OURS: (send_p2pnode, receive_p2pnode),
    "raw file": (send_raw, receive_into_file),
    "raw memory": (send_raw, receive_into_memory),
    "pyzmq": (send_pyzmq, receive_pyzmq),
    "grpc": (send_grpc, receive_grpc),
    "obvious": (send_obvious, receive_obvious),
}


class Pair:
    """A sender and a receiver process of one way, and what was measured of them."""

    def __init__(self, way: str, model: Path, folder: Path) -> None:
        send, receive = WAYS[way]
        self.seconds: list[float] = []
        self.costs: dict[str, list[Cost]] = {"sender": [], "receiver": []}
        self._receiver = start(receive, Place(model, made(folder / f"{way} receiver")))
        port = self._receiver.recv()
        self._sender = start(send, Place(model, made(folder / f"{way} sender")), port)

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


def make_model(path: Path, nbytes: int) -> None:
    """Write a model of so many bytes, in a process of its own: torch stays out of the others."""
    import torch

    from p2pnode.node import weights

    one = torch.randn(TENSOR)
    count, rest = divmod(nbytes // 4, TENSOR)
    state = {f"layer{n}.weight": one + n for n in range(count)}
    if rest:
        state["last.bias"] = one[:rest].clone()
    weights.save(path, state)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="*", default=[5, 100, 1000])
    parser.add_argument("--rounds", type=int, default=15, help="fewer from 1000 MB on")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    args = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    report = Report("delivery")
    for megabytes in args.megabytes:
        ways = [way for way in args.ways if megabytes <= LARGEST_OBJECT or way in RAW]
        rounds = max(3, min(args.rounds, 100 * args.rounds // megabytes))
        pairs = measure(megabytes, rounds, ways)
        _show(report, megabytes, pairs)
    report.show()


def measure(megabytes: int, rounds: int, ways: list[str]) -> dict[str, Pair]:
    """Deliver a model of this size so many times each way, in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        maker = multiprocessing.Process(target=make_model, args=(model, megabytes * 10**6))
        maker.start()
        maker.join()
        pairs = {way: Pair(way, model, folder) for way in ways}
        for number in range(rounds + 1):
            for pair in pairs.values():
                pair.round(number)
        for pair in pairs.values():
            pair.stop()
    return pairs


def _show(report: Report, megabytes: int, pairs: dict[str, Pair]) -> None:
    rows = [("", "median", "fastest", "slowest", "rate", "CPU", "sender grew", "receiver grew")]
    for way, pair in pairs.items():
        median = statistics.median(pair.seconds)
        times = (median, min(pair.seconds), max(pair.seconds))
        grown = (f"{pair.grown(side) / 1e6:.0f} MB" for side in pair.costs)
        rate = megabytes / median / 1e3
        rows.append((way, *map(_ms, times), f"{rate:.2f} GB/s", _ms(pair.cpu()), *grown))
        report.figures[f"{way.replace(' ', '_')}_{megabytes}_gb_s"] = round(rate, 4)
        report.figures[f"{way.replace(' ', '_')}_{megabytes}_cpu_s"] = round(pair.cpu(), 4)
    rounds = len(next(iter(pairs.values())).seconds)
    print(f"a model of {megabytes} MB, {rounds} rounds; CPU is that of both sides\n")
    print(table(rows), end="\n\n", flush=True)
    if OURS in pairs:
        _compare(report, megabytes, pairs)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def _compare(report: Report, megabytes: int, pairs: dict[str, Pair]) -> None:
    ours = statistics.median(pairs[OURS].seconds)
    for way, pair in pairs.items():
        if way != OURS:
            target = None if way in RAW and megabytes < LARGE else TARGETS[way]
            report.figure(
                f"of_{way.replace(' ', '_')}_{megabytes}",
                f"{megabytes} MB: rate of p2pnode ÷ {way}",
                statistics.median(pair.seconds) / ours,
                at_least=target,
            )
    for side in ("sender", "receiver"):
        report.figure(
            f"{side}_growth_{megabytes}_mb",
            f"{megabytes} MB: the {side} node's memory grew",
            pairs[OURS].grown(side) / 1e6,
            "MB",
            digits=1,
            at_most=GROWTH,
        )


if __name__ == "__main__":
    main()
