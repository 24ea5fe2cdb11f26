"""CORE: sealed model files, which only the members of a private swarm can read.

    file = magic ‖ length of header (4) ‖ header ‖ commitment (32) ‖ segments

Strategy: the header says from which secret the file's key follows: a generation of the swarm's, or
one that is wrapped for each recipient. Then come segments of SEGMENT bytes, each sealed with
AES-256-GCM for itself, so that any part of a file is read without the rest, in little memory. A
segment's nonce is its number and whether it is the last; the key is of this file alone, as it
follows from a random salt. So a segment that is altered, moved, of another file, or missing at the
end does not open. All numbers are big-endian.

The commitment follows from the key, too. Without it somebody could make a file that opens to one
model under one key and to another under another key, so that two recipients read two models; and a
wrong key is told from a damaged file.

Sources: STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015, https://eprint.iacr.org/2015/189), as age
uses it (https://age-encryption.org/v1); key commitment: Albertini et al. 2022
(https://eprint.iacr.org/2020/1456); RFC 5869 (HKDF); NIST SP 800-38D (AES-GCM).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest
from secrets import token_bytes
from typing import Final, TypeAlias

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from . import wire
from .errors import SealedError, WireError
from .manifest import RECIPIENTS_LIMIT, SIZE_LIMIT
from .wire import INTEGER, Fields

MAGIC: Final = b"p2pseal\x01"
PREFIX: Final = len(MAGIC) + 4
"""Bytes up to the header."""

SEGMENT: Final = 64 * 1024
"""Bytes of a segment before it is sealed: a reader holds a few of them for each model it averages,
and they stay in the processor's cache. Larger ones are hardly faster."""

TAG: Final = 16
KEY: Final = 32
SALT: Final = 32
COMMITMENT: Final = 32

WRAP_LIMIT: Final = 1536
"""Bytes of a wrapped secret; a hybrid one has 1169."""

HEADER_LIMIT: Final = 128 * 1024
"""Bytes of a header: so many recipients as a manifest may name, hybrid."""

_INFO: Final = b"p2pnode/1 sealed "

Unwrap: TypeAlias = Callable[["Header"], bytes]
"""From a header the key that the file's own keys follow from. Raises TransportError."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a sealed file begins with; `generation` is 0 where the secret is wrapped instead.

    `wraps` stand in the order in which the manifest names the recipients.
    """

    generation: int
    salt: bytes
    wraps: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if len(self.salt) != SALT or (not self.generation) != bool(self.wraps):
            raise SealedError("its header has no salt, or not either a generation or wraps")
        if len(self.wraps) > RECIPIENTS_LIMIT or any(len(w) > WRAP_LIMIT for w in self.wraps):
            raise SealedError(f"its header has more than {RECIPIENTS_LIMIT} wraps, or a long one")

    @classmethod
    def of(cls, generation: int, wraps: tuple[bytes, ...] = ()) -> Header:
        """The header of a new file."""
        return cls(generation, token_bytes(SALT), wraps)

    def to_bytes(self) -> bytes:
        """The deterministic CBOR map."""
        fields = {"generation": self.generation, "salt": self.salt, "wraps": list(self.wraps)}
        return wire.encode({key: value for key, value in fields.items() if value not in (0, [])})

    @classmethod
    def from_bytes(cls, data: bytes) -> Header:
        """Raises SealedError for any other bytes."""
        try:
            f = Fields.parse(data, what="header", limit=HEADER_LIMIT)
            wraps = f.items("wraps", RECIPIENTS_LIMIT)
            return cls(
                f.integer("generation", 1, INTEGER, default=0),
                f.bytes("salt", SALT, SALT),
                tuple(wraps.bytes(n, 1, WRAP_LIMIT) for n in wraps),
            )
        except WireError as error:
            raise SealedError(f"its header isn't one ({error})") from None


def header_length(prefix: bytes) -> int:
    """How many bytes a file's header has, by its first PREFIX bytes. Raises SealedError."""
    if len(prefix) != PREFIX or not prefix.startswith(MAGIC):
        raise SealedError("it doesn't begin as one")
    length = int.from_bytes(prefix[len(MAGIC) :])
    if not 1 <= length <= HEADER_LIMIT:
        raise SealedError(f"its header would have {length} bytes, more than {HEADER_LIMIT}")
    return length


def recipients_key(secret: bytes, salt: bytes) -> bytes:
    """The key of a file whose secret is wrapped for its recipients."""
    return HKDF(SHA256(), KEY, salt, b"p2pnode/1 model for recipients").derive(secret)


class Cipher:
    """Seals and opens the segments of one file; each number may be sealed once."""

    def __init__(self, header: Header, key: bytes) -> None:
        body = header.to_bytes()
        # The header is bound, too: with another one other keys follow.
        derived = HKDFExpand(SHA256(), KEY + COMMITMENT, _INFO + blake3(body).digest()).derive(key)
        self._aead, commitment = AESGCM(derived[:KEY]), derived[KEY:]
        self.start = MAGIC + len(body).to_bytes(4) + body + commitment

    @classmethod
    def opening(cls, header: Header, commitment: bytes, unwrap: Unwrap) -> Cipher:
        """The cipher of a file that is there. Raises SealedError, or what `unwrap` raises."""
        cipher = cls(header, unwrap(header))
        if not compare_digest(cipher.start[-COMMITMENT:], commitment):
            raise SealedError("it was sealed with another key, or its header was altered")
        return cipher

    def seal(self, number: int, last: bool, plain: memoryview, into: memoryview) -> None:
        """Seal a segment `into` TAG bytes more."""
        self._aead.encrypt_into(_nonce(number, last), plain, None, into)

    def open(self, number: int, last: bool, sealed: memoryview, into: memoryview) -> None:
        """Open a segment `into` TAG bytes fewer. Raises SealedError; then they are void."""
        try:
            self._aead.decrypt_into(_nonce(number, last), sealed, None, into)
        except InvalidTag:
            where = f"its segment {number}{' (the last)' * last}"
            raise SealedError(f"{where} is altered, misplaced or of another file") from None


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11) + bytes([last])


def segments(plain: int) -> int:
    """How many segments so many bytes have; at least one."""
    return max(1, -(-plain // SEGMENT))


def sealed_size(plain: int, header: int = HEADER_LIMIT) -> int:
    """Bytes of a file of `plain` bytes, sealed with a header of so many."""
    return PREFIX + header + COMMITMENT + plain + TAG * segments(plain)


def plain_size(sealed: int) -> int:
    """How many bytes there are in so many bytes of segments. Raises SealedError."""
    if not TAG <= sealed <= 2 * SIZE_LIMIT:
        raise SealedError("it is cut off")
    count = -(-sealed // (SEGMENT + TAG))
    plain = sealed - TAG * count
    if segments(plain) != count:
        raise SealedError("it is cut off")
    return plain
