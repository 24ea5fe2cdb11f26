"""Models as the mailbox sees them: some bytes, and their manifest signed by key `number`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blake3 import blake3

from lab import identity
from p2pnode.node.mailbox import Mailbox
from p2pnode.transport.admission import Offered
from p2pnode.transport.envelope import Kind, peek, seal
from p2pnode.transport.link import Piece
from p2pnode.transport.manifest import CHUNK_LEAST, EXPIRY, Manifest
from p2pnode.transport.parts import Arrival

SCHEMA = bytes(32)
NOW = 1_800_000_000.0


def body(seq: int, size: int = 100_000) -> bytes:
    """The bytes of a model, told apart by `seq`; more than one chunk."""
    return bytes([seq % 256]) * size


def manifest(data: bytes, **fields: Any) -> Manifest:
    """The manifest of these bytes."""
    chunks = [data[start : start + CHUNK_LEAST] for start in range(0, len(data), CHUNK_LEAST)]
    known: dict[str, Any] = {
        "swarm": "main",
        "seq": 1,
        "epoch": 1,
        "age": 1.0,
        "created": NOW,
        "expires": NOW + EXPIRY,
        "schema": SCHEMA,
        "size": len(data),
        "chunk_size": CHUNK_LEAST,
        "digests": b"".join(blake3(chunk).digest() for chunk in chunks),
        "samples": 60,
    }
    return Manifest(**known | fields)


def sealed(number: int, described: Manifest) -> bytes:
    """The manifest's envelope."""
    return seal(identity(number), Kind.MANIFEST, described.to_bytes())


def offered(number: int, seq: int = 1, data: bytes | None = None, **fields: Any) -> Offered:
    """What admission makes of the offer of this model."""
    described = manifest(body(seq) if data is None else data, seq=seq, **fields)
    return Offered(peek(sealed(number, described)).verify(Kind.MANIFEST), described)


def fill(mailbox: Mailbox, model: Offered, data: bytes | None = None) -> Path:
    """Download all chunks of the model: its part file."""
    data = body(model.manifest.seq) if data is None else data
    part, step = mailbox.part(model), model.manifest.chunk_size
    for chunk in range(model.manifest.chunks):
        piece = Piece(1, chunk, 0, data[chunk * step : (chunk + 1) * step])
        assert part.write([Arrival(piece, chunk * step, True)]) == [True]
    part.close()
    return part.path


def file(mailbox: Mailbox, number: int, seq: int = 1, **fields: Any) -> Offered:
    """A model of this peer comes in and is filed."""
    model = offered(number, seq, **fields)
    mailbox.file(model, fill(mailbox, model))
    return model
