"""I/O: the tracker: links in, answers out, a clock for the registry.

Strategy: one task reads a link's questions and answers them in order; a watch waits in a task of
its own, so that announces go on beside it. A link belongs to the swarm of its first announce.
Every change of a swarm wakes the watches of its links, and each of them asks the registry what is
new for it. Dial-backs (dialback.py) go on beside, too.

Nothing that a peer sends can end the tracker. A wrong question gets an error and is counted; a few
of them, or silence, end that link. A flood is not refused but read slowly, so that it fills the
sender's buffers and not ours.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from ..transport.address import Address, owner
from ..transport.bucket import Bucket
from ..transport.errors import LinkClosed
from ..transport.identity import short
from ..transport.link import Link, Network
from .dialback import DialBacks
from .errors import NO_MISTAKE, ProtocolError, Reason, Refused
from .protocol import (
    WATCH_SECONDS,
    Announce,
    Bye,
    Events,
    Leave,
    Refusal,
    Reply,
    Watch,
    Welcome,
    parse_request,
    to_bytes,
)
from .record import open_record
from .registry import PEERS_PER_HOST, Changes, Registry
from .verdict import DialBack, Verdict

LINKS: Final = 900
"""Links at once: each costs a descriptor, and the usual limit of a process is 1024."""

LINKS_PER_HOST: Final = PEERS_PER_HOST
"""Links at once from one host: no more than its peers may be."""

MISTAKES: Final = 4
"""Wrong questions on one link before it is closed: a newer peer may try what we don't know."""

RATE, BURST = 5.0, 20
"""Questions a second served on one link (ours asks at most 4), and how many may come at once."""

SILENCES: Final = 3
"""TTLs without a question until a link is closed: it keeps a place that others need."""

SEND_SECONDS: Final = 10.0
"""A peer that doesn't take an answer in this time is gone."""

PARTING_SECONDS: Final = 1.0
"""How long a link that we end stays open, so that the last answer still arrives."""

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


class _Session:
    """One link and what the tracker knows of it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.owner = owner(link.remote.host)
        self.scope = trio.CancelScope()
        self.swarm: str | None = None
        self.mistakes = 0
        self.watching = False
        self.news = trio.Event()
        self.questions = Bucket(RATE, BURST)
        self._sending = trio.Lock()

    def wake(self) -> None:
        """Let the watch look again."""
        self.news.set()
        self.news = trio.Event()

    async def answer(self, reply: Reply) -> None:
        """Send; a peer that can't be reached or doesn't read ends its session."""
        try:
            with trio.fail_after(SEND_SECONDS):
                async with self._sending:
                    await self.link.send(to_bytes(reply))
        except (LinkClosed, trio.TooSlowError):
            self.scope.cancel()

    async def part(self) -> None:
        """Leave the peer a moment to read the last answer."""
        with trio.move_on_after(PARTING_SECONDS), contextlib.suppress(LinkClosed):
            while True:
                await self.link.receive()


class TrackerServer:
    """The tracker of a registry; `log` gets a line at each join, leave and closed link."""

    def __init__(
        self,
        registry: Registry,
        *,
        clock: Callable[[], float] = trio.current_time,
        log: Callable[[str], None] = _quiet,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._log = log
        self._sessions: set[_Session] = set()
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
        task_status: "trio.TaskStatus[Address]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve for ever; `task_status.started` gets the bound Address.

        A port that is taken is a ListenError, in an exception group as from every nursery.
        """
        self._dialbacks = DialBacks(network, self._clock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expire)
            await network.listen(address, {"tracker": self._welcome}, task_status=task_status)

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
        session = _Session(link)
        full = self._crowded(session.owner)
        with session.scope:
            if full is not None:
                await self._refuse(session, 0, full)
                return await session.part()
            self._sessions.add(session)
            try:
                await self._converse(session)
            finally:
                self._sessions.discard(session)

    def _crowded(self, host: str) -> Reason | None:
        if len(self._sessions) >= LINKS:
            return Reason.TRACKER_FULL
        if sum(s.owner == host for s in self._sessions) >= LINKS_PER_HOST:
            return Reason.HOST_FULL
        return None

    async def _converse(self, session: _Session) -> None:
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

    async def _serve(self, session: _Session, question: bytes, tasks: trio.Nursery) -> None:
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
                case Watch():
                    self._begin_watch(session)
                    tasks.start_soon(self._watch, session, request)
                case DialBack():
                    self._swarm_of(session)
                    tasks.start_soon(self._dial_back, session, request)
        except Refused as error:
            await self._refuse(session, request.id, error.reason)

    async def _refuse(self, session: _Session, id: int, reason: str) -> None:
        self._rejects[str(reason)] += 1
        session.mistakes += reason not in NO_MISTAKE
        await session.answer(Refusal(id, reason))

    def _announce(self, session: _Session, request: Announce) -> Welcome:
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
        return Welcome(request.id, self._registry.ttl, session.link.remote)

    def _leave(self, session: _Session, request: Leave) -> Bye:
        swarm = self._swarm_of(session)
        if self._registry.leave(swarm, session.link.peer):
            self._tell(swarm, f"{short(session.link.peer)} left")
        return Bye(request.id)

    def _swarm_of(self, session: _Session) -> str:
        if session.swarm is None:
            raise Refused(Reason.UNANNOUNCED)
        return session.swarm

    def _begin_watch(self, session: _Session) -> None:
        self._swarm_of(session)
        if session.watching:
            raise Refused(Reason.BUSY)
        session.watching = True

    async def _watch(self, session: _Session, request: Watch) -> None:
        """Answer at once where there is news, else when it comes or WATCH_SECONDS are over."""
        swarm = self._swarm_of(session)
        changes = self._registry.changes(swarm, request.cursor)
        with trio.move_on_after(WATCH_SECONDS):
            while not changes:
                await session.news.wait()
                changes = self._registry.changes(swarm, request.cursor)
        session.watching = False
        await session.answer(_events(request.id, changes))

    async def _dial_back(self, session: _Session, request: DialBack) -> None:
        """Answer when the peer was reached at one of its addresses, or was not."""
        peer, seen = session.link.peer, session.link.remote.host
        try:
            if request.address not in self._registry.announced(self._swarm_of(session), peer):
                raise Refused(Reason.NOT_ANNOUNCED)
            outcome = await self._dialbacks.check(peer, seen, request)
            await session.answer(Verdict(request.id, outcome))
        except Refused as error:
            await self._refuse(session, request.id, error.reason)


def _events(id: int, changes: Changes) -> Events:
    return Events(id, changes.cursor, changes.fresh, changes.joined, changes.left)
