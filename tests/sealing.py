"""A private swarm's secrets and sealed files for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from p2pnode.node.keyring import Keyring
from p2pnode.node.sealing import SealedFile, SealedTarget
from p2pnode.transport.membership.hpke import KemPrivate
from p2pnode.transport.membership.secrets import SwarmSecrets
from p2pnode.transport.sealed import Header

OWNER, ROOT = bytes([1]) * 32, bytes([2]) * 32
FIRST, SECOND = (1, bytes([3]) * 32), (2, bytes([4]) * 32)
SECRETS = SwarmSecrets("lab", OWNER, ROOT, (FIRST, SECOND))
OLD = SwarmSecrets("lab", OWNER, ROOT, (FIRST,))
OTHERS = SwarmSecrets("other", OWNER, bytes([5]) * 32, ((1, bytes([6]) * 32), (2, bytes([7]) * 32)))
KEYRING = Keyring("me", SECRETS)


@dataclass
class Member:
    """What a node knows of its swarm."""

    secrets: SwarmSecrets = SECRETS
    kem: KemPrivate = field(default_factory=KemPrivate.generate)


def seal_file(path: Path, plain: bytes, generation: int = 2) -> bytes:
    """Write a sealed file of these bytes; give it back as it is on the disk."""
    header = Header.of(generation)
    with SealedTarget(path, header, SECRETS.key(generation, header.salt, b"model")) as file:
        file.write(plain)
    return path.read_bytes()


def open_file(path: Path, secrets: SwarmSecrets = SECRETS) -> SealedFile:
    """Open it with these secrets."""
    return SealedFile(path, lambda header: secrets.key(header.generation, header.salt, b"model"))


def content(path: Path, secrets: SwarmSecrets = SECRETS) -> bytes:
    """All that is in it."""
    file = open_file(path, secrets)
    try:
        data = bytearray(file.size)
        assert file.read(memoryview(data), 0) == file.size
        return bytes(data)
    finally:
        file.close()
