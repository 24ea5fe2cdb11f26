"""I/O: asking STUN servers from where they see a socket of ours (RFC 8489), over TCP and UDP.

Over TCP the question is asked from a given port, so that it can be the one that a listener is on:
that is the mapping through which a hole can be punched. The connection is broken off with a reset
afterwards, as TIME_WAIT would keep the port from asking the same server again for a minute.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from ipaddress import ip_address
from secrets import token_bytes
from typing import Final, TypeAlias

import trio

from ..address import Address
from ..errors import StunError
from .behaviour import Behaviour, Sight, classify
from .hosts import outgoing_host
from .stun_codec import (
    HEADER,
    MESSAGE_LIMIT,
    TRANSACTION,
    Binding,
    length_of,
    parse_reply,
    request,
    transaction_of,
)

FIRST_WAIT: Final = 0.5
"""Seconds until an unanswered datagram is sent again; the wait doubles (RFC 8489 section 6.2.1)."""

ROUND_SECONDS: Final = 3.0
"""Silence after which a server counts as not answering: three datagrams, at 0, 0.5 and 1.5 s."""

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of no seconds."""

Found: TypeAlias = dict[Address, Binding]


@contextlib.asynccontextmanager
async def tcp_binding(server: Address, local: Address) -> AsyncIterator[Binding]:
    """What a server says of a TCP connection from `local`, which stays open in the block.

    A NAT keeps a mapping for as long as a connection uses it. `local` is an IP address of ours
    (0.0.0.0 or :: for any) and a port, which a listener may be on that has SO_REUSEPORT as well.
    Raises StunError.
    """
    target = await _resolve(server, local)
    async with _bound(local) as sock:
        with _errors(server):
            await sock.connect((target.host, target.port))
            binding = await _ask_tcp(sock)
        yield binding


async def tcp_behaviour(servers: Sequence[Address], local: Address) -> Behaviour:
    """How the NAT maps one TCP port on the way to several servers; silent ones are left out.

    Raises StunError where the local port can't be had.
    """
    found: Found = {}
    async with _bound(local) as holder:
        ours = Address(local.host, holder.getsockname()[1])
        with trio.move_on_after(ROUND_SECONDS):
            async with trio.open_nursery() as nursery:
                for server in servers:
                    nursery.start_soon(_note_tcp, server, ours, found)
    return _behaviour(ours, found)


async def udp_behaviour(servers: Sequence[Address], local: Address) -> Behaviour:
    """How the NAT maps one UDP port on the way to several servers; silent ones are left out.

    A server that has another address is asked there, too, at both of its ports (RFC 5780).
    Raises StunError where the local port can't be had.
    """
    found: Found = {}
    with contextlib.ExitStack() as opened:
        with _errors(local):
            sock = opened.enter_context(trio.socket.socket(_family(local), socket.SOCK_DGRAM))
            await sock.bind((local.host, local.port))
        await _ask_udp(sock, await _resolved(servers, local), found)
        await _ask_udp(sock, _alternates(found), found)
        return _behaviour(Address(local.host, sock.getsockname()[1]), found)


def _behaviour(local: Address, found: Found) -> Behaviour:
    if found and ip_address(local.host).is_unspecified:
        local = Address(outgoing_host(next(iter(found))) or local.host, local.port)
    return classify(local, [Sight(server, binding.mapped) for server, binding in found.items()])


def _alternates(found: Found) -> list[Address]:
    """The first server's other address, with its first and with its other port."""
    pairs = ((server, binding.other) for server, binding in found.items())
    server, other = next(((s, o) for s, o in pairs if o is not None), (None, None))
    return [Address(other.host, server.port), other] if server and other else []


# -- names and sockets -----------------------------------------------------------------------------


def _family(local: Address) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in local.host else socket.AF_INET


async def _resolve(server: Address, local: Address) -> Address:
    """The IP address of a server, of the same family as ours."""
    try:
        found = await trio.socket.getaddrinfo(server.host, server.port, family=_family(local))
    except OSError as error:
        raise StunError(f"{server}: no such host ({error.strerror})") from None
    return Address(str(found[0][4][0]), server.port)


async def _resolved(servers: Sequence[Address], local: Address) -> list[Address]:
    """Those that have an address within a round."""
    found: dict[Address, Address] = {}

    async def note(server: Address) -> None:
        with contextlib.suppress(StunError):
            found[server] = await _resolve(server, local)

    with trio.move_on_after(ROUND_SECONDS):
        async with trio.open_nursery() as nursery:
            for server in servers:
                nursery.start_soon(note, server)
    return [found[server] for server in servers if server in found]


@contextlib.asynccontextmanager
async def _bound(local: Address) -> AsyncIterator[trio.socket.SocketType]:
    """A TCP socket on a port that others of ours may be on; it ends with a reset."""
    with contextlib.ExitStack() as opened:
        with _errors(local):
            sock = opened.enter_context(trio.socket.socket(_family(local), socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            await sock.bind((local.host, local.port))
        yield sock


@contextlib.contextmanager
def _errors(address: Address) -> Iterator[None]:
    """Tell what goes wrong as a StunError that names the address."""
    try:
        yield
    except StunError as error:
        raise StunError(f"{address}: {error.args[0]}") from None
    except trio.BrokenResourceError:
        raise StunError(f"{address}: the connection broke") from None
    except OSError as error:
        why = os.strerror(error.errno).lower() if error.errno else str(error)
        raise StunError(f"{address}: {why}") from None


# -- asking ----------------------------------------------------------------------------------------


async def _note_tcp(server: Address, local: Address, found: Found) -> None:
    with contextlib.suppress(StunError):
        target = await _resolve(server, local)
        async with tcp_binding(target, local) as binding:
            found[target] = binding


async def _ask_tcp(sock: trio.socket.SocketType) -> Binding:
    transaction = token_bytes(TRANSACTION)
    stream = trio.SocketStream(sock)
    await stream.send_all(request(transaction))
    return parse_reply(await read_message(stream), transaction)


async def read_message(stream: trio.SocketStream) -> bytes:
    """The next whole message of a TCP connection. Raises StunError where what comes is none."""
    header = await _exactly(stream, HEADER)
    return header + await _exactly(stream, length_of(header) - HEADER)


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        if not part:
            raise StunError("it closed the connection")
        data += part
    return data


async def _ask_udp(sock: trio.socket.SocketType, targets: Sequence[Address], found: Found) -> None:
    """Ask all at once, again and again, until all have answered or the round is over."""
    pending = {token_bytes(TRANSACTION): target for target in targets}
    wait = FIRST_WAIT
    with trio.move_on_after(ROUND_SECONDS):
        while pending:
            for transaction, target in pending.items():
                with contextlib.suppress(OSError):  # no route there: no answer either
                    await sock.sendto(request(transaction), (target.host, target.port))
            with trio.move_on_after(wait):
                await _receive(sock, pending, found)
            wait *= 2


async def _receive(
    sock: trio.socket.SocketType, pending: dict[bytes, Address], found: Found
) -> None:
    while pending:
        data, _ = await sock.recvfrom(MESSAGE_LIMIT + 1)
        target = pending.get(transaction_of(data))
        if target is not None:
            with contextlib.suppress(StunError):
                found[target] = parse_reply(data, transaction_of(data))
                del pending[transaction_of(data)]
