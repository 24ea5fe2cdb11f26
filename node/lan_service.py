"""CORE: what a node says of itself in the local network, and what is believed of what others say.

A DNS-SD service (RFC 6763) of the type `_p2pnode._tcp`: its instance name is the peer ID, its TXT
record says `txtvers`, `peer` and `swarm`. The swarm is a hash, so that not all who listen read the
name; a name that is easy to guess is as easy to check. Anybody in the local network can make up
anything, so whatever doesn't fit is passed over, and the rest is a hint where to dial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from blake3 import blake3

from ..transport.address import Address, is_name
from ..transport.errors import AddressError, IdentityError
from ..transport.identity import public_key
from .listings import HINTS_LIMIT

VERSION: Final = "1"
SWARM_DIGITS: Final = 16
"""Hexadecimal digits of a swarm's hash: no two swarms in one network share it by chance."""

HOSTS_LIMIT: Final = 8
"""Addresses that a service is registered with, and that are read of one: as in a peer record."""


@dataclass(frozen=True, slots=True)
class Service:
    """One service: its instance name, its port, its IP addresses, and its TXT record."""

    name: str
    port: int
    hosts: tuple[str, ...]
    about: Mapping[str, str]


def own(peer: str, swarm: str, bound: Address, hosts: tuple[str, ...]) -> Service | None:
    """Our own service, where we listen at any address that others in the network can reach."""
    fitting = tuple(host for host in hosts if _listens(bound, host))[:HOSTS_LIMIT]
    about = {"txtvers": VERSION, "peer": peer, "swarm": digest(swarm)}
    return Service(peer, bound.port, fitting, about) if fitting else None


def _listens(bound: Address, host: str) -> bool:
    if is_name(bound.host) or not ip_address(bound.host).is_unspecified:
        return bound.host == host
    return ip_address(bound.host).version >= ip_address(host).version  # [::] is 0.0.0.0, too


def digest(swarm: str) -> str:
    """What stands for a swarm's name."""
    return blake3(b"p2pnode lan " + swarm.encode()).hexdigest()[:SWARM_DIGITS]


def read(service: Service, swarm: str) -> tuple[str, tuple[Address, ...]] | None:
    """The peer ID and the addresses of another node of our swarm; None for anything else."""
    about, peer = service.about, service.about.get("peer", "")
    if about.get("txtvers") != VERSION or about.get("swarm") != digest(swarm):
        return None
    try:
        public_key(peer)
        hints = [Address(host, service.port) for host in service.hosts[:HOSTS_LIMIT]]
    except (IdentityError, AddressError):
        return None
    kept = tuple(hint for hint in hints if hint.port and _elsewhere(hint.host))[:HINTS_LIMIT]
    return (peer, kept) if kept else None


def _elsewhere(host: str) -> bool:
    """Whether this can be another machine's: nobody makes us dial our own."""
    if is_name(host):
        return False
    ip = ip_address(host)
    return not (ip.is_loopback or ip.is_unspecified or ip.is_multicast)
