"""I/O: a STUN server that answers Binding requests (RFC 8489) on one port over UDP and TCP.

It says from where it sees somebody and nothing else. An answer has at most 44 bytes to a request of
20, so it is of little use for amplifying; and each host, and all together, get so many a second.
What is no request is not answered. A TCP connection may stay for a while: who punches a hole keeps
it open so that the NAT keeps its mapping.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import trio

from ..address import Address, owner
from ..bucket import Bucket
from ..errors import ListenError, StunError
from .stun import read_message
from .stun_codec import MESSAGE_LIMIT, parse_request, refusal, reply

HOST: Final = (8.0, 64)
"""Answers a second, and at once, for one host (of IPv6: its /64): a classroom behind one NAT."""

ALL: Final = (512.0, 1024)
"""For all: 22 kB a second. Senders can be forged, so this bounds what the forger's victims get."""

HOSTS_LIMIT: Final = 8192
"""Hosts that are remembered. A host may be forgotten 8 s after its last question, and in that time
there are at most 1024 + 8 · 512 of them, so there is always room."""

CONNECTION_SECONDS: Final = 40.0
"""How long a TCP connection may stay: what RFC 8489 gives one question (39.5 s, section 6.2.2)."""

CONNECTIONS, CONNECTIONS_A_HOST = 128, 8
"""TCP connections at once: a small part of the descriptors that a process has (1024)."""

PORT_TRIES: Final = 16
"""How often a free port is looked for that UDP has free, too."""

Ports: TypeAlias = tuple[list[trio.SocketListener], list[trio.socket.SocketType]]


class Answers:
    """What is answered to whom, within the limits."""

    def __init__(self) -> None:
        self._all = Bucket(*ALL)
        self._hosts: dict[str, Bucket] = {}

    def to(self, data: bytes, seen: Address, now: float) -> bytes | None:
        """The answer to these bytes from there; None where there is none."""
        try:
            asked = parse_request(data)
        except StunError:
            return None
        if not self._admit(owner(seen.host), now):
            return None
        return refusal(asked) if asked.unknown else reply(asked.transaction, seen)

    def _admit(self, host: str, now: float) -> bool:
        bucket = self._hosts.get(host) or Bucket(*HOST)
        if not (self._all.free(now) and bucket.free(now)):
            return False
        if len(self._hosts) >= HOSTS_LIMIT:
            self._hosts = {h: b for h, b in self._hosts.items() if not b.idle(now)}
        self._hosts[host] = bucket
        self._all.wait(now)
        bucket.wait(now)
        return True


class Server:
    """The sockets, and who is connected."""

    def __init__(self) -> None:
        # UDP's senders can be forged: what they use up must not be missing to those over TCP.
        self._over_udp, self._over_tcp = Answers(), Answers()
        self._connected: Counter[str] = Counter()

    async def datagrams(self, sock: trio.socket.SocketType) -> None:
        """Answer what comes over UDP."""
        while True:
            data, name = await sock.recvfrom(MESSAGE_LIMIT + 1)
            answer = self._over_udp.to(data, _address(name), trio.current_time())
            if answer is not None:
                with contextlib.suppress(OSError):  # there is no way back to the sender
                    await sock.sendto(answer, name)

    async def connection(self, stream: trio.SocketStream) -> None:
        """Answer what comes over one TCP connection, until it stops being what it should be."""
        with contextlib.suppress(OSError, StunError, trio.BrokenResourceError):
            seen = _address(stream.socket.getpeername())
            with self._place(owner(seen.host)), trio.move_on_after(CONNECTION_SECONDS):
                await self._converse(stream, seen)
        await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.SocketStream, seen: Address) -> None:
        while True:
            answer = self._over_tcp.to(await read_message(stream), seen, trio.current_time())
            if answer is None:
                return
            await stream.send_all(answer)

    @contextlib.contextmanager
    def _place(self, host: str) -> Iterator[None]:
        """Room for one connection of this host. Raises StunError."""
        if self._connected.total() >= CONNECTIONS or self._connected[host] >= CONNECTIONS_A_HOST:
            raise StunError("too many connections")
        self._connected[host] += 1
        try:
            yield
        finally:
            self._connected[host] -= 1
            self._connected += Counter()  # drops the zeros


async def serve(
    address: Address, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer until cancelled; started() gets the bound address. Raises ListenError."""
    server = Server()
    listeners, sockets = await _listen(address)
    with contextlib.ExitStack() as opened:
        async with trio.open_nursery() as nursery:
            for sock in sockets:
                nursery.start_soon(server.datagrams, opened.enter_context(sock))
            nursery.start_soon(trio.serve_listeners, server.connection, listeners)
            task_status.started(Address(address.host, sockets[0].getsockname()[1]))


async def _listen(address: Address) -> Ports:
    """A TCP listener and a UDP socket on each address of a host, and on the same port."""
    tries = 1 if address.port else PORT_TRIES
    while True:
        try:
            return await _try_to_listen(address)
        except OSError as error:
            tries -= 1
            if not tries:
                raise ListenError(_why_no_listener(address, error)) from None


def _why_no_listener(address: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{address} (STUN) is taken by another program: choose another with --stun HOST:PORT"
    return f"{address} (STUN): {(error.strerror or str(error)).lower()}"


async def _try_to_listen(address: Address) -> Ports:
    async with contextlib.AsyncExitStack() as opened:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host)
        for listener in listeners:
            await opened.enter_async_context(listener)
        sockets = [opened.enter_context(await _udp(listener)) for listener in listeners]
        opened.pop_all()
    return listeners, sockets


async def _udp(listener: trio.SocketListener) -> trio.socket.SocketType:
    """A UDP socket where a TCP listener is."""
    sock = trio.socket.socket(listener.socket.family, socket.SOCK_DGRAM)
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind(listener.socket.getsockname()[:2])
    except BaseException:
        sock.close()
        raise
    return sock


def _address(name: Any) -> Address:
    """A socket's name; without the zone of a link-local address."""
    return Address(str(name[0]).split("%")[0], int(name[1]))
