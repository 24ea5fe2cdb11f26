"""CORE: STUN's Binding request and its replies (RFC 8489).

aioice reads and writes the messages; what it lets pass is checked here: the magic cookie, the kind
of message, the transaction, the size. Any bytes give a value or StunError. aioice is imported at
first use, as it brings asyncio and a DNS library with it (65 ms).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from ..address import Address
from ..errors import StunError

if TYPE_CHECKING:
    from aioice.stun import Message

HEADER: Final = 20
TRANSACTION: Final = 12
"""Bytes of a transaction ID, random for each request (RFC 8489 section 5)."""

MESSAGE_LIMIT: Final = 548
"""Bytes of a message: one datagram on any IPv4 path (576 less the headers, section 6.1)."""

_COOKIE: Final = bytes.fromhex("2112a442")
_REQUEST, _SUCCESS, _ERROR = 0x0001, 0x0101, 0x0111
_UNKNOWN_ATTRIBUTES: Final = 0x000A
_REQUIRED: Final = range(0x8000)
"""Attributes that a receiver must understand; the others may be ignored (section 14)."""

_UNDERSTOOD: Final = frozenset({0x0001, 0x0006, 0x0008, 0x0009, 0x000A, 0x0014, 0x0015, 0x0020})
"""Those of RFC 5389, which a server without passwords reads and ignores in a request. Not so
CHANGE-REQUEST (RFC 5780): who asks for an answer from elsewhere must know that none comes."""

UNKNOWN_LIMIT: Final = 4
"""Attributes that a refusal names, so that it is no longer than twice the request."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What a STUN server says of one socket of ours."""

    mapped: Address
    """Where it sees us."""

    other: Address | None = None
    """Another address and port of the same server, for RFC 5780's tests."""


@dataclass(frozen=True, slots=True)
class Request:
    """A Binding request, as a server sees it."""

    transaction: bytes
    unknown: tuple[int, ...] = ()
    """Attributes that must be understood and are not."""


def load() -> None:
    """Import the codec now, so that nothing has to wait for that later."""
    import aioice.stun  # noqa: F401


def request(transaction: bytes) -> bytes:
    """A Binding request."""
    return _bytes(_REQUEST, transaction, {})


def reply(transaction: bytes, seen: Address) -> bytes:
    """The server's answer: we see you here. `seen` is an IP address."""
    return _bytes(_SUCCESS, transaction, {"XOR-MAPPED-ADDRESS": (seen.host, seen.port)})


def refusal(asked: Request) -> bytes:
    """The server's answer to a request that asks for what we don't know (section 6.3.1)."""
    from aioice.stun import set_body_length

    kinds = asked.unknown[:UNKNOWN_LIMIT]
    body = b"".join(kind.to_bytes(2) for kind in kinds)
    named = struct.pack("!HH", _UNKNOWN_ATTRIBUTES, len(body)) + body + bytes(-len(body) % 4)
    data = _bytes(_ERROR, asked.transaction, {"ERROR-CODE": (420, "")}) + named
    return set_body_length(data, len(data) - HEADER)


def parse_request(data: bytes) -> Request:
    """Read what a client sends. Raises StunError."""
    message = _parse(data, (_REQUEST,))
    kinds = dict.fromkeys(_attributes(data))
    unknown = tuple(k for k in kinds if k in _REQUIRED and k not in _UNDERSTOOD)
    return Request(message.transaction_id, unknown)


def parse_reply(data: bytes, transaction: bytes) -> Binding:
    """Read a server's answer to the request with this transaction ID. Raises StunError."""
    message = _parse(data, (_SUCCESS, _ERROR))
    if message.transaction_id != transaction:
        raise StunError("an answer to another question")
    found = message.attributes
    if _kind(data) == _ERROR:
        code, _ = found.get("ERROR-CODE", ("of no number", ""))
        raise StunError(f"it answers with error {code}")
    mapped = _address(found.get("XOR-MAPPED-ADDRESS") or found.get("MAPPED-ADDRESS"))
    if mapped is None:
        raise StunError("it doesn't say from where it sees us")
    return Binding(mapped, _address(found.get("OTHER-ADDRESS")))


def transaction_of(data: bytes) -> bytes:
    """The transaction ID of what may be a message."""
    return data[HEADER - TRANSACTION : HEADER]


def length_of(header: bytes) -> int:
    """The length of the message that begins with these 20 bytes. Raises StunError."""
    length = HEADER + int.from_bytes(header[2:4])
    if len(header) != HEADER or header[4:8] != _COOKIE or length > MESSAGE_LIMIT:
        raise StunError("this is not a STUN message")
    return length


def _bytes(kind: int, transaction: bytes, attributes: dict[str, object]) -> bytes:
    from aioice.stun import Class, Message, Method

    return bytes(Message(Method.BINDING, Class(kind & 0x0110), transaction, attributes))


def _kind(data: bytes) -> int:
    return int.from_bytes(data[:2])


def _parse(data: bytes, kinds: tuple[int, ...]) -> Message:
    from aioice.stun import parse_message

    if len(data) % 4 or len(data) != length_of(data[:HEADER]) or _kind(data) not in kinds:
        raise StunError("this is not the STUN message that is due")
    try:
        return parse_message(data)
    except (ValueError, struct.error) as error:
        raise StunError(f"a damaged message ({error})") from None


def _attributes(data: bytes) -> Iterator[int]:
    """The type of each attribute, one after the other."""
    at = HEADER
    while at < len(data):
        kind, length = struct.unpack_from("!HH", data, at)
        at += 4 + length + -length % 4
        if at > len(data):
            raise StunError("an attribute longer than its message")
        yield kind


def _address(found: tuple[str, int] | None) -> Address | None:
    """An address that a machine can have; anything else is none."""
    if found is None:
        return None
    ip = ip_address(found[0])
    usable = found[1] and not (ip.is_unspecified or ip.is_multicast)
    return Address(*found) if usable else None
