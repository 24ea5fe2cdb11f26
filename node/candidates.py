"""CORE: where relays stand: who offers them, whose models lie there, and which don't answer.

A relay is known by its peer ID and may stand at several addresses; they are tried in the order in
which they were told, those that failed later each time. A source that offers a relay with the
source's own peer ID is a peer that relays; any other is a tracker, which the user has chosen.
Strangers can make up peers by the thousand, so among those that are tried together there is always
a tracker's, if there is one: nobody is talked out of the relays that he trusts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from ..transport.nat.reach import ADDRESSES_LIMIT, RELAYS_LIMIT
from ..transport.peer_address import PeerAddress

# Who may offer relays, and whose models may lie at some: as many as peers are known at most.
SOURCES_LIMIT = FOLLOWED_LIMIT = 1000
# Relays dialled at once to find the nearest: the best of four at random is in the nearest fifth on
# average, and each has to pay for a handshake.
DIALS = 4
# The waits of an address that fails, in seconds: soon again after a restart, never a storm.
RETRY_FIRST, RETRY_MOST = 1.0, 60.0
# Addresses whose failures are remembered; of more the oldest are forgotten.
TROUBLES_LIMIT = 1000

Places: TypeAlias = tuple[PeerAddress, ...]


@dataclass(frozen=True, slots=True)
class Trouble:
    """An address failed: it waits until `due` (the caller's clock), up to `wait` seconds."""

    wait: float
    due: float
    why: str


NO_TROUBLE: Final = Trouble(0.0, -math.inf, "")


class Candidates:
    """The relays that could be used, and when."""

    def __init__(self, me: str, chance: random.Random) -> None:
        self._me, self._chance = me, chance
        self._trackers: dict[str, Places] = {}  # what each source offers
        self._peers: dict[str, Places] = {}
        self._followed: dict[str, Places] = {}  # by peer
        self._troubles: dict[PeerAddress, Trouble] = {}

    # -- what others tell ------------------------------------------------------------------------

    def offered(self, source: str, places: Places) -> None:
        """What this source offers now; nothing takes back what it did."""
        places = self._others(places)[:ADDRESSES_LIMIT]
        itself = any(place.peer == source for place in places)
        _keep(self._peers, source, places if itself else (), SOURCES_LIMIT)
        _keep(self._trackers, source, () if itself else places, SOURCES_LIMIT)

    def follow(self, peer: str, places: Places) -> None:
        """The models of this peer lie there; nothing where they need not be fetched there."""
        _keep(self._followed, peer, self._others(places)[:RELAYS_LIMIT], FOLLOWED_LIMIT)

    def _others(self, places: Places) -> Places:
        """We need no relay to reach ourselves."""
        return tuple(place for place in places if place.peer != self._me)

    # -- what we found ---------------------------------------------------------------------------

    def failed(self, place: PeerAddress, why: str, now: float) -> None:
        """It doesn't answer, or not as a relay does."""
        before = self._troubles.pop(place, NO_TROUBLE)
        wait = min(2 * before.wait, RETRY_MOST) or RETRY_FIRST
        due = now + wait * self._chance.uniform(0.5, 1.0)
        self._troubles[place] = Trouble(wait, due, why)
        if len(self._troubles) > TROUBLES_LIMIT:
            del self._troubles[next(iter(self._troubles))]

    def why(self, place: PeerAddress) -> str:
        """Why it failed last; empty where it didn't."""
        return self._trouble(place).why

    def worked(self, place: PeerAddress) -> None:
        """It served us well: the next failure is the first one."""
        self._troubles.pop(place, None)

    def changed(self) -> None:
        """The network has changed: what failed may work now."""
        self._troubles.clear()

    # -- whom to dial ----------------------------------------------------------------------------

    def to_race(self, now: float, busy: Collection[str]) -> list[PeerAddress]:
        """Up to DIALS of the offered relays at random, that are due and not `busy` (peer IDs)."""
        trusted = self._due(self._trackers, now, busy)
        others = self._due(self._peers, now, {*busy, *trusted})
        first = self._chance.sample(list(trusted), min(1, len(trusted)))
        rest = [relay for relay in trusted | others if relay not in first]
        more = self._chance.sample(rest, min(DIALS - len(first), len(rest)))
        return [(trusted | others)[relay] for relay in first + more]

    def to_follow(self, now: float, here: Collection[str]) -> list[PeerAddress]:
        """A relay for each followed peer none of whose relays is `here`, each relay once."""
        chosen: dict[str, PeerAddress] = {}
        for places in self._followed.values():
            if not {place.peer for place in places} & {*here, *chosen}:
                chosen |= {place.peer: place for place in [*self._sorted(places, now)][:1]}
        return list(chosen.values())

    def relays_of(self, peer: str) -> list[str]:
        """The relays (peer IDs) where the models of this followed peer lie."""
        return [place.peer for place in self._followed.get(peer, ())]

    def followed_at(self, relay: str) -> bool:
        """Whether models of a followed peer lie at this relay."""
        return _among(self._followed, relay)

    def offers(self, relay: str) -> bool:
        """Whether somebody offers this relay."""
        return _among(self._trackers, relay) or _among(self._peers, relay)

    def _due(
        self, offers: dict[str, Places], now: float, busy: Collection[str]
    ) -> dict[str, PeerAddress]:
        """Where each relay that isn't busy may be dialled now."""
        due: dict[str, PeerAddress] = {}
        for places in offers.values():
            for place in self._sorted(places, now):
                if place.peer not in busy:
                    due.setdefault(place.peer, place)
        return due

    def _sorted(self, places: Places, now: float) -> Iterator[PeerAddress]:
        """Those that may be dialled now, what has failed least first."""
        due = [place for place in places if self._trouble(place).due <= now]
        yield from sorted(due, key=lambda place: self._trouble(place).wait)

    def _trouble(self, place: PeerAddress) -> Trouble:
        return self._troubles.get(place, NO_TROUBLE)


def _keep(kept: dict[str, Places], key: str, places: Places, most: int) -> None:
    """Of too many the first stay."""
    if not places:
        kept.pop(key, None)
    elif key in kept or len(kept) < most:
        kept[key] = places


def _among(told: dict[str, Places], relay: str) -> bool:
    return any(place.peer == relay for places in told.values() for place in places)
