"""I/O: how a newcomer starts: from the swarm's newest models if there are any, without hanging.

While the worker was loading, trackers and peers have mostly answered. What is left is bounded:
a few seconds for contact; then, only where a peer says that it has a model, as long as models keep
coming in. With nobody there the first epoch begins at once.

    auto      as above        never   begin at once        require   wait for a model, and say so
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from ..transport.exchange import Exchange
from ..transport.messages import Want
from ..transport.session import Session
from .mailbox import Mailbox

# Trackers and peers that haven't answered in this time are slower than an epoch is worth.
CONTACT_SECONDS = 5.0
# Models to start from: their average is better than each, and three are enough for that.
ENOUGH = 3
# No byte for this long: begin with what is here.
STALL_SECONDS = 15.0
# However the bytes trickle in: at least so long, and for large models at so many bytes a second
# (30 Mbit/s). Who is slower can't hold up the start.
GATHER_SECONDS, GATHER_RATE = 300.0, 4e6
# How often what others changed is looked at; a newcomer's start isn't worth more machinery.
LOOK_SECONDS = 0.05

Log = Callable[[str, str], None]


class Swarm(Protocol):
    """What is known of the others."""

    def settled(self) -> bool:
        """Whether every tracker has answered, or is known not to."""

    def listed(self) -> int:
        """How many other peers there should be."""


class Start:
    """Decides when the first epoch begins."""

    def __init__(
        self,
        mode: str,
        swarm: Swarm,
        exchange: Exchange,
        mailbox: Mailbox,
        clock: Callable[[], float],
    ) -> None:
        self._mode, self._swarm = mode, swarm
        self._exchange, self._mailbox, self._clock = exchange, mailbox, clock
        self._waiting = False
        self._filed = 0

    def met(self, session: Session) -> None:
        """A peer is there: ask it for models while we wait for some."""
        if self._waiting:
            session.say(Want())

    def filed(self) -> None:
        """A model came in."""
        self._filed += 1

    async def wait(self, log: Log) -> bool:
        """Until the first epoch may begin; whether it should start from the mailbox's models."""
        if self._mode == "never":
            return False
        self._waiting = True
        self._exchange.want()
        try:
            if self._mode == "require":
                await self._require(log)
            else:
                await self._contact()
            await self._gather()
        finally:
            self._waiting = False
        return True

    async def _require(self, log: Log) -> None:
        log("info", "waiting for a model of the swarm to start from (--bootstrap require)")
        while not self._mailbox.models():
            await trio.sleep(LOOK_SECONDS)

    async def _contact(self) -> None:
        """Until the peers that should be there are met, at most CONTACT_SECONDS."""
        with trio.move_on_after(CONTACT_SECONDS):
            while not self._swarm.settled() or len(self._exchange.met()) < self._expected():
                await trio.sleep(LOOK_SECONDS)

    def _expected(self) -> int:
        return min(self._swarm.listed(), ENOUGH)

    async def _gather(self) -> None:
        """As long as models come in, until there are enough."""
        progress, since = self._progress(), self._clock()
        began, most = since, GATHER_SECONDS
        while self._more_to_come() and self._clock() - since < STALL_SECONDS:
            most = max(most, self._fair_seconds())
            if self._clock() - began >= most:
                return
            await trio.sleep(LOOK_SECONDS)
            if self._progress() != progress:
                progress, since = self._progress(), self._clock()

    def _fair_seconds(self) -> float:
        """How long enough models of the present size take at GATHER_RATE."""
        sizes = [i.offered.manifest.size for i in self._exchange.incoming.values()]
        return ENOUGH * max(sizes, default=0) / GATHER_RATE

    def _more_to_come(self) -> bool:
        """Whether peers have newer models than are here, and of too few the newest is here."""
        here = {held.peer: held.manifest.epoch for held in self._mailbox.models()}
        if self._exchange.relays and self._exchange.incoming and len(here) < ENOUGH:
            return True  # those of peers that we can't connect to
        there = {s.peer: s.hello.epoch for s in self._exchange.met() if s.hello and s.hello.epoch}
        complete = sum(here.get(peer, 0) >= epoch for peer, epoch in there.items())
        return complete < min(len(there), ENOUGH)

    def _progress(self) -> tuple[int, int]:
        coming = sum(i.download.bytes_here for i in self._exchange.incoming.values())
        return self._filed, coming
