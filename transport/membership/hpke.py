"""CORE: a few bytes for one member alone: HPKE (RFC 9180), base mode, one message a key.

Strategy: each member has two key pairs, X25519 and, where its build can, the hybrid of ML-KEM-768
and X25519 (X-Wing), which holds as long as one of the two does. Who seals takes the hybrid if both
sides have it. The two pairs share nothing, so neither can be turned against the other. The swarm,
the purpose and what else the message belongs to go into HPKE's `info`: bytes that were sealed for
one place open in no other.

A sealed message is one byte (1 X25519, 2 hybrid), the encapsulated key and the ciphertext: 49 or
1137 bytes more than the plaintext.

Sources: RFC 9180; FIPS 203 (ML-KEM); draft-connolly-cfrg-xwing-kem (the hybrid).
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from ..errors import MembershipError

X25519_SIZE: Final = 32
ML_KEM_PUBLIC: Final = 1184
ML_KEM_SEED: Final = 64
HYBRID_PUBLIC: Final = ML_KEM_PUBLIC + X25519_SIZE
HYBRID_PRIVATE: Final = ML_KEM_SEED + X25519_SIZE

OVERHEAD_X25519: Final = 1 + X25519_SIZE + 16
OVERHEAD_HYBRID: Final = 1 + 1088 + X25519_SIZE + 16
"""Bytes that a sealed message has more than its plaintext: mark, encapsulated key, tag."""

_X25519, _HYBRID = b"\x01", b"\x02"


@cache
def hybrid_works() -> bool:
    """Whether this build of `cryptography` has ML-KEM."""
    try:
        MLKEM768PrivateKey.generate()
    except UnsupportedAlgorithm:
        return False
    return True


@dataclass(frozen=True, slots=True)
class KemPublic:
    """What others seal to: an X25519 key (32 bytes), perhaps a hybrid one (ML-KEM ‖ X25519)."""

    x25519: bytes
    hybrid: bytes | None = None

    def __post_init__(self) -> None:
        if len(self.x25519) != X25519_SIZE:
            raise MembershipError(f"an X25519 key has {X25519_SIZE} bytes")
        if self.hybrid is not None and len(self.hybrid) != HYBRID_PUBLIC:
            raise MembershipError(f"a hybrid key has {HYBRID_PUBLIC} bytes")


@dataclass(frozen=True, slots=True)
class KemPrivate:
    """A member's own keys: an X25519 key, perhaps a hybrid one (ML-KEM seed ‖ X25519)."""

    x25519: bytes = field(repr=False)
    hybrid: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.x25519) != X25519_SIZE:
            raise MembershipError(f"an X25519 key has {X25519_SIZE} bytes")
        if self.hybrid is not None and len(self.hybrid) != HYBRID_PRIVATE:
            raise MembershipError(f"a private hybrid key has {HYBRID_PRIVATE} bytes")

    @classmethod
    def generate(cls) -> "KemPrivate":
        """New random keys; the hybrid one where this build can."""
        plain = X25519PrivateKey.generate().private_bytes_raw()
        if not hybrid_works():
            return cls(plain)
        second = X25519PrivateKey.generate().private_bytes_raw()
        return cls(plain, MLKEM768PrivateKey.generate().private_bytes_raw() + second)

    @property
    def public(self) -> KemPublic:
        """What others seal to; without the hybrid key if this build can't use it."""
        plain = _private(self.x25519).public_key().public_bytes_raw()
        if self.hybrid is None or not hybrid_works():
            return KemPublic(plain)
        post = MLKEM768PrivateKey.from_seed_bytes(self.hybrid[:ML_KEM_SEED]).public_key()
        second = _private(self.hybrid[ML_KEM_SEED:]).public_key()
        return KemPublic(plain, post.public_bytes_raw() + second.public_bytes_raw())


def seal_to(
    public: KemPublic,
    plaintext: bytes,
    *,
    swarm: str,
    purpose: bytes,
    bound: bytes = b"",
    hybrid: bool = True,
) -> bytes:
    """The plaintext for the owner of these keys alone. Raises MembershipError for no keys.

    `bound` is what else the message belongs to; who opens it must say the same. `hybrid=False`
    takes X25519 whatever there is, where a thousand messages must fit in one place.
    """
    info = _info(swarm, purpose, bound)
    try:
        if hybrid and public.hybrid is not None and hybrid_works():
            return _HYBRID + _hybrid_suite().encrypt(plaintext, _hybrid_public(public.hybrid), info)
        key = X25519PublicKey.from_public_bytes(public.x25519)
        return _X25519 + _suite().encrypt(plaintext, key, info)
    except ValueError as error:
        raise MembershipError(f"nothing can be sealed to these keys: {error}") from None


def open_with(
    private: KemPrivate, data: bytes, *, swarm: str, purpose: bytes, bound: bytes = b""
) -> bytes:
    """The plaintext of a message to these keys. Raises MembershipError."""
    info, mark, sealed = _info(swarm, purpose, bound), data[:1], data[1:]
    try:
        if mark == _X25519:
            return _suite().decrypt(sealed, _private(private.x25519), info)
        if mark == _HYBRID and private.hybrid is not None and hybrid_works():
            return _hybrid_suite().decrypt(sealed, _hybrid_private(private.hybrid), info)
    except (InvalidTag, ValueError):
        raise MembershipError("this was not sealed to this member") from None
    raise MembershipError("this was sealed to a key that this member doesn't have")


def _info(swarm: str, purpose: bytes, bound: bytes) -> bytes:
    """One text a place: neither a swarm's name nor a purpose holds a zero byte."""
    return b"p2pnode/1 " + purpose + b"\0" + swarm.encode() + b"\0" + bound


def _suite() -> hpke.Suite:
    return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def _hybrid_suite() -> hpke.Suite:
    return hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def _private(raw: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(raw)


def _hybrid_private(raw: bytes) -> hpke.MLKEM768X25519PrivateKey:
    post = MLKEM768PrivateKey.from_seed_bytes(raw[:ML_KEM_SEED])
    return hpke.MLKEM768X25519PrivateKey(post, _private(raw[ML_KEM_SEED:]))


def _hybrid_public(raw: bytes) -> hpke.MLKEM768X25519PublicKey:
    post = MLKEM768PublicKey.from_public_bytes(raw[:ML_KEM_PUBLIC])
    return hpke.MLKEM768X25519PublicKey(
        post, X25519PublicKey.from_public_bytes(raw[ML_KEM_PUBLIC:])
    )
