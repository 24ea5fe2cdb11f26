"""The daemon's side of sealing in a private swarm: the keys of now, and for whom models are.

Strategy: the swarm's secrets change when the owner rotates them; which members are known, and with
which keys, changes as they are met. `keyring` is what follows from all that at this moment. With
`--recipients` a model is for a few members: their secret is wrapped for each of them whose
certificate is here, and drawn anew whenever they are others, so that who is dropped from the list
opens no later model. A recipient that isn't known yet is left out; never does a model go to all
instead.
"""

from __future__ import annotations

from pathlib import Path
from secrets import token_bytes
from typing import Final, Protocol

from ..transport.errors import IdentityError
from ..transport.identity import public_key
from ..transport.manifest import RECIPIENTS_LIMIT, Manifest
from ..transport.membership.hpke import KemPrivate, KemPublic
from ..transport.membership.secrets import SwarmSecrets
from ..transport.sealed import KEY
from .errors import ConfigError
from .keyring import Audience, Keyring, wrap

FILE_LIMIT: Final = 64 * 1024
"""Bytes of a list of recipients; 64 peer IDs with comments need a tenth of it."""


class Member(Protocol):
    """What is needed of swarms.Membership."""

    @property
    def secrets(self) -> SwarmSecrets:
        """The swarm's secrets, the newest generation among them."""

    @property
    def kem(self) -> KemPrivate:
        """Our own keys, which others wrap for."""


class Seals:
    """What this member of a private swarm seals and opens with, as of now."""

    def __init__(self, peer: str, member: Member, recipients: tuple[str, ...] = ()) -> None:
        self._peer, self._member, self._wanted = peer, member, recipients
        self._known: dict[str, KemPublic] = {peer: member.kem.public}
        self._audience: Audience | None = None
        if recipients:
            self._wrap()

    @property
    def secrets(self) -> SwarmSecrets:
        """The swarm's secrets."""
        return self._member.secrets

    def unveil(self, manifest: Manifest) -> Manifest:
        """The true manifest. Raises TransportError."""
        return self.keyring().unveil(manifest)

    def keyring(self) -> Keyring:
        """The keys of now."""
        return Keyring(self._peer, self._member.secrets, self._member.kem, self._audience)

    def know(self, peer: str, keys: KemPublic) -> bool:
        """A member's certificate is here; whether the keyring is another now."""
        if peer not in self._wanted or peer == self._peer or self._known.get(peer) == keys:
            return False
        self._known[peer] = keys
        self._wrap()
        return True

    def forget(self, peer: str) -> bool:
        """A member was removed from the swarm; whether the keyring is another now."""
        if peer == self._peer or self._known.pop(peer, None) is None:
            return False
        self._wrap()
        return True

    def _wrap(self) -> None:
        secret, swarm = token_bytes(KEY), self.secrets.id
        peers = tuple(sorted(self._known))
        wraps = tuple(wrap(self._known[peer], secret, swarm, self._peer) for peer in peers)
        self._audience = Audience(secret, peers, wraps)


def read_recipients(path: Path) -> tuple[str, ...]:
    """The peer IDs in a file, one a line, `#` and what follows it aside. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            text = file.read(FILE_LIMIT + 1).decode()
    except OSError as error:
        raise ConfigError(f"--recipients: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--recipients: {path} isn't a text file") from None
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    peers = tuple(dict.fromkeys(filter(None, lines)))
    if not peers or len(peers) >= RECIPIENTS_LIMIT or len(text) > FILE_LIMIT:
        raise ConfigError(
            f"--recipients: {path} names {len(peers)} peers; write 1 to {RECIPIENTS_LIMIT - 1}"
        )
    for number, peer in enumerate(lines, 1):
        _check(peer, f"{path}:{number}")
    return peers


def _check(peer: str, where: str) -> None:
    try:
        if peer:
            public_key(peer)
    except IdentityError as error:
        raise ConfigError(f"--recipients: {where}: {error}") from None
