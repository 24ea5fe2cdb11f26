"""CORE: how many holes others may make this node punch, and how soon it tries one peer again.

Who calls makes us connect to addresses that it names. A hole is up to two addresses of a host: a
host that drops what it didn't ask for gets two packets for each (the kernel's SYN and its
repetition), one that refuses at most eight, one that accepts a single connection with 52 bytes. So
a hole puts at most 16 packets of 60 bytes on a host, for two calls that cost the caller about as
many bytes: nothing is amplified. What is left is our address instead of the caller's, and that is
bounded here: by caller, by host that is connected to, and in all.

Time is passed in as `now`.
"""

from collections.abc import Iterable
from typing import Final

from ..tracker.errors import Refused
from ..tracker.limits import Limit, take
from ..transport.address import Address, owner

CALLER: Final = (1 / 30, 4)
"""For one peer: three tries and one more; then, if it moves, one in half a minute."""

HOST: Final = (1 / 10, 16)
"""To one host (IPv4 address or IPv6 /64), whoever calls: a classroom behind one NAT comes in within
minutes, its members' models through a relay meanwhile; a victim gets a hole in ten seconds."""

REST_FIRST, REST_MOST = 120.0, 1800.0
"""Seconds until a peer is tried again, doubled each time: what doesn't work won't work a minute
later, and a relay carries the models meanwhile."""

PEERS: Final = 1000
"""Peers whose rest is remembered: as many as a node knows."""

ALL: Final = (1.0, 64)
"""In all: 50 peers that start at once, and as many a minute later on. With three seconds for each
and four connections they have at most 256 descriptors."""


class PunchLimits:
    """What may still be punched because others call."""

    def __init__(self) -> None:
        self._caller, self._host, self._all = (Limit(*n) for n in (CALLER, HOST, ALL))

    def call(self, caller: str, now: float) -> bool:
        """Whether a call of this peer may be answered; one is taken if so."""
        return _taken(now, (self._all, ""), (self._caller, caller))

    def punch(self, targets: Iterable[Address], now: float) -> tuple[Address, ...]:
        """Those of the targets that may be connected to; one is taken of each host."""
        targets = tuple(targets)
        hosts = {owner(target.host) for target in targets}
        free = {host for host in hosts if _taken(now, (self._host, host))}
        return tuple(target for target in targets if owner(target.host) in free)


def _taken(now: float, *wanted: tuple[Limit, str]) -> bool:
    try:
        take(now, *wanted)
    except Refused:
        return False
    return True


class Rests:
    """Peers to which no hole could be punched, and until when they are left alone."""

    def __init__(self) -> None:
        self._rests: dict[str, tuple[float, float]] = {}  # until when, and how long the next is

    def over(self, peer: str, now: float) -> bool:
        """Whether this peer may be tried."""
        return self._rests.get(peer, (now, 0.0))[0] <= now

    def failed(self, peer: str, now: float) -> bool:
        """It didn't work: whether that is news, which during a rest it isn't."""
        if not self.over(peer, now):
            return False
        _, seconds = self._rests.pop(peer, (0.0, REST_FIRST))
        self._rests[peer] = now + seconds, min(2 * seconds, REST_MOST)
        if len(self._rests) > PEERS:
            del self._rests[next(iter(self._rests))]
        return True

    def end(self, peer: str) -> None:
        """It did work, or the peer is somewhere else now."""
        self._rests.pop(peer, None)
