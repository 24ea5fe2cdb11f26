"""CORE: manifests of a private swarm: what strangers see, and what members read.

Strategy: a relay must be able to check, keep and pass on a model without knowing what it is. So
the *outer* manifest, which is signed and offered, has what that needs: the swarm's opaque name, a
blinded schema, numbers, times, size and digests. All else stands in one field, `sealed`, that a
generation of the swarm's secret opens:

    sealed = generation (4) ‖ salt (32) ‖ AES-256-GCM(CBOR map of the other values)

The key is of this salt alone, so the nonce is zero. The swarm's name and the digests are bound: the
values of one model can't be passed off as those of another.
"""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_bytes
from typing import Final, Protocol, TypeAlias

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from . import wire
from .errors import ManifestError, SealedError, WireError
from .manifest import MANIFEST_LIMIT, SEALED_LIMIT, Manifest
from .wire import Value

PURPOSE: Final = b"manifest"
SALT: Final = 32

_GENERATION: Final = 4
_HEAD: Final = _GENERATION + SALT
_NONCE: Final = bytes(12)

SHOWN: Final = frozenset(
    ["version", "swarm", "seq", "created", "expires", "encoding", "size", "chunk_size", "digests"]
)
"""The values that strangers see as they are."""

Unveil: TypeAlias = Callable[[Manifest], Manifest]
"""From a manifest as it is offered the true one. Raises TransportError."""


class Secrets(Protocol):
    """What is needed of membership.secrets.SwarmSecrets."""

    @property
    def newest(self) -> int:
        """The newest generation."""

    def blind(self, schema: bytes) -> bytes:
        """What stands for a schema."""

    def key(self, generation: int, salt: bytes, purpose: bytes) -> bytes:
        """A key of 32 bytes. Raises TransportError for a generation that isn't here."""


def plain(manifest: Manifest) -> Manifest:
    """The `Unveil` of open swarms and of relays: what is offered is all there is."""
    return manifest


def veil(manifest: Manifest, secrets: Secrets) -> Manifest:
    """The manifest as it is signed and offered. Raises ManifestError if there is too much of it."""
    inside = {key: v for key, v in _fields(manifest).items() if key not in SHOWN}
    salt = token_bytes(SALT)
    key = secrets.key(secrets.newest, salt, PURPOSE)
    box = AESGCM(key).encrypt(_NONCE, wire.encode(inside), _bound(manifest))
    return Manifest(
        swarm=manifest.swarm,
        seq=manifest.seq,
        epoch=0,
        age=0.0,
        created=manifest.created,
        expires=manifest.expires,
        schema=secrets.blind(manifest.schema),
        encoding=manifest.encoding,
        size=manifest.size,
        chunk_size=manifest.chunk_size,
        digests=manifest.digests,
        samples=0,
        sealed=secrets.newest.to_bytes(_GENERATION) + salt + box,
    )


def unveil(manifest: Manifest, secrets: Secrets) -> Manifest:
    """The true manifest. Raises SealedError, UnknownGeneration."""
    if manifest.sealed is None:
        raise SealedError("its manifest isn't sealed, as those of a private swarm are")
    head, box = manifest.sealed[:_HEAD], manifest.sealed[_HEAD:]
    key = secrets.key(int.from_bytes(head[:_GENERATION]), head[_GENERATION:], PURPOSE)
    try:
        inside = wire.decode(AESGCM(key).decrypt(_NONCE, box, _bound(manifest)), limit=SEALED_LIMIT)
        true = _joined(inside, manifest)
    except InvalidTag:
        raise SealedError("its manifest was altered, or is of another model or swarm") from None
    except (WireError, ManifestError) as error:
        raise SealedError(f"its manifest: {error}") from None
    if secrets.blind(true.schema) != manifest.schema:
        raise SealedError("its manifest says one schema to members and another to relays")
    return true


def _joined(inside: Value, outer: Manifest) -> Manifest:
    """What strangers see is never overruled by what they don't see."""
    if not isinstance(inside, dict):
        raise ManifestError("its values aren't a map")
    hidden = {key: value for key, value in inside.items() if key != "sealed"}
    shown = {key: value for key, value in _fields(outer).items() if key in SHOWN}
    return Manifest.from_bytes(wire.encode({**hidden, **shown}))


def _fields(manifest: Manifest) -> dict[str, Value]:
    fields = wire.decode(manifest.to_bytes(), limit=MANIFEST_LIMIT)
    assert isinstance(fields, dict)
    return fields


def _bound(manifest: Manifest) -> bytes:
    return manifest.swarm.encode() + b"\0" + blake3(manifest.digests).digest()
