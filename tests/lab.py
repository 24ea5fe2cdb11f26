"""An in-memory network with the semantics of the real one, and ways to break it on purpose.

`Lab().network(identity, host)` is a `Network` like `TcpNetwork`: links are authenticated (here by
construction), ordered, with a little buffer and then backpressure, and end when either side closes.
Faults are context managers, so that a test reads as what happens to the network:

    with lab.cut("10.0.0.1"): …          links of that host are lost, dialling it fails
    with lab.slow(0.5): …                every frame takes half a second
    with lab.corrupt("10.0.0.1"): …      model bytes that this host sends are altered on the way
    with lab.filtered("10.0.0.1"): …     dialling that host is never answered, as behind a NAT
    with lab.silent("10.0.0.1"): …       frames from that host vanish, nothing is closed
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from p2pnode.transport.address import Address
from p2pnode.transport.errors import DialError, HandshakeError, LinkClosed, ListenError, WireError
from p2pnode.transport.identity import Identity
from p2pnode.transport.link import CONTROL_LIMIT, Handler, Handlers, Piece, Service

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
    dialled: bool
    host: str
    outgoing: trio.MemorySendChannel[Frame]
    incoming: trio.MemoryReceiveChannel[Frame]

    async def send(self, message: bytes) -> None:
        if len(message) > CONTROL_LIMIT:
            raise WireError(f"a control message of {len(message)} bytes")
        await self._send(bytes(message))

    def room(self, transfer: int, chunk: int, offset: int, length: int) -> Piece:
        return Piece(transfer, chunk, offset, memoryview(bytearray(length)))

    async def send_piece(self, piece: Piece) -> None:
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


@dataclass
class Lab:
    """The whole network: addresses, links, and what is wrong with it now."""

    listeners: dict[Address, Listener] = field(default_factory=dict)
    links: set[LabLink] = field(default_factory=set)
    cut_hosts: set[str] = field(default_factory=set)
    filtered_hosts: set[str] = field(default_factory=set)
    dials: list[tuple[str, Address]] = field(default_factory=list)
    mute: set[str] = field(default_factory=set)
    corrupted: set[str] = field(default_factory=set)
    delay: float = 0.0
    next_port: int = 40000

    def network(self, identity: Identity, host: str = "10.0.0.1") -> LabNetwork:
        return LabNetwork(self, identity, host)

    def port(self) -> int:
        self.next_port += 1
        return self.next_port

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
        listener = self.lab.listeners.get(address)
        if listener is None or {address.host, self.host} & self.lab.cut_hosts:
            raise DialError(f"{address}: connection refused")
        if service not in listener.handlers:
            offered = next(iter(listener.handlers))
            raise HandshakeError(f"the other end is a {offered}, not a {service}")
        if expect is not None and listener.identity.peer_id != expect:
            raise HandshakeError(f"peer {listener.identity.peer_id} answered, not {expect}")
        return self._connect(address, listener, listener.handlers[service])

    def _connect(self, address: Address, listener: Listener, handler: Handler) -> LabLink:
        there_send, here_receive = trio.open_memory_channel[Frame](BUFFER)
        here_send, there_receive = trio.open_memory_channel[Frame](BUFFER)
        remote = Address(self.host, self.lab.port())
        here = LabLink(
            self.lab, listener.identity.peer_id, address, True, self.host, here_send, here_receive
        )
        there = LabLink(
            self.lab, self.identity.peer_id, remote, False, address.host, there_send, there_receive
        )
        self.lab.links |= {here, there}
        listener.nursery.start_soon(self._welcome, handler, there)
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
