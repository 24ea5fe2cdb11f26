"""CORE: readers of what tracker messages have in their fields. Each raises WireError."""

import re
from typing import Final

from ..transport.address import NAME_LIMIT, Address
from ..transport.errors import AddressError, IdentityError, WireError
from ..transport.identity import public_key
from ..transport.peer_address import PeerAddress
from ..transport.wire import Fields

ADDRESS_LIMIT: Final = NAME_LIMIT + 6
"""Characters of HOST:PORT with the longest name there is."""

PEER_LIMIT: Final = 64  # characters, before the exact check

PEER_ADDRESS_LIMIT: Final = PEER_LIMIT + 1 + ADDRESS_LIMIT
"""Characters of PEERID@HOST:PORT."""

_WORD: Final = re.compile(r"[a-z]+(-[a-z]+)*")
_WORD_LIMIT: Final = 32


def address(text: str, what: str) -> Address:
    """The HOST:PORT in a text."""
    try:
        return Address.parse(text)
    except AddressError as error:
        raise WireError(f"{what}: {error}") from error


def peer_address(text: str, what: str) -> PeerAddress:
    """The PEERID@HOST:PORT in a text."""
    try:
        return PeerAddress.parse(text)
    except AddressError as error:
        raise WireError(f"{what}: {error}") from error


def peer(text: str, what: str) -> str:
    """A peer ID."""
    try:
        public_key(text)
    except IdentityError as error:
        raise WireError(f"{what}: {error}") from error
    return text


def word(f: Fields, key: str, what: str) -> str:
    """A word of small letters and hyphens, from a list that newer versions may lengthen."""
    text = f.text(key, _WORD_LIMIT)
    if not _WORD.fullmatch(text):
        raise WireError(f"{what}.{key} is wrong: must be small letters and hyphens")
    return text
