"""I/O: verified models in and out, over all sessions.

One exchange a node. It holds the sessions (one a peer), answers what they report, and offers our
own new model to some of the peers (`fan_out`). How an offered model comes in is for intake.py and
downloads.py; sessions with relays, which aren't peers, are for relayed.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from . import admission, downloads
from .admission import Offered, Refusal
from .incoming import Company, Incoming
from .intake import Intake
from .link import Link
from .manifest import ENCODINGS
from .messages import Hello, Reject, Run, Want, difference
from .outgoing import Held
from .pace import Limits
from .parts import PartFile
from .relayed import Relayed, RelayObserver
from .session import Session, turn_away
from .veil import Unveil, plain

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


class Observer(RelayObserver, Protocol):
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
    """What this node trains: the run, and the most bytes a model of it can have.

    In a private swarm relays hear of a `relayed` run that says less, and `unveil` reads manifests.
    """

    run: Run
    most: int
    relayed: Run | None = None
    unveil: Unveil = plain


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
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.me, self._library, self._observer = me, library, observer
        self._clock, self._wall, self._chance = clock, wall, chance
        self._fan_out, self._max_peers = fan_out, max_peers
        self.sessions: dict[str, Session] = {}
        self._intake = Intake(self, clock, downloads.WAITING_LIMIT, Company(me, self.met, chance))
        self._relayed = Relayed(self, observer, self._intake, clock, self.limits)
        self._terms: Terms | None = None
        self._agreed = trio.Event()
        self._leaving = False

    # -- the node's side -----------------------------------------------------------------------

    def agree(self, terms: Terms) -> None:
        """The model is built: sessions may say hello."""
        self._terms = terms
        self._agreed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the downloads until cancelled."""
        await self._intake.run(task_status=task_status)

    @property
    def incoming(self) -> dict[bytes, Incoming]:
        """The models coming in, by envelope ID."""
        return self._intake.incoming

    @property
    def relays(self) -> dict[str, Session]:
        """The sessions with relays, by their peer IDs; a relay may be a peer, too."""
        return self._relayed.sessions

    def announce(self, held: Held) -> set[Session]:
        """Offer our own new model to `fan_out` of the peers, chosen anew each time, and to the
        relays where it is to lie: to these."""
        met = [session for session in self.met() if session.takes(held)]
        chosen = self._chance.sample(met, min(self._fan_out, len(met)))
        for session in chosen:
            session.offer(held)
        return {*chosen, *self._relayed.store()}

    def store(self) -> None:
        """Offer our newest model to the relays where it is to lie by now and doesn't."""
        self._relayed.store()

    @property
    def full(self) -> bool:
        """Whether there is no room for another peer."""
        return len(self.sessions) >= self._max_peers

    def want(self) -> None:
        """Ask all peers for the newest models they hold."""
        for session in self.met():
            session.say(Want())

    async def leave(self) -> None:
        """Part from all; returns when they have closed. The caller's scope is the timeout."""
        self._leaving = True
        for session in (*self.sessions.values(), *self.relays.values()):
            session.end(LEFT)
        while self.sessions or self.relays:
            await trio.sleep(0.02)

    def drop_from(self, hosts: Collection[str]) -> None:
        """This machine has these addresses no more: what is connected from them is dead."""
        for session in (*self.sessions.values(), *self.relays.values()):
            if session.link.local.host in hosts:
                session.close("this machine's address has changed")

    def met(self) -> list[Session]:
        """The sessions whose peers train the same run."""
        return [s for s in self.sessions.values() if s.agreed and not s.ending]

    def in_use(self) -> set[Session]:
        """The sessions in use, with peers and with relays."""
        return {*self.met(), *self._relayed.met()}

    async def serve(self, link: Link) -> str:
        """One link's whole life, dialled or accepted; gives the reason for its end."""
        unwelcome = self._unwelcome(link)
        if unwelcome:
            await turn_away(link, unwelcome)
            return unwelcome
        if link.peer in self.sessions:
            self.sessions[link.peer].close("connected anew")
        session = Session(link, self, self._clock, limits=self.limits)
        self.sessions[link.peer] = session
        try:
            await session.run(self.hello)
        finally:
            if self.sessions.get(link.peer) is session:
                del self.sessions[link.peer]
            self._observer.parted(session)
        return session.ending

    async def serve_relay(self, link: Link) -> str:
        """The same with a relay that we dialled."""
        unwelcome = self._never_welcome(link)
        if unwelcome:
            await turn_away(link, unwelcome)
            return unwelcome
        return await self._relayed.serve(link)

    def _never_welcome(self, link: Link) -> str:
        if self._leaving:
            return "this node is stopping"
        return "this is our own address" if link.peer == self.me else ""

    def _unwelcome(self, link: Link) -> str:
        """Why this link can't become a session; empty where it can."""
        old = self.sessions.get(link.peer)
        if never := self._never_welcome(link):
            return never
        if old is not None and not old.ending and not self._prefers(link, old.link):
            return "already connected"
        if old is None and self.full:
            return "no room for more peers"
        return ""

    def _prefers(self, new: Link, old: Link) -> bool:
        """Both sides dialled at once: both keep the one that the lower peer ID dialled."""
        lower_dialled = [x.dialled == (self.me < x.peer) for x in (new, old)]
        return lower_dialled[0] or not lower_dialled[1]

    # -- Side: what relays hear of us, and what we take ------------------------------------------

    async def hello_relay(self) -> Hello:
        """The same for a relay, which in a private swarm is told no more than it needs."""
        hello = await self.hello()
        assert self._terms is not None
        return Hello(self._terms.relayed, 0, ENCODINGS) if self._terms.relayed else hello

    async def hello(self) -> Hello:
        """The run and our newest epoch, once the model is built."""
        await self._agreed.wait()
        assert self._terms is not None
        epoch = max((own.manifest.epoch for own in self.own()), default=0)
        return Hello(self._terms.run, epoch, ENCODINGS)

    def own(self) -> list[Held]:
        """Our own newest model, if there is one that is worth an offer."""
        return [held for held in self._offerable() if held.peer == self.me]

    def admit(self, envelope: bytes) -> Offered | None:
        """As admission.admit, for our run."""
        assert self._terms is not None
        terms, now = self._terms, self._wall()
        offered = admission.admit(envelope, terms.run, terms.most, self._newest, now, terms.unveil)
        if offered and offered.manifest.recipients and self.me not in offered.manifest.recipients:
            raise Refusal(admission.RECIPIENT, "this model is for others")
        return offered

    def _newest(self, peer: str) -> int:
        if peer == self.me:
            raise Refusal(admission.STALE, "a model of my own")
        return self._library.newest(peer)

    def _offerable(self) -> list[Held]:
        """The models that others would take: none that an earlier run left and that has expired."""
        return [h for h in self._library.held() if h.manifest.expires > self._wall()]

    # -- Owner: what sessions report -------------------------------------------------------------

    def hello_from(self, session: Session, hello: Hello) -> None:
        """Compare runs; a difference is told, each side's own first, and ends the session."""
        assert self._terms is not None  # we have greeted, so the model is built
        different = difference(self._terms.run, hello.run)
        if different is not None:
            self._observer.rejected(admission.RUN, session.peer, different)
            theirs = difference(hello.run, self._terms.run)
            session.end(f"another run: {different}", told=f"another run: {theirs}")
            return
        session.agreed = True
        self._observer.met(session)
        for held in self.own():
            session.offer(held)

    def wanted_by(self, session: Session) -> None:
        """Offer the newest models here."""
        if self._intake.within_rate(session):
            others = [held for held in self._offerable() if held.peer != session.peer]
            for held in others[:WANT_LIMIT]:
                session.offer(held)

    def held_for(self, _session: Session, model: bytes) -> Held | None:
        """Whoever trains the same run may have any model here, and what is here of one to come."""
        coming = self.incoming.get(model)
        return self.find(model) or (coming.held if coming else None)

    def find(self, model: bytes) -> Held | None:
        """The held model with this envelope ID."""
        return next((held for held in self._library.held() if held.id == model), None)

    def have_from(self, session: Session, model: bytes, *, first: bool) -> None:
        """A peer has chunks for us, or fetches what we have: then it is told that we do."""
        if not self._intake.have(session, model) and first:
            held = self.find(model)
            if held is not None and held.peer not in (self.me, session.peer):
                session.tell(model, (1 << held.manifest.chunks) - 1)

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
        """Fetch the offered model, or say why not."""
        self._intake.offer(session, envelope, self.admit)

    # -- Keeper: where models come to lie --------------------------------------------------------

    def part(self, incoming: Incoming) -> PartFile:
        """The part file of a model, opened (in a thread); raises OSError or Refusal."""
        return self._library.part(incoming.offered)

    def file(self, incoming: Incoming, part: Path) -> None:
        """A whole model goes into the mailbox (in a thread); raises OSError."""
        self._library.file(incoming.offered, part)

    def filed(self, incoming: Incoming) -> None:
        """It is there."""
        self._observer.filed(incoming.offered)
