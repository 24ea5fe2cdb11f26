"""CORE: the datagrams with which a router is asked to map a port: PCP and NAT-PMP.

Strategy: each datagram is a frozen value with `to_bytes`; two parsers, for requests and for
replies, turn bytes into such a value or raise WireError. Both protocols share one port and differ
in their first byte. Only what we need is spoken: TCP, PCP's ANNOUNCE and MAP without options (RFC
6887), NAT-PMP's outer address and mapping (RFC 6886). Reserved bits and unasked-for options are
ignored, as the RFCs ask for; everything else must be as they say.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeAlias

from ..errors import WireError

PORT: Final = 5351
"""Where routers listen (RFC 6887 section 7, RFC 6886 section 3)."""
NONCE: Final = 12
"""Bytes that tie a PCP reply to the mapping that was asked for (RFC 6887 section 11.1)."""
DATAGRAM_LIMIT: Final = 1100
"""Bytes of a PCP message (RFC 6887 section 7)."""
ANY_HOST: Final = "0.0.0.0"

_PCP, _PMP = 2, 0
_REPLY = 0x80
_ANNOUNCE, _MAP = 0, 1
_OUTER, _TCP_MAP = 0, 2
_TCP: Final = 6
"""IANA's protocol number."""

_REQUEST = struct.Struct("!BBHI16s")  # version, operation, reserved, lifetime, client
_HEADER = struct.Struct("!BBBBII12x")  # version, operation, reserved, result, lifetime, epoch
_MAPPING = struct.Struct("!12sB3xHH16s")  # nonce, protocol, inner port, outer port, outer host
_PMP_REPLY = struct.Struct("!BBHI")  # version, operation, result, epoch
_PMP_MAP = struct.Struct(
    "!BBHHHI"
)  # version, operation, reserved, inner port, outer port, lifetime
_PMP_LEASE = struct.Struct("!HHI")  # inner port, outer port, lifetime

PCP_RESULTS: Final = {
    1: "another version of the protocol",
    2: "not authorized",
    3: "malformed request",
    4: "unknown operation",
    5: "unknown option",
    6: "malformed option",
    7: "network failure",
    8: "no resources",
    9: "unknown protocol",
    10: "quota exceeded",
    11: "the outer address can't be given",
    12: "another NAT is between us and the router",
    13: "too many remote peers",
}
"""RFC 6887 section 7.4."""
PMP_RESULTS: Final = {
    1: "another version of the protocol",
    2: "not authorized, or disabled",
    3: "network failure",
    4: "no resources",
    5: "unknown operation",
}
"""RFC 6886 section 3.5."""


@dataclass(frozen=True, slots=True)
class Announce:
    """PCP: are you there, and since when? `client` is our address, as the router must see it."""

    client: str

    def to_bytes(self) -> bytes:
        """24 bytes."""
        return _REQUEST.pack(_PCP, _ANNOUNCE, 0, 0, _pack(self.client))


@dataclass(frozen=True, slots=True)
class Map:
    """PCP: map `outer` (a wish) to our TCP port `inner`, for so many seconds; 0 ends it."""

    client: str
    nonce: bytes
    inner: int
    outer: int
    lifetime: int
    host: str = ANY_HOST  # a wish for the outer address, too

    def to_bytes(self) -> bytes:
        """60 bytes."""
        header = _REQUEST.pack(_PCP, _MAP, 0, self.lifetime, _pack(self.client))
        return header + _MAPPING.pack(self.nonce, _TCP, self.inner, self.outer, _pack(self.host))


@dataclass(frozen=True, slots=True)
class AskOuter:
    """NAT-PMP: which is your outer address?"""

    def to_bytes(self) -> bytes:
        """2 bytes."""
        return bytes([_PMP, _OUTER])


@dataclass(frozen=True, slots=True)
class AskMap:
    """NAT-PMP: map `outer` (a wish) to our TCP port `inner`, for so many seconds; 0 ends it."""

    inner: int
    outer: int
    lifetime: int

    def to_bytes(self) -> bytes:
        """12 bytes."""
        return _PMP_MAP.pack(_PMP, _TCP_MAP, 0, self.inner, self.outer, self.lifetime)


@dataclass(frozen=True, slots=True)
class Announced:
    """PCP: I am here, since `epoch` seconds."""

    epoch: int

    def to_bytes(self) -> bytes:
        """24 bytes."""
        return _HEADER.pack(_PCP, _REPLY | _ANNOUNCE, 0, 0, 0, self.epoch)


@dataclass(frozen=True, slots=True)
class Granted:
    """PCP: mapped, for so many seconds."""

    epoch: int
    nonce: bytes
    inner: int
    outer: int
    lifetime: int
    host: str

    def to_bytes(self) -> bytes:
        """60 bytes."""
        header = _HEADER.pack(_PCP, _REPLY | _MAP, 0, 0, self.lifetime, self.epoch)
        return header + _MAPPING.pack(self.nonce, _TCP, self.inner, self.outer, _pack(self.host))


@dataclass(frozen=True, slots=True)
class Outer:
    """NAT-PMP: this is my outer address; I am here since `epoch` seconds."""

    epoch: int
    host: str

    def to_bytes(self) -> bytes:
        """12 bytes."""
        reply = _PMP_REPLY.pack(_PMP, _REPLY | _OUTER, 0, self.epoch)
        return reply + IPv4Address(self.host).packed


@dataclass(frozen=True, slots=True)
class Leased:
    """NAT-PMP: mapped, for so many seconds."""

    epoch: int
    inner: int
    outer: int
    lifetime: int

    def to_bytes(self) -> bytes:
        """16 bytes."""
        reply = _PMP_REPLY.pack(_PMP, _REPLY | _TCP_MAP, 0, self.epoch)
        return reply + _PMP_LEASE.pack(self.inner, self.outer, self.lifetime)


@dataclass(frozen=True, slots=True)
class Denied:
    """Either protocol: no, and why. `nonce` is there where a PCP mapping is denied."""

    version: int
    operation: int
    result: int
    epoch: int
    nonce: bytes = b""

    def to_bytes(self) -> bytes:
        """8 bytes of NAT-PMP, 24 of PCP, 60 with a nonce."""
        operation = _REPLY | self.operation
        if self.version == _PMP:
            return _PMP_REPLY.pack(_PMP, operation, self.result, self.epoch)
        header = _HEADER.pack(_PCP, operation, 0, self.result, 0, self.epoch)
        tail = _MAPPING.pack(self.nonce, _TCP, 0, 0, _pack(ANY_HOST)) if self.nonce else b""
        return header + tail

    @property
    def is_pcp(self) -> bool:
        """Whether it is PCP's word."""
        return self.version == _PCP

    @property
    def no_network(self) -> bool:
        """Whether the router itself isn't connected, so that later it may say yes."""
        return self.result == (7 if self.is_pcp else 3)

    @property
    def reason(self) -> str:
        """Why, in words."""
        known = PCP_RESULTS if self.is_pcp else PMP_RESULTS
        return known.get(self.result, f"result {self.result}")


Request: TypeAlias = Announce | Map | AskOuter | AskMap
Reply: TypeAlias = Announced | Granted | Outer | Leased | Denied


def parse_request(data: bytes) -> Request:
    """What a client asks for. Raises WireError."""
    if data == AskOuter().to_bytes():
        return AskOuter()
    if len(data) == _PMP_MAP.size and data[:2] == bytes([_PMP, _TCP_MAP]):
        return AskMap(*_PMP_MAP.unpack(data)[3:])
    if _is_pcp(data) and len(data) == _REQUEST.size and data[1] == _ANNOUNCE:
        return Announce(_unpack(_REQUEST.unpack(data)[4]))
    if _is_pcp(data) and len(data) == _REQUEST.size + _MAPPING.size and data[1] == _MAP:
        *_, lifetime, client = _REQUEST.unpack_from(data)
        nonce, inner, outer, host = _mapping(data)
        return Map(_unpack(client), nonce, inner, outer, lifetime, host)
    raise WireError("not a request to map a port")


def parse_reply(data: bytes) -> Reply:
    """What a router answers. Raises WireError."""
    if len(data) < _PMP_REPLY.size or not data[1] & _REPLY:
        raise WireError("not an answer of a router")
    if data[0] == _PMP:
        return _pmp_reply(data)
    if _is_pcp(data):
        return _pcp_reply(data)
    raise WireError("not an answer in a protocol that was asked in")


def _pmp_reply(data: bytes) -> Reply:
    _, operation, result, epoch = _PMP_REPLY.unpack_from(data)
    body = data[_PMP_REPLY.size :]
    if result:
        return Denied(_PMP, operation & ~_REPLY, result, epoch)
    if operation == _REPLY | _OUTER and len(body) == IPv4Address(0).max_prefixlen // 8:
        return Outer(epoch, str(IPv4Address(body)))
    if operation == _REPLY | _TCP_MAP and len(body) == _PMP_LEASE.size:
        return Leased(epoch, *_PMP_LEASE.unpack(body))
    raise WireError("not an answer of NAT-PMP")


def _is_pcp(data: bytes) -> bool:
    """Whether this can be PCP: its version, in whole words, not too long."""
    sized = _HEADER.size <= len(data) <= DATAGRAM_LIMIT and len(data) % 4 == 0
    return sized and data[0] == _PCP


def _pcp_reply(data: bytes) -> Reply:
    _, operation, _, result, lifetime, epoch = _HEADER.unpack_from(data)
    operation &= ~_REPLY
    maps = operation == _MAP and len(data) >= _HEADER.size + _MAPPING.size
    if result:
        nonce = data[_HEADER.size : _HEADER.size + NONCE] if maps else b""
        return Denied(_PCP, operation, result, epoch, nonce)
    if operation == _ANNOUNCE:
        return Announced(epoch)
    if maps:
        nonce, inner, outer, host = _mapping(data)
        return Granted(epoch, nonce, inner, outer, lifetime, host)
    raise WireError("not an answer of PCP")


def _mapping(data: bytes) -> tuple[bytes, int, int, str]:
    """Nonce, inner port, outer port and outer host: what follows both headers, 24 bytes each."""
    nonce, protocol, inner, outer, host = _MAPPING.unpack_from(data, _HEADER.size)
    if protocol != _TCP:
        raise WireError("a mapping of another protocol than TCP")
    return nonce, inner, outer, _unpack(host)


def _pack(host: str) -> bytes:
    """16 bytes: an IPv6 address, or an IPv4 one mapped into it (RFC 6887 section 5)."""
    ip = ip_address(host)
    return ip.packed if ip.version == 6 else IPv6Address(f"::ffff:{ip}").packed


def _unpack(packed: bytes) -> str:
    ip = IPv6Address(packed)
    return str(ip.ipv4_mapped or ip)


# -- has the router forgotten? ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Epoch:
    """A router's clock when it answered, and ours, both in seconds."""

    router: float
    ours: float


def restarted(before: Epoch, after: Epoch) -> bool:
    """Whether the router has lost its mappings in between (RFC 6887 section 8.5).

    Its clock went back, or the two clocks didn't go alike within 1/16 and two seconds.
    """
    theirs, ours = after.router - before.router, after.ours - before.ours
    return theirs < -1 or ours + 2 < theirs - theirs / 16 or theirs + 2 < ours - ours / 16
