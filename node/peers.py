"""I/O: the peers that we know, and a connection to each of them.

Others say who there is (listings.py); for each known peer one task dials until there is a session,
waits for its end and dials again, later each time; it waits, too, while there is no room for
another session. Who dialled doesn't matter: a peer behind a NAT that reaches us is a session like
any other. Where dialling fails, `Detours` help: its models come through a relay from now on, and a
hole may be punched. A peer of which nobody told us is forgotten when its session ends, if a tracker
answers; any other that can't be reached is forgotten after a while, by our own clock, when nobody
who answers lists it. It is known again as soon as somebody does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from ..tracker.record import PeerRecord
from ..transport.address import Address
from ..transport.bucket import Bucket
from ..transport.exchange import LEFT, Exchange
from ..transport.identity import short
from ..transport.link import Link, Network
from ..transport.peer_address import PeerAddress
from ..transport.session import Session
from .detours import Detours, Places
from .listings import LAN, Listings, member
from .race import Race

# The waits between tries: soon again after a restart, never a storm.
RETRY_FIRST, RETRY_MOST = 0.5, 30.0
# A session that lasted so long starts the waits anew.
STEADY_SECONDS = 10.0
# Without anybody's word: so long after the last sign of a peer it is forgotten, as by a tracker.
FORGET_SECONDS = 30.0
# Peers we remember; far more than we hold connections to, few enough to bound memory.
KNOWN_LIMIT = 1000
# How often what others say is compared with whom we know.
REVIEW_SECONDS = 1.0
# News of a peer make us dial it at once, so many times in a row and then so many a second: it could
# send us to others' doors otherwise.
NEWS_PER_SECOND, NEWS_BURST = 0.1, 3
# An address that hasn't answered by then is mostly one that never will: dialling goes on, but the
# models needn't wait for it.
DETOUR_SECONDS = 1.5
# Without a session for so long: it isn't about to dial us.
UNCONNECTED_SECONDS = 5.0


@dataclass
class Known:
    """One peer that we connect to: somebody lists it, or it came to us."""

    peer: str
    heard: float  # when it spoke last, by our clock
    sign: float  # the same, or when somebody listed it last
    state: str = "connecting"  # "connecting", "connected", "relayed" or "lost"
    path: str = "connecting"
    relays: Places = ()  # where it says that its models lie
    relay: Places = ()  # where it relays itself
    trouble: str = ""  # why dialling it failed
    since: float = 0.0  # when it was known first, or its last session ended
    unreached: bool = False  # dialling it has failed, and there was no session since
    trying: trio.CancelScope | None = None  # while it is dialled
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    news: trio.Event = field(default_factory=trio.Event)  # dial now
    haste: Bucket = field(default_factory=lambda: Bucket(NEWS_PER_SECOND, NEWS_BURST))
    ended: trio.Event = field(default_factory=trio.Event)  # its session is over


class Peers:
    """The table of known peers, and the tasks that connect to them.

    `answering()` gives the trackers that answer now, by the names that `joined` and `left` use.
    """

    def __init__(
        self,
        network: Network,
        exchange: Exchange,
        *,
        clock: Callable[[], float],
        chance: random.Random,
        answering: Callable[[], set[str]],
        log: Callable[[str, str], None],
        detours: Detours | None = None,
    ) -> None:
        self._network, self._exchange = network, exchange
        self._clock, self._chance = clock, chance
        self._answering, self._log = answering, log
        self._detours = detours or Detours()
        self.known: dict[str, Known] = {}
        self._listings = Listings(KNOWN_LIMIT)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Own the dialling tasks until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                self._review()
                await trio.sleep(REVIEW_SECONDS)

    @property
    def unconnected(self) -> tuple[str, ...]:
        """The peers that we would have a session with, and can't."""
        before = self._clock() - UNCONNECTED_SECONDS
        return tuple(k.peer for k in self.known.values() if k.unreached and k.since < before)

    # -- what others and sessions tell -----------------------------------------------------------

    def joined(self, source: str, peer: str, record: PeerRecord) -> None:
        """A tracker, or a peer (`member`), lists this peer."""
        self._heard_of(peer, new=self._listings.joined(source, peer, record))

    def found(self, peer: str, hints: tuple[Address, ...]) -> None:
        """This peer is said to be on the local network."""
        self._heard_of(peer, new=self._listings.found(peer, hints))

    def left(self, tracker: str, peer: str) -> None:
        """A tracker no longer lists this peer."""
        if self._listings.left(tracker, peer) and peer not in self._exchange.sessions:
            self._forget(peer, "no tracker lists it")

    def lost(self, source: str, peer: str) -> None:
        """A source that isn't a tracker (`member`, LAN) doesn't see this peer any more."""
        self._listings.lost(source, peer)

    def met(self, session: Session) -> None:
        """A session with this peer is in use."""
        known = self._know(session.peer)
        if known is not None:
            known.state, known.path = "connected", f"direct {session.link.remote}"
            known.heard = known.sign = self._clock()
            known.trouble = ""
            self._reached(known)

    def parted(self, session: Session) -> None:
        """A session ended, for whatever reason."""
        known = self.known.get(session.peer)
        if known is None or session.peer in self._exchange.sessions:
            return
        known.ended.set()
        known.since = self._clock()
        if known.state == "connected":
            self._tell_end(known, session.ending)
            known.state, known.path = "lost", "lost"
            known.heard = known.sign = self._clock()
        if self._is_over(known.peer, session.ending):
            self._forget(known.peer, "nobody lists it")

    def _tell_end(self, known: Known, ending: str) -> None:
        if ending == LEFT:
            self._log("info", f"{short(known.peer)} left")
        else:
            why = ending or "the connection broke"
            self._log("warning", f"lost {short(known.peer)}: {why}")

    def _is_over(self, peer: str, ending: str) -> bool:
        """Whether nothing is left of a peer but the session that ended."""
        listing = self._listings[peer]
        if listing.sources - {member(peer)}:
            return False
        return ending == LEFT or (listing.record is None and bool(self._answering()))

    # -- who is known ----------------------------------------------------------------------------

    def _heard_of(self, peer: str, *, new: bool) -> None:
        if self._listings[peer].sources and (known := self._know(peer)) is not None:
            known.sign = self._clock()
            self._note_relays(known)
            if new and known.haste.free(known.sign):
                self._hasten(known)

    def _hasten(self, known: Known) -> None:
        """Dial it now, and not where it was."""
        self._detours.moved(known.peer)
        known.haste.wait(self._clock())
        known.news.set()
        if known.trying is not None and known.peer not in self._exchange.sessions:
            known.trying.cancel()

    def _note_relays(self, known: Known) -> None:
        """What its record says of relays."""
        record = self._listings[known.peer].record
        if record is None:
            return
        places = tuple(PeerAddress(known.peer, a) for a in record.addresses if record.relay)
        if places != known.relay:
            known.relay = places
            self._detours.offered(known.peer, places)
        if record.relays != known.relays:
            known.relays = record.relays
            if known.unreached:
                self._detours.unreached(known.peer, known.relays)

    def _know(self, peer: str) -> Known | None:
        if peer == self._exchange.me:
            return None
        if peer not in self.known and len(self.known) < KNOWN_LIMIT and self._nursery:
            now = self._clock()
            known = self.known[peer] = Known(peer, heard=now, sign=now, since=now)
            self._note_relays(known)
            self._nursery.start_soon(self._keep, known)
        return self.known.get(peer)

    def _forget(self, peer: str, why: str) -> None:
        known = self.known.pop(peer, None)
        if known is not None:
            known.scope.cancel()
            self._reached(known)
            if known.relay:
                self._detours.offered(peer, ())
            self._log("info", f"forgot {short(peer)}: {why}")

    def _reached(self, known: Known) -> None:
        """Nobody else needs to hold its models for us."""
        if known.unreached:
            known.unreached = False
            self._detours.unreached(known.peer, ())

    def _review(self) -> None:
        """Know whom those who answer list; forget whom nobody has seen for long."""
        now = self._clock()
        for peer in list(self._listings.by(self._sources())):
            if (known := self._know(peer)) is not None:
                known.sign = now
        for peer, known in list(self.known.items()):
            self._show(known)
            if now - known.sign > FORGET_SECONDS and peer not in self._exchange.sessions:
                self._forget(peer, f"no sign of it for {FORGET_SECONDS:.0f} s")
        self._listings.prune(self.known)

    def _sources(self) -> set[str]:
        """Whose word counts now."""
        return self._answering() | {LAN} | {member(peer) for peer in self._exchange.sessions}

    def _show(self, known: Known) -> None:
        """Say which relay stands in for a session, if one does."""
        if known.state == "connected":
            return
        relay = self._detours.via(known.peer) if known.unreached else None
        if relay is not None:
            known.state, known.path = "relayed", f"relay {relay.address}"
        elif known.state == "relayed":
            known.state = known.path = "connecting"

    # -- one task a peer ---------------------------------------------------------------------------

    async def _keep(self, known: Known) -> None:
        """Have a session with this peer whenever it can be had."""
        wait = RETRY_FIRST
        with known.scope:
            while True:
                known.news = trio.Event()
                steady = await self._talk(known) > STEADY_SECONDS
                wait = RETRY_FIRST if steady else min(2 * wait, RETRY_MOST)
                with trio.move_on_after(wait * self._chance.uniform(0.5, 1.0)):
                    await known.news.wait()

    async def _talk(self, known: Known) -> float:
        """The session that is there, or one that we dial, to its end: how long it lasted."""
        busy = known.peer in self._exchange.sessions or self._exchange.full
        link = None if busy else await self._reach(known)
        began = self._clock()
        if link is not None:
            try:
                await self._exchange.serve(link)
            finally:
                await link.aclose()
        elif known.peer in self._exchange.sessions:
            known.ended = trio.Event()
            await known.ended.wait()
        return self._clock() - began

    async def _reach(self, known: Known) -> Link | None:
        """Dial it; if that fails, punch. Meanwhile its models come through a relay."""
        link = None
        with trio.CancelScope() as known.trying:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._detour_soon, known)
                link = await self._dial(known)
                nursery.cancel_scope.cancel()
            if link is None and known.peer not in self._exchange.sessions:
                self._detour(known)
                if self._detours.punch is not None:
                    link = await self._detours.punch(known.peer)
        known.trying = None
        return link

    async def _detour_soon(self, known: Known) -> None:
        await trio.sleep(DETOUR_SECONDS)
        if known.peer not in self._exchange.sessions:
            self._detour(known)

    def _detour(self, known: Known) -> None:
        """It can't be dialled: let its models come through a relay."""
        if not known.unreached:
            known.unreached = True
            self._detours.unreached(known.peer, known.relays)

    async def _dial(self, known: Known) -> Link | None:
        """Dial its addresses, each a little after the one before; the first that answers counts."""
        race = Race(self._network, known.peer, self._listings[known.peer].addresses)
        link = await race.run(lambda: known.peer in self._exchange.sessions)
        if link is None and known.peer not in self._exchange.sessions:
            self._tell(known, race.trouble)
        return link

    def _tell(self, known: Known, trouble: str) -> None:
        """Say why it can't be reached, once."""
        if trouble and trouble != known.trouble:
            self._log("info", f"can't reach {short(known.peer)}: {trouble}")
        known.trouble = trouble
