"""CORE: who is at the other end of a fresh socket, and a key that only the two ends know.

A SIGMA exchange (Krawczyk 2003) in one and a half round trips: ephemeral X25519 keys cross, then
each side proves its Ed25519 identity by signing the transcript, sealed under the fresh key (which
also hides both identities from onlookers). Fixed sizes, so no byte of what follows is read:

    dialler  → magic(20) ‖ ephemeral(32)
    acceptor → magic(20) ‖ ephemeral(32) ‖ sealed(identity(32) ‖ signature(64))
    dialler  →                             sealed(identity(32) ‖ signature(64))

The magic names the service; an acceptor that runs another one answers with its own magic and
closes, so that the user can be told "that port is a peer, not a tracker".

Through a punched hole both ends may have dialled: then their hellos cross. Such a hello has a magic
of its own, so it is never taken for a reply. The lower peer ID stays the dialler and drops the
other's hello; the higher one becomes the acceptor and answers it. The rest is as ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .errors import HandshakeError
from .identity import Identity, peer_id, verify
from .link import Service

MAGIC_SIZE = 20
HELLO_SIZE = MAGIC_SIZE + 32
PROOF_SIZE = 32 + 64 + 16  # identity, signature, AEAD tag
REPLY_SIZE = HELLO_SIZE + PROOF_SIZE

SERVICES: tuple[Service, ...] = ("peer", "tracker", "relay")
_PREFIX = b"p2pnode/1 "
_PUNCH = "punch"  # in a hello: the peer service, and our hellos may cross
_DIALLER, _ACCEPTOR = b"p2pnode/1 dialler", b"p2pnode/1 acceptor"


def magic(service: str) -> bytes:
    """The first 20 bytes that both sides send: protocol, version, service."""
    return (_PREFIX + service.encode()).ljust(MAGIC_SIZE, b"\n")


def is_punch(first: bytes) -> bool:
    """Whether a hello through a punched hole begins so."""
    return first[:MAGIC_SIZE] == magic(_PUNCH)


def yields(me: str, other: str) -> bool:
    """Whether this peer is the acceptor where the hellos of two have crossed: the higher ID is."""
    return me > other


class Sealer:
    """AES-256-GCM under one direction's key; the nonce is a counter, so order is checked too."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._count = 0

    def _nonce(self) -> bytes:
        nonce = self._count.to_bytes(12, "big")
        self._count += 1
        return nonce

    def seal(self, message: bytes, bound: bytes = b"") -> bytes:
        """Encrypt the next message of this direction (16 bytes longer)."""
        return self._aead.encrypt(self._nonce(), message, bound)

    def open(self, sealed: bytes | memoryview, bound: bytes = b"") -> bytes:
        """Decrypt the next message; raises HandshakeError where it isn't the next one."""
        try:
            return self._aead.decrypt(self._nonce(), sealed, bound)
        except InvalidTag:
            raise HandshakeError("a message that was altered, replayed or reordered") from None


@dataclass(frozen=True, slots=True)
class Session:
    """What a finished handshake gives: who is there, and a sealer for each direction."""

    peer: str
    sender: Sealer
    receiver: Sealer


class _Party:
    """What both sides share: the ephemeral key, the transcript, the proof of identity."""

    def __init__(self, identity: Identity, ephemeral: bytes | None) -> None:
        self._identity = identity
        self._private = (
            X25519PrivateKey.from_private_bytes(ephemeral)
            if ephemeral
            else X25519PrivateKey.generate()
        )
        self._public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def _agree(self, theirs: bytes, transcript: bytes) -> tuple[Sealer, Sealer, bytes]:
        """The two sealers (dialler's first) and the transcript hash that both will sign."""
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(theirs))
        except ValueError:
            raise HandshakeError("an unusable X25519 key") from None
        bound = hashlib.sha256(transcript).digest()
        keys = HKDF(hashes.SHA256(), 64, bound, b"p2pnode/1 session").derive(shared)
        return Sealer(keys[:32]), Sealer(keys[32:]), bound

    def _prove(self, role: bytes, bound: bytes, sealer: Sealer) -> bytes:
        signature = self._identity.sign(role + bound)
        return sealer.seal(self._identity.public_key + signature, bound)


def _check(proof: bytes, role: bytes, bound: bytes, sealer: Sealer) -> bytes:
    """The public key that a proof shows; raises HandshakeError."""
    opened = sealer.open(proof, bound)
    public, signature = opened[:32], opened[32:]
    if not verify(public, signature, role + bound):
        raise HandshakeError("the identity's signature is wrong")
    return public


def _check_peer(public: bytes, expect: str | None) -> str:
    """The peer ID of a key; raises HandshakeError where another was expected."""
    peer = peer_id(public)
    if expect is not None and peer != expect:
        raise HandshakeError(f"peer {peer} answered, not {expect}")
    return peer


def _service(hello: bytes) -> Service:
    """The service that these first bytes name; raises HandshakeError."""
    found = next((s for s in SERVICES if hello[:MAGIC_SIZE] == magic(s)), None)
    if found is None:  # its bytes may be anything, so they are not shown
        raise HandshakeError("the other end does not speak p2pnode/1")
    return found


class Dialler(_Party):
    """The side that connected: `hello`, then `finish` with the acceptor's reply.

    `punching` says that the other side may have connected, too; the service is "peer" then.
    """

    def __init__(
        self,
        identity: Identity,
        service: str,
        expect: str | None,
        ephemeral: bytes | None = None,
        *,
        punching: bool = False,
    ) -> None:
        super().__init__(identity, ephemeral)
        self._service, self._expect = service, expect
        self._hello = magic(_PUNCH if punching else service) + self._public

    def hello(self) -> bytes:
        """The first HELLO_SIZE bytes to send."""
        return self._hello

    def check_magic(self, first: bytes) -> None:
        """Look at the first MAGIC_SIZE bytes of the reply; raises HandshakeError."""
        if (found := _service(first)) != self._service:
            raise HandshakeError(f"the other end is a {found}, not a {self._service}")

    def finish(self, reply: bytes) -> tuple[bytes, Session]:
        """Check the reply of REPLY_SIZE bytes: the proof to send, and the session."""
        self.check_magic(reply[:MAGIC_SIZE])
        theirs, proof = reply[MAGIC_SIZE:HELLO_SIZE], reply[HELLO_SIZE:]
        sender, receiver, bound = self._agree(theirs, self._hello + reply[:HELLO_SIZE])
        public = _check(proof, _ACCEPTOR, bound, receiver)
        peer = _check_peer(public, self._expect)
        bound = hashlib.sha256(bound + public).digest()
        return self._prove(_DIALLER, bound, sender), Session(peer, sender, receiver)


class Acceptor(_Party):
    """The side that listened: `reply` to the hello, then `finish` with the dialler's proof.

    It may offer several services; `service` is the one that the dialler has asked for, and
    `punched` tells whether it came through a punched hole. `expect` is the peer that must have
    dialled.
    """

    def __init__(
        self,
        identity: Identity,
        services: Sequence[Service],
        ephemeral: bytes | None = None,
        *,
        expect: str | None = None,
    ) -> None:
        super().__init__(identity, ephemeral)
        self._offered, self._expect = services, expect
        self.service, self.punched = services[0], False

    def reply(self, hello: bytes) -> bytes:
        """The REPLY_SIZE bytes that answer a hello; raises HandshakeError."""
        self.punched = is_punch(hello)
        wanted: Service = "peer" if self.punched else _service(hello)
        if wanted not in self._offered:
            offered = " or a ".join(self._offered)
            raise HandshakeError(f"the other end is a {wanted}, not a {offered}")
        self.service = wanted
        self._hello = magic(wanted) + self._public
        self._receiver, self._sender, bound = self._agree(hello[MAGIC_SIZE:], hello + self._hello)
        self._bound = hashlib.sha256(bound + self._identity.public_key).digest()
        return self._hello + self._prove(_ACCEPTOR, bound, self._sender)

    def refusal(self) -> bytes:
        """What to send before closing on a hello for another service: our own magic."""
        return magic(self._offered[0])

    def finish(self, proof: bytes) -> Session:
        """Check the dialler's PROOF_SIZE bytes; raises HandshakeError."""
        public = _check(proof, _DIALLER, self._bound, self._receiver)
        return Session(_check_peer(public, self._expect), self._sender, self._receiver)
