"""I/O: what one tracker tells of the swarm, from the first list on.

What is known outlives the contact, and so does the cursor: a tracker that is still the same tells
only what is new, and one that was started anew is given time to hear of all peers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from ..transport.bucket import Bucket
from .contact import REPLY_SECONDS, Contact
from .protocol import WATCH_SECONDS, Events, Watch
from .record import PeerRecord
from .roster import Roster
from .state import BACKOFF_MOST

WATCH_PAUSE: Final = 0.25
"""Seconds from an answer to the next watch: many joins come as one page, and a tracker that
always has news can't keep this peer busy. Trackers serve five questions a second."""

PROMPT: Final = (1 / WATCH_PAUSE, 8)
"""Watches after calls: who is called waits for what comes next, so eight go without a pause. Who
has ever more calls for this peer keeps it no busier than with other news."""

GRACE: Final = 2 * BACKOFF_MOST
"""At least so long may a peer be missing from the list of a tracker that was started anew: by
then everyone has dialled it again."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom the contact serves: what to announce, and whom to tell of the others."""

    records: Callable[[], bytes]
    on_joined: Callable[[str, PeerRecord], None]
    on_left: Callable[[str], None]
    on_call: Callable[[bytes], None]


class Follower:
    """The swarm as this tracker tells of it; `peer` is the own peer ID."""

    def __init__(self, swarm: str, peer: str) -> None:
        self.roster = Roster(swarm, peer)
        self._cursor = b""
        self._grace = GRACE
        self._prompt = Bucket(*PROMPT)

    @property
    def listed(self) -> bool:
        """Whether a list has ever come."""
        return self._cursor != b""

    def allow(self, ttl: float) -> None:
        """So long does the tracker keep a peer: its list may be short as long after its start."""
        self._grace = max(GRACE, ttl)

    async def follow(self, contact: Contact, owner: Owner) -> None:
        """Ask what is new, until the contact ends. Raises as Contact.ask does."""
        self.roster.prolong(trio.current_time() + self._grace)
        while True:
            watch = partial(Watch, cursor=self._cursor)
            events = await contact.ask(watch, Events, WATCH_SECONDS + REPLY_SECONDS)
            await self._apply(events, owner)
            self._cursor = events.cursor
            prompt = self._prompt.wait(trio.current_time()) if events.calls else WATCH_PAUSE
            await trio.sleep(prompt)

    async def _apply(self, events: Events, owner: Owner) -> None:
        """Bring the roster up to date; a page that is broken off may be applied again."""
        if events.fresh:
            self.roster.doubt(trio.current_time() + self._grace)
        for call in events.calls:
            owner.on_call(call)
        for peer in events.left:
            if self.roster.forget(peer):
                owner.on_left(peer)
        for data in events.joined:
            news = self.roster.learn(data)
            if news is not None:
                owner.on_joined(news.peer, news.record)
            await trio.lowlevel.checkpoint()  # each signature takes 0.1 ms
        for peer in self.roster.sweep(trio.current_time()):
            owner.on_left(peer)
