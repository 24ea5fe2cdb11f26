"""What a model is: its size, the digest of each chunk, where it comes from.

Strategy: a manifest is a frozen value that cannot be built wrong. Bytes from a peer and
arguments from our own code pass the same checks, so whoever holds a Manifest may trust
that its numbers agree with one another. That the model is what it says is shown later,
chunk by chunk. The chunk size grows with the model, so a manifest stays under 256 KiB.
"""

import math
from dataclasses import dataclass
from typing import Final

from . import wire
from .errors import ManifestError, WireError
from .wire import Fields, Value

VERSION: Final = 1
MANIFEST_LIMIT: Final = 256 * 1024
"""It is held in memory for each peer and sent in one control message."""

DIGEST: Final = 32
"""Bytes of a BLAKE3-256 digest."""

DIGESTS_LIMIT: Final = 240 * 1024
"""All chunk digests; leaves 16 KiB, of which 256 parents take 9."""

CHUNK: Final = 1024 * 1024
"""The fastest size measured over Pair1; a bad chunk wastes no more than this."""

CHUNK_LEAST: Final = 64 * 1024
"""Smaller chunks cost more in digests and round trips than they save."""

SIZE_LIMIT: Final = 2**46
"""64 TiB; a larger number is a lie."""

PARENTS_LIMIT: Final = 256
RECIPIENTS_LIMIT: Final = 64
"""Peers that a model may be for; with 256 parents they fit SEALED_LIMIT."""

SEALED_LIMIT: Final = 15 * 1024
"""Bytes of what a private swarm's manifest hides; 256 parents and 64 recipients take 13 KiB."""

PEER_LIMIT: Final = 64
"""Characters of a peer ID."""

SWARM_LIMIT: Final = 64
"""Characters of a swarm's name; one line of the screen."""

EXPIRY: Final = 24 * 3600.0
"""Seconds until nobody should start from a model any more: a day covers the longest epochs."""

RAW: Final = "raw"
ENCODINGS: Final = (RAW, "raw+zstd", "bf16", "bf16+zstd", "int8", "int8+zstd")
"""How the tensors may lie in the file; docs/protocol/manifest.md says what each one's bytes are."""

ENCODING_LIMIT: Final = 16
"""Characters of an encoding's name, of those that come later, too."""


def chunk_size_for(size: int) -> int:
    """The chunk size of a model of this many bytes: 1 MiB, doubled as often as needed."""
    chunk = CHUNK
    while -(-size // chunk) * DIGEST > DIGESTS_LIMIT:
        chunk *= 2
    return chunk


@dataclass(frozen=True, slots=True)
class Scores:
    """One test of a model: mean loss, and accuracy as a fraction (0 to 1) where there is one."""

    loss: float
    accuracy: float | None = None

    def __post_init__(self) -> None:
        _finite("loss", self.loss)
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ManifestError(f"accuracy is {self.accuracy}, must be from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One model of one peer. Raises ManifestError when its values do not fit together.

    `age` counts the epochs of training in the model, inherited through averaging; `created`
    and `expires` are Unix seconds of the sender's clock; `schema` is the 32-byte fingerprint
    of names, shapes and dtypes; `digests` are the BLAKE3-256 digests of the chunks, one after
    the other; `before` and `after` are the last finished tests before and after averaging;
    `previous` is the sender's envelope before this one, `parents` are those averaged in since.
    `recipients` are the only peers that can read the model, none for all. `sealed` is what the
    manifest of a private swarm hides from strangers (veil.py); then the other values are void.
    """

    swarm: str
    seq: int
    epoch: int
    age: float
    created: float
    expires: float
    schema: bytes
    size: int
    chunk_size: int
    digests: bytes
    samples: int
    encoding: str = RAW
    loss: float | None = None
    before: Scores | None = None
    after: Scores | None = None
    previous: bytes | None = None
    parents: tuple[bytes, ...] = ()
    recipients: tuple[str, ...] = ()
    sealed: bytes | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        _check_header(self)
        _check_chunks(self)
        _check_lineage(self)

    @property
    def chunks(self) -> int:
        """How many chunks the model has; at least one."""
        return len(self.digests) // DIGEST

    def chunk_length(self, index: int) -> int:
        """Bytes of chunk `index`; only the last may be shorter than `chunk_size`."""
        self._check_index(index)
        return min(self.chunk_size, self.size - index * self.chunk_size)

    def digest(self, index: int) -> bytes:
        """The 32-byte BLAKE3 digest of chunk `index`."""
        self._check_index(index)
        return self.digests[index * DIGEST : (index + 1) * DIGEST]

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.chunks:
            raise ManifestError(f"there is no chunk {index}, only {self.chunks}")

    def to_bytes(self) -> bytes:
        """The deterministic CBOR map; fields that are None are left out."""
        fields = {
            "version": self.version,
            "swarm": self.swarm,
            "seq": self.seq,
            "epoch": self.epoch,
            "age": float(self.age),
            "created": float(self.created),
            "expires": float(self.expires),
            "schema": self.schema,
            "encoding": self.encoding,
            "size": self.size,
            "chunk_size": self.chunk_size,
            "digests": self.digests,
            "samples": self.samples,
            "loss": None if self.loss is None else float(self.loss),
            "before": _scores_value(self.before),
            "after": _scores_value(self.after),
            "previous": self.previous,
            "parents": list(self.parents),
            "recipients": list(self.recipients) or None,
            "sealed": self.sealed,
        }
        return wire.encode({key: value for key, value in fields.items() if value is not None})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """The manifest in these bytes. Raises ManifestError for any others."""
        try:
            return _read(Fields.parse(data, what="manifest", limit=MANIFEST_LIMIT))
        except WireError as error:
            raise ManifestError(str(error)) from error


def _read(f: Fields) -> Manifest:
    version = f.integer("version")
    if version != VERSION:
        raise ManifestError(f"version {version}, this p2pnode reads version {VERSION}")
    parents = f.items("parents", PARENTS_LIMIT)
    recipients = f.items("recipients", RECIPIENTS_LIMIT)
    return Manifest(
        swarm=f.text("swarm", SWARM_LIMIT),
        seq=f.integer("seq"),
        epoch=f.integer("epoch"),
        age=f.number("age"),
        created=f.number("created"),
        expires=f.number("expires"),
        schema=f.bytes("schema", DIGEST, DIGEST),
        encoding=f.text("encoding", ENCODING_LIMIT),
        size=f.integer("size", 1, SIZE_LIMIT),
        chunk_size=f.integer("chunk_size", CHUNK_LEAST, SIZE_LIMIT),
        digests=f.bytes("digests", DIGEST, DIGESTS_LIMIT),
        samples=f.integer("samples"),
        loss=f.number("loss", default=None),
        before=_read_scores(f.map("before", default=None)),
        after=_read_scores(f.map("after", default=None)),
        previous=f.bytes("previous", DIGEST, DIGEST, default=None),
        parents=tuple(parents.bytes(i, DIGEST, DIGEST) for i in parents),
        recipients=tuple(recipients.text(i, PEER_LIMIT) for i in recipients),
        sealed=f.bytes("sealed", 1, SEALED_LIMIT, default=None),
    )


def _read_scores(f: Fields | None) -> Scores | None:
    return None if f is None else Scores(f.number("loss"), f.number("accuracy", default=None))


def _scores_value(scores: Scores | None) -> Value:
    if scores is None:
        return None
    value: dict[str, Value] = {"loss": float(scores.loss)}
    if scores.accuracy is not None:
        value["accuracy"] = float(scores.accuracy)
    return value


def _check_header(m: Manifest) -> None:
    if m.version != VERSION:
        raise ManifestError(f"version is {m.version}, must be {VERSION}")
    if not 1 <= len(m.swarm) <= SWARM_LIMIT or not m.swarm.isprintable():
        raise ManifestError(f"the swarm's name must be 1 to {SWARM_LIMIT} printable characters")
    for name in ("seq", "epoch", "samples"):
        if not 0 <= getattr(m, name) <= wire.INTEGER:
            raise ManifestError(f"{name} is {getattr(m, name)}, must be from 0 to 2**63-1")
    for name in ("age", "created", "expires"):
        _finite(name, getattr(m, name))
    if m.age < 0 or not 0 <= m.created < m.expires:
        raise ManifestError("age or created is negative, or expires is not after created")
    if m.loss is not None:
        _finite("loss", m.loss)


def _check_chunks(m: Manifest) -> None:
    if m.encoding not in ENCODINGS:
        raise ManifestError(f"the encoding {m.encoding!r} is not known here")
    if not 1 <= m.size <= SIZE_LIMIT:
        raise ManifestError(f"size is {m.size}, must be from 1 to 2**46")
    # No larger than needed: a bad chunk must not cost more than chunks have to.
    largest = chunk_size_for(m.size)
    if not CHUNK_LEAST <= m.chunk_size <= largest or m.chunk_size.bit_count() != 1:
        raise ManifestError(
            f"chunk_size is {m.chunk_size}, must be a power of two from {CHUNK_LEAST} to {largest}"
        )
    count = -(-m.size // m.chunk_size)
    if len(m.digests) != count * DIGEST or len(m.digests) > DIGESTS_LIMIT:
        raise ManifestError(
            f"{len(m.digests)} bytes of digests, must be {count * DIGEST}, at most {DIGESTS_LIMIT}"
        )


def _check_lineage(m: Manifest) -> None:
    if len(m.parents) > PARENTS_LIMIT:
        raise ManifestError(f"{len(m.parents)} parents, at most {PARENTS_LIMIT} are allowed")
    ids = [m.schema, *m.parents] + ([] if m.previous is None else [m.previous])
    if any(len(digest) != DIGEST for digest in ids):
        raise ManifestError(f"schema, previous or a parent does not have {DIGEST} bytes")
    if len(m.recipients) > RECIPIENTS_LIMIT or len(m.sealed or b"") > SEALED_LIMIT:
        raise ManifestError("too many recipients, or too much that is sealed")


def _finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ManifestError(f"{name} is {value}, must be a finite number")
