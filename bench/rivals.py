"""The other ways of bench/delivery.py: raw TCP, pyzmq, and the obvious program.

Each way is a sender and a receiver, a process of its own each. Both are told through `control` when
a round begins; the sender answers with the time of its first step, the receiver with the time when
it has it all, each with what the delivery cost its process.
"""

import socket
import time
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PIECE = 1 << 20  # what the raw ways read at once
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """Where a run has its files: the model, and a folder of this way's own."""

    model: Path
    folder: Path

    @property
    def size(self) -> int:
        """Bytes of the model's file."""
        return self.model.stat().st_size


@dataclass(frozen=True)
class Cost:
    """What a delivery took of one process: the highest rise of its memory, and CPU seconds."""

    grown: int
    cpu: float


class Meter:
    """Measures a Cost from the moment that it is made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        self._memory, self._cpu = _memory("VmRSS"), time.process_time()

    def cost(self) -> Cost:
        """So far."""
        cpu = time.process_time() - self._cpu
        return Cost(max(_memory("VmHWM") - self._memory, 0), cpu)


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


# ── raw TCP ──────────────────────────────────────────────────────────────────────────────────


def send_raw(control: Connection, place: Place, port: int) -> None:
    """Send the model, which is in memory, over one socket."""
    data = place.model.read_bytes()
    with socket.create_connection((HOST, port)) as connection:
        while control.recv():
            meter, start = Meter(), time.monotonic()
            connection.sendall(data)
            control.send((start, meter.cost()))


def receive_into_file(control: Connection, place: Place) -> None:
    """Receive into a new file, 1 MiB at a time."""
    path, buffer = place.folder / "received", memoryview(bytearray(PIECE))
    with _accepted(control) as connection:
        while control.recv():
            path.unlink(missing_ok=True)
            meter, left = Meter(), place.size
            control.send("ready")
            with path.open("xb", buffering=0) as file:
                while left:
                    part = buffer[: connection.recv_into(buffer, min(left, PIECE))]
                    left -= file.write(part)
            control.send((time.monotonic(), meter.cost()))


def receive_into_memory(control: Connection, place: Place) -> None:
    """Receive into one buffer, used again and again."""
    buffer = memoryview(bytearray(place.model.read_bytes()))
    with _accepted(control) as connection:
        while control.recv():
            meter, got = Meter(), 0
            control.send("ready")
            while got < len(buffer):
                got += connection.recv_into(buffer[got:])
            control.send((time.monotonic(), meter.cost()))


def _accepted(control: Connection) -> socket.socket:
    with socket.create_server((HOST, 0)) as server:
        control.send(server.getsockname()[1])
        return server.accept()[0]


# ── pyzmq ────────────────────────────────────────────────────────────────────────────────────


def send_pyzmq(control: Connection, place: Place, port: int) -> None:
    """Send the state dict as a Python object."""
    import torch
    import zmq

    torch.set_num_threads(1)
    state = load(place.model)
    with zmq.Context() as context, context.socket(zmq.PAIR) as pair:
        pair.connect(f"tcp://{HOST}:{port}")
        while control.recv():
            meter, start = Meter(), time.monotonic()
            pair.send_pyobj(state)
            control.send((start, meter.cost()))


def receive_pyzmq(control: Connection, _place: Place) -> None:
    """Receive a Python object, the state dict."""
    import torch
    import zmq

    torch.set_num_threads(1)
    with zmq.Context() as context, context.socket(zmq.PAIR) as pair:
        control.send(pair.bind_to_random_port(f"tcp://{HOST}"))
        while control.recv():
            meter = Meter()
            control.send("ready")
            state = pair.recv_pyobj()
            control.send((time.monotonic(), meter.cost()))
            del state


# ── the obvious program ──────────────────────────────────────────────────────────────────────


def send_obvious(control: Connection, place: Place, port: int) -> None:
    """Save, pack, sign, send: each a line."""
    import cbor2
    import pynng
    import torch
    import trio
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, state = Ed25519PrivateKey.generate(), load(place.model)

    async def send(pair: pynng.Pair0) -> None:
        saved = BytesIO()
        torch.save(state, saved)
        body = cbor2.dumps({"epoch": 1, "model": saved.getvalue()})
        public = key.public_key().public_bytes_raw()
        await pair.asend(cbor2.dumps({"from": public, "signature": key.sign(body), "body": body}))

    with pynng.Pair0(dial=f"tcp://{HOST}:{port}") as pair:
        while control.recv():
            meter, start = Meter(), time.monotonic()
            trio.run(send, pair)
            control.send((start, meter.cost()))


def receive_obvious(control: Connection, _place: Place) -> None:
    """Receive, unpack, verify; the bytes are then ready for torch.load, which isn't counted."""
    import cbor2
    import pynng
    import trio
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    async def receive(pair: pynng.Pair0) -> bytes:
        message = cbor2.loads(await pair.arecv())
        public = Ed25519PublicKey.from_public_bytes(message["from"])
        public.verify(message["signature"], message["body"])
        return bytes(cbor2.loads(message["body"])["model"])

    with pynng.Pair0(listen=f"tcp://{HOST}:0") as pair:
        control.send(socket.ntohs(pair.listeners[0].local_address.port))
        while control.recv():
            meter = Meter()
            control.send("ready")
            model = trio.run(receive, pair)
            control.send((time.monotonic(), meter.cost()))
            del model


def load(path: Path) -> Any:
    """The state dict of a model's file, in memory of its own."""
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(path).items()}
