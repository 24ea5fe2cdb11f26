"""I/O: verified models in and out, over all sessions.

One exchange a node. It holds the sessions (one a peer), decides which offers are fetched, and
offers our own new model to some of the peers (`fan_out`). Of each author only the newest model is
of interest: a newer one takes the place of an older one that is still less than half here; one
that is further on is finished first, so that a slow line isn't starved by a fast trainer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from . import admission
from .admission import Offered, Refusal
from .incoming import Incoming
from .link import Link
from .messages import Done, Hello, Offer, Reject, Run, Want, difference
from .outgoing import Held
from .parts import PartFile
from .session import Session

# Models that come in at the same time: more only slows each; the rest wait, newest per author.
DOWNLOADS_LIMIT = 16
# Offers that one peer may make in a burst and each second afterwards: a node makes one an epoch,
# and answers `want` with a handful.
OFFERS_BURST, OFFERS_PER_SECOND = 64.0, 4.0
# What `want` is answered with: enough to start a newcomer from.
WANT_LIMIT = 8
# What a peer says when it is stopped by its user, as opposed to a loss.
LEFT = "stopped"


class Library(Protocol):
    """The models on disk, as the exchange sees them."""

    def newest(self, peer: str) -> int:
        """The highest sequence number filed from a peer; -1 for none."""

    def held(self) -> Sequence[Held]:
        """All models that can be served, our own first, then the newest."""

    def part(self, offered: Offered) -> PartFile:
        """Open the part file (in a thread); raises OSError or Refusal."""

    def file(self, offered: Offered, part: Path) -> None:
        """Move a finished part file into the mailbox (in a thread); raises OSError."""


class Observer(Protocol):
    """What the node wants to know."""

    def met(self, session: Session) -> None:
        """A peer said hello and its run matches."""

    def parted(self, session: Session) -> None:
        """A session ended."""

    def filed(self, offered: Offered) -> None:
        """A verified model is in the mailbox."""

    def delivered(self, session: Session, held: Held) -> None:
        """A peer has filed a model of ours."""

    def rejected(self, reason: str, peer: str, detail: str) -> None:
        """A peer's mistake."""

    def refused(self, session: Session, reason: str, detail: str) -> None:
        """A peer refuses a model or us."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What this node trains: the run, and the most bytes a model of it can have."""

    run: Run
    most: int


class Exchange:
    """All sessions and all models on their way."""

    def __init__(
        self,
        me: str,
        library: Library,
        observer: Observer,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        fan_out: int,
        max_peers: int,
        chance: random.Random,
    ) -> None:
        self.me, self._library, self._observer = me, library, observer
        self._clock, self._wall, self._chance = clock, wall, chance
        self._fan_out, self._max_peers = fan_out, max_peers
        self.sessions: dict[str, Session] = {}
        self.incoming: dict[bytes, Incoming] = {}
        self._waiting: dict[str, tuple[Offered, Session]] = {}  # author → its newest, not begun
        self._offers: dict[str, tuple[float, float]] = {}  # peer → (tokens, when)
        self._terms: Terms | None = None
        self._agreed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._leaving = False
        self.epoch = 0

    # -- the node's side -----------------------------------------------------------------------

    def agree(self, terms: Terms) -> None:
        """The model is built: sessions may say hello."""
        self._terms = terms
        self._agreed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the downloads until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def announce(self, held: Held) -> set[str]:
        """Offer our own new model to `fan_out` of the peers, chosen anew each time: to these."""
        self.epoch = held.manifest.epoch
        met = self.met()
        chosen = self._chance.sample(met, min(self._fan_out, len(met)))
        for session in chosen:
            session.say(Offer(held.envelope))
        return {session.peer for session in chosen}

    def want(self) -> None:
        """Ask all peers for the newest models they hold."""
        for session in self.met():
            session.say(Want())

    async def leave(self) -> None:
        """Part from all peers; returns when they have closed. The caller's scope is the timeout."""
        self._leaving = True
        for session in list(self.sessions.values()):
            session.end(LEFT)
        while self.sessions:
            await trio.sleep(0.02)

    def met(self) -> list[Session]:
        """The sessions whose peers train the same run."""
        return [s for s in self.sessions.values() if s.agreed and not s.ending]

    def delivering(self) -> bool:
        """Whether a model is on its way out."""
        return any(session.outgoing.open for session in self.sessions.values())

    async def serve(self, link: Link) -> str:
        """One link's whole life, dialled or accepted; gives the reason for its end."""
        if self._leaving:
            return "this node is stopping"
        if link.peer == self.me:
            return "this is our own address"
        old = self.sessions.get(link.peer)
        if old is not None and not self._prefers(link, old.link):
            return "already connected"
        if old is None and len(self.sessions) >= self._max_peers:
            return "no room for more peers"
        if old is not None:
            old.close("connected anew")
        session = Session(link, self, self._clock)
        self.sessions[link.peer] = session
        try:
            await session.run(self._hello)
        finally:
            if self.sessions.get(link.peer) is session:
                del self.sessions[link.peer]
                self._offers.pop(link.peer, None)
            self._observer.parted(session)
        return session.ending

    def _prefers(self, new: Link, old: Link) -> bool:
        """Both sides dialled at once: both keep the one that the lower peer ID dialled."""
        lower_dialled = [x.dialled == (self.me < x.peer) for x in (new, old)]
        return lower_dialled[0] or not lower_dialled[1]

    async def _hello(self) -> Hello:
        await self._agreed.wait()
        assert self._terms is not None
        return Hello(self._terms.run, self.epoch)

    # -- Owner: what sessions report -------------------------------------------------------------

    def hello_from(self, session: Session, hello: Hello) -> str | None:
        """Compare runs; a difference is told and ends the session."""
        assert self._terms is not None  # we have greeted, so the model is built
        different = difference(self._terms.run, hello.run)
        if different is not None:
            self._observer.rejected(admission.RUN, session.peer, different)
            # Seen from there, mine and theirs change places.
            return f"another run: {difference(hello.run, self._terms.run)}"
        self._observer.met(session)
        own = [held for held in self._library.held() if held.peer == self.me]
        for held in own[:1]:
            session.say(Offer(held.envelope))
        return None

    def wanted_by(self, session: Session) -> None:
        """Offer the newest models here."""
        for held in self._library.held()[:WANT_LIMIT]:
            if held.peer != session.peer:
                session.say(Offer(held.envelope))

    def find(self, model: bytes) -> Held | None:
        """The held model with this envelope ID."""
        return next((held for held in self._library.held() if held.id == model), None)

    def done_by(self, session: Session, model: bytes) -> None:
        """A peer has our model."""
        held = self.find(model)
        if held is not None:
            self._observer.delivered(session, held)

    def rejected(self, reason: str, peer: str, detail: str) -> None:
        """A peer's mistake, counted by the node."""
        self._observer.rejected(reason, peer, detail)

    def rejected_by(self, session: Session, message: Reject) -> None:
        """A peer refuses a model of ours."""
        self._observer.refused(session, message.reason, message.detail)

    def offer_from(self, session: Session, envelope: bytes) -> None:
        """Admit the offer, refuse it, or add its sender to a download that is on its way."""
        if not self._within_rate(session.peer):
            self._observer.rejected(admission.FLOOD, session.peer, "too many offers")
            session.end("too many offers")
            return
        assert self._terms is not None
        try:
            offered = admission.admit(
                envelope, self._terms.run, self._terms.most, self._newest, self._wall()
            )
            if offered is None:
                session.say(Done(admission.identify(envelope)))
            else:
                self._take(offered, session)
        except Refusal as refusal:
            self._refuse(session, admission.identify(envelope), refusal.reason, refusal.detail)

    def _newest(self, peer: str) -> int:
        return 2**63 if peer == self.me else self._library.newest(peer)

    def _within_rate(self, peer: str) -> bool:
        tokens, then = self._offers.get(peer, (OFFERS_BURST, self._clock()))
        now = self._clock()
        tokens = min(OFFERS_BURST, tokens + (now - then) * OFFERS_PER_SECOND) - 1
        self._offers[peer] = (max(tokens, 0.0), now)
        return tokens >= 0

    def _refuse(self, session: Session, model: bytes, reason: str, detail: str) -> None:
        self._observer.rejected(reason, session.peer, detail)
        session.say(Reject(model, reason, detail))

    # -- downloads -------------------------------------------------------------------------------

    def _take(self, offered: Offered, session: Session) -> None:
        """Begin, queue or join the download of an admitted offer."""
        model, author = offered.envelope.id, offered.envelope.peer_id
        if model in self.incoming:
            self.incoming[model].add_source(session)
            return
        waiting = self._waiting.get(author)
        if waiting is not None and waiting[0].manifest.seq > offered.manifest.seq:
            return
        current = next((i for i in self.incoming.values() if i.author == author), None)
        if current is not None and current.offered.manifest.seq > offered.manifest.seq:
            return
        if current is not None:
            self._waiting[author] = (offered, session)
            if current.download.bytes_here * 2 < current.offered.manifest.size:
                current.cancel()
        elif len(self.incoming) >= DOWNLOADS_LIMIT:
            self._waiting[author] = (offered, session)
        else:
            self._begin(offered, session)

    def _begin(self, offered: Offered, session: Session) -> None:
        assert self._nursery is not None
        incoming = Incoming(offered, session, self._complain(offered.envelope.id))
        self.incoming[incoming.model] = incoming
        self._nursery.start_soon(self._download, incoming)

    def _complain(self, model: bytes) -> Callable[[Session, str, str], None]:
        return lambda session, reason, detail: self._refuse(session, model, reason, detail)

    async def _download(self, incoming: Incoming) -> None:
        try:
            part = await incoming.run(self._library.part)
            if part is not None:
                await self._file(incoming, part)
        except Refusal as refusal:
            for session in filter(None, (incoming.source, *incoming.sources)):
                self._refuse(session, incoming.model, refusal.reason, refusal.detail)
        finally:
            del self.incoming[incoming.model]
            self._next()

    async def _file(self, incoming: Incoming, part: PartFile) -> None:
        try:
            await trio.to_thread.run_sync(self._library.file, incoming.offered, part.path)
        except OSError as error:
            raise Refusal(
                admission.DISK, f"can't file the model: {error.strerror or error}"
            ) from None
        self._observer.filed(incoming.offered)
        for session in self.met():
            if session.peer == incoming.author or session in incoming.sources:
                session.say(Done(incoming.model))

    def _next(self) -> None:
        """Begin what waits, as far as there is room."""
        authors = {incoming.author for incoming in self.incoming.values()}
        for author in [a for a in self._waiting if a not in authors]:
            if len(self.incoming) >= DOWNLOADS_LIMIT:
                return
            offered, session = self._waiting.pop(author)
            if session.peer in self.sessions:
                self._begin(offered, session)
