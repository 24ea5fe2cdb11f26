"""I/O: the peers that we know, and a connection to each of them.

Trackers say who joined and who left; for each known peer one task dials until there is a session,
waits for its end and dials again, later each time; it waits, too, while there is no room for
another session. Who dialled doesn't matter: a peer behind a NAT that reaches us is a session like
any other. A peer that no tracker lists is forgotten when its session ends. While no tracker
answers, one that can't be reached is forgotten after a while, by our own clock; it is known again
as soon as a tracker that lists it answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from ..tracker.record import PeerRecord
from ..transport.address import Address
from ..transport.errors import TransportError
from ..transport.exchange import LEFT, Exchange
from ..transport.identity import short
from ..transport.link import Link, Network
from ..transport.session import Session

# A connection and a handshake take three round trips; a blackholed address is given up after it.
DIAL_SECONDS = 5.0
# So much later the next address is dialled while one hasn't answered (RFC 8305 says a quarter of a
# second for a connection; a handshake has two round trips more).
STAGGER_SECONDS = 0.5
# The waits between tries: soon again after a restart, never a storm.
RETRY_FIRST, RETRY_MOST = 0.5, 30.0
# A session that lasted so long starts the waits anew.
STEADY_SECONDS = 10.0
# Without a tracker's word: so long after the last sign of a peer it is forgotten, as by a tracker.
FORGET_SECONDS = 30.0
# How often what trackers say is compared with whom we know.
REVIEW_SECONDS = 1.0
# Peers we remember; far more than we hold connections to, few enough to bound memory.
KNOWN_LIMIT = 1000


@dataclass
class Listing:
    """What trackers say of one peer."""

    addresses: tuple[Address, ...] = ()
    trackers: set[str] = field(default_factory=set)


@dataclass
class Known:
    """One peer that we connect to: a tracker lists it, or it came to us."""

    peer: str
    heard: float  # when it spoke last, by our clock
    sign: float  # the same, or when a tracker listed it last
    state: str = "connecting"  # "connecting", "connected" or "lost"
    path: str = "connecting"
    trouble: str = ""  # why dialling it failed
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    news: trio.Event = field(default_factory=trio.Event)  # a tracker told of it: dial now
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
    ) -> None:
        self._network, self._exchange = network, exchange
        self._clock, self._chance = clock, chance
        self._answering, self._log = answering, log
        self.known: dict[str, Known] = {}
        self._listed: dict[str, Listing] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Own the dialling tasks until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                self._review()
                await trio.sleep(REVIEW_SECONDS)

    # -- what trackers and sessions tell ---------------------------------------------------------

    def joined(self, tracker: str, peer: str, record: PeerRecord) -> None:
        """A tracker lists this peer."""
        if peer not in self._listed and len(self._listed) >= KNOWN_LIMIT:
            return
        listing = self._listed.setdefault(peer, Listing())
        listing.trackers.add(tracker)
        listing.addresses = record.addresses
        known = self._know(peer)
        if known is not None:
            known.sign = self._clock()
            known.news.set()

    def left(self, tracker: str, peer: str) -> None:
        """A tracker no longer lists this peer."""
        listing = self._listed.get(peer)
        if listing is None:
            return
        listing.trackers.discard(tracker)
        if not listing.trackers:
            del self._listed[peer]
            if peer not in self._exchange.sessions:
                self._forget(peer, "no tracker lists it")

    def met(self, session: Session) -> None:
        """A session with this peer is in use."""
        known = self._know(session.peer)
        if known is not None:
            known.state, known.path = "connected", f"direct {session.link.remote}"
            known.heard = known.sign = self._clock()
            known.trouble = ""

    def parted(self, session: Session) -> None:
        """A session ended, for whatever reason."""
        known = self.known.get(session.peer)
        if known is None or session.peer in self._exchange.sessions:
            return
        known.ended.set()
        if known.state == "connected":
            if session.ending == LEFT:
                self._log("info", f"{short(known.peer)} left")
            else:
                why = session.ending or "the connection broke"
                self._log("warning", f"lost {short(known.peer)}: {why}")
            known.state, known.path = "lost", "lost"
            known.heard = known.sign = self._clock()
        if known.peer not in self._listed and self._answering():
            self._forget(known.peer, "no tracker lists it")

    # -- who is known ----------------------------------------------------------------------------

    def _know(self, peer: str) -> Known | None:
        if peer == self._exchange.me:
            return None
        if peer not in self.known and len(self.known) < KNOWN_LIMIT and self._nursery:
            now = self._clock()
            known = self.known[peer] = Known(peer, heard=now, sign=now)
            self._nursery.start_soon(self._keep, known)
        return self.known.get(peer)

    def _forget(self, peer: str, why: str) -> None:
        known = self.known.pop(peer, None)
        if known is not None:
            known.scope.cancel()
            self._log("info", f"forgot {short(peer)}: {why}")

    def _review(self) -> None:
        """Know whom an answering tracker lists; forget whom nobody has seen for long."""
        answering, now = self._answering(), self._clock()
        for peer, listing in self._listed.items():
            if listing.trackers & answering and (known := self._know(peer)) is not None:
                known.sign = now
        for peer, known in list(self.known.items()):
            if now - known.sign > FORGET_SECONDS and peer not in self._exchange.sessions:
                self._forget(peer, f"no sign of it for {FORGET_SECONDS:.0f} s")

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
        link = None if busy else await self._dial(known)
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

    async def _dial(self, known: Known) -> Link | None:
        """Dial its addresses, each a little after the one before; the first that answers counts."""
        listing = self._listed.get(known.peer)
        race = _Race(self._network, known.peer, listing.addresses if listing else ())
        link = await race.run(lambda: known.peer in self._exchange.sessions)
        if link is None and known.peer not in self._exchange.sessions:
            self._tell(known, race.trouble)
        return link

    def _tell(self, known: Known, trouble: str) -> None:
        """Say why it can't be reached, once."""
        if trouble and trouble != known.trouble:
            self._log("info", f"can't reach {short(known.peer)}: {trouble}")
        known.trouble = trouble


class _Race:
    """Several addresses of one peer are dialled; one that never answers holds up no other."""

    def __init__(self, network: Network, peer: str, addresses: tuple[Address, ...]) -> None:
        self._network, self._peer = network, peer
        self._addresses = addresses
        self._links: list[Link] = []
        self._troubles: dict[Address, str] = {}

    @property
    def trouble(self) -> str:
        """Why nobody answered."""
        return "; ".join(self._troubles[a] for a in self._addresses if a in self._troubles)

    async def run(self, over: Callable[[], bool]) -> Link | None:
        """The first link, or None where there is none, or `over()` says that none is needed."""
        try:
            async with trio.open_nursery() as nursery:
                for address in self._addresses:
                    failed = trio.Event()
                    nursery.start_soon(self._try, address, failed, nursery.cancel_scope)
                    with trio.move_on_after(STAGGER_SECONDS):
                        await failed.wait()
                    if over():
                        nursery.cancel_scope.cancel()
                        break
        except BaseException:
            await self._close(self._links)
            raise
        await self._close(self._links[1:])
        return self._links[0] if self._links else None

    async def _try(self, address: Address, failed: trio.Event, race: trio.CancelScope) -> None:
        try:
            with trio.fail_after(DIAL_SECONDS):
                self._links.append(await self._network.dial(address, "peer", self._peer))
            race.cancel()
        except trio.TooSlowError:
            self._troubles[address] = f"{address}: no answer in {DIAL_SECONDS:.0f} s"
        except (TransportError, OSError) as error:
            self._troubles[address] = str(error)
        failed.set()

    @staticmethod
    async def _close(links: list[Link]) -> None:
        """Two may answer at the same moment."""
        with trio.CancelScope(shield=True):
            for link in links:
                await link.aclose()
