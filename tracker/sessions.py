"""I/O: one link to a tracker, and what the tracker knows of it."""

import contextlib
from collections import deque
from typing import Final

import trio

from ..transport.address import owner
from ..transport.bucket import Bucket
from ..transport.errors import LinkClosed
from ..transport.link import Link
from .protocol import CALLS, Reply, to_bytes

RATE, BURST = 5.0, 20
"""Questions a second served on one link (ours asks at most 4), and how many may come at once."""

SEND_SECONDS: Final = 10.0
"""A peer that doesn't take an answer in this time is gone."""

PARTING_SECONDS: Final = 1.0
"""How long a link that we end stays open, so that the last answer still arrives."""


class Session:
    """One link and what the tracker knows of it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.owner = owner(link.remote.host)
        self.scope = trio.CancelScope()
        self.swarm: str | None = None
        self.mistakes = 0
        self.watching = False
        self.news = trio.Event()
        self.calls = deque[bytes](maxlen=CALLS)  # they wait for the watch; the newest count
        self.questions = Bucket(RATE, BURST)
        self._sending = trio.Lock()

    def wake(self) -> None:
        """Let the watch look again."""
        self.news.set()
        self.news = trio.Event()

    def call(self, envelope: bytes) -> None:
        """Answer the watch with this, or the next one."""
        self.calls.append(envelope)
        self.wake()

    def take_calls(self) -> tuple[bytes, ...]:
        """What waits; it waits no longer."""
        calls = tuple(self.calls)
        self.calls.clear()
        return calls

    async def answer(self, reply: Reply) -> None:
        """Send; a peer that can't be reached or doesn't read ends its session."""
        try:
            with trio.fail_after(SEND_SECONDS):
                async with self._sending:
                    await self.link.send(to_bytes(reply))
        except (LinkClosed, trio.TooSlowError):
            self.scope.cancel()

    async def part(self) -> None:
        """Leave the peer a moment to read the last answer."""
        with trio.move_on_after(PARTING_SECONDS), contextlib.suppress(LinkClosed):
            while True:
                await self.link.receive()
