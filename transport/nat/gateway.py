"""I/O: this machine's router, its IPv4 default gateway, and the address that it knows us by.

Strategy: Linux tells its routes in a file. Where there is none (other systems), the gateway is
guessed: most home routers have the first address of the network, and whoever has it else doesn't
answer what a router is asked. No packet is sent here, and no program is started.

IPv6 has no NAT that a port would have to be mapped in, so its gateways are of no use to us.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

from ..address import Address, is_name
from .hosts import outgoing_host

ROUTES: Final = Path("/proc/net/route")
_UP_AND_GATEWAY: Final = 0x3
"""RTF_UP and RTF_GATEWAY (linux/route.h)."""

OUTSIDE: Final = Address("192.0.2.1", 9)
"""An address that lies behind the default route: one of the documentation's (RFC 5737)."""

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
    """The router at `host`, and `ours`: the address of ours that it can forward to."""

    host: str
    ours: str


def default_gateway() -> Gateway | None:
    """The IPv4 gateway that is in use, if there is one."""
    host = _router()
    ours = outgoing_host(Address(host, 9)) if host else None
    return Gateway(host, ours) if host and ours else None


def is_inner(host: str) -> bool:
    """Whether a host is a private, shared or link-local address: a NAT is between it and all.

    A name is none: it is given to be found by.
    """
    if is_name(host):
        return False
    ip = ip_address(host)
    return any(ip in network for network in INNER if network.version == ip.version)


def _router() -> str | None:
    try:
        return next(iter(parse_routes(ROUTES.read_text())), None)
    except OSError:
        ours = outgoing_host(OUTSIDE)
        return guess(ours) if ours else None


def guess(ours: str) -> str:
    """The address that home networks most often give their router."""
    return ours.rpartition(".")[0] + ".1"


def parse_routes(text: str) -> list[str]:
    """The gateways of default routes in /proc/net/route (proc(5)), the preferred one first."""
    rows = (line.split() for line in text.splitlines()[1:])
    routes = [(int(r[6]), _host(r[2])) for r in rows if len(r) > 7 and _is_default(r)]
    return [host for _, host in sorted(routes, key=lambda route: route[0])]


def _is_default(row: list[str]) -> bool:
    """Columns: interface, network, gateway, flags, …, metric, mask; numbers in hex."""
    through = int(row[3], 16) & _UP_AND_GATEWAY == _UP_AND_GATEWAY
    return through and int(row[1], 16) == int(row[7], 16) == 0


def _host(word: str) -> str:
    """An IPv4 address as the kernel prints it: in the machine's byte order."""
    return socket.inet_ntoa(struct.pack("=I", int(word, 16)))
