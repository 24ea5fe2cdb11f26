"""The mailbox as the worker sees it: which models have arrived, and what they say of themselves.

Strategy: the daemon puts `<peer ID>-<seq>.envelope` there, then `<peer ID>-<seq>.safetensors`, both
whole and verified, and removes them when a newer one comes, at any time. So a file that is gone is
no error, it has a successor; and a file once open stays readable.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from ..transport.envelope import peek
from ..transport.errors import TransportError
from ..transport.manifest import Manifest
from .keyring import Keyring, stranger
from .sealing import Opening, PlainFile

_NAME: Final = re.compile(r"([1-9A-HJ-NP-Za-km-z]{1,64})-([0-9]{1,19})\.safetensors")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A peer's model in the mailbox. `age` is epochs of training, `id` its envelope ID in hex.

    `encoding` is what its manifest says of the file, `opening` opens it, sealed or not.
    """

    peer: str
    seq: int
    path: Path
    id: str
    age: float
    encoding: str
    opening: Opening = field(default=PlainFile, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A model whose envelope says nothing that can be used."""

    peer: str
    seq: int
    reason: str


def arrivals(
    mailbox: Path, seen: Mapping[str, int], keyring: Keyring | None = None
) -> list[Arrival | Unreadable]:
    """Return the newest model of each peer that is newer than the one `seen` of it.

    In a private swarm models and what they say are sealed; `keyring` opens them.
    """
    newest: dict[str, tuple[int, Path]] = {}
    for peer, seq, path in _models(mailbox):
        if seq > seen.get(peer, -1) and seq >= newest.get(peer, (0, path))[0]:
            newest[peer] = (seq, path)
    found = (_read(peer, seq, path, keyring) for peer, (seq, path) in sorted(newest.items()))
    return [arrival for arrival in found if arrival is not None]


def _models(mailbox: Path) -> Iterable[tuple[str, int, Path]]:
    for path in mailbox.glob("*.safetensors"):
        if match := _NAME.fullmatch(path.name):
            yield match[1], int(match[2]), path


def _read(peer: str, seq: int, path: Path, keyring: Keyring | None) -> Arrival | Unreadable | None:
    try:
        envelope = peek(path.with_suffix(".envelope").read_bytes())
        unveil = keyring.unveil if keyring else stranger
        manifest = unveil(Manifest.from_bytes(envelope.payload))
    except FileNotFoundError:
        return None
    except (TransportError, OSError) as error:
        return Unreadable(peer, seq, str(error))
    return Arrival(
        peer,
        seq,
        path,
        envelope.id.hex(),
        manifest.age,
        manifest.encoding,
        partial(keyring.open, peer, manifest.recipients) if keyring else PlainFile,
    )
