"""I/O: the peers that we know, and a connection to each of them.

Trackers say who joined and who left; for each known peer one task dials until there is a session,
waits for its end and dials again, later each time. Who dialled doesn't matter: a peer behind a NAT
that reaches us is a session like any other. A peer that all trackers have lost is forgotten when
its session ends; while no tracker answers, one that can't be reached is forgotten after a while.
All by our own clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from ..tracker.protocol import PeerRecord
from ..transport.address import Address
from ..transport.errors import TransportError
from ..transport.exchange import LEFT, Exchange
from ..transport.identity import short
from ..transport.link import Network
from ..transport.session import Session

# A connection and a handshake take three round trips; a blackholed address is given up after it.
DIAL_SECONDS = 5.0
# The waits between tries: soon again after a restart, never a storm.
RETRY_FIRST, RETRY_MOST = 0.5, 30.0
# A session that lasted so long starts the waits anew.
STEADY_SECONDS = 10.0
# Without a tracker's word: so long after the last sign of a peer it is forgotten.
FORGET_SECONDS = 60.0
# Peers we remember; far more than we hold connections to, few enough to bound memory.
KNOWN_LIMIT = 1000


@dataclass
class Known:
    """One peer that a tracker told of, or that came to us."""

    peer: str
    addresses: tuple[Address, ...] = ()
    trackers: set[str] = field(default_factory=set)
    state: str = "connecting"  # "connecting", "connected" or "lost"
    path: str = "connecting"
    heard: float = 0.0  # the last sign of it, by our clock
    why: str = ""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    wake: trio.Event = field(default_factory=trio.Event)


class Peers:
    """The table of known peers, and the tasks that connect to them."""

    def __init__(
        self,
        network: Network,
        exchange: Exchange,
        *,
        clock: Callable[[], float],
        chance: random.Random,
        confirmed: Callable[[], bool],
        log: Callable[[str, str], None],
    ) -> None:
        self._network, self._exchange = network, exchange
        self._clock, self._chance = clock, chance
        self._confirmed, self._log = confirmed, log
        self.known: dict[str, Known] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Own the dialling tasks until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    # -- what trackers and sessions tell ---------------------------------------------------------

    def joined(self, tracker: str, peer: str, record: PeerRecord) -> None:
        """A tracker lists this peer."""
        known = self._know(peer)
        if known is not None:
            known.trackers.add(tracker)
            known.addresses = record.addresses
            known.heard = self._clock()
            known.wake.set()

    def left(self, tracker: str, peer: str) -> None:
        """A tracker no longer lists this peer."""
        known = self.known.get(peer)
        if known is not None:
            known.trackers.discard(tracker)
            known.wake.set()
            if not known.trackers and peer not in self._exchange.sessions:
                self._forget(known, "no tracker lists it")

    def met(self, session: Session) -> None:
        """A session with this peer is in use."""
        known = self._know(session.peer)
        if known is not None:
            known.state, known.path = "connected", f"direct {session.link.remote}"
            known.heard = self._clock()

    def parted(self, session: Session) -> None:
        """A session ended, for whatever reason."""
        known = self.known.get(session.peer)
        if known is None or session.peer in self._exchange.sessions:
            return
        if session.ending == LEFT:
            self._log("info", f"{short(known.peer)} left")
        elif known.state == "connected":
            why = session.ending or "the connection broke"
            self._log("warning", f"lost {short(known.peer)}: {why}")
        known.state, known.path = "lost", "lost"
        known.heard, known.why = self._clock(), session.ending
        known.wake.set()
        if not known.trackers and self._confirmed():
            self._forget(known, "no tracker lists it")

    def _know(self, peer: str) -> Known | None:
        if peer == self._exchange.me:
            return None
        if peer not in self.known and len(self.known) < KNOWN_LIMIT and self._nursery:
            known = self.known[peer] = Known(peer, heard=self._clock())
            self._nursery.start_soon(self._keep, known)
        return self.known.get(peer)

    def _forget(self, known: Known, why: str) -> None:
        self._log("info", f"forgot {short(known.peer)}: {why}")
        self.known.pop(known.peer, None)
        known.scope.cancel()

    # -- one task a peer ---------------------------------------------------------------------------

    async def _keep(self, known: Known) -> None:
        """Have a session with this peer whenever it can be had."""
        wait = RETRY_FIRST
        with known.scope:
            while True:
                known.wake = trio.Event()
                if known.peer in self._exchange.sessions:
                    await known.wake.wait()
                    continue
                began = self._clock()
                await self._try(known)
                self._check_forgotten(known)
                steady = self._clock() - began > STEADY_SECONDS
                wait = RETRY_FIRST if steady else min(2 * wait, RETRY_MOST)
                with trio.move_on_after(wait * self._chance.uniform(0.5, 1.0)):
                    await known.wake.wait()

    def _check_forgotten(self, known: Known) -> None:
        silent = self._clock() - known.heard > FORGET_SECONDS
        listed = known.trackers and self._confirmed()
        if silent and not listed and known.peer not in self._exchange.sessions:
            self._forget(known, f"no sign of it for {FORGET_SECONDS:.0f} s")

    async def _try(self, known: Known) -> None:
        """Dial its addresses in turn; the first that answers is a whole session."""
        for address in known.addresses:
            if known.peer in self._exchange.sessions:
                return
            try:
                with trio.fail_after(DIAL_SECONDS):
                    link = await self._network.dial(address, "peer", known.peer)
            except trio.TooSlowError:
                known.why = f"{address}: no answer in {DIAL_SECONDS:.0f} s"
            except (TransportError, OSError) as error:
                known.why = str(error)
            else:
                try:
                    known.why = await self._exchange.serve(link)
                finally:
                    await link.aclose()
                return
