"""CORE: what is known of the contact with one tracker, and how long to wait for the next."""

import random
from dataclasses import dataclass
from typing import Final, Literal

from ..transport.address import Address
from ..transport.errors import TransportError
from ..transport.peer_address import PeerAddress

BACKOFF_FIRST, BACKOFF_MOST = 0.5, 15.0
"""Seconds until the next try, doubled after each: soon back after a restart, and no storm."""

DETAIL_LIMIT: Final = 200
"""Characters of a state's detail: it is one line on a screen."""

Status = Literal["connecting", "connected", "unreachable"]


@dataclass(frozen=True, slots=True)
class TrackerState:
    """The contact now: `detail` is one line for people.

    `seen` is our address as the tracker saw it, `peers` counts the others in the swarm, `listed`
    tells whether a list of them has ever come, `rejects` the records that were skipped, by reason.
    `relay` and `stun` are what the tracker offered last; `skew` is how many seconds its clock is
    ahead of ours, if it told the time.
    """

    address: Address
    status: Status
    detail: str
    peers: int
    listed: bool
    seen: Address | None
    rejects: tuple[tuple[str, int], ...]
    relay: PeerAddress | None = None
    stun: Address | None = None
    skew: float | None = None


class Backoff:
    """How long to wait before the next try: each wait about twice the one before."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._most = BACKOFF_FIRST

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._most = BACKOFF_FIRST

    def wait(self) -> float:
        """Seconds; between half and all of 0.5, 1, 2, 4, 8, 15, 15, …"""
        most, self._most = self._most, min(2 * self._most, BACKOFF_MOST)
        return most * self._rng.uniform(0.5, 1.0)


def reason(error: Exception, address: Address) -> str:
    """An error as part of a line: without the address, which stands beside it."""
    specific = isinstance(error, TransportError) and error.args
    text = str(error.args[0]) if specific else str(error)
    text = text.removeprefix(f"{address}: ").rstrip(".")[:DETAIL_LIMIT]
    line = "".join(c if c.isprintable() else " " for c in text)
    return line[:1].lower() + line[1:]
