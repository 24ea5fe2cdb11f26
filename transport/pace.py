"""CORE: limits on model bytes, in and out, that all sessions of a node share.

Who is about to send a piece, or to ask for some, counts it in and waits until it is due. A session
has one piece waiting at a time, so all of them move on in turn, whatever the number. What is idle
saves up one piece and no more. Control messages don't come here: they are few, and never wait.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .bucket import Bucket
from .link import PIECE_LIMIT


class Pace:
    """One direction: at most `rate` bytes a second on average, a piece at once."""

    def __init__(self, rate: float = math.inf) -> None:
        self._bucket = Bucket(rate, PIECE_LIMIT)
        self.limited = math.isfinite(rate)

    def wait(self, size: int, now: float) -> float:
        """Count so many bytes in: seconds until they are due."""
        return self._bucket.wait(now, size)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a node may send and take, over all sessions; no limit by default."""

    up: Pace = field(default_factory=Pace)
    down: Pace = field(default_factory=Pace)
