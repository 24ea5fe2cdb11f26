"""I/O: punching holes: calls through the trackers, and both sides of an attempt.

Strategy: one attempt for a peer at a time, as the table of transport/nat/punch.py says. What comes
in moves the attempt on at once; its task connects when it is due and says what is to be said. The
lower peer ID calls; the other one waits for that, and calls by itself if nothing comes. After three
tries the peer is left alone for minutes.

Most NATs let nobody in, and then nothing comes of it: a relay carries the models, and nobody waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from secrets import token_bytes
from typing import Final, Protocol

import trio

from ..tracker.errors import TrackerError
from ..transport.address import Address
from ..transport.errors import CallError, TransportError
from ..transport.identity import Identity, short
from ..transport.link import Link, Network
from ..transport.nat.calls import ADDRESSES, NONCE, Call, Ear, Step, is_target, targets
from ..transport.nat.holes import reaches
from ..transport.nat.punch import Attempt, State, prevails
from ..transport.nat.punching import Punched
from .punch_limits import PunchLimits, Rests

TRIES: Final = 3
"""As in DCUtR: 97.6 % of those that worked at all worked at the first."""

TURN_SECONDS: Final = 10.0
"""So long the other side may take to call: it fails to dial us first, which takes five seconds."""

CALL_SECONDS: Final = 20.0
"""Our calls are valid for so long: an attempt takes seven, through slow trackers a few more."""

TRACKERS: Final = 3
"""A call goes through so many trackers at once: one may be slow, or know a contact that is dead."""


class Courier(Protocol):
    """A tracker, as far as it hands on calls."""

    def knows(self, peer: str) -> bool:
        """Whether a call to this peer can be tried."""

    async def call(self, peer: str, envelope: bytes) -> None:
        """Hand it on; raises TransportError or TrackerError."""


@dataclass(eq=False)
class _Running:
    """An attempt and its task."""

    peer: str
    attempt: Attempt
    own: tuple[Address, ...] = ()
    say: Step | None = None  # at once
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    news: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)


class Puncher:
    """All attempts of this node.

    `trackers` gives those that can carry calls, `guesses` where our listening port may be seen
    besides what STUN servers say, `knows` whether a peer is one of the swarm that we aren't
    connected with. `on_link` serves a link that came of another's call; it is closed afterwards.
    """

    def __init__(
        self,
        network: Network,
        identity: Identity,
        swarm: str,
        punched: Punched,
        *,
        trackers: Callable[[], Iterable[Courier]],
        guesses: Callable[[], tuple[Address, ...]],
        knows: Callable[[str], bool],
        on_link: Callable[[Link], Awaitable[object]],
        wall: Callable[[], float],
        log: Callable[[str, str], None],
    ) -> None:
        self._network, self._identity, self._swarm = network, identity, swarm
        self._punched, self._trackers, self._guesses = punched, trackers, guesses
        self._knows, self._on_link = knows, on_link
        self._wall, self._log = wall, log
        self._ear = Ear(identity.peer_id, swarm)
        self._limits, self._rests = PunchLimits(), Rests()
        self._running: dict[str, _Running] = {}
        self._expected: dict[str, trio.Event] = {}
        self._created = 0.0
        self._network_seen = 0
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer calls until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    # -- the node's side -------------------------------------------------------------------------

    async def attempt(self, peer: str) -> Link | None:
        """A link with this peer, to which dialling leads nowhere; None where there is none.

        Also where the peer has called us meanwhile: such a link goes to `on_link`.
        """
        if self._network_seen != self._punched.networks:
            self._network_seen, self._rests = self._punched.networks, Rests()
        if not self._rests.over(peer, trio.current_time()) or not self._couriers(peer):
            return None
        if peer not in self._running and not prevails(self._identity.peer_id, peer):
            await self._await_call(peer)
        link = None if peer in self._running else await self._call(peer)
        if link is None and peer in self._running:
            await self._running[peer].done.wait()
        return link

    def heard(self, envelope: bytes) -> None:
        """A tracker hands us a call; whoever it is from, it does no harm."""
        try:
            peer, call = self._ear.hear(envelope, self._wall())
        except CallError:
            return  # for another, expired, heard before: nothing that people could mend
        running = self._running.get(peer)
        if call.step is Step.CALL:
            self._called(peer, call, running)
        elif running is not None:
            running.say = running.attempt.hear(call, trio.current_time()) or running.say
            running.news.set()

    def met(self, peer: str) -> None:
        """There is a connection: what is going on is needed no more."""
        self._rests.end(peer)
        if peer in self._running:
            self._running[peer].scope.cancel()

    def moved(self, peer: str) -> None:
        """The peer has other addresses now: what failed before may work."""
        self._rests.end(peer)

    # -- calling ---------------------------------------------------------------------------------

    async def _await_call(self, peer: str) -> None:
        """It is for the other side to call; until it does, or doesn't."""
        called = self._expected.setdefault(peer, trio.Event())
        try:
            with trio.move_on_after(TURN_SECONDS):
                await called.wait()
        finally:
            self._expected.pop(peer, None)

    async def _call(self, peer: str) -> Link | None:
        own = await self._own()
        for _ in range(TRIES):
            attempt = Attempt.calling(token_bytes(NONCE), trio.current_time())
            running = _Running(peer, attempt, own, say=Step.CALL)
            if peer in self._running:
                return None
            self._running[peer] = running
            link = await self._drive(running)
            if link is not None or attempt.state is not State.MISSED or not self._knows(peer):
                break
        self._note(running, link)
        return link

    # -- being called ----------------------------------------------------------------------------

    def _called(self, peer: str, call: Call, running: _Running | None) -> None:
        """Answer, unless our own call stands or there have been too many."""
        ours = running is not None and running.attempt.calls
        if ours and prevails(self._identity.peer_id, peer):
            return
        now = trio.current_time()
        if self._nursery is None or not self._knows(peer) or not self._limits.call(peer, now):
            return
        if running is not None:
            running.scope.cancel()
        answering = _Running(peer, Attempt.answering(call, now), say=Step.ANSWER)
        self._running[peer] = answering
        self._nursery.start_soon(self._answer, answering)
        if peer in self._expected:
            self._expected[peer].set()

    async def _answer(self, running: _Running) -> None:
        running.own = await self._own()
        link = await self._drive(running)
        self._note(running, link)
        if link is not None:
            try:
                await self._on_link(link)
            finally:
                await link.aclose()

    # -- an attempt ------------------------------------------------------------------------------

    async def _drive(self, running: _Running) -> Link | None:
        """One attempt to its end; cancelled through its scope it just ends."""
        links: list[Link] = []
        try:
            with running.scope:
                async with trio.open_nursery() as nursery:
                    await self._follow(running, nursery, links)
                    nursery.cancel_scope.cancel()
        except BaseException:
            with trio.CancelScope(shield=True):
                for link in links:
                    await link.aclose()
            raise
        finally:
            if self._running.get(running.peer) is running:
                del self._running[running.peer]
            running.done.set()
        return links[0] if links else None

    async def _follow(self, running: _Running, nursery: trio.Nursery, links: list[Link]) -> None:
        """Do what the table says, until it is over or there is a link."""
        attempt = running.attempt
        while not attempt.over and not links:
            if running.say is not None:
                step, running.say = running.say, None
                nursery.start_soon(self._say, running, step)
            elif attempt.state is State.PUNCHING:
                await self._punch(running, links)
            else:
                running.news = trio.Event()
                with trio.move_on_at(attempt.due):
                    await running.news.wait()
            attempt.time(trio.current_time())

    async def _punch(self, running: _Running, links: list[Link]) -> None:
        """Connect for as long as the other side does; it may reach our listener instead."""
        attempt, local = running.attempt, self._punched.local
        known = (*running.own, *self._guesses())
        allowed = self._limits.punch(targets(attempt.targets, known), trio.current_time())
        with trio.move_on_at(attempt.due):
            try:
                if local is not None and allowed:
                    links.append(await self._network.punch(local, allowed, running.peer))
                    return
            except (TransportError, OSError):
                pass
            await trio.sleep_until(attempt.due)

    async def _say(self, running: _Running, step: Step) -> None:
        """Through the trackers; where none takes it, nothing will come of the attempt."""
        own = () if step is Step.GO else running.own
        self._created = max(self._wall(), self._created + 1e-6)
        call = Call(
            swarm=self._swarm,
            to=running.peer,
            step=step,
            nonce=running.attempt.nonce,
            addresses=own,
            created=self._created,
            expires=self._created + CALL_SECONDS,
        )
        envelope, taken = call.sealed(self._identity), [False]
        async with trio.open_nursery() as nursery:
            for courier in self._couriers(running.peer):
                nursery.start_soon(self._hand, courier, running.peer, envelope, taken)
        if not any(taken):
            running.scope.cancel()

    @staticmethod
    async def _hand(courier: Courier, peer: str, envelope: bytes, taken: list[bool]) -> None:
        try:
            await courier.call(peer, envelope)
        except (TransportError, TrackerError):
            return  # it doesn't know the peer, or no calls
        taken.append(True)

    def _couriers(self, peer: str) -> list[Courier]:
        return list(islice((t for t in self._trackers() if t.knows(peer)), TRACKERS))

    async def _own(self) -> tuple[Address, ...]:
        """Where others may see our listening port, the surest first."""
        seen, local = await self._punched.sight(), self._punched.local
        found = dict.fromkeys((*((seen,) if seen else ()), *self._guesses()))
        if local is None:
            return ()
        fitting = (a for a in found if is_target(a.host) and reaches(local.host, a.host))
        return tuple(islice(fitting, ADDRESSES))

    def _note(self, running: _Running, link: Link | None) -> None:
        """Leave a peer alone for a while to which there is no way."""
        if link is not None or not self._knows(running.peer):
            self._rests.end(running.peer)  # or it came in at our listener
        elif running.attempt.over and self._rests.failed(running.peer, trio.current_time()):
            missed = running.attempt.state is State.MISSED
            why = "both NATs keep it out" if missed else "it doesn't answer calls"
            self._log("info", f"no hole to {short(running.peer)}: {why}")
