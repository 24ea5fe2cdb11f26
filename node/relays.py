"""I/O: the relays that this node uses, as a client: a home of its own, and those of others.

A node that others can't reach, or that can't reach somebody, keeps a session with one relay, its
home: its models lie there, and those of others come from there. Whichever of several relays answers
first is the nearest; every few minutes others have a chance to be clearly nearer. To get the models
of a peer whose home is another relay, there is a session with that one, too.

One task sees to the home, one to the followed peers, and one ends what has not been needed for a
while. So it doesn't matter for whom a session was begun, and one serves all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import trio

from ..transport import admission
from ..transport.link import Network
from ..transport.nat.reach import Claim, Confidence
from ..transport.peer_address import PeerAddress
from .candidates import Candidates, Places
from .relay_sessions import Hub, Kept, RelaySessions

# Sessions with relays, in all: one costs little, but any peer may name relays of its own. Two are
# for our home, and for the next one while it is replaced.
RELAY_SESSIONS, HOMES = 16, 2
# What share of the home's time another relay may take to count as clearly nearer, and how often
# that is looked at: whoever follows us has to change, too.
NEARER, NEARER_SECONDS = 0.7, 300.0
# A relay that isn't needed is kept for so long: a peer that is lost may be back soon, and who
# fetches our models from our last home hears of the next one by then.
LET_GO_SECONDS = 30.0
# A relay that refuses a model for one of these reasons takes the next one; one that refuses it for
# another, as its disk is full, is no home for so long, if there is another.
PASSING = {admission.STALE, admission.FLOOD}
REFUSED_SECONDS = 300.0
# How often it is looked at what is needed; what is lost is replaced at once.
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """A relay in use: `role` is "home" or "followed", `state` "connected" or "connecting",
    `round_trip` in seconds."""

    peer: str
    address: str
    role: str
    state: str
    round_trip: float | None


class Relays:
    """The way in through relays; also the way to the models of peers that use one.

    `needed()` says whether we want a home: this node isn't known to be reachable, or knows a peer
    that it isn't connected to. `news()` is called when the home has changed: others must be told.
    """

    name = "relay"

    def __init__(
        self,
        network: Network,
        exchange: Hub,
        *,
        clock: Callable[[], float],
        chance: random.Random,
        log: Callable[[str, str], None],
        needed: Callable[[], bool],
        news: Callable[[], None],
    ) -> None:
        self._exchange, self._clock, self._log = exchange, clock, log
        self._needed, self._news = needed, news
        self._candidates = Candidates(exchange.me, chance)
        self._sessions = RelaySessions(network, exchange, self._candidates, clock, self._ended)
        self._home: Kept | None = None
        self._told: PeerAddress | None = None  # the home that others know of
        self._compared = -math.inf  # when a nearer one was looked for
        self._wake = trio.Event()
        self._scope = trio.CancelScope()
        self._complained = False
        self._refusals: dict[str, float] = {}  # relays that don't take our model, and until when

    # -- what others tell --------------------------------------------------------------------------

    def offered(self, source: str, places: Places) -> None:
        """The relays that a tracker offers now, or a peer (itself); () takes them back."""
        self._candidates.offered(source, places)

    def follow(self, peer: str, places: Places) -> None:
        """We can't connect to this peer, its models lie there; () when that is past."""
        self._candidates.follow(peer, places)

    def stored(self, relay: str) -> None:
        """Our model lies at this relay (a peer ID)."""
        self._refusals.pop(relay, None)

    def refused(self, relay: str, reason: str) -> None:
        """This relay doesn't take our model: if its disk is full, another one is to be our home."""
        if reason not in PASSING:
            self._refusals[relay] = self._clock() + REFUSED_SECONDS
            self._wake.set()

    def changed(self) -> None:
        """The network has changed: what failed may work now, and another relay be nearer."""
        self._candidates.changed()
        self._compared = -math.inf
        self._wake.set()

    # -- what others ask ---------------------------------------------------------------------------

    @property
    def home(self) -> PeerAddress | None:
        """The relay where our models lie."""
        return self._home.place if self._home and self._sessions.up(self._home) else None

    def stores(self, relay: str) -> bool:
        """Whether our models are to lie at this relay (a peer ID)."""
        home = self.home
        return home is not None and home.peer == relay and self._needed()

    def via(self, peer: str) -> PeerAddress | None:
        """The relay through which the models of a followed peer come."""
        for relay in self._candidates.relays_of(peer):
            kept = self._sessions.kept.get(relay)
            if kept is not None and self._sessions.up(kept):
                return kept.place
        return None

    def claims(self, now: float) -> tuple[Claim, ...]:
        """Our home, while we are there."""
        home = self.home
        return (Claim(home.address, Confidence.PROVED, relay=home.peer),) if home else ()

    def statuses(self) -> tuple[RelayStatus, ...]:
        """All relays in use, our home first."""
        order = sorted(self._sessions.kept.values(), key=lambda kept: kept is not self._home)
        return tuple(map(self._status, order))

    @property
    def detail(self) -> str:
        """For people: our home, and how many relays more there are."""
        up = [status for status in self.statuses() if status.state == "connected"]
        homes = [f"our models lie at {s.address}{_in_ms(s)}" for s in up if s.role == "home"]
        more = len(up) - len(homes)
        others = [f"those of others come from {more}{' more' * len(homes)}"] if more else []
        return ", ".join(homes + others)

    def _status(self, kept: Kept) -> RelayStatus:
        session = self._sessions.session(kept)
        return RelayStatus(
            peer=kept.place.peer,
            address=str(kept.place.address),
            role="home" if kept is self._home else "followed",
            state="connected" if self._sessions.up(kept) else "connecting",
            round_trip=session.round_trip if session else None,
        )

    # -- life --------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Have the relays that are needed, until cancelled, or we leave."""
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._sessions.run)
                for task in (self._keep_home, self._keep_followed, self._keep_tidy):
                    nursery.start_soon(task)
                task_status.started()

    def leave(self) -> None:
        """The node stops: close all sessions, and have no others."""
        self._scope.cancel()

    async def _keep_home(self) -> None:
        """Have one relay that is ours while it is needed; replace it at once when it is lost."""
        while True:
            self._wake = trio.Event()
            home = self._home
            lost = home is None or home.ended.is_set() or home.place.peer in self._refusing()
            due = self._clock() >= self._compared + NEARER_SECONDS
            if self._needed() and (lost or due):
                self._home = await self._choose()
            self._tell()
            self._exchange.store()
            with trio.move_on_after(LOOK_SECONDS):
                await self._wake.wait()

    async def _choose(self) -> Kept | None:
        """The best relay that is there already, or one that is clearly nearer."""
        self._compared = self._clock()
        best, refusing = self._best(), self._refusing()
        settled = best is not None and best.place.peer not in refusing
        within = NEARER * best.took if best and settled else math.inf
        places = self._candidates.to_race(self._compared, self._sessions.busy | refusing)
        if best is None and not places:
            places = self._candidates.to_race(self._compared, self._sessions.busy)
        nearer = await self._sessions.have(places, within)
        if nearer is None and best is None and places:
            self._complain(places)
        return nearer or best

    def _best(self) -> Kept | None:
        """The nearest of the relays that we have, which is our home unless another clearly is.

        One that refuses our model only where there is no other: those of others still come from it.
        """
        able = [
            kept
            for relay, kept in self._sessions.kept.items()
            if self._sessions.up(kept) and (kept is self._home or self._candidates.offers(relay))
        ]
        # An offer may have been taken back from our home: as long as it serves us, it is one.
        weigh = {True: NEARER, False: 1.0}
        refusing = self._refusing()

        def rank(kept: Kept) -> tuple[bool, float]:
            return kept.place.peer in refusing, kept.took * weigh[kept is self._home]

        return min(able, key=rank, default=None)

    def _refusing(self) -> set[str]:
        """The relays (peer IDs) that didn't take our model just now."""
        now = self._clock()
        self._refusals = {relay: until for relay, until in self._refusals.items() if until > now}
        return set(self._refusals)

    async def _keep_followed(self) -> None:
        """Have a relay of each followed peer, as long as there is room."""
        async with trio.open_nursery() as nursery:
            while True:
                busy = self._sessions.busy
                room = max(0, RELAY_SESSIONS - HOMES - len(busy))
                for place in self._candidates.to_follow(self._clock(), busy)[:room]:
                    self._sessions.dialling.add(place.peer)
                    nursery.start_soon(self._sessions.have, [place])
                await trio.sleep(LOOK_SECONDS)

    async def _keep_tidy(self) -> None:
        """End the sessions that haven't been needed for a while."""
        while True:
            now = self._clock()
            for relay, kept in self._sessions.kept.items():
                ours = kept is self._home and self._needed()
                if ours or not kept.greeted or self._candidates.followed_at(relay):
                    kept.used = now
                elif now - kept.used > LET_GO_SECONDS:
                    kept.scope.cancel()
            await trio.sleep(LOOK_SECONDS)

    # -- telling -----------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Tell of a new home, or that there is none."""
        home = self.home
        if home == self._told:
            return
        self._told = home
        if home is not None:
            self._complained = False
            self._log("info", f"our models lie at relay {home.address} for who can't reach us")
        self._news()

    def _complain(self, places: list[PeerAddress]) -> None:
        """Say once that no relay can be had."""
        if not self._complained:
            whys = "; ".join(map(self._candidates.why, places))
            self._log("warning", f"no relay answers: {whys}")
        self._complained = True

    def _ended(self, kept: Kept) -> None:
        """A session is over: if it was our home's, there must be another at once."""
        if kept.ending and kept.greeted:  # of one that was never of use `_complain` tells
            whose = "our relay" if kept is self._home else "relay"
            self._log("warning", f"lost {whose} {kept.place.address}: {kept.ending}")
        self._wake.set()


def _in_ms(status: RelayStatus) -> str:
    return f" ({1000 * status.round_trip:.0f} ms away)" if status.round_trip else ""
