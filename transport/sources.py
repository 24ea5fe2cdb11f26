"""CORE: from whom which chunks of one model are fetched.

A small model comes from one source, in one fetch: that is quickest. A larger one comes from all
who have some of it, a few pieces of each at a time, so that the fast ones give more. Of what a
helper has, the rarest chunks come first, and which of these is chance, as in BitTorrent: so that
peers have different chunks for one another. The author (or a relay) is spared:

- What others have isn't asked of it, nor what other peers that fetch the model, too, will ask it
  for: each chunk is the share of one of them, by a hash that all of them compute alike (rendezvous
  hashing; Thaler, Ravishankar 1998). A peer that brings nothing new for a while has no share.
- Where nothing else is left to ask it for, it stays idle for PATIENCE times as long as its last
  answer took. So however slow, silent or false the others are, it gives a fair part of what it can.

When each chunk is asked for, who has nothing to do is asked for what is late elsewhere, too. Nobody
can hold a chunk back: a source from which nothing comes for a while is dropped.
"""

from __future__ import annotations

import math
import random
import struct
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from blake3 import blake3

from .link import PIECE_LIMIT
from .transfer import RENEW, Ask, Download

# Models of no more chunks come from one source: they are through before others have something to
# give. Shared among ten, one of 8 MB took twice as long, and its author still sent 5 copies
# (docs/performance.md).
FEW = 32
# Pieces asked of one source at a time, and under way from it, where there are several: so that the
# next are on their way while one comes. Less than for one alone, as they share the line.
STEP, SHARE = 2, 4
# The same for a source that is alone: RENEW at first; twice as many after each answer
# that was QUICK (s), as a fetch costs messages and a turn of the sender. So whoever comes later
# still finds something to give, and little stays with a source that becomes slow.
LONE_MOST, QUICK = 32, 0.1
# Pieces under way from all helpers of one model; twice as many before one that has none under way
# isn't asked, as others may be slow. They may all be waiting in memory for the disk.
POOL = 16
# How long the author stays idle: so many times as its last answer took; at least and at most (s).
PATIENCE, PATIENCE_LEAST, PATIENCE_MOST = 4.0, 0.1, 10.0
# So long (s) a peer without news still has its share, at least: pieces on a busy line.
STANDING = 2.0
# Without a piece from who offered the model, until it is given up: 1 MiB a minute is slower than
# any modem line that could still take part. From a helper: others have its chunks, too.
STALL_SECONDS, HELPER_SECONDS = 60.0, 10.0
# How often a helper may say that it has something and then that it hasn't: a file moves but once.
LAPSES = 3
_LEVELS = 3  # so many holders and more are alike: not rare

K = TypeVar("K", bound=Hashable)


@dataclass(eq=False)
class Source:
    """One who has some of the model: `has` are the chunks."""

    peer: str
    has: int
    offers: bool  # it has offered the model, so it has all of it
    spared: bool  # its author, or a relay
    news: float  # when it last told of a chunk
    heard: float = 0.0  # when it last sent a piece, or was asked while nothing was under way
    asks: list[Ask] = field(default_factory=list)
    last: float = 0.0  # seconds that its last answer took
    step: int = RENEW  # pieces to ask it for, if it is alone
    idle: float = math.nan  # since when it is left in peace although it has something
    proved: bool = False  # it has answered, and wasn't late since
    lapses: int = 0

    @property
    def load(self) -> int:
        """Pieces that are under way, or not dealt with."""
        return sum(ask.left for ask in self.asks)

    def pace(self, now: float) -> float:
        """Seconds that an answer takes."""
        return max([self.last, *(now - ask.since for ask in self.asks)])


class Sources(Generic[K]):
    """All sources of one model, by whatever names them."""

    def __init__(self, download: Download, model: bytes, me: str, chance: random.Random) -> None:
        self._download, self._model, self._me, self._chance = download, model, me, chance
        self.all: dict[K, Source] = {}
        self._dropped: dict[K, int] = {}  # → lapses
        self.few = download.manifest.chunks <= FEW
        self._shares: tuple[frozenset[str], int] = frozenset(), download.all
        self._due = math.inf

    # -- who they are ----------------------------------------------------------------------------

    def offered(self, key: K, peer: str, now: float, *, spared: bool) -> None:
        """It has all of the model."""
        known = self.all.setdefault(key, Source(peer, 0, True, spared, now))
        known.has, known.offers, known.spared = self._download.all, True, spared

    def told(self, key: K, peer: str, chunks: int, now: float) -> None:
        """It has these chunks, or will have some."""
        if self._dropped.get(key, 0) >= LAPSES or self.few:
            return
        known = self.all.setdefault(key, Source(peer, 0, False, False, now))
        more = chunks & self._download.all & ~known.has
        known.has |= more
        known.news = now if more else known.news

    def lapsed(self, key: K) -> None:
        """It is gone, or has the model no more; it may come again."""
        self._remove(key, 1)

    def drop(self, key: K) -> None:
        """It sends wrong bytes, or none: never ask it again, unless it offers anew."""
        self._remove(key, LAPSES)

    def _remove(self, key: K, lapses: int) -> None:
        source = self.all.pop(key, None)
        if source is not None:
            self._dropped[key] = self._dropped.get(key, 0) + lapses
            for ask in source.asks:
                self._download.give_up(ask)

    def stalled(self, now: float) -> list[K]:
        """Those from which nothing has come for too long."""
        return [key for key, source in self.all.items() if now >= _patient_until(source)]

    # -- what they are asked for -----------------------------------------------------------------

    def asks(self, now: float) -> Iterator[tuple[K, Ask]]:
        """What is to be asked now, and of whom; it counts as asked."""
        self._due = min(map(_patient_until, self.all.values()), default=math.inf)
        order = list(self.all.items())
        if not self.few:
            self._chance.shuffle(order)
            order.sort(key=lambda item: item[1].load)
        for key, source in order:
            while chunks := self._next(source, now):
                if not source.asks:
                    source.heard = now
                source.idle = math.nan
                source.asks.append(self._download.ask(chunks, now))
                self._due = min(self._due, _patient_until(source))
                yield key, source.asks[-1]

    def due(self) -> float:
        """When to look again, whatever happens."""
        return self._due

    def answered(self, source: Source, ask: Ask, now: float) -> None:
        """All of a fetch is dealt with."""
        source.asks.remove(ask)
        source.last, source.proved = now - ask.since, True
        source.step = min(LONE_MOST, 2 * source.step) if source.last < QUICK else RENEW

    def _next(self, source: Source, now: float) -> int:
        """The chunks to ask this one for; 0 for none."""
        if self.few:
            busy = any(other.asks for other in self.all.values())
            return 0 if busy or not source.offers else self._download.missing
        free = self._free(source)
        if free <= 0:
            return 0
        mine = self._download.missing & source.has
        if source.spared:
            mine = self._sparing(source, mine, now)
        if mine:
            return self._pick(self._rarest(mine), free)
        return 0 if self._download.missing & source.has else self._late(source, now)

    def _free(self, source: Source) -> int:
        """Pieces that it may be asked for now."""
        alone = len(self.all) == 1
        step, window = (source.step, source.step + RENEW) if alone else (STEP, SHARE)
        if not source.proved and not source.spared:
            window = step
        helping = sum(s.load for s in self.all.values() if not s.spared)
        full = not source.spared and helping >= (POOL if source.asks else 2 * POOL)
        return 0 if full or source.load > window - step else step

    def _sparing(self, source: Source, missing: int, now: float) -> int:
        """What the author is asked for, of what is missing."""
        helpers = [s for s in self.all.values() if not s.spared]
        alone = missing
        for helper in helpers:
            alone &= ~helper.has
        standing = max(STANDING, PATIENCE * source.pace(now))
        lasting = [s for s in helpers if s.has != self._download.all and now - s.news < standing]
        first = alone & self._share(frozenset(s.peer for s in lasting))
        if first or not missing:
            return first
        return (alone or missing) if self._waited(source, now) else 0

    def _waited(self, source: Source, now: float) -> bool:
        """Whether it was idle for long enough."""
        if math.isnan(source.idle):
            source.idle = now
        until = source.idle + _patience(source)
        self._due = min(self._due, until) if now < until else self._due
        return now >= until and not source.asks

    def _share(self, others: frozenset[str]) -> int:
        """The chunks that are ours to fetch from the author, among these others."""
        if self._shares[0] != others:
            count = self._download.manifest.chunks
            scores = {peer: _scores(self._model, peer, count) for peer in (self._me, *others)}
            ours = scores.pop(self._me)
            best = [max(them) for them in zip(*scores.values(), strict=True)] or [0] * count
            bits = "".join("01"[mine >= best] for mine, best in zip(ours, best, strict=True))
            self._shares = others, int(bits[::-1], 2)
        return self._shares[1]

    def _rarest(self, chunks: int) -> int:
        """Of these, those that the fewest sources have."""
        levels = [0] * _LEVELS  # at [n]: what n + 1 sources or more have
        for source in self.all.values():
            carry = chunks & source.has
            for n in range(_LEVELS):
                levels[n], carry = levels[n] | carry, levels[n] & carry
        for n in range(_LEVELS - 1):
            if rare := levels[n] & ~levels[n + 1]:
                return rare
        return levels[-1]

    def _pick(self, chunks: int, pieces: int) -> int:
        """Some of these, one after the other from a random place."""
        manifest = self._download.manifest
        count = max(1, pieces // -(-manifest.chunk_size // PIECE_LIMIT))
        start = self._chance.randrange(manifest.chunks)
        left, picked = (chunks >> start << start) or chunks, 0
        while left and count:
            picked |= left & -left
            left &= left - 1
            count -= 1
        return picked

    def _late(self, source: Source, now: float) -> int:
        """A chunk that is asked of one other, who is slow: ask for it here, too."""
        if source.asks:
            return 0
        under_way = sorted(
            ((s, ask) for s in self.all.values() for ask in s.asks), key=lambda pair: pair[1].since
        )
        times = Counter(chunk for _, ask in under_way for chunk in ask.coming)
        for slow, ask in under_way:
            for chunk in ask.coming:
                if source.has >> chunk & 1 and self._download.asked(chunk) and times[chunk] == 1:
                    late = ask.since + _patience(source)
                    if now >= late:
                        slow.proved = False
                        return 1 << chunk
                    self._due = min(self._due, late)
        return 0


def _patience(source: Source) -> float:
    return min(PATIENCE_MOST, max(PATIENCE_LEAST, PATIENCE * source.last))


def _patient_until(source: Source) -> float:
    """Until when we wait for its next piece."""
    if not source.asks:
        return math.inf
    return source.heard + (STALL_SECONDS if source.offers else HELPER_SECONDS)


def _scores(model: bytes, peer: str, count: int) -> tuple[int, ...]:
    """A number for each chunk, the same for all who compute it."""
    digest = blake3(model + peer.encode()).digest(length=4 * count)
    return struct.unpack(f">{count}I", digest)
