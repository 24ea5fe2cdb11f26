"""Who a peer is: an Ed25519 key pair, its libp2p peer ID, its key file.

Strategy: the 32 bytes of the public key are the identity. The peer ID is only another
way to write them (libp2p's: base58btc of the identity multihash of the protobuf-encoded
key, `12D3KooW…`), so it can be turned back into the key and checked against any libp2p.
The key file is PKCS#8 PEM with mode 0600, with or without a passphrase.

Sources: RFC 8032 (Ed25519); libp2p specs, peer-ids/peer-ids.md; RFC 5958 (PKCS#8).
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from .errors import IdentityError

KEY_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64

KEY_FILE_LIMIT: Final = 16 * 1024
"""An encrypted Ed25519 PEM has about 400 bytes; more than this is some other file."""

# Multihash: code 0 (identity), length 36. Protobuf: field 1 = 1 (Ed25519), field 2 = 32 bytes.
_PREFIX: Final = bytes.fromhex("002408011220")
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PEER_ID_LENGTH: Final = 52
# The y coordinates of the points of order 1, 2, 4 and 8, in each way to write them; the same list
# as libsodium's.
_SMALL_ORDER: Final = frozenset(
    y.to_bytes(KEY_SIZE, "little")
    for y in (
        *(0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18),
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    )
)
_ENCRYPTED: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_PLAIN: Final = b"-----BEGIN PRIVATE KEY-----"


def peer_id(public_key: bytes) -> str:
    """The libp2p peer ID of a 32-byte Ed25519 public key: always 52 characters."""
    if len(public_key) != KEY_SIZE:
        raise IdentityError(f"a public key has {KEY_SIZE} bytes, not {len(public_key)}")
    number = int.from_bytes(_PREFIX + public_key)
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    return "1" + "".join(reversed(digits))  # base58btc writes the leading zero byte as "1"


def public_key(peer_id: str) -> bytes:
    """The 32-byte public key in a peer ID. Raises IdentityError for any other text."""
    if len(peer_id) == _PEER_ID_LENGTH and peer_id[0] == "1":
        number = 0
        for digit in map(_BASE58.find, peer_id[1:]):
            number = -1 if digit < 0 or number < 0 else number * 58 + digit
        if number >= 0 and number.bit_length() <= 8 * (len(_PREFIX) + KEY_SIZE):
            data = number.to_bytes(len(_PREFIX) + KEY_SIZE)
            if data.startswith(_PREFIX):
                return data[len(_PREFIX) :]
    raise IdentityError(f"{peer_id[:64]!r} is not an Ed25519 peer ID (12D3KooW…)")


def short(peer_id: str) -> str:
    """A peer ID for people: an ellipsis and its last eight characters."""
    return "…" + peer_id[-8:]


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether this key made this Ed25519 signature of the data; any bytes may be asked."""
    if _small_order(public_key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _small_order(public_key: bytes) -> bool:
    """Whether anybody could sign for this key: it would prove nothing."""
    sign_cleared = public_key[:-1] + bytes([public_key[-1] & 0x7F]) if public_key else b""
    return sign_cleared in _SMALL_ORDER


@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair. Two identities are equal when their public keys are."""

    public_key: bytes
    peer_id: str
    _key: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def generate(cls) -> "Identity":
        """A new random identity."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> "Identity":
        """The identity of a 32-byte private key; tests use it for identities that stay."""
        if len(seed) != KEY_SIZE:
            raise IdentityError(f"a seed has {KEY_SIZE} bytes, not {len(seed)}")
        return cls._of(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def _of(cls, key: Ed25519PrivateKey) -> "Identity":
        public = key.public_key().public_bytes_raw()
        return cls(public, peer_id(public), key)

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of the data."""
        return self._key.sign(data)

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None = None) -> "Identity":
        """Read a key file. Raises IdentityError that says what to do."""
        pem = _read_private(path)
        encrypted = _ENCRYPTED in pem
        if not encrypted and _PLAIN not in pem:
            raise IdentityError(f"{path} is not a PKCS#8 PEM key file")
        if encrypted and passphrase is None:
            raise IdentityError(f"{path} needs its passphrase: give --passphrase-file")
        if not encrypted and passphrase is not None:
            raise IdentityError(f"{path} has no passphrase, but one was given")
        return cls._of(_parse_pem(path, pem, passphrase))

    def save(self, path: Path, passphrase: bytes | None = None, overwrite: bool = False) -> None:
        """Write a key file, born with mode 0600; an existing one only with `overwrite`."""
        pem = self._pem(passphrase)
        try:
            if not overwrite:
                return _write_private(path, pem)
            fresh = path.with_name(f"{path.name}.new")
            fresh.unlink(missing_ok=True)  # left by a crash; the key itself is never unlinked
            _write_private(fresh, pem)
            fresh.replace(path)
        except FileExistsError:
            raise IdentityError(f"{path} already exists; it is not overwritten") from None
        except OSError as error:
            raise IdentityError(f"cannot write {path}: {error.strerror}") from error

    def _pem(self, passphrase: bytes | None) -> bytes:
        if passphrase == b"":
            raise IdentityError("the passphrase is empty")
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption()
            if passphrase is None
            else serialization.BestAvailableEncryption(passphrase),
        )


def _parse_pem(path: Path, pem: bytes, passphrase: bytes | None) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        problem = "is damaged" if passphrase is None else "is damaged, or the passphrase is wrong"
        raise IdentityError(f"{path} {problem}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(f"{path} holds another kind of key than Ed25519")
    return key


def _read_private(path: Path) -> bytes:
    """The file's bytes, if nobody else can read them. O_NONBLOCK: a pipe must not hang us."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise IdentityError(f"{path} is not a file")
            if found.st_mode & 0o077:
                raise IdentityError(f"others can read {path}: run chmod 600 {path}")
            return file.read(KEY_FILE_LIMIT)
    except FileNotFoundError:
        raise IdentityError(f"there is no key at {path}: run p2pnode init") from None
    except OSError as error:
        raise IdentityError(f"cannot read {path}: {error.strerror}") from error


def _write_private(path: Path, data: bytes) -> None:
    """A new file, on disk when this returns, never readable by others, whole or not there."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink()
            raise
