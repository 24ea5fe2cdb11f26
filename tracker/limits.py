"""CORE: so many at once and so many a second, for each of many keys.

Time is passed in as `now`.
"""

from dataclasses import dataclass, field

from ..transport.bucket import Bucket
from .errors import Reason, Refused


@dataclass(slots=True)
class Limit:
    """`burst` at once, then `rate` a second, for each key."""

    rate: float
    burst: int
    _buckets: dict[str, Bucket] = field(default_factory=dict)

    def free(self, key: str, now: float) -> bool:
        """Whether one more may be taken."""
        return key not in self._buckets or self._buckets[key].free(now)

    def take(self, key: str, now: float) -> None:
        """Take one; keys that may take a whole burst again are forgotten."""
        self._buckets = {k: bucket for k, bucket in self._buckets.items() if not bucket.idle(now)}
        self._buckets.setdefault(key, Bucket(self.rate, self.burst)).wait(now)


def take(now: float, *wanted: tuple[Limit, str]) -> None:
    """Take one of each (limit, key), or none. Raises Refused TOO_OFTEN."""
    if not all(limit.free(key, now) for limit, key in wanted):
        raise Refused(Reason.TOO_OFTEN)
    for limit, key in wanted:
        limit.take(key, now)
