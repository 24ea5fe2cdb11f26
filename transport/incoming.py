"""I/O: one model coming in, from whichever sessions offer it.

The session puts pieces into a small queue (bounded by the credit that was granted); this task takes
what is there, digests and writes it in a thread, and renews the credit. When a source is lost, the
next one goes on with what is missing; when none is left, the part file stays for a later offer.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from .admission import DIGEST, DISK, SLOW, Offered, Refusal
from .link import Piece
from .messages import Credit
from .parts import Arrival, PartFile
from .session import Session
from .transfer import RENEW, WINDOW, Download

# No verified piece for so long: try another source. 1 MiB a minute is slower than any modem line
# that could still take part.
STALL_SECONDS = 60.0
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
        self.sources: list[Session] = [session]
        self.source: Session | None = None
        self._scope = trio.CancelScope()
        self._send: trio.MemorySendChannel[Arrival] | None = None

    def cancel(self) -> None:
        """A newer model takes its place."""
        self._scope.cancel()

    def add_source(self, session: Session) -> None:
        """Another session holds the same model."""
        if session is not self.source and session not in self.sources:
            self.sources.append(session)

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

    async def run(self, open_part: Callable[[Offered], PartFile]) -> PartFile | None:
        """The finished part file, or None without sources; raises Refusal. Closes the file."""
        with self._scope:
            try:
                part = await trio.to_thread.run_sync(open_part, self.offered)
            except OSError as error:
                raise Refusal(DISK, f"can't open a part file: {error.strerror}") from None
            try:
                return await self._fill(part)
            except OSError as error:
                raise Refusal(DISK, f"can't write the model: {error.strerror}") from None
            finally:
                part.close()
        return None

    async def _fill(self, part: PartFile) -> PartFile | None:
        for chunk in part.found:
            self.download.found(chunk)
        while not self.download.done:
            if not self.sources:
                return None
            self.source = self.sources.pop(0)
            await self._from(self.source, part)
            self.source = None
        return part

    async def _from(self, session: Session, part: PartFile) -> None:
        """Fetch what is missing from one session until whole or the source fails."""
        self._send, receive = trio.open_memory_channel[Arrival](WINDOW + RENEW)
        transfer = session.fetch(self, self.model, self.download.ask(), WINDOW)
        whole = False
        try:
            while not self.download.done:
                await self._deal_with(await _batch(receive), part, session, transfer)
                if not self.download.asked and not self.download.done:
                    break  # more gaps than one fetch may name: ask again
            whole = self.download.done
        except trio.EndOfChannel:
            pass  # the session ended, or has the model no more
        except BadSource as error:
            self._complain(session, *error.args)
        finally:
            session.forget(transfer, stop=not whole)
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
                session.say(Credit(transfer, more))


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
