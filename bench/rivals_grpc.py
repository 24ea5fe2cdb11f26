"""The gRPC way of bench/delivery.py: a stream with chunks of pickled arrays, as p2pfl sends.

No generated code: gRPC's generic handlers take bytes, which is what p2pfl's messages hold.
"""

import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from rivals import HOST, Meter, Place, load

# gRPC takes 4 MiB in one message by default; p2pfl's stream has chunks of 1 MiB.
CHUNK = 1 << 20
SERVICE, METHOD = "bench.Model", "Send"


def send_grpc(control: Connection, place: Place, port: int) -> None:
    """Pickle the arrays, stream the chunks."""
    import grpc
    import torch

    torch.set_num_threads(1)
    arrays = [tensor.numpy() for tensor in load(place.model).values()]
    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        call = channel.stream_unary(f"/{SERVICE}/{METHOD}")
        while control.recv():
            meter, start = Meter(), time.monotonic()
            call(_chunks(pickle.dumps(arrays)), wait_for_ready=True)
            control.send((start, meter.cost()))


def _chunks(data: bytes) -> Iterator[bytes]:
    return (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))


def receive_grpc(control: Connection, _place: Place) -> None:
    """Join the chunks, unpickle the arrays; the time is when they are there."""
    import grpc

    came: SimpleQueue[float] = SimpleQueue()

    def receive(chunks: Iterator[bytes], _context: Any) -> bytes:
        arrays = pickle.loads(b"".join(chunks))  # noqa: S301 - what this way does, by our own child
        came.put(time.monotonic())
        del arrays
        return b"ok"

    handlers = {METHOD: grpc.stream_unary_rpc_method_handler(receive)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    control.send(server.add_insecure_port(f"{HOST}:0"))
    server.start()
    while control.recv():
        meter = Meter()
        control.send("ready")
        control.send((came.get(), meter.cost()))
    server.stop(None)
