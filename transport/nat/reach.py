"""CORE: the ways in: the `Reach` interface, what ways claim, and what is announced of it.

A `Reach` is one way in: direct, a port mapping, a punched hole, a relay. It claims addresses, each
with how sure it is and until when. The node announces the claims of all its ways, the surest first.
A way that has to talk to routers or relays does so in its own `run` and changes what it claims.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from ..address import Address
from ..peer_address import PeerAddress

# What a peer record carries at most; more ways in than that don't help anybody.
ADDRESSES_LIMIT = 8
# Relays in a peer record: the one in use, and the next while it is replaced.
RELAYS_LIMIT = 2


class Confidence(IntEnum):
    """How sure a way in is."""

    GUESSED = 1  # an address of this machine, or the tracker's sight of it, and our port
    GIVEN = 2  # the user says so (--public), or a router
    PROVED = 3  # somebody came in through it, or a tracker dialled back


@dataclass(frozen=True, slots=True)
class Claim:
    """Others may reach us at `address`, so sure, until `until` (the caller's clock, seconds).

    `relay` is the peer ID of the relay that stands there; empty where it is our own door.
    """

    address: Address
    confidence: Confidence
    until: float = math.inf
    relay: str = ""


class Reach(Protocol):
    """One way in."""

    name: str

    @property
    def detail(self) -> str:
        """What it has found, in one line for people; empty where there is nothing to say."""

    def claims(self, now: float) -> tuple[Claim, ...]:
        """What this way offers now."""

    async def run(self, *, task_status: Any) -> None:
        """Look for the way in until cancelled; `started` comes at once, without the network.

        Whatever it made outside of this process (a mapping in a router) is gone when it ends.
        """

    def changed(self) -> None:
        """The network has changed: look again now."""


def valid(reaches: Iterable[Reach], now: float) -> Iterator[Claim]:
    """All claims that hold now, in the order of the ways."""
    return (c for reach in reaches for c in reach.claims(now) if c.until > now)


def announced(claims: Iterable[Claim]) -> tuple[Address, ...]:
    """The addresses of our own doors, the surest first, each once."""
    own = (claim.address for claim in _surest_first(claims) if not claim.relay)
    return tuple(dict.fromkeys(own))[:ADDRESSES_LIMIT]


def relayed(claims: Iterable[Claim]) -> tuple[PeerAddress, ...]:
    """The relays where our models lie."""
    relays = (PeerAddress(c.relay, c.address) for c in _surest_first(claims) if c.relay)
    return tuple(dict.fromkeys(relays))[:RELAYS_LIMIT]


def _surest_first(claims: Iterable[Claim]) -> list[Claim]:
    return sorted(claims, key=lambda claim: -claim.confidence)
