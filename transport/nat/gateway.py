"""I/O: this machine's default gateways, and our own address on the way to each.

Strategy: Linux tells its routes in two files. Where there are none (other systems), the gateway is
guessed: most home routers have the first address of the network, and whoever has it else doesn't
answer what a router is asked. No packet is sent here, and no program is started.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Final

from ..address import Address
from .hosts import outgoing_host

ROUTES: Final = Path("/proc/net/route")
ROUTES6: Final = Path("/proc/net/ipv6_route")
_UP_AND_GATEWAY: Final = 0x3
"""RTF_UP and RTF_GATEWAY (linux/route.h)."""

OUTSIDE: Final = Address("192.0.2.1", 9)
OUTSIDE6: Final = Address("2001:db8::1", 9)
"""Addresses that lie behind the default route: the documentation's (RFC 5737, RFC 3849)."""

INNER: Final = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared: between a carrier and its customers (RFC 6598)
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",  # DS-Lite's inside (RFC 6333)
        "192.168.0.0/16",
        "::/127",
        "fc00::/7",
        "fe80::/10",
    )
)
"""Networks whose addresses mean something on one side of a NAT only."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """The router at `host`, and `ours`: from which address we talk to what lies behind it."""

    host: str
    ours: str


def gateways() -> tuple[Gateway, ...]:
    """The default gateways that are in use, IPv4 first; at most one of each family."""
    found = (_gateway(routers(), OUTSIDE), _gateway(routers6(), OUTSIDE6))
    return tuple(gateway for gateway in found if gateway is not None)


def is_inner(host: str) -> bool:
    """Whether an IP address is private, shared or link-local: another NAT is between it and all."""
    ip = ip_address(host)
    return any(ip in network for network in INNER if network.version == ip.version)


def routers() -> list[str]:
    """The IPv4 gateways, the preferred one first."""
    try:
        return parse_routes(ROUTES.read_text())
    except OSError:
        ours = outgoing_host(OUTSIDE)
        return [guess(ours)] if ours else []


def routers6() -> list[str]:
    """The IPv6 gateways, the preferred one first; the link-local ones with their interface."""
    try:
        return parse_routes6(ROUTES6.read_text())
    except OSError:
        return []


def guess(ours: str) -> str:
    """The address that home networks most often give their router."""
    return ours.rpartition(".")[0] + ".1"


def parse_routes(text: str) -> list[str]:
    """The gateways of default routes in /proc/net/route, by metric (proc(5)); what is no route of
    that form is passed over."""
    rows = (line.split() for line in text.splitlines()[1:])
    return _sorted((int(r[6]), _host(r[2])) for r in rows if len(r) > 7 and _is_default(r))


def parse_routes6(text: str) -> list[str]:
    """The gateways of default routes in /proc/net/ipv6_route, by metric."""
    rows = (line.split() for line in text.splitlines())
    return _sorted((int(r[5], 16), _host6(r[4], r[9])) for r in rows if _is_default6(r))


def _gateway(hosts: list[str], outside: Address) -> Gateway | None:
    ours = outgoing_host(outside) if hosts else None
    return Gateway(hosts[0], ours) if ours else None


def _sorted(routes: Iterator[tuple[int, str]]) -> list[str]:
    return [host for _, host in sorted(routes, key=lambda route: route[0])]


def _is_default(row: list[str]) -> bool:
    """Columns: interface, network, gateway, flags, …, metric, mask; numbers in hex."""
    through = int(row[3], 16) & _UP_AND_GATEWAY == _UP_AND_GATEWAY
    return through and int(row[1], 16) == int(row[7], 16) == 0


def _is_default6(row: list[str]) -> bool:
    """Columns: network, its length, …, next hop, metric, …, flags, interface; numbers in hex."""
    if len(row) < 10 or int(row[1], 16) or int(row[4], 16) == 0:
        return False
    return int(row[8], 16) & _UP_AND_GATEWAY == _UP_AND_GATEWAY


def _host(word: str) -> str:
    """An IPv4 address as the kernel prints it: in the machine's byte order."""
    return socket.inet_ntoa(struct.pack("=I", int(word, 16)))


def _host6(digits: str, interface: str) -> str:
    ip = IPv6Address(int(digits, 16))
    return f"{ip}%{interface}" if ip.is_link_local else str(ip)
