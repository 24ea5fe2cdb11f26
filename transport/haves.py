"""CORE: who has which chunks of a model: what one peer told us, and what we told it.

A peer that fetches a model, or has fetched it, tells with `have` which chunks others can get from
it: first all of them, then the new ones. A peer may tell of any model, also of one that nobody has
offered to us yet, so what is remembered is bounded by number: a set of chunks has 1 kB at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .messages import HAVE_LIMIT, Have
from .transfer import bits, ranges_of

# Models that are remembered of each peer: as many as come in at the same time.
MODELS_A_PEER = 16


@dataclass
class Haves:
    """What was told over one session."""

    heard: dict[bytes, int] = field(default_factory=dict)  # model → chunks there, the oldest first
    told: dict[bytes, int] = field(default_factory=dict)  # model → chunks here

    def hear(self, have: Have) -> bool:
        """The peer has these; whether it is the first that we hear of it and that model."""
        first = have.model not in self.heard
        _keep(self.heard, have.model, self.heard.get(have.model, 0) | bits(have.ranges))
        return first

    def tell(self, model: bytes, chunks: int) -> Iterator[Have]:
        """What the peer is to be told, now that these are here."""
        first, news = model not in self.told, chunks & ~self.told.get(model, 0)
        _keep(self.told, model, chunks | self.told.get(model, 0))
        ranges = tuple(ranges_of(news))
        for start in range(0, len(ranges), HAVE_LIMIT) or range(first):
            yield Have(model, ranges[start : start + HAVE_LIMIT])


def _keep(models: dict[bytes, int], model: bytes, chunks: int) -> None:
    models.pop(model, None)
    models[model] = chunks
    if len(models) > MODELS_A_PEER:
        del models[next(iter(models))]
