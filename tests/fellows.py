"""Peers without a worker (an exchange over a real mailbox), and rogues that say what they like.

    lab = Lab()
    async with fellows(lab, tmp_path, 3) as (alice, bob, carol):
        model = alice.publish(1)
        await bob.dial(alice)
        await bob.until(lambda: bob.holds(model))

Waiting is for events of the exchange, never for time to pass, so it works in real time as well as
in virtual time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import trio
import trio._core._run as scheduler
import trio.testing
from models import NOW, SCHEMA, manifest, sealed

from lab import Lab, identity
from p2pnode.node.mailbox import Mailbox
from p2pnode.transport import messages
from p2pnode.transport.address import Address
from p2pnode.transport.admission import Offered
from p2pnode.transport.envelope import Kind, peek
from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.exchange import Exchange, Terms
from p2pnode.transport.link import Link, Network, Piece
from p2pnode.transport.manifest import CHUNK_LEAST
from p2pnode.transport.messages import Bye, Hello, Message, Ping, Pong, Run
from p2pnode.transport.network import TcpNetwork
from p2pnode.transport.outgoing import Held
from p2pnode.transport.pace import Limits
from p2pnode.transport.session import Session

RUN = Run("main", "mnist", SCHEMA, 1000, ("weight float32 [10,100]",))
MOST = 1 << 30
CHUNK = CHUNK_LEAST
# Virtual time is free, real time isn't: what takes longer than that hangs.
PATIENCE = 3600.0

M = TypeVar("M", bound=Message)


def foreign(author: int, seq: int, folder: Path, **fields: Any) -> Held:
    """A model of a peer that isn't here, to stock somebody with."""
    path = folder / f"{author}-{seq}"
    path.write_bytes(noise(1000 * author + seq, 3.5))
    described = manifest(path.read_bytes(), seq=seq, **fields)
    envelope = sealed(author, described)
    return Held(envelope, peek(envelope).id, identity(author).peer_id, described, path)


def noise(seed: int, chunks: float = 20.5) -> bytes:
    """Model bytes that are the same in every run, and no two chunks alike."""
    return random.Random(seed).randbytes(int(chunks * CHUNK))


@dataclass
class Fellow:
    """One peer: what happened to it is in its lists, in order."""

    number: int
    network: Network
    folder: Path
    nursery: trio.Nursery
    run: Run = RUN
    fan_out: int = 8
    max_peers: int = 50
    library: type[Mailbox] = Mailbox
    limits: Limits = field(default_factory=Limits)
    met_with: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    filed_models: list[bytes] = field(default_factory=list)
    delivered_to: list[str] = field(default_factory=list)
    storing: bool = True  # our models are to lie at relays
    stored_at: list[tuple[str, bytes]] = field(default_factory=list)  # relay, model
    relays_met: list[str] = field(default_factory=list)
    rejects: list[tuple[str, str, str]] = field(default_factory=list)  # reason, peer, detail
    refusals: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.me = identity(self.number).peer_id
        self.mailbox = self.library(self.folder, self.me, 64)
        self.exchange = Exchange(
            self.me,
            self.mailbox,
            self,
            clock=trio.current_time,
            wall=lambda: NOW + 60,
            fan_out=self.fan_out,
            max_peers=self.max_peers,
            chance=random.Random(self.number),
            limits=self.limits,
        )
        self._changed = trio.Event()

    async def start(self, host: str, *, agreed: bool = True) -> None:
        """Listen, and know the model unless told otherwise."""
        await self.nursery.start(self.exchange.run)
        where = Address(host, 0)
        self.address = await self.nursery.start(self.network.listen, where, {"peer": self.welcome})
        if agreed:
            self.agree()

    def agree(self) -> None:
        """The model is built."""
        self.exchange.agree(Terms(self.run, MOST))

    # -- doing ---------------------------------------------------------------------------------

    async def welcome(self, link: Link) -> None:
        self.note_end(await self.exchange.serve(link))

    def note_end(self, reason: str) -> None:
        """A session is over."""
        self._note(self.ends, reason)

    async def dial(self, other: Fellow) -> None:
        """Dial another peer and wait until both have met."""
        await self.dial_only(other)
        await self.until(lambda: self.agreed_with(other))
        await other.until(lambda: other.agreed_with(self))

    async def dial_only(self, other: Fellow) -> None:
        """Dial another peer, whatever comes of it."""
        link = await self.network.dial(other.address, "peer", other.me)
        self.nursery.start_soon(self._serve, link)

    async def _serve(self, link: Link) -> None:
        try:
            await self.welcome(link)
        finally:
            await link.aclose()

    def publish(self, seq: int, data: bytes | None = None, **fields: Any) -> Held:
        """A new model of our own, not announced."""
        data = noise(seq) if data is None else data
        path = self.folder / "outbox" / f"{seq}.safetensors"
        path.write_bytes(data)
        return self.mailbox.publish(path, sealed(self.number, manifest(data, seq=seq, **fields)))

    def stock(self, model: Held) -> Held:
        """Another peer's model came in earlier."""
        part = self.folder / "stocked"
        part.write_bytes(model.path.read_bytes())
        verified = peek(model.envelope).verify(Kind.MANIFEST)
        self.mailbox.file(Offered(verified, model.manifest), part)
        return self.have(model.id)

    def have(self, model: bytes) -> Held:
        """The held model with this ID."""
        found = self.exchange.find(model)
        assert found is not None
        return found

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for events until this is so."""
        with trio.fail_after(PATIENCE):
            while not holds():
                await self._changed.wait()

    # -- knowing -------------------------------------------------------------------------------

    def session(self, other: Fellow) -> Session:
        return self.exchange.sessions[other.me]

    def agreed_with(self, other: Fellow) -> bool:
        return other.me in self.exchange.sessions and self.session(other).agreed

    def holds(self, model: Held) -> bool:
        """Whether this very model came in and is here, byte for byte."""
        here = self.exchange.find(model.id)
        came = here is not None and model.id in self.filed_models
        return came and held_bytes(here) == held_bytes(model)

    @property
    def counts(self) -> Counter[str]:
        """Rejects by reason."""
        return Counter(reason for reason, _, _ in self.rejects)

    # -- Observer ------------------------------------------------------------------------------

    def _note(self, kept: list[Any], value: Any) -> None:
        kept.append(value)
        self._changed.set()
        self._changed = trio.Event()

    def met(self, session: Session) -> None:
        self._note(self.met_with, session.peer)

    def parted(self, session: Session) -> None:
        self._note([], session.ending)

    def filed(self, offered: Offered) -> None:
        self._note(self.filed_models, offered.envelope.id)

    def delivered(self, session: Session, held: Held) -> None:
        self._note(self.delivered_to, session.peer)

    def stores(self, session: Session) -> bool:
        return self.storing

    def stored(self, session: Session, held: Held) -> None:
        self._note(self.stored_at, (session.peer, held.id))

    def relay_met(self, session: Session) -> None:
        self._note(self.relays_met, session.peer)

    def relay_parted(self, session: Session) -> None:
        self._note([], session.ending)

    def rejected(self, reason: str, peer: str, detail: str) -> None:
        self._note(self.rejects, (reason, peer, detail))

    def refused(self, session: Session, reason: str, detail: str) -> None:
        self._note(self.refusals, (reason, session.peer, detail))


def held_bytes(model: Held | None) -> bytes | None:
    """The bytes of a model on disk."""
    return model.path.read_bytes() if model else None


@asynccontextmanager
async def fellows(
    lab: Lab | None, folder: Path, count: int, **options: Any
) -> AsyncIterator[Sequence[Fellow]]:
    """So many peers in the laboratory (or, without one, over TCP on this machine)."""
    async with trio.open_nursery() as nursery:
        everyone = []
        for number in range(1, count + 1):
            fellow = make(lab, folder, number, nursery, **options)
            await fellow.start(host_of(lab, number))
            everyone.append(fellow)
        yield everyone
        nursery.cancel_scope.cancel()


def make(
    lab: Lab | None, folder: Path, number: int, nursery: trio.Nursery, **options: Any
) -> Fellow:
    """One peer, not started."""
    key = identity(number)
    network: Network = lab.network(key, host_of(lab, number)) if lab else TcpNetwork(key)
    return Fellow(number, network, folder / str(number), nursery, **options)


def host_of(lab: Lab | None, number: int) -> str:
    """Where peer `number` lives."""
    return f"10.0.0.{number}" if lab else "127.0.0.1"


class Rogue:
    """The far end of a link, in the hands of the test."""

    def __init__(self, number: int, link: Link) -> None:
        self.number, self.link = number, link
        self.me = identity(number).peer_id

    async def say(self, *frames: Message | Piece | bytes) -> None:
        """Send messages, pieces, or any bytes as a control message."""
        for frame in frames:
            if isinstance(frame, Piece):
                await self.link.send_piece(frame)
            else:
                data = frame if isinstance(frame, bytes) else messages.to_bytes(frame)
                await self.link.send(data)

    async def hear(self, kind: type[M]) -> M:
        """The next message of this kind; pings are answered, others skipped."""
        with trio.fail_after(PATIENCE):
            while True:
                frame = await self.link.receive_any()
                message = None if isinstance(frame, Piece) else messages.from_bytes(frame)
                if isinstance(message, kind):
                    return message
                if isinstance(message, Ping):
                    await self.say(Pong(message.number))

    async def greet(self, run: Run = RUN) -> None:
        """Say hello and hear one."""
        await self.say(Hello(run, 0))
        await self.hear(Hello)

    async def farewell(self) -> str:
        """Listen to the end: what the last Bye said."""
        try:
            return (await self.hear(Bye)).reason
        except LinkClosed:
            return ""


async def rogue(lab: Lab, number: int, victim: Fellow, *, greets: bool = True) -> Rogue:
    """A peer of the test's own making, connected to `victim`."""
    network = lab.network(identity(number), host_of(lab, number))
    made = Rogue(number, await network.dial(victim.address, "peer", victim.me))
    if greets:
        await made.greet()
    return made


def virtual(main: Callable[..., Any], *arguments: Any, schedule: int = 0) -> None:
    """Run in virtual time (with conftest's `inline_threads`).

    Which of the tasks that could go on goes first is drawn anew for each `schedule`, and the same
    in every run.
    """
    # As pytest-trio does for hypothesis; both names are private to trio.
    vars(scheduler)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    scheduler._r.seed(schedule)
    trio.run(main, *arguments, clock=trio.testing.MockClock(autojump_threshold=0))
