"""An in-memory network with the semantics of the real one, and ways to break it on purpose.

`Lab().network(identity, host)` is a `Network` like `TcpNetwork`: links are authenticated (here by
construction), ordered, with a little buffer and then backpressure, and end when either side closes.
Faults are context managers, so that a test reads as what happens to the network:

    with lab.cut("10.0.0.1"): …          links of that host are lost, dialling it fails
    with lab.slow(0.5): …                every frame takes half a second
    with lab.uplink("10.0.0.1", 0.1): …  each piece that this host sends takes so long
    with lab.corrupt("10.0.0.1"): …      model bytes that this host sends are altered on the way
    with lab.filtered("10.0.0.1"): …     dialling that host is never answered, as behind a NAT
    with lab.silent("10.0.0.1"): …       frames from that host vanish, nothing is closed
    with lab.symmetric("10.0.0.1"): …    its NAT takes another port for each connection

Hosts that are filtered can punch holes: both connect to the address on which the other listens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from p2pnode.transport.address import Address
from p2pnode.transport.errors import DialError, HandshakeError, LinkClosed, ListenError, WireError
from p2pnode.transport.identity import Identity
from p2pnode.transport.link import CONTROL_LIMIT, Handler, Handlers, Piece, Service
from p2pnode.transport.nat.holes import usable

Frame = bytes | Piece
# As in sockets.py: what NNG keeps on both sides before a sender has to wait.
BUFFER = 5


def identity(number: int) -> Identity:
    """A key pair that is the same in every run."""
    return Identity.from_seed(bytes([number]) * 32)


@dataclass(eq=False)
class LabLink:
    """One end of an in-memory link."""

    lab: Lab
    peer: str
    remote: Address
    local: Address
    dialled: bool
    outgoing: trio.MemorySendChannel[Frame]
    incoming: trio.MemoryReceiveChannel[Frame]
    punched: bool = False

    @property
    def host(self) -> str:
        return self.local.host

    async def send(self, message: bytes) -> None:
        if len(message) > CONTROL_LIMIT:
            raise WireError(f"a control message of {len(message)} bytes")
        await self._send(bytes(message))

    def room(self, transfer: int, chunk: int, offset: int, length: int) -> Piece:
        return Piece(transfer, chunk, offset, memoryview(bytearray(length)))

    async def send_piece(self, piece: Piece) -> None:
        await self.lab.queue(self.host)
        body = bytes(piece.body)
        if self.host in self.lab.corrupted:
            body = bytes([body[0] ^ 1]) + body[1:]
        await self._send(Piece(piece.transfer, piece.chunk, piece.offset, body))

    async def _send(self, frame: Frame) -> None:
        if self.lab.delay:
            await trio.sleep(self.lab.delay)
        if self.host in self.lab.mute:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self.outgoing.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LinkClosed from None

    async def receive(self) -> bytes:
        message = await self.receive_any()
        if isinstance(message, Piece):
            raise LinkClosed("model bytes where a message was due")
        return message

    async def receive_any(self) -> Frame:
        try:
            return await self.incoming.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError):
            raise LinkClosed from None

    def close(self) -> None:
        self.outgoing.close()
        self.incoming.close()
        self.lab.links.discard(self)

    async def aclose(self) -> None:
        self.close()


@dataclass
class Listener:
    """Who listens at an address."""

    identity: Identity
    handlers: Handlers
    nursery: trio.Nursery


@dataclass(eq=False)
class Knock:
    """Who punches now: from where, at which addresses, to meet whom."""

    peer: str
    local: Address
    targets: Sequence[Address]
    expect: str
    through: trio.Event = field(default_factory=trio.Event)
    link: LabLink | None = None

    def meets(self, other: Knock) -> bool:
        """Whether each of the two connects to where the other comes from."""
        named = self.expect == other.peer and other.expect == self.peer
        return named and self.local in other.targets and other.local in self.targets


@dataclass
class Lab:
    """The whole network: addresses, links, and what is wrong with it now."""

    listeners: dict[Address, Listener] = field(default_factory=dict)
    links: set[LabLink] = field(default_factory=set)
    cut_hosts: set[str] = field(default_factory=set)
    filtered_hosts: set[str] = field(default_factory=set)
    symmetric_hosts: set[str] = field(default_factory=set)
    knocks: set[Knock] = field(default_factory=set)
    punches: list[tuple[float, str, tuple[Address, ...]]] = field(default_factory=list)
    dials: list[tuple[str, Address]] = field(default_factory=list)
    mute: set[str] = field(default_factory=set)
    corrupted: set[str] = field(default_factory=set)
    delay: float = 0.0
    uplinks: dict[str, float] = field(default_factory=dict)  # host → seconds a piece
    free: dict[str, float] = field(default_factory=dict)  # host → when its uplink is
    next_port: int = 40000

    def network(self, identity: Identity, host: str = "10.0.0.1") -> LabNetwork:
        return LabNetwork(self, identity, host)

    def port(self) -> int:
        self.next_port += 1
        return self.next_port

    async def queue(self, host: str) -> None:
        """Wait until the uplink of this host has sent one piece more."""
        now = trio.current_time()
        self.free[host] = max(now, self.free.get(host, now)) + self.uplinks.get(host, 0.0)
        await trio.sleep(self.free[host] - now)

    @contextmanager
    def uplink(self, host: str, seconds: float) -> Iterator[None]:
        self.uplinks[host] = seconds
        try:
            yield
        finally:
            del self.uplinks[host]

    @contextmanager
    def cut(self, host: str) -> Iterator[None]:
        self.cut_hosts.add(host)
        for link in [x for x in self.links if host in (x.host, x.remote.host)]:
            link.close()
        try:
            yield
        finally:
            self.cut_hosts.discard(host)

    @contextmanager
    def filtered(self, host: str) -> Iterator[None]:
        self.filtered_hosts.add(host)
        try:
            yield
        finally:
            self.filtered_hosts.discard(host)

    @contextmanager
    def symmetric(self, host: str) -> Iterator[None]:
        self.symmetric_hosts.add(host)
        try:
            yield
        finally:
            self.symmetric_hosts.discard(host)

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        self.delay, before = seconds, self.delay
        try:
            yield
        finally:
            self.delay = before

    @contextmanager
    def silent(self, host: str) -> Iterator[None]:
        self.mute.add(host)
        try:
            yield
        finally:
            self.mute.discard(host)

    @contextmanager
    def corrupt(self, host: str) -> Iterator[None]:
        self.corrupted.add(host)
        try:
            yield
        finally:
            self.corrupted.discard(host)


@dataclass
class LabNetwork:
    """One host's `Network`."""

    lab: Lab
    identity: Identity
    host: str

    async def dial(self, address: Address, service: Service, expect: str | None = None) -> LabLink:
        await trio.lowlevel.checkpoint()
        self.lab.dials.append((self.host, address))
        if address.host in self.lab.filtered_hosts:
            await trio.sleep_forever()
        return self._walk_in(address, service, expect)

    def _walk_in(
        self, address: Address, service: Service, expect: str | None, *, punched: bool = False
    ) -> LabLink:
        listener = self.lab.listeners.get(address)
        if listener is None or {address.host, self.host} & self.lab.cut_hosts:
            raise DialError(f"{address}: connection refused")
        if service not in listener.handlers:
            offered = next(iter(listener.handlers))
            raise HandshakeError(f"the other end is a {offered}, not a {service}")
        if expect is not None and listener.identity.peer_id != expect:
            raise HandshakeError(f"peer {listener.identity.peer_id} answered, not {expect}")
        remote = Address(self.host, self.lab.port())
        here, there = self._link(listener.identity.peer_id, remote, address, punched)
        listener.nursery.start_soon(self._welcome, listener.handlers[service], there)
        return here

    def _link(
        self, peer: str, near: Address, far: Address, punched: bool
    ) -> tuple[LabLink, LabLink]:
        """Both ends of a link that we have dialled."""
        there_send, here_receive = trio.open_memory_channel[Frame](BUFFER)
        here_send, there_receive = trio.open_memory_channel[Frame](BUFFER)
        me, lab = self.identity.peer_id, self.lab
        here = LabLink(lab, peer, far, near, True, here_send, here_receive, punched)
        there = LabLink(lab, me, near, far, False, there_send, there_receive, punched)
        self.lab.links |= {here, there}
        return here, there

    async def punch(self, local: Address, targets: Sequence[Address], expect: str) -> LabLink:
        fitting = usable(local, targets)
        self.lab.punches.append((trio.current_time(), self.host, fitting))
        await trio.lowlevel.checkpoint()
        trouble = ""
        for target in fitting:
            if target.host not in self.lab.filtered_hosts:
                try:
                    return self._walk_in(target, "peer", expect, punched=True)
                except (DialError, HandshakeError) as error:
                    trouble = f"{target}: {error}"
        if not {target.host for target in fitting} & self.lab.filtered_hosts:
            raise DialError(trouble)
        return await self._meet(Knock(self.identity.peer_id, local, fitting, expect))

    async def _meet(self, mine: Knock) -> LabLink:
        """Wait for one that punches towards us; the one that comes second makes the link."""
        fixed = self.host not in self.lab.symmetric_hosts
        for other in self.lab.knocks if fixed else ():
            if other.meets(mine):
                return self._cross(mine, other)
        if fixed:
            self.lab.knocks.add(mine)
        try:
            await mine.through.wait()
        finally:
            self.lab.knocks.discard(mine)
        assert mine.link is not None
        return mine.link

    def _cross(self, mine: Knock, other: Knock) -> LabLink:
        """The lower peer ID is the one that has dialled."""
        here, there = self._link(other.peer, mine.local, other.local, True)
        here.dialled, there.dialled = mine.peer < other.peer, mine.peer > other.peer
        self.lab.knocks.discard(other)
        other.link = there
        other.through.set()
        return here

    @staticmethod
    async def _welcome(handler: Handler, link: LabLink) -> None:
        try:
            await handler(link)
        except LinkClosed:
            pass
        finally:
            link.close()

    async def listen(self, address: Address, handlers: Handlers, *, task_status: Any) -> None:
        bound = Address(self.host, address.port or self.lab.port())
        if bound in self.lab.listeners:
            raise ListenError(f"{bound} is taken by another program: choose another with --listen")
        async with trio.open_nursery() as nursery:
            self.lab.listeners[bound] = Listener(self.identity, handlers, nursery)
            try:
                task_status.started(bound)
                await trio.sleep(math.inf)
            finally:
                del self.lab.listeners[bound]
