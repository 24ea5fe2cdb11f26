"""I/O: looks for models that a relay's disk has spoilt, and drops them.

A receiver that finds a wrong digest can't tell whether the disk, the line or the relay is to blame,
and may lie; so its word only makes the relay read the model again. That is done for one model at a
time, and seldom for the same, so that nobody can keep the disk busy. After a restart each model is
read once: a power cut may have left zeros in a file of the right size.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from .outgoing import Held
from .shelf import Shelf, intact

# One model is read again at most so often, whatever is said of it.
CHECK_SECONDS = 3600.0


class Checker:
    """The suspects, and the one task that looks at them; `dropped` hears of what was spoilt."""

    def __init__(
        self, shelf: Shelf, clock: Callable[[], float], dropped: Callable[[Held], None]
    ) -> None:
        self._shelf, self._clock, self._dropped = shelf, clock, dropped
        self._suspects = dict.fromkeys(held.id for held in shelf.held())
        self._checked: dict[bytes, float] = {}
        self._news = trio.Event()

    def suspect(self, model: bytes) -> None:
        """Somebody says that the bytes of this model are wrong."""
        self._suspects[model] = None
        self._news.set()

    async def run(self) -> None:
        """Look at the suspects, for ever."""
        while True:
            self._news = trio.Event()
            while self._suspects:
                model = next(iter(self._suspects))
                await self._check(model)
                del self._suspects[model]
            await self._news.wait()

    async def _check(self, model: bytes) -> None:
        held, now = self._shelf.find(model), self._clock()
        self._checked = {m: t for m, t in self._checked.items() if now - t < CHECK_SECONDS}
        if held is None or model in self._checked:
            return
        self._checked[model] = now
        good = await trio.to_thread.run_sync(intact, held, abandon_on_cancel=True)
        if not good and await trio.to_thread.run_sync(self._shelf.drop, model):
            self._dropped(held)
