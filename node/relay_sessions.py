"""I/O: sessions with relays, each a task of its own from the dialled link to its end.

Several relays may be dialled at once; the first that answers is the nearest, the others are hung up
on before they are spoken to. What goes wrong is noted with the candidates, so that it is tried
again later each time. There is never more than one session, or dial, with one relay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import trio

from ..transport.errors import TransportError
from ..transport.link import Link, Network
from ..transport.messages import Hello
from ..transport.peer_address import PeerAddress
from .candidates import Candidates
from .race import DIAL_SECONDS

# A relay says hello and answers a ping at once; what doesn't for so long is none, or hangs.
HELLO_SECONDS = 5.0
# How often a new session is looked at until it has.
HELLO_LOOK_SECONDS = 0.05
# A session that lasted so long was a good one: its end is the first failure again.
STEADY_SECONDS = 10.0


class RelaySession(Protocol):
    """What is looked at of a session with a relay."""

    @property
    def hello(self) -> Hello | None:
        """What the relay has said of itself."""

    @property
    def ending(self) -> str:
        """Why it ends."""

    @property
    def round_trip(self) -> float | None:
        """Seconds there and back."""


class Hub(Protocol):
    """The exchange, as far as relays matter."""

    @property
    def me(self) -> str:
        """Our own peer ID."""

    @property
    def relays(self) -> Mapping[str, RelaySession]:
        """The sessions with relays, by their peer IDs."""

    async def serve_relay(self, link: Link) -> str:
        """The whole life of a link to a relay; gives the reason for its end."""

    def store(self) -> None:
        """Our models may lie at another relay now: offer the newest where it is to lie."""


@dataclass(eq=False)
class Kept:
    """A session with a relay; `took` is how long it took to be connected, `used` is when it was
    needed last."""

    place: PeerAddress
    took: float
    used: float
    greeted: bool = False  # the relay has said hello, and answered a ping
    ending: str = ""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


class Won(NamedTuple):
    """The relay that answered first, the link to it, and the seconds that it took."""

    place: PeerAddress
    link: Link
    took: float


class RelaySessions:
    """All sessions with relays; `on_end` is called when one is over."""

    def __init__(
        self,
        network: Network,
        exchange: Hub,
        candidates: Candidates,
        clock: Callable[[], float],
        on_end: Callable[[Kept], None],
    ) -> None:
        self._network, self._exchange, self._candidates = network, exchange, candidates
        self._clock, self._on_end = clock, on_end
        self.kept: dict[str, Kept] = {}  # by the relay's peer ID
        self.dialling: set[str] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Own the sessions until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    @property
    def busy(self) -> set[str]:
        """The relays that need not be dialled."""
        return {*self.kept, *self.dialling}

    def session(self, kept: Kept) -> RelaySession | None:
        """Its session, while it is one."""
        return None if kept.ended.is_set() else self._exchange.relays.get(kept.place.peer)

    def up(self, kept: Kept) -> bool:
        """Whether the relay is of use: it has said hello, and nobody goodbye."""
        session = self.session(kept)
        return session is not None and session.hello is not None and not session.ending

    async def have(self, places: Sequence[PeerAddress], within: float = math.inf) -> Kept | None:
        """A session with the first of these relays that answers within so many seconds.

        None where there is none, or it says nothing. The relays must not be busy.
        """
        relays = {place.peer for place in places}
        self.dialling |= relays
        try:
            won = await self._race(places, within)
            kept = self._begin(won) if won else None
        finally:
            self.dialling -= relays
        return kept if kept is not None and await self._greets(kept) else None

    # -- dialling ----------------------------------------------------------------------------------

    async def _race(self, places: Sequence[PeerAddress], within: float) -> Won | None:
        """Dial all of them; the first that answers."""
        answered: list[Won] = []

        async def attempt(place: PeerAddress) -> None:
            began = self._clock()
            link = await self._dial(place)
            if link is not None:
                answered.append(Won(place, link, self._clock() - began))
                nursery.cancel_scope.cancel()

        try:
            with trio.move_on_after(within):
                async with trio.open_nursery() as nursery:
                    for place in places:
                        nursery.start_soon(attempt, place)
        except BaseException:
            await _close(answered)
            raise
        await _close(answered[1:])  # two may answer at the same moment
        return answered[0] if answered else None

    async def _dial(self, place: PeerAddress) -> Link | None:
        try:
            with trio.fail_after(DIAL_SECONDS):
                return await self._network.dial(place.address, "relay", place.peer)
        except trio.TooSlowError:
            why = f"{place.address}: no answer in {DIAL_SECONDS:.0f} s"
        except (TransportError, OSError) as error:
            why = str(error)
        self._candidates.failed(place, why, self._clock())
        return None

    # -- one session -------------------------------------------------------------------------------

    def _begin(self, won: Won) -> Kept:
        assert self._nursery is not None
        kept = Kept(won.place, won.took, used=self._clock())
        self.kept[won.place.peer] = kept
        self._nursery.start_soon(self._serve, kept, won.link)
        return kept

    async def _serve(self, kept: Kept, link: Link) -> None:
        """One session to its end; what we end ourselves is no failure, unless we say why."""
        began = self._clock()
        try:
            with kept.scope:
                ending = await self._exchange.serve_relay(link)
                kept.ending = kept.ending or ending or "the connection broke"
        finally:
            del self.kept[kept.place.peer]
            kept.ended.set()
            with trio.CancelScope(shield=True):
                await link.aclose()
        if self._clock() - began > STEADY_SECONDS:
            self._candidates.worked(kept.place)
        if kept.ending:
            self._candidates.failed(kept.place, kept.ending, self._clock())
        self._on_end(kept)

    async def _greets(self, kept: Kept) -> bool:
        """Whether the relay says hello, and has nothing against ours; else it is hung up on."""
        with trio.move_on_after(HELLO_SECONDS):
            while not (kept.greeted or kept.ended.is_set()):
                await trio.sleep(HELLO_LOOK_SECONDS)
                session = self.session(kept)
                measured = session is not None and session.round_trip is not None
                kept.greeted = measured and self.up(kept)
        if not kept.greeted and not kept.ended.is_set():
            kept.ending = f"no hello in {HELLO_SECONDS:.0f} s"
            kept.scope.cancel()
            await kept.ended.wait()
        return kept.greeted


async def _close(answered: Sequence[Won]) -> None:
    with trio.CancelScope(shield=True):
        for won in answered:
            await won.link.aclose()
