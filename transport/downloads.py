"""I/O: which of the offered models are fetched, and in what order.

Of each author only the newest model is of interest. What the author itself sends is finished first,
however new the next one is: else a fast trainer starves a slow line, on which no model would ever
get through. What another peer passes on gives way: it could hold a model back by sending slowly.
A relay passes on, too, and its own line may be the slow one: what it sends is finished before the
newer one that it offers itself, and gives way to one that anybody else offers. So a relay that
dawdles holds a model back only from those who get it nowhere else.
What there is no room for waits, and the sources it has gathered by then wait with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from . import admission
from .admission import Offered, Refusal
from .incoming import Company, Incoming
from .parts import PartFile
from .session import Session

# Models that come in at the same time: more only slows each; the rest wait, newest per author.
DOWNLOADS_LIMIT = 16
# Of these begun from one peer: a slow or hostile one doesn't keep the others' models out.
DOWNLOADS_A_PEER = 4
# And from one host (of IPv6: its /64): many identities behind one address are one in that.
DOWNLOADS_A_HOST = 12
# Authors with a model that waits: as many as a mailbox holds.
WAITING_LIMIT = 64
# Of these offered by one peer: what `want` is answered with.
WAITING_A_PEER = 8
# Of these offered by one relay, where the models of many lie: a quarter is left to the others.
WAITING_A_RELAY = 48


class Filer(Protocol):
    """Where models come to lie, and who hears of it."""

    def part(self, incoming: Incoming) -> PartFile:
        """Open the part file (in a thread); raises OSError or Refusal."""

    async def file(self, incoming: Incoming, part: PartFile) -> None:
        """A model is whole; raises Refusal where it can't be kept."""

    def refuse(self, session: Session, model: bytes, reason: str, detail: str) -> None:
        """Count why a model isn't taken, and tell who offered it."""


class Downloads:
    """All models on their way; of so many authors a model may wait."""

    def __init__(self, filer: Filer, waiting: int, company: Company) -> None:
        self._filer, self._most_waiting, self._company = filer, waiting, company
        self.incoming: dict[bytes, Incoming] = {}
        self._waiting: dict[str, Incoming] = {}  # author → its newest model, not begun
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the downloads until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def take(self, offered: Offered, session: Session) -> None:
        """Begin, queue or join the download of an admitted offer; raises Refusal."""
        author, number = offered.envelope.peer_id, offered.manifest.seq
        current, waiting = self._current(author), self._waiting.get(author)
        for known in filter(None, (current, waiting)):
            if known.model == offered.envelope.id:
                known.add_source(session)
                return
            if known.offered.manifest.seq >= number:
                newer = known.offered.manifest.seq
                raise Refusal(admission.STALE, f"number {number} when {newer} is on its way")
        complain = self._complain(offered.envelope.id)
        self._wait(Incoming(offered, session, complain, self._company), session)
        if current is not None and _gives_way(current, session):
            current.cancel()
        self._begin()

    def _current(self, author: str) -> Incoming | None:
        return next((i for i in self.incoming.values() if i.author == author), None)

    def _wait(self, incoming: Incoming, session: Session) -> None:
        self._waiting = {a: i for a, i in self._waiting.items() if i.lead() is not None}
        if incoming.author not in self._waiting:
            of_peer = sum(i.lead() is session for i in self._waiting.values())
            of_one = WAITING_A_RELAY if session.relay else WAITING_A_PEER
            for waiting, most in ((of_peer, of_one), (len(self._waiting), self._most_waiting)):
                if waiting >= most:
                    raise Refusal(admission.FLOOD, f"{most} models are waiting already")
        self._waiting[incoming.author] = incoming

    def _complain(self, model: bytes) -> Callable[[Session, str, str], None]:
        return lambda session, reason, detail: self._filer.refuse(session, model, reason, detail)

    def _begin(self) -> None:
        """Begin what waits, as far as there is room."""
        assert self._nursery is not None
        for author, incoming in list(self._waiting.items()):
            source = incoming.lead()
            if source is None:
                del self._waiting[author]
            elif self._current(author) is None and self._has_room(source):
                del self._waiting[author]
                self.incoming[incoming.model] = incoming
                self._nursery.start_soon(self._download, incoming)

    def _has_room(self, source: Session) -> bool:
        busy = [s for i in self.incoming.values() if (s := i.lead()) is not None]
        of_host = sum(s.host == source.host for s in busy)
        return (
            len(self.incoming) < DOWNLOADS_LIMIT
            and of_host < DOWNLOADS_A_HOST
            and busy.count(source) < DOWNLOADS_A_PEER
        )

    async def _download(self, incoming: Incoming) -> None:
        try:
            part = await incoming.run(self._filer.part)
            if part is not None:
                await self._filer.file(incoming, part)
        except Refusal as refusal:
            for session in incoming.offerers:
                self._filer.refuse(session, incoming.model, refusal.reason, refusal.detail)
        finally:
            del self.incoming[incoming.model]
            self._begin()


def _gives_way(incoming: Incoming, newer: Session) -> bool:
    """Whether it is broken off for a newer model that this session offers."""
    source = incoming.lead()
    if source is None:
        return True
    return source.peer != incoming.author and not (source.relay and source is newer)
