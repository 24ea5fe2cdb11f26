"""I/O: the addresses of this machine, those that mean something to others.

Strategy: the system lists all addresses of all interfaces in a fraction of a millisecond (measured:
0.2 ms), so who wants to know of changes asks every second. Left out are what only this machine
knows (loopback, link-local, bridges to its own containers and virtual machines) and second
addresses in one IPv6 network. What is private stays: peers on the same network need it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from ..address import Address, is_public, owner

HOSTS_LIMIT: Final = 16
"""A machine with two dozen bridges and VPNs tells no more; a peer record has eight addresses."""

OUTSIDE: Final = (Address("192.0.2.1", 9), Address("2001:db8::1", 9))
"""Addresses that lie behind the default route: the documentation's (RFC 5737, RFC 3849)."""

_INNER: Final = re.compile(
    r"(docker|podman|virbr|vboxnet|vmnet|lxcbr|lxdbr|incusbr|cni|flannel|cali|vEthernet).*"
    r"|br-[0-9a-f]{12}"
)
"""Interfaces towards this machine's own containers and virtual machines. Very many machines have
the same addresses there, so others would dial themselves."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The addresses of this machine now: `every` one, and those for others, best first."""

    every: frozenset[str] = frozenset()
    hosts: tuple[str, ...] = ()


def look() -> Machine:
    """Ask the system."""
    import ifaddr  # loads a C library; only a node that runs needs it

    found = [
        (adapter.nice_name, Address(ip.ip if isinstance(ip.ip, str) else ip.ip[0], 0).host)
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
    ]
    outgoing = {host for host in map(outgoing_host, OUTSIDE) if host}
    return Machine(frozenset(host for _, host in found), useful(found, outgoing))


def useful(found: Iterable[tuple[str, str]], outgoing: Collection[str]) -> tuple[str, ...]:
    """Of (interface, IP address), those for others, at most HOSTS_LIMIT.

    First those from which we talk to the internet, then public ones, then private ones. One of each
    IPv6 network: the others (RFC 8981's temporary ones) lead to the same door.
    """
    hosts = [host for interface, host in found if not _INNER.fullmatch(interface) and _meant(host)]
    hosts.sort(key=lambda host: (host not in outgoing, not is_public(host)))
    doors: dict[str, str] = {}
    for host in hosts:
        doors.setdefault(owner(host), host)
    return tuple(doors.values())[:HOSTS_LIMIT]


def _meant(host: str) -> bool:
    """Whether an address of ours means this machine to any other one."""
    ip = ip_address(host)
    return not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified)


def outgoing_host(towards: Address) -> str | None:
    """The address of this machine from which it would talk to another (no packet is sent)."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            towards.host, towards.port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0]).split("%")[0]
    except OSError:
        return None
