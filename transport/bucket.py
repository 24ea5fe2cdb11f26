"""CORE: a leaky bucket, which lets so many through at once and so many a second afterwards."""

import math


class Bucket:
    """One flow: `rate` a second, `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._step, self._slack = 1 / rate, burst / rate
        self._due = -math.inf

    def free(self, now: float) -> bool:
        """Whether one more would be due at once; nothing is counted."""
        return max(self._due, now - self._slack) + self._step <= now

    def idle(self, now: float) -> bool:
        """Whether it is as a new one: a whole burst may come."""
        return self._due <= now - self._slack

    def wait(self, now: float, amount: float = 1) -> float:
        """Count so many more in: seconds until they are due, 0 for what is within the burst."""
        self._due = max(self._due, now - self._slack) + self._step * amount
        return max(0.0, self._due - now)
