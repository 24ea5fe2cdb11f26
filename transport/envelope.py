"""Signed envelopes: COSE_Sign1 (RFC 9052 section 4.2, tag 18) with EdDSA.

    18([protected, {}, payload, signature])
    protected = << {1: -8, 4: public key} >>          alg EdDSA, kid
    signed    = ["Signature1", protected, "p2pnode/1 " + kind, payload]

Strategy: the header has one possible form, so it is compared as bytes and never parsed.
The kind travels in the external data, not in the envelope: one that was signed as a
manifest does not verify as a peer record. Reading goes in two steps, cheap before dear:
`peek` checks the structure, `verify` the signature. The bytes are kept as they came, and
their BLAKE3-256 digest is the envelope ID.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from blake3 import blake3

from . import identity as ids
from . import wire
from .errors import BadSignature, EnvelopeError, WireError
from .identity import Identity

ENVELOPE_LIMIT: Final = 257 * 1024
"""The largest payload, a manifest of 256 KiB, and 1 KiB for header and signature."""

_SIGN1: Final = 18
_CONTEXT: Final = b"p2pnode/1 "
# The map {1: -8, 4: h'…32 bytes…'} up to the key.
_HEADER: Final = bytes.fromhex("a20127045820")


class Kind(bytes, Enum):
    """What an envelope was signed as."""

    MANIFEST = b"manifest"
    PEER_RECORD = b"peer-record"
    CALL = b"call"
    INVITE = b"invite"
    MEMBER = b"member"
    MEMBER_KEYS = b"member-keys"
    NOTICE = b"notice"


@dataclass(frozen=True, slots=True)
class Envelope:
    """A verified envelope; `id` is the 32-byte BLAKE3 digest of `data`."""

    data: bytes
    public_key: bytes
    peer_id: str
    payload: bytes
    id: bytes


@dataclass(frozen=True, slots=True)
class Unverified:
    """An envelope of the right form, whose signature nobody has checked yet."""

    data: bytes
    public_key: bytes
    payload: bytes
    signature: bytes
    id: bytes

    @property
    def peer_id(self) -> str:
        """Whom the envelope claims to be from."""
        return ids.peer_id(self.public_key)

    def verify(self, kind: Kind) -> Envelope:
        """The envelope, if its key signed it as this kind. Raises BadSignature."""
        signed = _to_be_signed(kind, self.public_key, self.payload)
        if not ids.verify(self.public_key, self.signature, signed):
            raise BadSignature(f"{ids.short(self.peer_id)} did not sign this {kind.decode()}")
        return Envelope(self.data, self.public_key, self.peer_id, self.payload, self.id)


def seal(identity: Identity, kind: Kind, payload: bytes) -> bytes:
    """The payload in an envelope signed by this identity."""
    header = _HEADER + identity.public_key
    signature = identity.sign(_to_be_signed(kind, identity.public_key, payload))
    return wire.encode_tagged(_SIGN1, [header, {}, payload, signature])


def peek(data: bytes, *, limit: int = ENVELOPE_LIMIT) -> Unverified:
    """The parts of an envelope, without the signature check. Raises EnvelopeError."""
    try:
        parts = wire.decode_tagged(data, _SIGN1, limit=limit)
    except WireError as error:
        raise EnvelopeError(str(error)) from error
    match parts:
        case [bytes(header), {} as unprotected, bytes(payload), bytes(signature)]:
            if unprotected or len(signature) != ids.SIGNATURE_SIZE:
                raise EnvelopeError("an unprotected header, or a signature of another length")
            return Unverified(data, _kid(header), payload, signature, blake3(data).digest())
    raise EnvelopeError("not [header, {}, payload, signature]")


def _kid(header: bytes) -> bytes:
    key = header[len(_HEADER) :]
    if not header.startswith(_HEADER) or len(key) != ids.KEY_SIZE:
        raise EnvelopeError("the header is not EdDSA with the public key as key ID")
    return key


def _to_be_signed(kind: Kind, public_key: bytes, payload: bytes) -> bytes:
    return sig_structure(_HEADER + public_key, _CONTEXT + kind, payload)


def sig_structure(header: bytes, external: bytes, payload: bytes) -> bytes:
    """The bytes that COSE_Sign1 signs (RFC 9052 section 4.4)."""
    return wire.encode(["Signature1", header, external, payload])
