"""I/O: offers of models, from the first check to the file: what a node and a relay do alike.

The keeper says what may come in and where it comes to lie; downloads.py decides what is fetched
when. Whatever becomes of an offer, who made it hears of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import trio

from . import admission
from .admission import Offered, Refusal
from .downloads import Downloads
from .incoming import Company, Incoming
from .messages import Done, Reject
from .parts import PartFile
from .session import Session


class Keeper(Protocol):
    """Who takes models in."""

    def part(self, incoming: Incoming) -> PartFile:
        """Open the part file (in a thread); raises OSError or Refusal."""

    def file(self, incoming: Incoming, part: Path) -> None:
        """Move a finished part file to where it belongs (in a thread); raises OSError."""

    def filed(self, incoming: Incoming) -> None:
        """A verified model lies there."""

    def rejected(self, reason: str, peer: str, detail: str) -> None:
        """Count what this peer did wrong."""


class Intake:
    """All models on their way in, over all sessions; of so many authors a model may wait."""

    def __init__(
        self, keeper: Keeper, clock: Callable[[], float], waiting: int, company: Company
    ) -> None:
        self._keeper, self._clock = keeper, clock
        self._downloads = Downloads(self, waiting, company)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the downloads until cancelled."""
        await self._downloads.run(task_status=task_status)

    @property
    def incoming(self) -> dict[bytes, Incoming]:
        """The models coming in, by envelope ID."""
        return self._downloads.incoming

    def offer(
        self, session: Session, envelope: bytes, admit: Callable[[bytes], Offered | None]
    ) -> None:
        """Fetch the offered model, or say why not; `admit` as admission.admit."""
        if not self.within_rate(session):
            return
        try:
            offered = admit(envelope)
            if offered is None:
                session.say(Done(admission.identify(envelope)))
            else:
                self._downloads.take(offered, session)
        except Refusal as refusal:
            self.refuse(session, admission.identify(envelope), refusal.reason, refusal.detail)

    def have(self, session: Session, model: bytes) -> bool:
        """A peer has told which chunks of a model it has; whether that is coming in here."""
        incoming = self.incoming.get(model)
        if incoming is not None:
            incoming.hear(session)
        return incoming is not None

    def within_rate(self, session: Session) -> bool:
        """Count an offer; a peer that makes too many floods us, and we part."""
        within = not session.offers.wait(self._clock())
        if not within:
            session.fail(admission.FLOOD, "too many offers")
        return within

    # -- Filer: what the downloads need ----------------------------------------------------------

    def part(self, incoming: Incoming) -> PartFile:
        """The part file of a model, opened (in a thread); raises OSError or Refusal."""
        return self._keeper.part(incoming)

    async def file(self, incoming: Incoming, part: PartFile) -> None:
        """A whole model goes to its place, and all who offered or sent it hear of it."""
        try:
            await trio.to_thread.run_sync(self._keeper.file, incoming, part.path)
        except OSError as error:
            detail = f"can't file the model: {error.strerror or error}"
            raise Refusal(admission.DISK, detail) from None
        self._keeper.filed(incoming)
        for session in dict.fromkeys([*incoming.offerers, *incoming.helpers]):
            session.say(Done(incoming.model))

    def refuse(self, session: Session, model: bytes, reason: str, detail: str) -> None:
        """Count why a model isn't taken, and tell who offered it.

        That it is for others is nobody's mistake: who passes it on may not know.
        """
        if reason != admission.RECIPIENT:
            self._keeper.rejected(reason, session.peer, detail)
        session.say(Reject(model, reason, detail))
