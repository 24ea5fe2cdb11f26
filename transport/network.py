"""I/O: TCP connections that become links: accept, dial, shake hands, hand over to NNG.

A stranger costs little: five seconds, one descriptor, a bounded number at a time, and it never
reaches NNG. Each refusal is counted by reason through `on_reject`.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from .address import Address, owner
from .errors import DialError, HandshakeError, LinkClosed, ListenError, NoRoute
from .handshake import (
    HELLO_SIZE,
    MAGIC_SIZE,
    PROOF_SIZE,
    REPLY_SIZE,
    Acceptor,
    Dialler,
    Session,
    is_punch,
    yields,
)
from .identity import Identity
from .link import Handlers, Service
from .nat import holes
from .sockets import NngLink, keep_freed_memory, tune

# A handshake is one and a half round trips; five seconds is slow even over a satellite.
HANDSHAKE_SECONDS = 5.0
# Strangers that may shake hands at once, in all and from one host (of IPv6: its /64). A burst of
# joining peers fits.
MAX_STRANGERS, MAX_STRANGERS_A_HOST = 128, 32
# This machine can't even try: it has no IPv6, or no network.
NO_ROUTE = {errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}

OnReject = Callable[[str], None]


def _ignore(_reason: str) -> None:
    """Count nothing."""


async def _read_exactly(stream: trio.SocketStream, size: int) -> bytes:
    """Exactly `size` bytes, so that what follows stays in the socket for NNG."""
    data = bytearray()
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        if not part:
            raise HandshakeError("the other end closed during the handshake")
        data += part
    return bytes(data)


def _address(name: Any) -> Address:
    """A socket name as an Address; an IPv4 address in IPv6 clothes is shown as IPv4."""
    host = str(name[0]).split("%")[0]
    return Address(host.removeprefix("::ffff:"), int(name[1]))


def _owner_of(stream: trio.SocketStream) -> str:
    """Whose host a stranger comes from; it may be gone already."""
    try:
        return owner(_address(stream.socket.getpeername()).host)
    except OSError:
        return "?"


class TcpNetwork:
    """The real `Network`."""

    def __init__(self, identity: Identity, on_reject: OnReject = _ignore) -> None:
        keep_freed_memory()
        self._identity = identity
        self._on_reject = on_reject
        self._strangers: Counter[str] = Counter()

    async def dial(self, address: Address, service: Service, expect: str | None = None) -> NngLink:
        """Connect and shake hands; raises DialError or HandshakeError."""
        stream = await _connect(address)
        try:
            session = await _dial_handshake(stream, Dialler(self._identity, service, expect))
            return await _to_link(stream, session, dialled=True)
        except (trio.BrokenResourceError, LinkClosed, OSError):
            raise HandshakeError("the other end closed during the handshake") from None
        finally:
            await trio.aclose_forcefully(stream)

    async def punch(self, local: Address, targets: Sequence[Address], expect: str) -> NngLink:
        """Connect with a peer that does the same now; raises DialError.

        What comes in at the listener while it lasts may be this peer, too.
        """

        async def meet(stream: trio.SocketStream) -> holes.Finish[NngLink]:
            met = await _punch_handshake(stream, self._identity, expect)
            return partial(_settle, stream, met)

        return await holes.Punch(local, meet).run(targets)

    async def listen(self, address: Address, handlers: Handlers, *, task_status: Any) -> None:
        """Accept for ever; one task a link; raises ListenError."""
        try:
            listeners = await _open_listeners(address)
        except OSError as error:
            raise ListenError(_why_no_listener(address, error)) from None
        for listener in listeners:
            holes.share(listener.socket)
        port = listeners[0].socket.getsockname()[1]
        task_status.started(Address(address.host, port))
        await trio.serve_listeners(partial(self._welcome, handlers), listeners)

    async def _welcome(self, handlers: Handlers, stream: trio.SocketStream) -> None:
        """One accepted connection, from stranger to closed link; never raises for its mistakes."""
        admitted = await self._admit(handlers, stream)
        if admitted is None:
            return
        link, service = admitted
        try:
            await handlers[service](link)
        except LinkClosed:
            pass  # how every link ends
        finally:
            await link.aclose()

    async def _admit(
        self, handlers: Handlers, stream: trio.SocketStream
    ) -> tuple[NngLink, Service] | None:
        """Shake hands with a stranger, within the limits; None (and counted) when that fails."""
        host = _owner_of(stream)
        try:
            self._strangers[host] += 1
            self._check_room(host)
            with trio.fail_after(HANDSHAKE_SECONDS):
                acceptor = Acceptor(self._identity, tuple(handlers))
                session = await _accept_handshake(stream, acceptor)
                link = await _to_link(stream, session, dialled=False, punched=acceptor.punched)
                return link, acceptor.service
        except (HandshakeError, LinkClosed, OSError, trio.BrokenResourceError) as error:
            self._on_reject(f"handshake: {error}" if str(error) else "handshake: broken off")
        except trio.TooSlowError:
            self._on_reject("handshake: too slow")
        finally:
            self._strangers[host] -= 1
            self._strangers += Counter()  # drops the zeros
            await trio.aclose_forcefully(stream)
        return None

    def _check_room(self, host: str) -> None:
        full = self._strangers.total() > MAX_STRANGERS
        if full or self._strangers[host] > MAX_STRANGERS_A_HOST:
            raise HandshakeError("too many strangers at once")


async def _open_listeners(address: Address) -> list[trio.SocketListener]:
    """Listen; [::] stands for IPv4, too, and for it alone on a machine without IPv6.

    Two sockets, as trio keeps the versions apart: so no IPv4 address comes in IPv6 clothes.
    """
    if address.host != "::":
        return await trio.open_tcp_listeners(address.port, host=address.host)
    try:
        both = await trio.open_tcp_listeners(address.port, host="::")
    except OSError as error:
        if error.errno not in NO_ROUTE:
            raise
        return await trio.open_tcp_listeners(address.port, host="0.0.0.0")
    try:
        port = both[0].socket.getsockname()[1]
        return [*both, *await trio.open_tcp_listeners(port, host="0.0.0.0")]
    except BaseException:
        for listener in both:
            listener.socket.close()
        raise


async def _connect(address: Address) -> trio.SocketStream:
    try:
        return await trio.open_tcp_stream(address.host, address.port)
    except socket.gaierror as error:
        raise DialError(f"{address}: no such host ({error.strerror})") from None
    except OSError as error:
        first = _first(error)
        why = os.strerror(first.errno).lower() if first.errno else str(first)
        kind = NoRoute if first.errno in NO_ROUTE else DialError
        raise kind(f"{address}: {why}") from None


def _first(error: OSError) -> OSError:
    """The first attempt's error: trio tries all addresses of a name and groups their errors."""
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause if isinstance(cause, OSError) else error


async def _dial_handshake(stream: trio.SocketStream, dialler: Dialler) -> Session:
    await stream.send_all(dialler.hello())
    first = await _read_exactly(stream, MAGIC_SIZE)
    dialler.check_magic(first)
    proof, session = dialler.finish(first + await _read_exactly(stream, REPLY_SIZE - MAGIC_SIZE))
    await stream.send_all(proof)
    return session


async def _accept_handshake(stream: trio.SocketStream, acceptor: Acceptor) -> Session:
    return await _answer(stream, acceptor, await _read_exactly(stream, HELLO_SIZE))


async def _answer(stream: trio.SocketStream, acceptor: Acceptor, hello: bytes) -> Session:
    try:
        reply = acceptor.reply(hello)
    except HandshakeError:
        await stream.send_all(acceptor.refusal())
        raise
    await stream.send_all(reply)
    return acceptor.finish(await _read_exactly(stream, PROOF_SIZE))


@dataclass(frozen=True, slots=True)
class _Met:
    """A punched connection whose other end has proved who it is."""

    session: Session
    dialled: bool
    last: bytes  # the proof that we still owe


async def _punch_handshake(stream: trio.SocketStream, identity: Identity, expect: str) -> _Met:
    """Shake hands where the other end may be a listener, or have dialled as we have.

    What we owe is sent when this connection has been chosen: until then the other end knows none.
    """
    dialler = Dialler(identity, "peer", expect, punching=True)
    await stream.send_all(dialler.hello())
    first = await _read_exactly(stream, MAGIC_SIZE)
    if is_punch(first):
        crossed = first + await _read_exactly(stream, HELLO_SIZE - MAGIC_SIZE)
        if yields(identity.peer_id, expect):
            acceptor = Acceptor(identity, ["peer"], expect=expect)
            return _Met(await _answer(stream, acceptor, crossed), False, b"")
        first = await _read_exactly(stream, MAGIC_SIZE)
    dialler.check_magic(first)
    proof, session = dialler.finish(first + await _read_exactly(stream, REPLY_SIZE - MAGIC_SIZE))
    return _Met(session, True, proof)


async def _settle(stream: trio.SocketStream, met: _Met) -> NngLink:
    """Make a link of the connection that was chosen."""
    try:
        await stream.send_all(met.last)
        holes.keep(stream)
        return await _to_link(stream, met.session, dialled=met.dialled, punched=True)
    except LinkClosed:
        raise HandshakeError("the other end closed during the handshake") from None


async def _to_link(
    stream: trio.SocketStream, session: Session, *, dialled: bool, punched: bool = False
) -> NngLink:
    """Give the socket to NNG, and wait until both ends have; the stream is empty afterwards."""
    tune(stream.socket)
    local = _address(stream.socket.getsockname())
    remote = _address(stream.socket.getpeername())
    link = NngLink(stream.socket.detach(), session, local, remote, dialled, punched)
    try:
        await link.opened()
    except BaseException:
        await link.aclose()
        raise
    return link


def _why_no_listener(address: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{address} is taken by another program: choose another with --listen HOST:PORT"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{address} is not an address of this machine: give one of its own to --listen"
    if error.errno == errno.EACCES:
        return f"{address} needs rights that you don't have: choose a port above 1023"
    return f"{address}: {error.strerror or error}"
