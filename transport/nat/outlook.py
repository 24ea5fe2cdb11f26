"""CORE: whether a port mapping would be of use, and what to tell people where there is none."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from ..address import Address
from ..errors import MappingError, MappingRefused
from .gateway import Gateway, is_inner
from .routers import NO_ANSWER, NO_OUTER, Lease

EVERYWHERE: Final = ("0.0.0.0", "::")
"""Listening there serves IPv4 at each address of the machine."""


def check_lease(lease: Lease) -> None:
    """Raises MappingError where nobody can come in through it."""
    if not lease.port or not lease.lifetime:
        raise MappingError("it maps no port, for no time")
    check_outer(lease.host)


def check_outer(host: str) -> None:
    """Raises MappingError where a router's outer address can't be reached from the internet."""
    if ip_address(host).is_unspecified:
        raise MappingError(NO_OUTER)
    if is_inner(host):
        text = f"the router's own outer address is {host}: another NAT is in front of it"
        raise MappingRefused(text)


def needless(bound: Address | None, gateway: Gateway | None) -> str:
    """Why there is nothing to map here; empty where there is."""
    if bound is None:
        return "not asked for yet"
    if gateway is None:
        return "this machine has no router to ask (no default gateway)"
    if not is_inner(gateway.ours):
        return f"not needed: this machine's own address is {gateway.ours}"
    if bound.host not in (*EVERYWHERE, gateway.ours):
        return f"the router can only forward to {gateway.ours}, and we listen on {bound.host}"
    return ""


def summary(troubles: dict[str, MappingError]) -> str:
    """What to tell of all that went wrong: the most telling of it; silence tells least."""
    silent = f"the router answers none of {', '.join(troubles)}"
    lines = [_line(p, e) for p, e in troubles.items() if e.args[0] != NO_ANSWER]
    return min(lines, default=(3, silent))[1]


def _line(protocol: str, error: MappingError) -> tuple[int, str]:
    """What one protocol came to, the more telling the lower the number."""
    text = str(error.args[0])
    if text.startswith("the router"):
        return 0, text
    refused = isinstance(error, MappingRefused)
    return (1, f"the router refuses {protocol}: {text}") if refused else (2, f"{protocol}: {text}")
