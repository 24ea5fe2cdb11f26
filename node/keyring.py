"""What the worker of a private swarm seals its models with, and opens those of others with.

Strategy: the daemon knows the swarm's secrets and tells its worker, on the pipe (never by arguments
or environment, which others on the machine can see). The worker seals what it writes and opens what
it averages; nothing in between has a key. A model for all members is sealed with the newest
generation. One for a few recipients is sealed with a secret of its own, which the daemon has
wrapped for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from ..transport.errors import SealedError
from ..transport.manifest import Manifest
from ..transport.membership import hpke
from ..transport.membership.hpke import KemPrivate
from ..transport.membership.secrets import SwarmSecrets
from ..transport.sealed import Header, recipients_key
from ..transport.veil import unveil
from . import orders
from .sealing import SealedFile, SealedTarget, Source, Target

PURPOSE: Final = b"model"


@dataclass(frozen=True, slots=True)
class Audience:
    """Some peers that alone can read our models: one secret, wrapped for each of them in turn."""

    secret: bytes = field(repr=False)
    recipients: tuple[str, ...]
    wraps: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of one member; `kem` opens what was wrapped for it."""

    peer: str
    secrets: SwarmSecrets
    kem: KemPrivate | None = None
    audience: Audience | None = None

    @property
    def recipients(self) -> tuple[str, ...]:
        """Who can read what is created now; none for all members."""
        return self.audience.recipients if self.audience else ()

    def create(self, path: Path) -> Target:
        """A new sealed file."""
        if self.audience:
            header = Header.of(0, self.audience.wraps)
            return SealedTarget(path, header, recipients_key(self.audience.secret, header.salt))
        header = Header.of(self.secrets.newest)
        key = self.secrets.key(header.generation, header.salt, PURPOSE)
        return SealedTarget(path, header, key)

    def open(self, author: str, recipients: tuple[str, ...], path: Path) -> Source:
        """A sealed file of this author. Raises WeightsError, OSError."""
        return SealedFile(path, partial(self._unwrap, author, recipients))

    def unveil(self, manifest: Manifest) -> Manifest:
        """The true manifest. Raises TransportError."""
        return unveil(manifest, self.secrets)

    def _unwrap(self, author: str, recipients: tuple[str, ...], header: Header) -> bytes:
        if header.generation and not recipients:
            return self.secrets.key(header.generation, header.salt, PURPOSE)
        if self.peer not in recipients or self.kem is None:
            raise SealedError("it is for other members")
        place = recipients.index(self.peer)
        if place >= len(header.wraps):
            raise SealedError("its manifest names more recipients than its header has keys for")
        secret = open_wrap(self.kem, header.wraps[place], self.secrets.id, author)
        return recipients_key(secret, header.salt)


def wrap(public: hpke.KemPublic, secret: bytes, swarm: str, author: str) -> bytes:
    """The secret of an author's models for one recipient."""
    return hpke.seal_to(public, secret, swarm=swarm, purpose=PURPOSE, bound=author.encode())


def open_wrap(private: KemPrivate, data: bytes, swarm: str, author: str) -> bytes:
    """The secret of an author's models. Raises MembershipError."""
    return hpke.open_with(private, data, swarm=swarm, purpose=PURPOSE, bound=author.encode())


# ── on the pipe ──────────────────────────────────────────────────────────────────────────────


def to_order(keyring: Keyring) -> orders.Secrets:
    """The keyring as the worker is told of it."""
    secrets, kem, audience = keyring.secrets, keyring.kem, keyring.audience
    return orders.Secrets(
        peer=keyring.peer,
        swarm=secrets.name,
        owner=secrets.owner.hex(),
        root=secrets.root.hex(),
        generations={str(number): secret.hex() for number, secret in secrets.generations},
        x25519=kem.x25519.hex() if kem else "",
        hybrid=kem.hybrid.hex() if kem and kem.hybrid else "",
        audience=None if audience is None else _told(audience),
    )


def from_order(order: orders.Secrets) -> Keyring:
    """The keyring that the daemon has told of."""
    read, audience = bytes.fromhex, order.audience
    generations = tuple((int(n), read(secret)) for n, secret in order.generations.items())
    return Keyring(
        order.peer,
        SwarmSecrets(order.swarm, read(order.owner), read(order.root), generations),
        KemPrivate(read(order.x25519), read(order.hybrid) or None) if order.x25519 else None,
        None if audience is None else _heard(audience),
    )


def _told(audience: Audience) -> orders.Audience:
    wraps = tuple(wrap.hex() for wrap in audience.wraps)
    return orders.Audience(audience.secret.hex(), audience.recipients, wraps)


def _heard(audience: orders.Audience) -> Audience:
    wraps = tuple(map(bytes.fromhex, audience.wraps))
    return Audience(bytes.fromhex(audience.secret), audience.recipients, wraps)


def stranger(manifest: Manifest) -> Manifest:
    """The `unveil` of open swarms. Raises SealedError for what no open swarm has."""
    if manifest.sealed is not None:
        raise SealedError("it is of a private swarm, and this node is in an open one")
    return manifest
