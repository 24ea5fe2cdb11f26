"""I/O: what goes out over one session: control messages first, then model bytes, a piece at a time.

So an offer waits for at most the piece that is being sent. The network's backpressure ends here: a
peer that reads slowly slows its own uploads and nothing else. Pieces wait for the pace (pace.py)
that all sessions share; control messages don't.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable

import trio

from . import messages, outgoing
from .errors import LinkClosed
from .link import Link
from .messages import Bye, Gone, Message
from .outgoing import OpenUpload, Outgoing
from .pace import Pace

# Queued control messages to a peer that doesn't read: more means that it never will.
QUEUE_LIMIT = 256


class Sender:
    """The sending half of a session; `run` is its one task."""

    def __init__(self, link: Link, clock: Callable[[], float], pace: Pace) -> None:
        self._link, self._clock, self._pace = link, clock, pace
        self.uploads = Outgoing()
        self.bytes = 0
        self._queue: deque[Message] = deque()
        self._wake = trio.Event()
        self._since = math.inf  # since when something waits for the network
        self._booked, self._due = 0, -math.inf  # bytes that the pace has counted in, and from when

    def say(self, message: Message) -> bool:
        """Queue a control message; False when the peer hasn't read so many before."""
        if len(self._queue) >= QUEUE_LIMIT:
            return False
        self._queue.append(message)
        self.wake()
        return True

    def wake(self) -> None:
        """Something about the uploads has changed."""
        self._wake.set()

    def stuck(self) -> float:
        """Seconds that the network hasn't taken the present message."""
        return self._clock() - self._since

    async def run(self) -> None:
        """Send until a Bye is through or the link is closed."""
        with contextlib.suppress(LinkClosed):  # who receives reads what is left, and ends
            while True:
                self._wake = trio.Event()
                if self._queue:
                    message = self._queue.popleft()
                    await self._control(message)
                    if isinstance(message, Bye):
                        return
                elif (entry := self.uploads.next()) is not None:
                    if self._clock() >= self._due_for(entry):
                        await self._piece(entry)
                    else:
                        with trio.move_on_at(self._due):
                            await self._wake.wait()
                else:
                    await self._wake.wait()

    async def _control(self, message: Message) -> None:
        data = messages.to_bytes(message)
        self._since = self._clock()
        await self._link.send(data)
        self._since = math.inf
        self.bytes += len(data)

    def _due_for(self, entry: OpenUpload) -> float:
        """When this upload's next piece may go; what is counted in by then is not counted again."""
        missing = entry.upload.next_size - self._booked
        if missing > 0:
            self._due = self._clock() + self._pace.wait(missing, self._clock())
            self._booked += missing
        return self._due

    async def _piece(self, entry: OpenUpload) -> None:
        transfer = entry.upload.transfer
        piece = await outgoing.read(entry, self._link.room)
        if piece is None:
            self.uploads.end(transfer)
            self.say(Gone(transfer))
        elif transfer in self.uploads.open:  # not stopped while the thread read
            size = len(piece.body)
            self._since = self._clock()
            await self._link.send_piece(piece)
            self._since = math.inf
            self.bytes += size
            self._booked -= size
