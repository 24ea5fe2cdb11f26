"""CORE: limits on model bytes, in and out, that all sessions of a node share.

Who is about to send a piece, or to ask for some, counts it in and waits until it is due. A session
has one piece waiting at a time, so all of them move on in turn, whatever the number. What is idle
saves up next to nothing. Control messages don't come here: they are few, and never wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .bucket import Bucket

# So late may a task wake without losing its share of the rate: a busy machine needs that.
SLACK_SECONDS = 0.02


class Pace:
    """One direction: at most `rate` bytes a second; 0 is no limit."""

    def __init__(self, rate: float = 0) -> None:
        self._bucket = Bucket(rate, rate * SLACK_SECONDS) if rate else None

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._bucket is not None

    def wait(self, size: int, now: float) -> float:
        """Count so many bytes in: seconds until they are due."""
        return self._bucket.wait(now, size) if self._bucket is not None else 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a node may send and take, over all sessions; no limit by default."""

    up: Pace = field(default_factory=Pace)
    down: Pace = field(default_factory=Pace)
