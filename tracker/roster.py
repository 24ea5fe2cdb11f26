"""CORE: the swarm as one peer knows it from one tracker.

Strategy: the tracker is believed about who is there, never about what they say: each record's own
signature is checked, and a record that is not right is skipped and counted. A whole list from a
tracker that was started anew is short at first, so whoever is missing from it is only in doubt,
and has left when the doubt has lasted for the grace time.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from .errors import Reason, Refused
from .record import PeerRecord, SignedRecord, open_record
from .registry import PEERS_PER_SWARM

TOO_MANY: Final = "too-many"
"""Counted where a tracker tells of more peers than ours keeps in a swarm: it makes them up."""


@dataclass(slots=True)
class _Known:
    record: PeerRecord
    doubted_until: float | None = None


class Roster:
    """The other peers of a swarm; `own` is the peer ID that is never listed."""

    def __init__(self, swarm: str, own: str) -> None:
        self._swarm = swarm
        self._own = own
        self._known: dict[str, _Known] = {}
        self._rejects: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, peer: str) -> bool:
        return peer in self._known

    @property
    def rejects(self) -> tuple[tuple[str, int], ...]:
        """How many records were skipped, by reason."""
        return tuple(sorted(self._rejects.items()))

    def learn(self, data: bytes) -> SignedRecord | None:
        """Take a signed record: the news in it, or None where it is known, own or wrong."""
        try:
            signed = open_record(data)
            return self._take(signed) if signed.peer != self._own else None
        except Refused as error:
            self._rejects[error.reason] += 1
            return None

    def _take(self, signed: SignedRecord) -> SignedRecord | None:
        if signed.record.swarm != self._swarm:
            raise Refused(Reason.OTHER_SWARM)
        known = self._known.get(signed.peer)
        if known is None and len(self._known) >= PEERS_PER_SWARM:
            raise Refused(TOO_MANY)
        if known is not None and signed.record.seq < known.record.seq:
            raise Refused(Reason.STALE)
        self._known[signed.peer] = _Known(signed.record)
        return signed if known is None or known.record.ways != signed.record.ways else None

    def forget(self, peer: str) -> bool:
        """The tracker says that this peer left; True where it was known."""
        return self._known.pop(peer, None) is not None

    def doubt(self, until: float) -> None:
        """A whole list begins: who is not on it by then has left."""
        for known in self._known.values():
            known.doubted_until = until

    def prolong(self, until: float) -> None:
        """The list that clears the doubts was broken off and goes on now."""
        for known in self._known.values():
            if known.doubted_until is not None:
                known.doubted_until = until

    def sweep(self, now: float) -> list[str]:
        """Forget whose doubt has lasted: their peer IDs."""
        over = [
            peer
            for peer, known in self._known.items()
            if known.doubted_until is not None and known.doubted_until <= now
        ]
        for peer in over:
            del self._known[peer]
        return over
