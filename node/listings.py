"""CORE: what others say of peers: who lists them, and where they are.

A source is a tracker (by its address), a peer that we are connected with (`member`), or the local
network (`LAN`). Signed records are believed by their number: the newest one counts, whoever brought
it. What the local network says is no record but a hint, and is dialled first: where it is right, it
is the shortest way.

A tracker that says that a peer has left takes it off the list. Other sources only know that they
don't see it any more, so what is known of it stays until the peer is forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from ..tracker.record import PeerRecord
from ..transport.address import Address

# Addresses that the local network may add: IPv4 and IPv6 on wire and air. Each that is wrong holds
# up the next by half a second.
HINTS_LIMIT = 4
LAN: Final = "lan"


def member(peer: str) -> str:
    """The source that this peer is, while we have a session with it."""
    return f"peer {peer}"


@dataclass
class Listing:
    """What is said of one peer."""

    record: PeerRecord | None = None
    sources: set[str] = field(default_factory=set)
    hints: tuple[Address, ...] = ()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where to dial it, in this order."""
        return tuple(dict.fromkeys(self.hints + (self.record.addresses if self.record else ())))


NOTHING: Final = Listing()


class Listings:
    """The peers of which something is said, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._listed: dict[str, Listing] = {}

    def __getitem__(self, peer: str) -> Listing:
        return self._listed.get(peer, NOTHING)

    def joined(self, source: str, peer: str, record: PeerRecord) -> bool:
        """A source lists a peer; whether there is anything new to try."""
        listing = self._listing(peer)
        if listing is None:
            return False
        new, old = self._sees(listing, source), listing.record
        if old is not None and record.seq < old.seq:
            return new
        listing.record = record
        return new or old is None or old.ways != record.ways

    def found(self, peer: str, hints: tuple[Address, ...]) -> bool:
        """The local network has this peer; whether there is anything new to try."""
        listing = self._listing(peer)
        if listing is None:
            return False
        before, listing.hints = listing.hints, hints[:HINTS_LIMIT]
        return self._sees(listing, LAN) or listing.hints != before

    def left(self, source: str, peer: str) -> bool:
        """A tracker lists it no more; whether nobody does now, and nothing is known of it."""
        listing = self._listed.get(peer)
        if listing is None:
            return False
        listing.sources.discard(source)
        if listing.sources:
            return False
        del self._listed[peer]
        return True

    def lost(self, source: str, peer: str) -> None:
        """Another source sees it no more."""
        listing = self._listed.get(peer)
        if listing is not None:
            listing.sources.discard(source)
            if source == LAN:
                listing.hints = ()

    def prune(self, known: Collection[str]) -> None:
        """Of those whom nobody lists remember only who is known."""
        for peer in [p for p, x in self._listed.items() if not x.sources and p not in known]:
            del self._listed[peer]

    def by(self, sources: set[str]) -> Iterator[str]:
        """The peers that at least one of these lists."""
        return (peer for peer, listing in self._listed.items() if listing.sources & sources)

    def _listing(self, peer: str) -> Listing | None:
        if peer not in self._listed and len(self._listed) < self._limit:
            self._listed[peer] = Listing()
        return self._listed.get(peer)

    @staticmethod
    def _sees(listing: Listing, source: str) -> bool:
        """Whether this source is a new one."""
        new = source not in listing.sources
        listing.sources.add(source)
        return new
