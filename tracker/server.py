"""I/O: the tracker: links in, answers out, a clock for the registry.

Strategy: one task reads a link's questions and answers them in order; a watch waits in a task of
its own, so that announces go on beside it. A link belongs to the swarm of its first announce.
Every change of a swarm wakes the watches of its links, and each of them asks the registry what is
new for it. A call to a peer wakes its watch, too. Dial-backs (dialback.py) go on beside.

Nothing that a peer sends can end the tracker. A wrong question gets an error and is counted; a few
of them, or silence, end that link. A flood is not refused but read slowly, so that it fills the
sender's buffers and not ours.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import trio

from ..transport.address import Address
from ..transport.errors import LinkClosed
from ..transport.identity import short
from ..transport.link import Handlers, Link, Network
from .calls import Budget
from .dialback import DialBacks
from .errors import NO_MISTAKE, ProtocolError, Reason, Refused
from .protocol import (
    WATCH_SECONDS,
    Announce,
    Bye,
    Call,
    Called,
    Events,
    Leave,
    Refusal,
    Watch,
    Welcome,
    parse_request,
)
from .record import open_record
from .registry import PEERS_PER_HOST, Registry
from .sessions import Session
from .verdict import DialBack, Verdict

LINKS: Final = 900
"""Links at once: each costs a descriptor, and the usual limit of a process is 1024. Who serves more
beside needs more (cli/serve.py)."""

LINKS_PER_HOST: Final = PEERS_PER_HOST
"""Links at once from one host: no more than its peers may be."""

MISTAKES: Final = 4
"""Wrong questions on one link before it is closed: a newer peer may try what we don't know."""

SILENCES: Final = 3
"""TTLs without a question until a link is closed: it keeps a place that others need."""

EXPIRY_SECONDS: Final = 1.0
"""How often the registry forgets whose time is over."""


@dataclass(frozen=True, slots=True)
class TrackerStatus:
    """What the tracker holds now, and what it has done since its start."""

    swarms: int
    peers: int
    links: int
    requests: int
    rejects: tuple[tuple[str, int], ...]


def _quiet(_line: str) -> None:
    """Log nothing."""


class TrackerServer:
    """The tracker of a registry; `log` gets a line at each join, leave and closed link.

    Peers are told that the tracker relays at its own port (`relay`), at which port it answers STUN
    (`stun`, 0: nowhere), and its wall clock's time.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        relay: bool = False,
        stun: int = 0,
        clock: Callable[[], float] = trio.current_time,
        wall: Callable[[], float] = time.time,
        log: Callable[[str], None] = _quiet,
    ) -> None:
        self._registry = registry
        self._relay, self._stun = relay, stun
        self._clock, self._wall = clock, wall
        self._log = log
        self._calls = Budget()
        self._sessions: dict[Session, None] = {}  # the newest last
        self._requests = 0
        self._rejects: Counter[str] = Counter()

    @property
    def status(self) -> TrackerStatus:
        """What the tracker does now."""
        return TrackerStatus(
            swarms=self._registry.swarms,
            peers=self._registry.peers,
            links=len(self._sessions),
            requests=self._requests,
            rejects=tuple(sorted(self._rejects.items())),
        )

    async def serve(
        self,
        network: Network,
        address: Address,
        *,
        beside: Handlers = MappingProxyType({}),
        task_status: "trio.TaskStatus[Address]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve for ever; `task_status.started` gets the bound Address.

        `beside`: other services at the same port, such as "relay".

        A port that is taken is a ListenError, in an exception group as from every nursery.
        """
        self._dialbacks = DialBacks(network, self._clock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expire)
            await network.listen(
                address, {"tracker": self._welcome, **beside}, task_status=task_status
            )

    async def _expire(self) -> None:
        while True:
            for swarm, peer in self._registry.expire(self._clock()):
                self._tell(swarm, f"{short(peer)} has not been heard of")
            await trio.sleep(EXPIRY_SECONDS)

    def _tell(self, swarm: str, what: str) -> None:
        """Wake a swarm's watches after a change."""
        self._log(f"swarm {swarm}: {what} (peers: {self._registry.members(swarm)})")
        for session in self._sessions:
            if session.swarm == swarm:
                session.wake()

    async def _welcome(self, link: Link) -> None:
        """One link, from its first question to its end."""
        session = Session(link)
        full = self._crowded(session.owner)
        with session.scope:
            if full is not None:
                await self._refuse(session, 0, full)
                return await session.part()
            self._sessions[session] = None
            try:
                await self._converse(session)
            finally:
                del self._sessions[session]

    def _crowded(self, host: str) -> Reason | None:
        if len(self._sessions) >= LINKS:
            return Reason.TRACKER_FULL
        if sum(s.owner == host for s in self._sessions) >= LINKS_PER_HOST:
            return Reason.HOST_FULL
        return None

    async def _converse(self, session: Session) -> None:
        """Answer until the peer goes, falls silent or makes too many mistakes."""
        async with trio.open_nursery() as tasks:
            with contextlib.suppress(LinkClosed, trio.TooSlowError):
                while session.mistakes <= MISTAKES:
                    with trio.fail_after(SILENCES * self._registry.ttl):
                        question = await session.link.receive()
                    await self._serve(session, question, tasks)
                self._log(f"{session.link.remote}: closed after {session.mistakes} mistakes")
                await session.part()
            tasks.cancel_scope.cancel()

    async def _serve(self, session: Session, question: bytes, tasks: trio.Nursery) -> None:
        """Answer one question, or start the task that will."""
        await trio.sleep(session.questions.wait(self._clock()))
        self._requests += 1
        try:
            request = parse_request(question)
        except ProtocolError as error:
            return await self._refuse(session, error.id, Reason.MALFORMED)
        try:
            match request:
                case Announce():
                    await session.answer(self._announce(session, request))
                case Leave():
                    await session.answer(self._leave(session, request))
                case Call():
                    await session.answer(self._call(session, request))
                case Watch():
                    self._begin_watch(session)
                    tasks.start_soon(self._watch, session, request)
                case DialBack():
                    self._swarm_of(session)
                    tasks.start_soon(self._dial_back, session, request)
        except Refused as error:
            await self._refuse(session, request.id, error.reason)

    async def _refuse(self, session: Session, id: int, reason: str) -> None:
        self._rejects[str(reason)] += 1
        session.mistakes += reason not in NO_MISTAKE
        await session.answer(Refusal(id, reason))

    def _announce(self, session: Session, request: Announce) -> Welcome:
        signed = open_record(request.envelope, signer=session.link.peer)
        swarm = signed.record.swarm
        if session.swarm not in (None, swarm):
            raise Refused(Reason.OTHER_SWARM)
        known = self._registry.members(swarm)
        news = self._registry.announce(signed, session.link.remote.host, self._clock())
        session.swarm = swarm
        if news:
            came = self._registry.members(swarm) > known
            where = next(map(str, signed.record.addresses), "no address of its own")
            self._tell(swarm, f"{short(signed.peer)} {'joined' if came else 'moved'}: {where}")
        seen, now = session.link.remote, self._wall()
        return Welcome(request.id, self._registry.ttl, seen, self._relay, self._stun, now)

    def _leave(self, session: Session, request: Leave) -> Bye:
        swarm = self._swarm_of(session)
        if self._registry.leave(swarm, session.link.peer):
            self._tell(swarm, f"{short(session.link.peer)} left")
        return Bye(request.id)

    def _call(self, session: Session, request: Call) -> Called:
        swarm, caller = self._swarm_of(session), session.link.peer
        if not self._registry.lists(swarm, caller):
            raise Refused(Reason.UNANNOUNCED)
        callee = self._callee(swarm, request.peer) if request.peer != caller else None
        if callee is None:
            raise Refused(Reason.ABSENT)
        self._calls.call(caller, session.owner, request.peer, self._clock())
        callee.call(request.envelope)
        return Called(request.id)

    def _callee(self, swarm: str, peer: str) -> Session | None:
        """A member's newest link: older ones may be those of an address that it has left."""
        if not self._registry.lists(swarm, peer):
            return None
        links = (s for s in reversed(self._sessions) if s.link.peer == peer and s.swarm == swarm)
        return next(links, None)

    def _swarm_of(self, session: Session) -> str:
        if session.swarm is None:
            raise Refused(Reason.UNANNOUNCED)
        return session.swarm

    def _begin_watch(self, session: Session) -> None:
        self._swarm_of(session)
        if session.watching:
            raise Refused(Reason.BUSY)
        session.watching = True

    async def _watch(self, session: Session, request: Watch) -> None:
        """Answer at once where there is news, else when it comes or WATCH_SECONDS are over."""
        swarm = self._swarm_of(session)
        changes = self._registry.changes(swarm, request.cursor)
        with trio.move_on_after(WATCH_SECONDS):
            while not (changes or session.calls):
                await session.news.wait()
                changes = self._registry.changes(swarm, request.cursor)
        session.watching = False
        news = (changes.cursor, changes.fresh, changes.joined, changes.left)
        await session.answer(Events(request.id, *news, session.take_calls()))

    async def _dial_back(self, session: Session, request: DialBack) -> None:
        """Answer when the peer was reached at one of its addresses, or was not."""
        peer, seen = session.link.peer, session.link.remote.host
        try:
            if request.address not in self._registry.announced(self._swarm_of(session), peer):
                raise Refused(Reason.NOT_ANNOUNCED)
            outcome = await self._dialbacks.check(peer, seen, request)
            await session.answer(Verdict(request.id, outcome))
        except Refused as error:
            await self._refuse(session, request.id, error.reason)
