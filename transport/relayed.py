"""I/O: sessions with relays: our newest model goes there, and those of others come from there.

To us a relay is a peer that doesn't train. What it offers is taken as from any peer that passes on
models. It gets nothing from us but our own newest model, and only where the node says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from . import admission
from .admission import Offered
from .intake import Intake
from .link import Link
from .messages import RELAY_RUN, Hello, Reject, Want
from .outgoing import Held
from .pace import Limits
from .session import Session


class Side(Protocol):
    """Our side of such a session: what the exchange says, offers and admits."""

    async def hello_relay(self) -> Hello:
        """What a relay hears of what we train, as soon as that is known."""

    def own(self) -> list[Held]:
        """Our own newest model, if there is one that is worth an offer."""

    def admit(self, envelope: bytes) -> Offered | None:
        """As admission.admit, for what we train."""


class RelayObserver(Protocol):
    """What the node wants to know of its relays, and decides."""

    def stores(self, session: Session) -> bool:
        """Whether our own models are to lie at this relay."""

    def stored(self, session: Session, held: Held) -> None:
        """A relay holds our model."""

    def relay_met(self, session: Session) -> None:
        """A relay is ready for use."""

    def relay_parted(self, session: Session) -> None:
        """A session with a relay ended."""

    def rejected(self, reason: str, peer: str, detail: str) -> None:
        """A relay's mistake."""

    def refused(self, session: Session, reason: str, detail: str) -> None:
        """A relay refuses a model of ours."""


class Relayed:
    """All sessions with relays; their `Owner`."""

    def __init__(
        self,
        side: Side,
        observer: RelayObserver,
        intake: Intake,
        clock: Callable[[], float],
        limits: Limits,
    ) -> None:
        self._side, self._observer, self._intake, self._clock = side, observer, intake, clock
        self._limits = limits
        self.sessions: dict[str, Session] = {}
        self._stored: dict[Session, bytes] = {}  # the last model that we offered

    async def serve(self, link: Link) -> str:
        """One link's whole life, which we dialled; gives the reason for its end."""
        if link.peer in self.sessions:
            self.sessions[link.peer].close("connected anew")
        session = Session(link, self, self._clock, limits=self._limits, relay=True)
        self.sessions[link.peer] = session
        try:
            await session.run(self._side.hello_relay)
        finally:
            self._stored.pop(session, None)
            if self.sessions.get(link.peer) is session:
                del self.sessions[link.peer]
            self._observer.relay_parted(session)
        return session.ending

    def met(self) -> list[Session]:
        """The sessions that are in use."""
        return [s for s in self.sessions.values() if s.agreed and not s.ending]

    def store(self) -> set[Session]:
        """Offer our newest model to each relay where it is to lie, once: to these."""
        return {session for session in self.met() if self._store_at(session)}

    def _store_at(self, session: Session) -> bool:
        """Whether our newest model is to lie there; it is offered unless it was."""
        ours = self._side.own() if self._observer.stores(session) else []
        own = [held for held in ours if session.takes(held)]
        for held in own:
            if self._stored.get(session) != held.id:
                self._stored[session] = held.id
                session.offer(held)
        return bool(own)

    # -- Owner: what sessions report -------------------------------------------------------------

    def hello_from(self, session: Session, hello: Hello) -> None:
        """A relay: we want what lies there, and it gets our model."""
        if hello.run != RELAY_RUN:
            session.fail(admission.RUN, "this is no relay")
            return
        session.agreed = True
        self._observer.relay_met(session)
        session.say(Want())
        self._store_at(session)

    def offer_from(self, session: Session, envelope: bytes) -> None:
        """Fetch the offered model, or say why not."""
        self._intake.offer(session, envelope, self._side.admit)

    def wanted_by(self, session: Session) -> None:
        """The relay has our model no more."""
        if self._intake.within_rate(session):
            self._stored.pop(session, None)
            self._store_at(session)

    def held_for(self, _session: Session, model: bytes) -> Held | None:
        """Our own newest model, and no other."""
        return next((held for held in self._side.own() if held.id == model), None)

    def have_from(self, session: Session, model: bytes, *, first: bool) -> None:
        """Relays offer what they have; nothing follows from it."""

    def done_by(self, session: Session, model: bytes) -> None:
        """The relay holds our model."""
        held = self.held_for(session, model)
        if held is not None:
            self._observer.stored(session, held)

    def rejected(self, reason: str, peer: str, detail: str) -> None:
        """The relay's mistake, counted by the node."""
        self._observer.rejected(reason, peer, detail)

    def rejected_by(self, session: Session, message: Reject) -> None:
        """The relay refuses our model."""
        self._observer.refused(session, message.reason, message.detail)
