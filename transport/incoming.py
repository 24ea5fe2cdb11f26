"""I/O: one model coming in, from whichever sessions have some of it.

Each fetch is a lane: the session's receive loop puts pieces into a queue (bounded by the credit
that was granted); one task takes what is there, digests and writes it in a thread, renews the
credit, and asks for more: of whom, and for what, is for sources.py. Meanwhile it tells other peers
what is here, and they fetch it from the part file. When no source is left, that stays for a later
offer.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from .admission import DIGEST, DISK, SLOW, Offered, Refusal
from .link import PIECE_LIMIT, Piece
from .messages import Credit
from .outgoing import Held
from .parts import Arrival, PartFile
from .session import Session
from .sources import STALL_SECONDS, Source, Sources
from .transfer import RENEW, WINDOW, Ask, Download

# Chunks of an old part file that one thread call digests: 64 MiB take a second on a slow disk.
SCAN = 64
# Pieces that one thread call digests and writes: fewer switches, still short calls.
BATCH = 4
# Others hear of new chunks at most so often: a few pieces on a fast line.
TELL_SECONDS = 0.05


Complain = Callable[[Session, str, str], None]


@dataclass(frozen=True, slots=True)
class Company:
    """Who we are, and who else may fetch what we fetch: the peers that train the same run."""

    me: str
    peers: Callable[[], Collection[Session]]
    chance: random.Random


@dataclass(eq=False)
class Lane:
    """One fetch from one session: a Sink."""

    incoming: Incoming
    session: Session
    source: Source
    ask: Ask
    transfer: int = -1

    def put(self, piece: Piece) -> None:
        """Take a piece; raises TransferError for one that isn't due."""
        position, whole = self.ask.piece(piece.chunk, piece.offset, len(piece.body))
        self.source.heard = trio.current_time()
        self.incoming.arrived(self, Arrival(piece, position, whole))

    def end(self) -> None:
        """The session is over, or has the model no more."""
        self.incoming.lost(self.session)


class Incoming:
    """A download with its sources; `run` ends when it is whole, refused or without sources."""

    def __init__(
        self, offered: Offered, session: Session, complain: Complain, company: Company
    ) -> None:
        self.offered, self._complain, self._company = offered, complain, company
        self.model, self.author = offered.envelope.id, offered.envelope.peer_id
        self.download = Download(offered.manifest)
        self.offerers: list[Session] = []  # who is owed an answer
        self.helpers: dict[Session, None] = {}  # who was asked
        self._sources = Sources[Session](self.download, self.model, company.me, company.chance)
        self._lanes: dict[Ask, Lane] = {}
        self._queue: deque[tuple[Lane, Arrival]] = deque()
        self._lost: list[Session] = []
        self._news = trio.Event()
        self._path: Path | None = None
        self._told, self._untold = -math.inf, False  # when we told, and whether there is news
        self._scope = trio.CancelScope()
        self.add_source(session)

    def cancel(self) -> None:
        """A newer model takes its place."""
        self._scope.cancel()

    def add_source(self, session: Session) -> None:
        """A session offers this model."""
        if session not in self.offerers:
            self.offerers.append(session)
        spared = session.relay or session.peer == self.author
        self._sources.offered(session, session.peer, trio.current_time(), spared=spared)
        self._news.set()

    def hear(self, session: Session) -> None:
        """A session has told that it has some chunks of it."""
        chunks = session.haves.heard.get(self.model)
        if chunks is not None and session.peer != self.author:
            self._sources.told(session, session.peer, chunks, trio.current_time())
            self._news.set()

    def lead(self) -> Session | None:
        """By whose offer it is fetched: the author's, if it is there; None where none is left."""
        offering = [s for s, source in self._sources.all.items() if source.offers and not s.ending]
        return next((s for s in offering if s.peer == self.author), next(iter(offering), None))

    @property
    def sources(self) -> int:
        """How many sessions it is coming from now."""
        return sum(bool(source.asks) for source in self._sources.all.values())

    @property
    def held(self) -> Held | None:
        """What can be served of it."""
        if self._path is None:
            return None
        envelope, here = self.offered.envelope, self.download.here
        return Held(
            envelope.data, self.model, self.author, self.offered.manifest, self._path, part=here
        )

    # -- what lanes report -----------------------------------------------------------------------

    def arrived(self, lane: Lane, arrival: Arrival) -> None:
        """A piece is here."""
        self._queue.append((lane, arrival))
        self._news.set()

    def lost(self, session: Session) -> None:
        """No more will come from this session, for now."""
        self._lost.append(session)
        self._news.set()

    # -- the task --------------------------------------------------------------------------------

    async def run(self, open_part: Callable[[Incoming], PartFile]) -> PartFile | None:
        """The finished part file, or None without sources; raises Refusal. Closes the file."""
        with self._scope:
            try:
                part = await trio.to_thread.run_sync(open_part, self)
            except OSError as error:
                raise _disk("open a part file", error) from None
            try:
                return await self._fill(part)
            except OSError as error:
                part.path.unlink(missing_ok=True)  # what is full needs the room
                self._path = None
                raise _disk("write the model", error) from None
            finally:
                for lane in list(self._lanes.values()):
                    self._close(lane)
                part.close()
        return None

    async def _fill(self, part: PartFile) -> PartFile | None:
        await self._find(part)
        self._path = part.path
        for session in self._company.peers():
            self.hear(session)
        while not self.download.done:
            self._leave_behind(part)
            if trio.current_time() >= self._hopeful_until():
                return None
            await self._ask(part)
            self._tell()
            await self._wait()
            while self._queue:
                await self._write(part)
        self._tell()
        return part

    async def _find(self, part: PartFile) -> None:
        """Take what an earlier try left, in short calls, so that cancelling never waits long."""
        chunks = range(self.download.manifest.chunks)
        for start in chunks[::SCAN]:
            whole = await trio.to_thread.run_sync(part.find, chunks[start : start + SCAN])
            for chunk in whole:
                self.download.found(chunk)

    async def _wait(self) -> None:
        """Until a piece comes, a source comes or goes, or somebody takes too long."""
        tell = self._told + TELL_SECONDS if self._untold else math.inf
        with trio.move_on_at(min(self._sources.due(), self._hopeful_until(), tell)):
            await self._news.wait()
        self._news = trio.Event()

    # -- sources ---------------------------------------------------------------------------------

    def _leave_behind(self, part: PartFile) -> None:
        """Give up the sources that are gone, or silent."""
        lost, self._lost = self._lost, []
        for session in dict.fromkeys([*lost, *(s for s in self._sources.all if s.ending)]):
            self._leave(session, part, self._sources.lapsed)
        for session in self._sources.stalled(trio.current_time()):
            if self._sources.all[session].offers:
                self._blame(session, SLOW, f"no piece came for {STALL_SECONDS:.0f} s")
            self._leave(session, part, self._sources.drop)

    def _leave(self, session: Session, part: PartFile, leave: Callable[[Session], None]) -> None:
        for lane in [lane for lane in self._lanes.values() if lane.session is session]:
            part.restart(c for c in lane.ask.coming if self.download.asked(c) is lane.ask)
            self._close(lane)
        leave(session)

    def _blame(self, session: Session, reason: str, detail: str) -> None:
        with suppress(ValueError):
            self.offerers.remove(session)
        self._complain(session, reason, detail)

    def _hopeful_until(self) -> float:
        """Until when we wait for somebody who has what is missing; -inf where there is no hope."""
        sources = self._sources.all.values()
        if any(source.offers or source.asks for source in sources):
            return math.inf
        return max((source.news for source in sources), default=-math.inf) + STALL_SECONDS

    async def _ask(self, part: PartFile) -> None:
        for session, ask in self._sources.asks(trio.current_time()):
            part.restart(ask.coming)  # of a chunk that was late elsewhere
            lane = Lane(self, session, self._sources.all[session], ask)
            self._lanes[ask] = lane
            self.helpers[session] = None
            credit = ask.grant(RENEW if session.limits.down.limited else WINDOW)
            await self._afford(session, credit)
            lane.source.heard = trio.current_time()
            lane.transfer = session.fetch(lane, self.model, ask.ranges, credit)

    def _close(self, lane: Lane) -> None:
        """We need no more of it."""
        del self._lanes[lane.ask]
        lane.session.forget(lane.transfer, stop=bool(lane.ask.left))

    # -- pieces ----------------------------------------------------------------------------------

    async def _write(self, part: PartFile) -> None:
        """Deal with the next pieces."""
        batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        useful = [(lane, arrival) for lane, arrival in batch if self._takes(lane, arrival)]
        verdicts = await trio.to_thread.run_sync(part.write, [arrival for _, arrival in useful])
        wrong: dict[Session, int] = {}
        for (lane, arrival), good in zip(useful, verdicts, strict=True):
            if good:
                self.download.verified(arrival.piece.chunk)
            elif good is False:
                self.download.refuted(arrival.piece.chunk)
                wrong[lane.session] = arrival.piece.chunk
        for session, chunk in wrong.items():
            self._blame(session, DIGEST, f"chunk {chunk} doesn't match its digest")
            self._leave(session, part, self._sources.drop)
        for lane, _ in batch:
            await self._renew(lane)
        self._tell()

    def _takes(self, lane: Lane, arrival: Arrival) -> bool:
        """Whether a piece is of use; most are."""
        chunk = arrival.piece.chunk
        useful = lane.ask in self._lanes and self.download.takes(lane.ask, chunk)
        if useful and arrival.whole:
            self.download.whole(chunk)
        return useful

    async def _renew(self, lane: Lane) -> None:
        """A piece is dealt with."""
        if lane.ask not in self._lanes:
            return
        if (more := lane.ask.renew()) and not self.download.done:
            await self._afford(lane.session, more)
            lane.session.say(Credit(lane.transfer, more))
        if not lane.ask.left:
            self._sources.answered(lane.source, lane.ask, trio.current_time())
            self._close(lane)

    async def _afford(self, session: Session, pieces: int) -> None:
        """Wait until the limit of what comes in allows so many pieces more, or all that is left."""
        manifest = self.offered.manifest
        most = pieces * min(PIECE_LIMIT, manifest.chunk_size)
        size = min(most, manifest.size - self.download.bytes_here)
        await trio.sleep(session.limits.down.wait(size, trio.current_time()))

    # -- telling ---------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Tell what is here: at first all peers, then those that fetch it, too."""
        if self._sources.few:
            return
        now = trio.current_time()
        self._untold = now < self._told + TELL_SECONDS and not self.download.done
        if self._untold:
            return
        self._told = now
        for session in self._company.peers():
            if session.peer != self.author and self._concerns(session):
                session.tell(self.model, self.download.here)

    def _concerns(self, session: Session) -> bool:
        known = session.haves.heard.get(self.model)
        fetching = known is not None and known != self.download.all
        return fetching or self.model not in session.haves.told


def _disk(doing: str, error: OSError) -> Refusal:
    return Refusal(DISK, f"can't {doing}: {error.strerror or error}")
