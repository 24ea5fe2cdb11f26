"""CORE: what the members of a private swarm know, and the keys that follow from it.

Strategy: three things are apart. The root secret never changes; it gives the name that strangers
see and seals certificates. Each generation of the model secret opens models and manifests; a
rotation adds one, and who gets no new one reads no newer model. The owner's public key says who is
a member. Every key is derived from one of the two secrets with HKDF and a purpose of its own, so
that no key is ever used for two things.

Certificates are sealed with a nonce that is derived from their bytes (as in SIV, RFC 5297): one
certificate has one sealed form, however often it is announced, and a nonce is never used twice.

Sources: RFC 5869 (HKDF), NIST SP 800-38D (AES-GCM).
"""

from base64 import b32encode
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import MembershipError, UnknownGeneration

SECRET_SIZE: Final = 32

GENERATIONS: Final = 8
"""Secrets that a member keeps: models live a day, and nobody rotates more often than every hour or
two."""

GENERATION_LIMIT: Final = 2**31 - 1

ID_MARK: Final = "~"
"""Opens the name of a private swarm; a name that people choose can't begin so."""

_ID_SIZE: Final = 16
_NONCE_SIZE: Final = 12
_TAG_SIZE: Final = 16
_INFO: Final = b"p2pnode/1 "


@dataclass(frozen=True, slots=True)
class SwarmSecrets:
    """One private swarm. `name` is for people and `owner` is a public key; the rest is secret.

    `generations` holds (number, secret), numbers rising, at least one.
    """

    name: str
    owner: bytes
    root: bytes = field(repr=False)
    generations: tuple[tuple[int, bytes], ...] = field(repr=False)

    def __post_init__(self) -> None:
        numbers = [number for number, _ in self.generations]
        if not numbers or numbers != sorted(set(numbers)) or numbers[0] < 1:
            raise MembershipError("generations count from 1, and there is at least one")
        if any(
            len(s) != SECRET_SIZE for s in (self.owner, self.root, *dict(self.generations).values())
        ):
            raise MembershipError(f"keys and secrets have {SECRET_SIZE} bytes")

    @property
    def id(self) -> str:
        """The name that trackers, relays, records and manifests show: "~" and 26 characters."""
        return _id(self.root)

    @property
    def newest(self) -> int:
        """The newest generation, which seals what this member sends."""
        return self.generations[-1][0]

    def blind(self, schema: bytes) -> bytes:
        """What stands for a schema's fingerprint in public: 32 bytes, random to strangers."""
        return blake3(schema, key=_derived(self.root, b"schema")).digest()

    def key(self, generation: int, salt: bytes, purpose: bytes) -> bytes:
        """A 32-byte AES key of one generation, one salt (random, 16 bytes or more) and one purpose.

        Raises UnknownGeneration.
        """
        secret = dict(self.generations).get(generation)
        if secret is None:
            raise UnknownGeneration(f"number {generation}; the newest here is {self.newest}")
        return _hkdf(secret, salt, purpose)

    def with_generation(self, number: int, secret: bytes) -> "SwarmSecrets":
        """The same swarm with one more generation; the oldest beyond GENERATIONS go."""
        kept = sorted((dict(self.generations) | {number: secret}).items())[-GENERATIONS:]
        return SwarmSecrets(self.name, self.owner, self.root, tuple(kept))

    def seal_certificate(self, data: bytes) -> bytes:
        """A certificate as only members can read it; equal bytes are sealed alike."""
        nonce = blake3(data, key=_derived(self.root, b"certificate nonce")).digest(_NONCE_SIZE)
        return nonce + self._certificates().encrypt(nonce, data, self.id.encode())

    def open_certificate(self, data: bytes) -> bytes:
        """The certificate in sealed bytes. Raises MembershipError."""
        if len(data) < _NONCE_SIZE + _TAG_SIZE:
            raise MembershipError("a sealed certificate is cut off")
        nonce, sealed = data[:_NONCE_SIZE], data[_NONCE_SIZE:]
        try:
            return self._certificates().decrypt(nonce, sealed, self.id.encode())
        except InvalidTag:
            raise MembershipError("a certificate that no member of this swarm sealed") from None

    def _certificates(self) -> AESGCM:
        return AESGCM(_derived(self.root, b"certificate"))


def _hkdf(secret: bytes, salt: bytes | None, purpose: bytes, size: int = SECRET_SIZE) -> bytes:
    return HKDF(SHA256(), size, salt, _INFO + purpose).derive(secret)


@lru_cache(maxsize=64)
def _derived(root: bytes, purpose: bytes) -> bytes:
    return _hkdf(root, None, purpose)


@lru_cache(maxsize=64)
def _id(root: bytes) -> str:
    short = _hkdf(root, None, b"swarm id", _ID_SIZE)
    return ID_MARK + b32encode(short).decode().rstrip("=").lower()
