"""I/O: one model coming in, from whichever sessions offer it.

The session puts pieces into a small queue (bounded by the credit that was granted); this task takes
what is there, digests and writes it in a thread, and renews the credit. When a source is lost, the
next one goes on with what is missing; when none is left, the part file stays for a later offer.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from .admission import DIGEST, DISK, SLOW, Offered, Refusal
from .link import PIECE_LIMIT, Piece
from .messages import Credit
from .parts import Arrival, PartFile
from .session import Session
from .transfer import RENEW, WINDOW, Download

# No verified piece for so long: try another source. 1 MiB a minute is slower than any modem line
# that could still take part.
STALL_SECONDS = 60.0
# Chunks of an old part file that one thread call digests: 64 MiB take a second on a slow disk.
SCAN = 64
# Pieces that one thread call digests and writes: fewer switches, still short calls.
BATCH = 4


Complain = Callable[[Session, str, str], None]


class BadSource(Exception):
    """The source stalls or sends wrong bytes: (reason, detail)."""


class Incoming:
    """A download with its sources; `run` ends when it is whole, refused or without sources."""

    def __init__(self, offered: Offered, session: Session, complain: Complain) -> None:
        self.offered, self._complain = offered, complain
        self.model, self.author = offered.envelope.id, offered.envelope.peer_id
        self.download = Download(offered.manifest)
        self.offerers: list[Session] = [session]  # who is owed an answer
        self._sources: list[Session] = [session]  # who hasn't been tried since it offered
        self.source: Session | None = None
        self._scope = trio.CancelScope()
        self._send: trio.MemorySendChannel[Arrival] | None = None

    def cancel(self) -> None:
        """A newer model takes its place."""
        self._scope.cancel()

    def add_source(self, session: Session) -> None:
        """Another session holds the same model."""
        if session not in self.offerers:
            self.offerers.append(session)
        if session is not self.source and session not in self._sources:
            self._sources.append(session)

    def next_source(self) -> Session | None:
        """Who will be asked next; None where nobody is left who could be."""
        self._sources = [session for session in self._sources if not session.ending]
        return self._sources[0] if self._sources else None

    # -- Sink: called by the session's receive loop ------------------------------------------

    def put(self, piece: Piece) -> None:
        """Take a piece; raises TransferError for one that isn't due."""
        position, whole = self.download.piece(piece.chunk, piece.offset, len(piece.body))
        if self._send is not None:
            self._send.send_nowait(Arrival(piece, position, whole))

    def end(self) -> None:
        """The session is over, or has the model no more."""
        if self._send is not None:
            self._send.close()

    # -- the task -----------------------------------------------------------------------------

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
                raise _disk("write the model", error) from None
            finally:
                part.close()
        return None

    async def _fill(self, part: PartFile) -> PartFile | None:
        await self._find(part)
        while not self.download.done:
            self.source = self.next_source()
            if self.source is None:
                return None
            self._sources.remove(self.source)
            await self._from(self.source, part)
            self.source = None
        return part

    async def _find(self, part: PartFile) -> None:
        """Take what an earlier try left, in short calls, so that cancelling never waits long."""
        chunks = range(self.download.manifest.chunks)
        for start in chunks[::SCAN]:
            whole = await trio.to_thread.run_sync(part.find, chunks[start : start + SCAN])
            for chunk in whole:
                self.download.found(chunk)

    async def _from(self, session: Session, part: PartFile) -> None:
        """Fetch what is missing from one session until whole or the source fails."""
        self._send, receive = trio.open_memory_channel[Arrival](WINDOW + RENEW)
        credit = RENEW if session.limits.down.limited else WINDOW
        await self._afford(session, credit)
        transfer = session.fetch(self, self.model, self.download.ask(), credit)
        try:
            while not self.download.done:
                await self._deal_with(await _batch(receive), part, session, transfer)
        except trio.EndOfChannel:
            pass  # the session ended, or has the model no more
        except BadSource as error:
            self.offerers.remove(session)
            self._complain(session, *error.args)
        finally:
            session.forget(transfer, stop=not self.download.done)
            self._send = None
            receive.close()
            part.restart()
            self.download.give_up()

    async def _deal_with(
        self, batch: list[Arrival], part: PartFile, session: Session, transfer: int
    ) -> None:
        verdicts = await trio.to_thread.run_sync(part.write, batch)
        for arrival, good in zip(batch, verdicts, strict=True):
            if good:
                self.download.verified(arrival.piece.chunk)
            elif good is False:
                self.download.refuted(arrival.piece.chunk)
                raise BadSource(DIGEST, f"chunk {arrival.piece.chunk} doesn't match its digest")
            if (more := self.download.renew()) and not self.download.done:
                await self._afford(session, more)
                session.say(Credit(transfer, more))

    async def _afford(self, session: Session, pieces: int) -> None:
        """Wait until the limit of what comes in allows so many pieces more, or all that is left."""
        manifest = self.offered.manifest
        most = pieces * min(PIECE_LIMIT, manifest.chunk_size)
        size = min(most, manifest.size - self.download.bytes_here)
        await trio.sleep(session.limits.down.wait(size, trio.current_time()))


def _disk(doing: str, error: OSError) -> Refusal:
    return Refusal(DISK, f"can't {doing}: {error.strerror or error}")


async def _batch(receive: trio.MemoryReceiveChannel[Arrival]) -> list[Arrival]:
    """The next pieces, at least one; raises EndOfChannel or BadSource."""
    with trio.move_on_after(STALL_SECONDS) as scope:
        batch = [await receive.receive()]
    if scope.cancelled_caught:
        raise BadSource(SLOW, f"no piece came for {STALL_SECONDS:.0f} s")
    while len(batch) < BATCH:
        try:
            batch.append(receive.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            break
    return batch
