"""I/O: a relay: it keeps the newest models of peers that can't be reached, and hands them on.

To its clients it is a peer that doesn't train. A member of a swarm stores its own newest model;
when that is whole it is offered to a few clients that train the same run, and to all who ask. The
model stays when its author goes, so two peers that are never online together exchange models. A
relay can alter nothing: its clients check signatures and digests as with any peer.

A client's offers wait for the pace that it bears, and only the newest of each author waits. Who
reads slowly is slow alone. A model of which a client says that its bytes are wrong is looked at by
checker.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from . import admission
from .admission import Offered, Refusal
from .bucket import Bucket
from .checker import Checker
from .envelope import ENVELOPE_LIMIT
from .identity import short
from .incoming import Company, Incoming
from .intake import Intake
from .link import Link
from .manifest import DIGESTS_LIMIT, ENCODINGS
from .messages import RELAY_RUN, Hello, Reject, Want
from .outgoing import Held
from .pace import Limits
from .parts import PartFile
from .session import Session, turn_away
from .shelf import Shelf, belongs

# Clients in all: each costs descriptors, and a piece of memory while it is sent something; and from
# one host (of IPv6: its /64): a classroom behind a NAT fits.
CLIENTS, CLIENTS_A_HOST = 256, 64
# A new model is offered to so many clients at once, as a peer does it; others ask.
FAN_OUT = 8
# What `want` is answered with: what may wait at the asker's (downloads.WAITING_A_RELAY).
WANT_LIMIT = 48
# Offers a second to one client, and at once: clients bear some more (session.OFFERS_PER_SECOND).
PACE, PACE_BURST = 3.0, 48
# Bytes of an envelope beside the digests: a manifest has room for so many (manifest.DIGESTS_LIMIT),
# and a kilobyte more is header and signature. Padding would fill our memory.
PADDING = ENVELOPE_LIMIT - DIGESTS_LIMIT
# How often what has expired, or is read no more, is looked for.
TIDY_SECONDS = 1.0
# Lines of the log, a second and at once; all refusals are counted.
LINES, LINES_BURST = 1.0, 20


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """A relay at one moment; `taken` and `space` are bytes on disk, `rejects` (reason, count)."""

    clients: int
    models: int
    taken: int
    space: int
    bytes_in: int
    bytes_out: int
    rejects: tuple[tuple[str, int], ...]


@dataclass(eq=False)
class Client:
    """One session, and what it is to be offered: the authors, whose newest model counts."""

    session: Session
    due: dict[str, None] = field(default_factory=dict)
    pace: Bucket = field(default_factory=lambda: Bucket(PACE, PACE_BURST))
    news: trio.Event = field(default_factory=trio.Event)

    def tell(self, *authors: str) -> None:
        """These have a model for it."""
        self.due |= dict.fromkeys(authors)
        self.news.set()


class Relay:
    """All clients, and the models that they share.

    `admits(peer ID, swarm)` says who may use it for which swarm; `clock` and `wall` as everywhere.
    A node's own relay shares the node's `limits`.
    """

    def __init__(
        self,
        shelf: Shelf,
        *,
        admits: Callable[[str, str], bool],
        clock: Callable[[], float],
        wall: Callable[[], float],
        chance: random.Random,
        log: Callable[[str, str], None],
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._shelf, self._admits = shelf, admits
        self._clock, self._wall, self._chance, self._log = clock, wall, chance, log
        self._clients: dict[str, Client] = {}
        self._intake = Intake(self, clock, CLIENTS, Company("", lambda: (), chance))
        self._rejects: Counter[str] = Counter()
        self._lines = Bucket(LINES, LINES_BURST)
        self._in = self._out = 0  # bytes of sessions that are over
        self._checker = Checker(shelf, clock, self._spoilt)

    # -- life ------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take models in and keep the shelf in order, until cancelled; links come to `serve`."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._intake.run)
            if not self._shelf.free():
                self._log("warning", "no model is held: the disk is full but for a reserve")
            nursery.start_soon(self._tidy_loop)
            nursery.start_soon(self._checker.run)
            task_status.started()

    async def serve(self, link: Link) -> None:
        """One client's whole life; a handler of Network.listen."""
        session = Session(link, self, self._clock, limits=self._limits)
        unwelcome = self._unwelcome(session)
        if unwelcome:
            self.rejected(admission.FLOOD, link.peer, unwelcome)
            await turn_away(link, unwelcome)
            return
        if link.peer in self._clients:
            self._clients[link.peer].session.close("connected anew")
        client = self._clients[link.peer] = Client(session)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._offer_loop, client)
                await session.run(self._hello)
                nursery.cancel_scope.cancel()
        finally:
            self._forget(client)

    def _unwelcome(self, session: Session) -> str:
        """Why this client can't be served; empty where it can."""
        others = [c for peer, c in self._clients.items() if peer != session.peer]
        if len(others) >= CLIENTS:
            return "no room for more clients"
        if sum(client.session.host == session.host for client in others) >= CLIENTS_A_HOST:
            return "no room for more clients of this host"
        return ""

    def _forget(self, client: Client) -> None:
        session = client.session
        if self._clients.get(session.peer) is client:
            del self._clients[session.peer]
        self._in, self._out = self._in + session.bytes_in, self._out + session.bytes_out

    async def _hello(self) -> Hello:
        return Hello(RELAY_RUN, 0, ENCODINGS)

    @property
    def status(self) -> RelayStatus:
        """What there is to show."""
        sessions = [client.session for client in self._clients.values()]
        return RelayStatus(
            clients=len(sessions),
            models=len(self._shelf.held()),
            taken=self._shelf.taken,
            space=self._shelf.space,
            bytes_in=self._in + sum(session.bytes_in for session in sessions),
            bytes_out=self._out + sum(session.bytes_out for session in sessions),
            rejects=tuple(self._rejects.most_common()),
        )

    # -- tasks -----------------------------------------------------------------------------------

    async def _offer_loop(self, client: Client) -> None:
        """Offer what is due to one client, at its pace."""
        while True:
            await client.news.wait()
            client.news = trio.Event()
            while client.due:
                await trio.sleep(client.pace.wait(self._clock()))
                author = next(iter(client.due))
                del client.due[author]
                held = self._shelf.model_of(author)
                if held is not None and _trains(client, held):
                    client.session.offer(held)

    async def _tidy_loop(self) -> None:
        """Drop what is of no use, and tell those who read it."""
        while True:
            await trio.sleep(TIDY_SECONDS)
            sessions = [client.session for client in self._clients.values()]
            reading = [(s, model) for s in sessions for model in s.outgoing.models]
            models, coming = {model for _, model in reading}, self._intake.incoming.keys()
            try:
                await trio.to_thread.run_sync(self._shelf.tidy, models, coming)
            except OSError as error:
                self._tell("error", f"can't tidy the folder: {error.strerror or error}")
            for session, model in reading:
                if not self._shelf.readable(model):
                    session.withdraw(model)

    def _spoilt(self, held: Held) -> None:
        """Our disk has spoilt this model: its author may send it again."""
        self._tell("error", f"dropped the model of {short(held.peer)}, spoilt on our disk")
        if held.peer in self._clients:
            self._clients[held.peer].session.say(Want())

    # -- Owner: what sessions report -------------------------------------------------------------

    def hello_from(self, session: Session, hello: Hello) -> None:
        """Members are served, others told why not."""
        if self._admits(session.peer, hello.run.swarm):
            session.agreed = True
        else:
            session.fail(admission.MEMBER, _stranger(hello.run.swarm))

    def offer_from(self, session: Session, envelope: bytes) -> None:
        """Fetch the author's new model, or say why not."""
        self._intake.offer(session, envelope, partial(self._admit, session))

    def _admit(self, session: Session, envelope: bytes) -> Offered | None:
        assert session.hello is not None
        run = session.hello.run
        if not self._admits(session.peer, run.swarm):
            raise Refusal(admission.MEMBER, _stranger(run.swarm))

        def newest(author: str) -> int:
            if author != session.peer:
                raise Refusal(admission.AUTHOR, "only its author may store a model here")
            return self._shelf.newest(author)

        offered = admission.admit(envelope, run, self._shelf.most, newest, self._wall())
        if offered and len(envelope) - len(offered.manifest.digests) > PADDING:
            raise Refusal(admission.MANIFEST, f"more than {PADDING} bytes beside the digests")
        return offered

    def wanted_by(self, session: Session) -> None:
        """The newest models of the same run, but its own."""
        client = self._client(session)
        if self._intake.within_rate(session) and client is not None and session.hello is not None:
            authors = (held.peer for held in self._shelf.held_of(session.hello.run))
            client.tell(*[author for author in authors if author != session.peer][:WANT_LIMIT])

    def held_for(self, session: Session, model: bytes) -> Held | None:
        """The model with this envelope ID, if the client trains the same run."""
        held, client = self._shelf.find(model), self._client(session)
        return held if held and client and _trains(client, held) else None

    def have_from(self, session: Session, model: bytes, *, first: bool) -> None:
        """Only authors store models here, so nothing follows from it."""

    def done_by(self, session: Session, model: bytes) -> None:
        """A client has a model; nothing follows from it."""

    def rejected(self, reason: str, peer: str, detail: str) -> None:
        """A client's mistake, or one more than there is room for."""
        self._rejects[reason] += 1
        self._tell("warning", f"rejected ({reason}) from {short(peer)}: {detail}")

    def _tell(self, level: str, text: str) -> None:
        """A line for the log, unless there have been too many."""
        if self._lines.free(self._clock()):
            self._lines.wait(self._clock())
            self._log(level, f"relay: {text}")

    def rejected_by(self, session: Session, message: Reject) -> None:
        """A client refuses a model: if its bytes are wrong, look at them."""
        if message.reason == admission.DIGEST:
            self._checker.suspect(message.model)

    def _client(self, session: Session) -> Client | None:
        client = self._clients.get(session.peer)
        return client if client is not None and client.session is session else None

    # -- Keeper: where models come to lie --------------------------------------------------------

    def part(self, incoming: Incoming) -> PartFile:
        """The part file of a model (in a thread); raises OSError or Refusal."""
        return self._shelf.part(incoming.offered, incoming.offerers[0].host)

    def file(self, incoming: Incoming, part: Path) -> None:
        """A whole model goes on the shelf (in a thread); raises OSError."""
        self._shelf.file(incoming.offered, part)

    def filed(self, incoming: Incoming) -> None:
        """It is there: offer it to some of those who train the same run."""
        held = self._shelf.model_of(incoming.author)
        if held is not None:
            others = [c for peer, c in self._clients.items() if peer != held.peer]
            fitting = [client for client in others if _trains(client, held)]
            for client in self._chance.sample(fitting, min(FAN_OUT, len(fitting))):
                client.tell(held.peer)


def _trains(client: Client, held: Held) -> bool:
    """Whether a client trains the run that this model is of."""
    session = client.session
    return session.agreed and session.hello is not None and belongs(held, session.hello.run)


def _stranger(swarm: str) -> str:
    return f"this relay doesn't serve you in swarm {swarm!r}: it serves members only"
