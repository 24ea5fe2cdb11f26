"""CORE: who is in which swarm now, and what changed since a watcher last looked.

Strategy: one counter numbers every change of the registry. A member carries the number of its last
news (it came, or its ways in changed; a mere sign of life is no news), and the members of a swarm
lie in that order. Departures lie in a short log. So "what is new since number n" is the end of two
ordered rows, a whole list is the same question with n = 0, and a long answer is cut anywhere and
goes on from its last number. Nothing is kept for a watcher.

A cursor is (registry, listed, seen): the random name of this registry's life, the number at which
the watcher's whole list began, and the last number it saw. One from another life, or older than the
departures that are still known, gives a whole list.

Time is the tracker's own, passed in as `now`; a record's own times are never looked at.
"""

import struct
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

from ..transport.address import Address, owner
from .errors import Reason, Refused
from .protocol import PAGE_ITEMS, TTL_LEAST, TTL_MOST
from .record import SignedRecord

TTL: Final = 30.0
"""Seconds that a record lives: three announces at a third of it may be lost."""

SWARMS: Final = 256
"""Swarms on one tracker: names cost memory, and a flood of them would hide the real ones. The
second half is for hosts without a peer here, so that no host can fill it alone."""

PEERS_PER_SWARM: Final = 2048
"""Every peer learns of every other; beyond this, lists are too long for a home connection."""

PEERS: Final = 4096
"""Records in all: at most 4 KiB each, so 16 MiB."""

PEERS_PER_HOST: Final = 256
"""Records from one IPv4 address or IPv6 /64: a classroom behind a NAT fits, a flood does not."""

DEPARTURES: Final = 1024
"""Departures a swarm remembers, 55 KiB; a watcher that missed more gets the whole list."""

PAGE_BYTES: Final = 240 * 1024
"""Records and peer IDs in one answer; leaves 17 KiB of the reply limit for calls and CBOR."""

INSTANCE: Final = 8
"""Bytes of a registry's random name."""

_CURSOR: Final = struct.Struct(f">{INSTANCE}sQQ")
_ITEM_HEAD: Final = 3  # bytes that CBOR puts before an item of up to 64 KiB


@dataclass(frozen=True, slots=True)
class Changes:
    """One page of news; see protocol.Events for the meaning."""

    cursor: bytes
    fresh: bool
    joined: tuple[bytes, ...]
    left: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether a watcher wants to know."""
        return bool(self.fresh or self.joined or self.left)


@dataclass(slots=True)
class _Member:
    signed: SignedRecord
    host: str
    number: int


@dataclass(slots=True)
class _Swarm:
    """Members in the order of their last news; departures in order, but those up to `floor`."""

    floor: int
    members: dict[str, _Member] = field(default_factory=dict)
    departures: deque[tuple[int, str]] = field(default_factory=deque)

    def depart(self, number: int, peer: str) -> None:
        self.departures.append((number, peer))
        if len(self.departures) > DEPARTURES:
            self.floor, _ = self.departures.popleft()

    def news(self, listed: int, seen: int) -> list[tuple[int, bytes | str]]:
        """(number, record that came or ID that left) after `seen`, in order."""
        members = takewhile(lambda m: m.number > seen, reversed(self.members.values()))
        known = max(listed, seen)  # who left before the list began is not on it
        gone = takewhile(lambda d: d[0] > known, reversed(self.departures))
        came = [(m.number, m.signed.data) for m in members]
        return sorted([*came, *gone], key=lambda change: change[0])


class Registry:
    """All swarms of one tracker. `instance`: INSTANCE random bytes, new at each start."""

    def __init__(self, instance: bytes, ttl: float = TTL) -> None:
        if len(instance) != INSTANCE:
            raise ValueError(f"instance must have {INSTANCE} bytes")
        if not TTL_LEAST <= ttl <= TTL_MOST:
            raise ValueError(f"ttl must be from {TTL_LEAST} to {TTL_MOST} s: peers take no other")
        self.ttl = ttl
        self._instance = instance
        self._number = 0
        self._swarms: dict[str, _Swarm] = {}
        self._hosts: Counter[str] = Counter()
        # (swarm, peer) -> deadline; all live equally long, so the oldest announce stands first
        self._deadlines: dict[tuple[str, str], float] = {}

    @property
    def swarms(self) -> int:
        """How many swarms have a member."""
        return len(self._swarms)

    @property
    def peers(self) -> int:
        """How many records are kept, in all swarms."""
        return len(self._deadlines)

    def members(self, swarm: str) -> int:
        """How many members a swarm has."""
        return len(self._swarms[swarm].members) if swarm in self._swarms else 0

    def lists(self, swarm: str, peer: str) -> bool:
        """Whether a peer is a member of a swarm."""
        return self._member(swarm, peer) is not None

    def announced(self, swarm: str, peer: str) -> tuple[Address, ...]:
        """Where a member says that it can be dialled; nowhere, for one that is none."""
        member = self._member(swarm, peer)
        return member.signed.record.addresses if member else ()

    def announce(self, signed: SignedRecord, host: str, now: float) -> bool:
        """Keep a record that came from `host` until `now` + ttl; True where it is news.

        Raises Refused: STALE, HOST_FULL, SWARM_FULL, TRACKER_FULL.
        """
        swarm, peer = signed.record.swarm, signed.peer
        host = owner(host)
        old = self._member(swarm, peer)
        if old is not None and signed.record.seq <= old.signed.record.seq:
            raise Refused(Reason.STALE)
        self._check_room(swarm, host, old)
        moved = old is None or old.signed.record.ways != signed.record.ways
        number = self._next() if old is None or moved else old.number
        self._keep(signed, host, number)
        self._deadlines.pop((swarm, peer), None)
        self._deadlines[swarm, peer] = now + self.ttl
        return moved

    def leave(self, swarm: str, peer: str) -> bool:
        """Forget a member; False where it is none."""
        group = self._swarms.get(swarm)
        member = group.members.pop(peer, None) if group else None
        if group is None or member is None:
            return False
        group.depart(self._next(), peer)
        del self._deadlines[swarm, peer]
        self._uncount(member.host)
        if not group.members:
            del self._swarms[swarm]
        return True

    def expire(self, now: float) -> list[tuple[str, str]]:
        """Forget the members whose time is over: their (swarm, peer)."""
        over = [k for k, _ in takewhile(lambda item: item[1] <= now, self._deadlines.items())]
        for swarm, peer in over:
            self.leave(swarm, peer)
        return over

    def changes(self, swarm: str, cursor: bytes) -> Changes:
        """The next page of news after `cursor`; any bytes may be asked."""
        # Of a swarm that has no member now, everything is forgotten.
        group = self._swarms.get(swarm) or _Swarm(floor=self._number)
        place = self._place(cursor, group.floor)
        listed, seen = place or (self._number, 0)
        news = group.news(listed, seen)
        page = list(_first_page(news))
        reached = page[-1][0] if len(page) < len(news) else self._number
        return Changes(
            cursor=_CURSOR.pack(self._instance, listed, reached),
            fresh=place is None,
            joined=tuple(item for _, item in page if isinstance(item, bytes)),
            left=tuple(item for _, item in page if isinstance(item, str)),
        )

    def _place(self, cursor: bytes, floor: int) -> tuple[int, int] | None:
        """(listed, seen) of a cursor from which the news can still be told in full."""
        if len(cursor) != _CURSOR.size:
            return None
        instance, listed, seen = _CURSOR.unpack(cursor)
        if instance == self._instance and floor <= max(listed, seen) <= self._number:
            return listed, seen
        return None

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _member(self, swarm: str, peer: str) -> _Member | None:
        group = self._swarms.get(swarm)
        return group.members.get(peer) if group else None

    def _keep(self, signed: SignedRecord, host: str, number: int) -> None:
        """Put a member in its place: at the end where its number is new, else where it was."""
        swarm, peer = signed.record.swarm, signed.peer
        group = self._swarms.setdefault(swarm, _Swarm(floor=number - 1))
        old = group.members.get(peer)
        if old is not None:
            self._uncount(old.host)
            if old.number != number:
                del group.members[peer]
        group.members[peer] = _Member(signed, host, number)
        self._hosts[host] += 1

    def _uncount(self, host: str) -> None:
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]

    def _check_room(self, swarm: str, host: str, old: _Member | None) -> None:
        if (old is None or old.host != host) and self._hosts[host] >= PEERS_PER_HOST:
            raise Refused(Reason.HOST_FULL)
        if old is not None:
            return
        most = SWARMS // 2 if self._hosts[host] else SWARMS
        no_swarm = swarm not in self._swarms and len(self._swarms) >= most
        if no_swarm or self.peers >= PEERS:
            raise Refused(Reason.TRACKER_FULL)
        if self.members(swarm) >= PEERS_PER_SWARM:
            raise Refused(Reason.SWARM_FULL)


def _first_page(news: list[tuple[int, bytes | str]]) -> Iterator[tuple[int, bytes | str]]:
    """As much of the news as one answer carries, at least one item."""
    room = PAGE_BYTES
    for number, item in news[:PAGE_ITEMS]:
        room -= len(item) + _ITEM_HEAD
        if room < 0:
            return
        yield number, item
