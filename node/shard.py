"""Which part of the training data this peer trains on: the i-th of n equal contiguous parts."""

import re
from dataclasses import dataclass

from .errors import ShardError

# A swarm of a million peers is far beyond what one tracker holds; it keeps the text short too.
SHARDS_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` (from 0) of `count` parts. Raises ShardError if there is no such part."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count <= SHARDS_LIMIT:
            raise ShardError(f"{self}; write --shard I/N with 0 ≤ I < N ≤ {SHARDS_LIMIT}")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read "I/N". Raises ShardError that says how to write it."""
        if not re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", text):
            raise ShardError(f"{text!r}; write --shard I/N with 0 ≤ I < N, for example 0/3")
        index, count = text.split("/")
        return cls(int(index), int(count))

    def of(self, samples: int) -> slice:
        """Return this shard's samples as a slice of 0…samples. Raises ShardError if it is empty."""
        if self.count > samples:
            raise ShardError(f"{self} of {samples} samples; N can be at most {samples}")
        return slice(samples * self.index // self.count, samples * (self.index + 1) // self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
