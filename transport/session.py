"""I/O: the conversation with one peer over one link.

One task receives and dispatches by a table, one sends (sender.py). Nothing that the peer says
raises out of here: it is answered, counted, and at worst ends this session.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import trio

from . import messages
from .address import owner
from .admission import ENCODING, FLOOD, GARBAGE, PROTOCOL, SLOW
from .bucket import Bucket
from .errors import LinkClosed, ProtocolError, WireError
from .haves import Haves
from .link import Link, Piece
from .messages import (
    Bye,
    Credit,
    Done,
    Fetch,
    Gone,
    Have,
    Hello,
    Message,
    Offer,
    Peers,
    Ping,
    Pong,
    Ranges,
    Reject,
    Stop,
    Want,
)
from .outgoing import Held, Outgoing
from .pace import Limits
from .sender import Sender
from .sinks import Sink, Sinks

# A round trip is measured this often; it also keeps NAT tables (30 s and more) awake.
PING_SECONDS = 5.0
# A live process that says nothing, or takes nothing, for this long hangs. Dead hosts are found by
# TCP's own keepalive within 5 s; this leaves a slow uplink time to push a few pieces through.
SILENCE_SECONDS = 90.0
# A peer says hello once its model is built: importing torch on a slow disk takes a minute.
HELLO_SECONDS = 180.0
# So long a peer that was told why we part has for reading it and closing.
PART_SECONDS = 1.0
# Messages that can't be read; a healthy peer sends none, a newer version perhaps one or two.
GARBAGE_LIMIT = 3
# Offers (and requests for some) that a peer may make a second, and in a burst: a node makes one an
# epoch, and answers `want` with a handful.
OFFERS_PER_SECOND, OFFERS_BURST = 4.0, 64
# The same for the chunks that it has: each model that comes in there has news 20 times a second at
# most, and there are no more than 16 of them.
HAVES_PER_SECOND, HAVES_BURST = 320.0, 640
# The same for what it tells of other peers: a node does that once a second at most, and each time
# may cost us TOLD_LIMIT signatures to check.
TELLINGS_PER_SECOND, TELLINGS_BURST = 1.0, 16
# Control messages read a second, and in a burst; more wait in the network. A transfer at 4 GB/s
# needs 1,000; so many cost a tenth of a core.
MESSAGES_PER_SECOND, MESSAGES_BURST = 2000.0, 2000
# Offers that a peer hasn't answered: those of as many models as a mailbox holds.
UNANSWERED_LIMIT = 64


class Owner(Protocol):
    """What a session asks of the exchange; none of it waits for the network."""

    def hello_from(self, session: Session, hello: Hello) -> None:
        """Both have said hello: set `agreed` where the runs are the same, or end the session."""

    def offer_from(self, session: Session, envelope: bytes) -> None:
        """The peer offers a model."""

    def wanted_by(self, session: Session) -> None:
        """The peer wants the newest models."""

    def held_for(self, session: Session, model: bytes) -> Held | None:
        """The held model with this envelope ID, if this peer may have it."""

    def have_from(self, session: Session, model: bytes, *, first: bool) -> None:
        """The peer has told (`haves`) that it has some chunks, or fetches them; `first` of this
        model."""

    def done_by(self, session: Session, model: bytes) -> None:
        """The peer has filed this model, which we offered."""

    def rejected(self, reason: str, peer: str, detail: str) -> None:
        """Count what this peer did wrong."""

    def rejected_by(self, session: Session, message: Reject) -> None:
        """The peer refuses a model that we offered."""


class Session:
    """One peer that we are connected to; `run` is its whole life.

    `limits` are shared with all other sessions. `relay`: what the peer offers are the models of
    others, which lie there.
    """

    def __init__(
        self,
        link: Link,
        owner: Owner,
        clock: Callable[[], float],
        *,
        limits: Limits | None = None,
        relay: bool = False,
    ) -> None:
        self.limits = limits or Limits()
        self.link, self.peer, self.relay = link, link.peer, relay
        self._owner, self._clock = owner, clock
        self.hello: Hello | None = None
        self.agreed = False  # both have said hello, and train the same run
        self.ending = ""  # why it ends or has ended
        self.round_trip: float | None = None
        self.bytes_in = 0
        self.heard = clock()
        self.offers = Bucket(OFFERS_PER_SECOND, OFFERS_BURST)
        self.on_peers: Callable[[Peers], None] = lambda told: None  # whoever listens to that
        self.haves = Haves()
        self._haves = Bucket(HAVES_PER_SECOND, HAVES_BURST)
        self._tellings = Bucket(TELLINGS_PER_SECOND, TELLINGS_BURST)
        self._messages = Bucket(MESSAGES_PER_SECOND, MESSAGES_BURST)
        self._sender, self._sinks = Sender(link, clock, self.limits.up), Sinks()
        self._unanswered: dict[bytes, None] = {}  # models offered, oldest first
        self.on_round_trip: Callable[[float], None] = lambda seconds: None
        self._pinged = 0
        self._pings: dict[int, float] = {}
        self._garbage = 0
        self._unreadable = False  # some model was not offered for its encoding
        self._greeted = False
        self._parting = trio.Event()
        self._scope = trio.CancelScope()

    @property
    def bytes_out(self) -> int:
        """Bytes sent: messages and model bytes."""
        return self._sender.bytes

    @property
    def outgoing(self) -> Outgoing:
        """The models on their way to the peer."""
        return self._sender.uploads

    @property
    def host(self) -> str:
        """Whose host the peer is on: an IPv4 address, or an IPv6 network."""
        return owner(self.link.remote.host)

    # -- life ----------------------------------------------------------------------------------

    async def run(self, hello: Callable[[], Awaitable[Hello]]) -> None:
        """Talk until either side ends it; `hello` waits for our own run description."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for task in (self._sender.run, self._ping_loop, self._part):
                        nursery.start_soon(task)
                    nursery.start_soon(self._greet, hello)
                    await self._receive_loop()
                    nursery.cancel_scope.cancel()
        finally:
            self.ending = self.ending or "cancelled"
            self.outgoing.close()
            self._sinks.end()

    def end(self, reason: str, *, told: str = "") -> None:
        """Part: say why (in the peer's view, where that differs), give it a moment, close."""
        if not self.ending:
            self.say(Bye(told or reason))
            self.ending = self.ending or reason
            self._parting.set()

    def fail(self, reason: str, detail: str) -> None:
        """End it for the peer's mistake: counted once, and told."""
        if not self.ending:
            self._owner.rejected(reason, self.peer, detail)
            self.end(detail)

    def close(self, reason: str) -> None:
        """Close now."""
        self.ending = self.ending or reason
        self._scope.cancel()

    async def _part(self) -> None:
        await self._parting.wait()
        await trio.sleep(PART_SECONDS)
        self._scope.cancel()

    async def _greet(self, hello: Callable[[], Awaitable[Hello]]) -> None:
        self.say(await hello())
        self._greeted = True
        self._meet()
        await trio.sleep(HELLO_SECONDS)
        if self.hello is None:
            self.fail(SLOW, f"no hello for {HELLO_SECONDS:.0f} s")

    async def _ping_loop(self) -> None:
        while True:
            self.ping()
            await trio.sleep(PING_SECONDS)
            if self._clock() - self.heard > SILENCE_SECONDS:
                self.fail(SLOW, f"silent for {SILENCE_SECONDS:.0f} s")
            elif self._sender.stuck() > SILENCE_SECONDS:
                self.fail(SLOW, f"messages not read for {SILENCE_SECONDS:.0f} s")

    # -- speaking ------------------------------------------------------------------------------

    def say(self, message: Message) -> None:
        """Queue a control message; nothing more is said after a Bye."""
        if not self.ending and not self._sender.say(message):
            self._owner.rejected(SLOW, self.peer, "too many messages not read")
            self.close("too many messages not read")

    def ping(self) -> None:
        """Measure the round trip; an earlier ping that isn't answered yet no longer counts."""
        self._pinged += 1
        self._pings = {self._pinged: self._clock()}
        self.say(Ping(self._pinged))

    def offer(self, held: Held) -> None:
        """Offer a model that the peer can read; its answer is reported once."""
        if not self.takes(held):
            return
        self._unanswered[held.id] = None
        if len(self._unanswered) > UNANSWERED_LIMIT:
            del self._unanswered[next(iter(self._unanswered))]
        self.say(Offer(held.envelope))

    def takes(self, held: Held) -> bool:
        """Whether a model is for the peer, and it can read it.

        That it can't is reported once, as its refusal; a relay takes models for anybody.
        """
        recipients = held.manifest.recipients
        if recipients and self.peer not in recipients and not self.relay:
            return False
        encoding = held.manifest.encoding
        takes = self.hello is None or encoding in self.hello.encodings
        if not takes and not self._unreadable:
            self._unreadable = True
            detail = f"its version of p2pnode can't read the encoding {encoding}"
            self._owner.rejected_by(self, Reject(held.id, ENCODING, detail))
        return takes

    def fetch(self, sink: Sink, model: bytes, ranges: Ranges, credit: int) -> int:
        """Ask for chunks of a model; its pieces go to the sink. Gives the transfer number."""
        transfer = self._sinks.open(sink)
        if self.ending:
            self._sinks.gone(transfer)
        self.say(Fetch(transfer, model, ranges, credit))
        return transfer

    def tell(self, model: bytes, chunks: int) -> None:
        """Tell which chunks of a model are here, where that is news."""
        for have in self.haves.tell(model, chunks):
            self.say(have)

    def forget(self, transfer: int, *, stop: bool) -> None:
        """The sink needs no more; `stop` tells the peer."""
        if self._sinks.close(transfer, early=stop) and stop:
            self.say(Stop(transfer))

    def withdraw(self, model: bytes) -> None:
        """Send no more of a model: it is gone."""
        for transfer in self.outgoing.forget(model):
            self.say(Gone(transfer))
        self._sender.wake()  # it closes the file

    # -- listening -----------------------------------------------------------------------------

    async def _receive_loop(self) -> None:
        try:
            while True:
                frame = await self.link.receive_any()
                self.heard = self._clock()
                self.bytes_in += len(frame.body) if isinstance(frame, Piece) else len(frame)
                if not isinstance(frame, Piece) and (wait := self._messages.wait(self.heard)):
                    await trio.sleep(wait)
                self._take(frame)
        except LinkClosed as error:
            self.ending = self.ending or str(error)

    def _take(self, frame: bytes | Piece) -> None:
        """One frame: a mistake of the peer's is counted and told, and ends the worst."""
        try:
            message = frame if isinstance(frame, Piece) else messages.from_bytes(frame)
            if not self.ending or isinstance(message, Bye):
                _HANDLERS[type(message)](self, message)
        except WireError as error:
            self._on_garbage(str(error))
        except ProtocolError as error:
            self.fail(PROTOCOL, str(error))

    def _on_garbage(self, detail: str) -> None:
        self._garbage += 1
        if self._garbage > GARBAGE_LIMIT or self.hello is None:
            self.fail(GARBAGE, detail)
        elif not self.ending:
            self._owner.rejected(GARBAGE, self.peer, detail)

    def _on_piece(self, piece: Piece) -> None:
        self._sinks.put(piece)

    def _on_hello(self, message: Hello) -> None:
        if self.hello is not None:
            raise ProtocolError("a second hello")
        self.hello = message
        self._meet()

    def _meet(self) -> None:
        """Once both sides have said hello: compare."""
        if self._greeted and self.hello is not None and not self.ending:
            self._owner.hello_from(self, self.hello)

    def _check_agreed(self) -> None:
        if not self.agreed:
            raise ProtocolError("a request before both sides have said hello")

    def _on_bye(self, message: Bye) -> None:
        self.close(message.reason or "the peer said goodbye")

    def _on_offer(self, message: Offer) -> None:
        self._check_agreed()
        self._owner.offer_from(self, message.envelope)

    def _on_want(self, _message: Want) -> None:
        self._check_agreed()
        self._owner.wanted_by(self)

    def _on_fetch(self, message: Fetch) -> None:
        self._check_agreed()
        if self.outgoing.start(message, self._owner.held_for(self, message.model)):
            self._sender.wake()
        else:
            self.say(Gone(message.transfer))

    def _on_have(self, message: Have) -> None:
        self._check_agreed()
        if self._haves.wait(self._clock()):
            self.fail(FLOOD, "too many tellings of chunks")
        else:
            self._owner.have_from(self, message.model, first=self.haves.hear(message))

    def _on_credit(self, message: Credit) -> None:
        self.outgoing.grant(message.transfer, message.pieces)
        self._sender.wake()

    def _on_stop(self, message: Stop) -> None:
        self.outgoing.end(message.transfer)
        self._sender.wake()  # it closes the file

    def _on_gone(self, message: Gone) -> None:
        self._sinks.gone(message.transfer)

    def _on_done(self, message: Done) -> None:
        self.outgoing.forget(message.model)
        self._sender.wake()  # it closes the file
        if message.model in self._unanswered:
            del self._unanswered[message.model]
            self._owner.done_by(self, message.model)

    def _on_reject(self, message: Reject) -> None:
        self.outgoing.forget(message.model)  # what is wrong with it may be mended in another file
        self._sender.wake()  # it closes the file
        if message.model in self._unanswered:
            del self._unanswered[message.model]
            self._owner.rejected_by(self, message)

    def _on_peers(self, message: Peers) -> None:
        self._check_agreed()
        if self._tellings.wait(self._clock()):
            self.fail(FLOOD, "too many tellings of peers")
        else:
            self.on_peers(message)

    def _on_ping(self, message: Ping) -> None:
        self.say(Pong(message.number))

    def _on_pong(self, message: Pong) -> None:
        sent = self._pings.pop(message.number, None)
        if sent is not None:
            self.round_trip = self._clock() - sent
            self.on_round_trip(self.round_trip)


_HANDLERS: dict[type, Callable[[Session, Any], None]] = {
    Piece: Session._on_piece,
    Hello: Session._on_hello,
    Bye: Session._on_bye,
    Offer: Session._on_offer,
    Want: Session._on_want,
    Fetch: Session._on_fetch,
    Have: Session._on_have,
    Credit: Session._on_credit,
    Stop: Session._on_stop,
    Gone: Session._on_gone,
    Done: Session._on_done,
    Reject: Session._on_reject,
    Ping: Session._on_ping,
    Pong: Session._on_pong,
    Peers: Session._on_peers,
}


async def turn_away(link: Link, reason: str) -> None:
    """Say why a link isn't served; the peer closes, or we do after a moment."""
    with trio.move_on_after(PART_SECONDS), suppress(LinkClosed):
        await link.send(messages.to_bytes(Bye(reason)))
        while True:
            await link.receive_any()
