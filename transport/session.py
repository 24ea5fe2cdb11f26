"""I/O: the conversation with one peer over one link.

Two long-lived tasks: one receives and dispatches by a table, one sends what is queued. Control
messages go before model bytes, so an offer waits for at most one piece. Nothing that the peer says
raises out of here: it is answered, counted, and at worst ends this session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from . import messages, outgoing
from .admission import GARBAGE, PROTOCOL
from .errors import LinkClosed, TransferError, WireError
from .link import Link, Piece
from .messages import (
    Bye,
    Credit,
    Done,
    Fetch,
    Gone,
    Hello,
    Message,
    Offer,
    Ping,
    Pong,
    Reject,
    Stop,
    Want,
)
from .outgoing import Held, OpenUpload, Outgoing

# A round trip is measured this often; it also keeps NAT tables (30 s and more) awake.
PING_SECONDS = 5.0
# A live process that says nothing at all for this long hangs. Dead hosts are found by TCP's own
# keepalive within 5 s; this leaves a slow uplink time to push a few pieces through.
SILENCE_SECONDS = 90.0
# A peer says hello once its model is built: importing torch on a slow disk takes a minute.
HELLO_SECONDS = 180.0
# Queued control messages to a peer that doesn't read: more means that it never will.
QUEUE_LIMIT = 256
# Messages that can't be read; a healthy peer sends none, a newer version perhaps one or two.
GARBAGE_LIMIT = 3


class Owner(Protocol):
    """What a session asks of the exchange; none of it waits for the network."""

    def hello_from(self, session: Session, hello: Hello) -> str | None:
        """The peer's run; a text is the reason to part."""

    def offer_from(self, session: Session, envelope: bytes) -> None:
        """The peer offers a model."""

    def wanted_by(self, session: Session) -> None:
        """The peer wants the newest models."""

    def find(self, model: bytes) -> Held | None:
        """The held model with this envelope ID."""

    def done_by(self, session: Session, model: bytes) -> None:
        """The peer has filed this model."""

    def rejected(self, reason: str, peer: str, detail: str) -> None:
        """Count what this peer did wrong."""

    def rejected_by(self, session: Session, message: Reject) -> None:
        """The peer refuses a model of ours."""


class Sink(Protocol):
    """Where the pieces of one transfer go."""

    def put(self, piece: Piece) -> None:
        """Take a piece; raises TransferError for one that isn't due."""

    def end(self) -> None:
        """No more will come from this session."""


class Session:
    """One peer that we are connected to; `run` is its whole life."""

    def __init__(self, link: Link, owner: Owner, clock: Callable[[], float]) -> None:
        self.link, self.peer = link, link.peer
        self._owner, self._clock = owner, clock
        self.hello: Hello | None = None
        self.agreed = False  # both have said hello, and train the same run
        self.ending = ""  # why it ended, when a side said why
        self.round_trip: float | None = None
        self.bytes_in = self.bytes_out = 0
        self.heard = clock()
        self.outgoing = Outgoing()
        self._sinks: dict[int, Sink] = {}
        self._queue: deque[Message] = deque()
        self._wake = trio.Event()
        self._next_transfer = 0
        self._pings: dict[int, float] = {}
        self._garbage = 0
        self._greeted = False
        self._scope = trio.CancelScope()

    # -- life ----------------------------------------------------------------------------------

    async def run(self, hello: Callable[[], Awaitable[Hello]]) -> None:
        """Talk until either side ends it; `hello` waits for our own run description."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_loop)
                    nursery.start_soon(self._ping_loop)
                    nursery.start_soon(self._greet, hello)
                    await self._receive_loop()
                    nursery.cancel_scope.cancel()
        finally:
            self._release()

    def end(self, reason: str) -> None:
        """Part: say why, give the message a moment, close."""
        if not self.ending:
            self.ending = reason
            self.say(Bye(reason[: messages.TEXT_LIMIT]))

    def close(self, reason: str) -> None:
        """Close now."""
        self.ending = self.ending or reason
        self._scope.cancel()

    def _release(self) -> None:
        self.outgoing.close()
        for sink in list(self._sinks.values()):
            sink.end()
        self._sinks.clear()

    # -- sending -------------------------------------------------------------------------------

    def say(self, message: Message) -> None:
        """Queue a control message."""
        if len(self._queue) >= QUEUE_LIMIT:
            self.close("it doesn't read its messages")
            return
        self._queue.append(message)
        self._wake.set()

    def fetch(self, sink: Sink, model: bytes, ranges: Any, credit: int) -> int:
        """Ask for chunks of a model; its pieces go to the sink. Gives the transfer number."""
        self._next_transfer += 1
        self._sinks[self._next_transfer] = sink
        self.say(Fetch(self._next_transfer, model, tuple(ranges), credit))
        return self._next_transfer

    def forget(self, transfer: int, *, stop: bool) -> None:
        """The sink needs no more; `stop` tells the peer."""
        if self._sinks.pop(transfer, None) is not None and stop:
            self.say(Stop(transfer))

    async def _send_loop(self) -> None:
        try:
            while True:
                self._wake = trio.Event()
                if self._queue:
                    await self._send_control(self._queue.popleft())
                elif (entry := self.outgoing.next()) is not None:
                    await self._send_piece(entry)
                else:
                    await self._wake.wait()
        except LinkClosed:
            self._scope.cancel()

    async def _send_control(self, message: Message) -> None:
        data = messages.to_bytes(message)
        self.bytes_out += len(data)
        await self.link.send(data)
        if isinstance(message, Bye):
            # NNG may drop what it hasn't sent yet on closing: let the peer close first.
            with trio.move_on_after(1):
                await trio.sleep_forever()
            self._scope.cancel()

    async def _send_piece(self, entry: OpenUpload) -> None:
        transfer = entry.upload.transfer
        piece = await outgoing.read(entry)
        if piece is None:
            self.outgoing.end(transfer)
            self.say(Gone(transfer))
        elif transfer in self.outgoing.open:  # not stopped while the thread read
            await self.link.send_piece(piece)
            self.bytes_out += len(piece.body)

    async def _ping_loop(self) -> None:
        number = 0
        while True:
            number += 1
            self._pings = {number: self._clock()}
            self.say(Ping(number))
            await trio.sleep(PING_SECONDS)
            if self._clock() - self.heard > SILENCE_SECONDS:
                self.close("it was silent for too long")

    async def _greet(self, hello: Callable[[], Awaitable[Hello]]) -> None:
        self.say(await hello())
        self._greeted = True
        self._meet()
        await trio.sleep(HELLO_SECONDS)
        if self.hello is None:
            self.end("no hello came")

    # -- receiving -----------------------------------------------------------------------------

    async def _receive_loop(self) -> None:
        try:
            while True:
                frame = await self.link.receive_any()
                self.heard = self._clock()
                self.bytes_in += len(frame.body) if isinstance(frame, Piece) else len(frame)
                self._take(frame)
        except LinkClosed as error:
            self.ending = self.ending or str(error)

    def _take(self, frame: bytes | Piece) -> None:
        """One frame: a mistake of the peer's is counted and told, and ends the worst."""
        try:
            if isinstance(frame, Piece):
                self._on_piece(frame)
            else:
                message = messages.from_bytes(frame)
                _HANDLERS[type(message)](self, message)
        except WireError as error:
            self._owner.rejected(GARBAGE, self.peer, str(error))
            self._garbage += 1
            if self._garbage > GARBAGE_LIMIT or self.hello is None:
                self.end(str(error))
        except TransferError as error:
            self._owner.rejected(PROTOCOL, self.peer, str(error))
            self.end(str(error))

    def _on_piece(self, piece: Piece) -> None:
        sink = self._sinks.get(piece.transfer)
        if sink is not None:  # otherwise it crossed our Stop
            sink.put(piece)

    def _on_hello(self, message: Hello) -> None:
        if self.hello is not None:
            raise WireError("a second hello")
        self.hello = message
        self._meet()

    def _meet(self) -> None:
        """Once both sides have said hello: compare."""
        if self._greeted and self.hello is not None:
            reason = self._owner.hello_from(self, self.hello)
            self.agreed = reason is None
            if reason is not None:
                self.end(reason)

    def _check_agreed(self) -> None:
        if not self.agreed:
            raise WireError("a request before both sides have said hello")

    def _on_bye(self, message: Bye) -> None:
        self.close(message.reason)

    def _on_offer(self, message: Offer) -> None:
        self._check_agreed()
        self._owner.offer_from(self, message.envelope)

    def _on_want(self, _message: Want) -> None:
        self._check_agreed()
        self._owner.wanted_by(self)

    def _on_fetch(self, message: Fetch) -> None:
        self._check_agreed()
        if self.outgoing.start(message, self._owner.find(message.model)):
            self._wake.set()
        else:
            self.say(Gone(message.transfer))

    def _on_credit(self, message: Credit) -> None:
        self.outgoing.grant(message.transfer, message.pieces)
        self._wake.set()

    def _on_stop(self, message: Stop) -> None:
        self.outgoing.end(message.transfer)

    def _on_gone(self, message: Gone) -> None:
        sink = self._sinks.pop(message.transfer, None)
        if sink is not None:
            sink.end()

    def _on_done(self, message: Done) -> None:
        self._owner.done_by(self, message.model)

    def _on_reject(self, message: Reject) -> None:
        self._owner.rejected_by(self, message)

    def _on_ping(self, message: Ping) -> None:
        self.say(Pong(message.number))

    def _on_pong(self, message: Pong) -> None:
        sent = self._pings.pop(message.number, None)
        if sent is not None:
            self.round_trip = self._clock() - sent


_HANDLERS: dict[type[Message], Callable[[Session, Any], None]] = {
    Hello: Session._on_hello,
    Bye: Session._on_bye,
    Offer: Session._on_offer,
    Want: Session._on_want,
    Fetch: Session._on_fetch,
    Credit: Session._on_credit,
    Stop: Session._on_stop,
    Gone: Session._on_gone,
    Done: Session._on_done,
    Reject: Session._on_reject,
    Ping: Session._on_ping,
    Pong: Session._on_pong,
}
