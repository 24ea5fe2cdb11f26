"""CORE: what kind of NAT is between us and the internet, from where several servers see one socket.

A NAT maps an inner address and port to an outer one. What matters to hole punching is whether a
second destination gets the same mapping (RFC 4787 section 4.1, in the way of RFC 5780 section
4.3), and whether the port stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..address import Address


class MappingKind(StrEnum):
    """How a NAT maps one socket on its way to several servers."""

    NO_NAT = "no NAT"
    INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ENDPOINT_DEPENDENT = "endpoint-dependent (symmetric)"
    BLOCKED = "blocked"
    """No server answered."""
    UNKNOWN = "unknown"
    """There is a NAT; one server alone can't tell more."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A server, by the IP address and port where it was asked, and where it saw our socket."""

    server: Address
    mapped: Address


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What is known of the NAT."""

    kind: MappingKind
    mapped: Address | None = None
    """Where one of the servers saw us."""
    port_preserving: bool | None = None
    """Whether our port is the same outside; None where nobody answered."""


def classify(local: Address, sights: Sequence[Sight]) -> Behaviour:
    """The behaviour, from all that was seen of the one socket at `local`."""
    if not sights:
        return Behaviour(MappingKind.BLOCKED)
    preserving = all(sight.mapped.port == local.port for sight in sights)
    return Behaviour(_kind(local, sights), sights[0].mapped, preserving)


def _kind(local: Address, sights: Sequence[Sight]) -> MappingKind:
    mappings = {sight.mapped for sight in sights}
    seen: dict[str, set[Address]] = {}
    for sight in sights:
        seen.setdefault(sight.server.host, set()).add(sight.mapped)
    if mappings == {local}:
        return MappingKind.NO_NAT
    if len(mappings) == 1:
        return MappingKind.INDEPENDENT if len(seen) > 1 else MappingKind.UNKNOWN
    if _agrees_at_two_ports(sights) and all(len(mapped) == 1 for mapped in seen.values()):
        return MappingKind.ADDRESS_DEPENDENT
    return MappingKind.ENDPOINT_DEPENDENT


def _agrees_at_two_ports(sights: Sequence[Sight]) -> bool:
    """Whether one host was asked at two of its ports."""
    servers = {sight.server for sight in sights}
    return len(servers) > len({server.host for server in servers})
