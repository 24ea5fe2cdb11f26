"""I/O: a router that maps ports, seen alike through three protocols; here the two over UDP.

Strategy: a `Router` is asked who it is (which makes nothing), told to map a port, and to end that.
PCP and NAT-PMP are one datagram each way from a connected socket, so that the kernel drops what
others send; the request goes out again until an answer comes or the caller's time is over, and
what is no answer to it is passed over. UPnP is in `upnp.py`.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import trio

from ..errors import MappingError, MappingRefused, WireError
from .gateway import Gateway
from .pcp import (
    DATAGRAM_LIMIT,
    PORT,
    Announce,
    Announced,
    AskMap,
    AskOuter,
    Denied,
    Granted,
    Leased,
    Map,
    Outer,
    Reply,
    Request,
    parse_reply,
)

FIRST_WAIT: Final = 0.25
"""Seconds until an unanswered request is sent again; the wait doubles (RFC 6886 section 3.1)."""
ASK_SECONDS: Final = 2.5
"""How long a router is asked: four datagrams. A router in the same house answers in milliseconds,
and who looks at `p2pnode doctor` waits three seconds at most."""

NO_ANSWER: Final = "no answer"
NO_OUTER: Final = "the router has no outer address: is it connected, or behind another NAT?"

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Heard:
    """A router is there.

    `host` is its outer address, where the protocol tells it; `epoch` its seconds since it had no
    mappings; `boot` names the life of a router that has no such clock. Empty or None: not told.
    """

    host: str | None = None
    epoch: float | None = None
    boot: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """TCP connections to `port` of `host` come to us, for `lifetime` seconds from now on."""

    host: str
    port: int
    lifetime: float


class Router(Protocol):
    """One router, through one protocol. Each method raises MappingError, in bounded time."""

    protocol: str

    async def ask(self) -> Heard:
        """Whether it is there; makes nothing."""

    async def map(self, inner: int, outer: int, lifetime: int) -> Lease:
        """Map an outer port, this one if it is free, to our port `inner`; again to renew it."""

    async def unmap(self, inner: int, outer: int) -> None:
        """End a mapping, also one whose answer has never come."""


class PcpRouter:
    """A router that speaks PCP.

    `nonce` must be the same to renew and to end a mapping, and nobody else may know it.
    """

    protocol = "PCP"

    def __init__(self, gateway: Gateway, nonce: bytes, port: int = PORT) -> None:
        self._gateway, self._nonce, self._port = gateway, nonce, port

    async def ask(self) -> Heard:
        """Its ANNOUNCE; the outer address isn't told."""
        return Heard(epoch=(await self._say(Announce(self._gateway.ours), Announced)).epoch)

    async def map(self, inner: int, outer: int, lifetime: int) -> Lease:
        """Map or renew."""
        granted = await self._say(self._map(inner, outer, lifetime), Granted)
        return Lease(granted.host, granted.outer, granted.lifetime)

    async def unmap(self, inner: int, outer: int) -> None:
        """A mapping of no seconds."""
        await self._say(self._map(inner, outer, 0), Granted)

    def _map(self, inner: int, outer: int, lifetime: int) -> Map:
        return Map(self._gateway.ours, self._nonce, inner, outer, lifetime)

    async def _say(self, request: Announce | Map, kind: type[R]) -> R:
        return await _exchange(self._gateway, self._port, request, kind)


class PmpRouter:
    """A router that speaks NAT-PMP."""

    protocol = "NAT-PMP"

    def __init__(self, gateway: Gateway, port: int = PORT) -> None:
        self._gateway, self._port = gateway, port

    async def ask(self) -> Heard:
        """Its outer address and clock."""
        outer = await self._say(AskOuter(), Outer)
        return Heard(outer.host, outer.epoch)

    async def map(self, inner: int, outer: int, lifetime: int) -> Lease:
        """Map or renew; the outer address is asked for first."""
        host = (await self._say(AskOuter(), Outer)).host
        leased = await self._say(AskMap(inner, outer, lifetime), Leased)
        return Lease(host, leased.outer, leased.lifetime)

    async def unmap(self, inner: int, outer: int) -> None:
        """A mapping of no seconds; the outer port must be 0 (RFC 6886 section 3.4)."""
        await self._say(AskMap(inner, 0, 0), Leased)

    async def _say(self, request: AskOuter | AskMap, kind: type[R]) -> R:
        return await _exchange(self._gateway, self._port, request, kind)


# -- one datagram each way -------------------------------------------------------------------------


async def _exchange(gateway: Gateway, port: int, request: Request, kind: type[R]) -> R:
    """The router's answer to a request. Raises MappingError."""
    reply: Reply | None = None
    async with _connected(gateway, port) as sock:
        with trio.move_on_after(ASK_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, sock, request.to_bytes())
                reply = await _receive(sock, request)
                nursery.cancel_scope.cancel()
    if isinstance(reply, kind):
        return reply
    raise _refusal(reply, request) if isinstance(reply, Denied) else MappingError(NO_ANSWER)


@contextlib.asynccontextmanager
async def _connected(gateway: Gateway, port: int) -> AsyncIterator[trio.socket.SocketType]:
    """A socket that gets only what the router sends. Raises MappingError."""
    family = socket.AF_INET6 if ":" in gateway.host else socket.AF_INET
    with contextlib.ExitStack() as opened:
        try:
            sock = opened.enter_context(trio.socket.socket(family, socket.SOCK_DGRAM))
            await sock.bind((gateway.ours, 0))
            await sock.connect((gateway.host, port))
        except OSError as error:
            raise MappingError(error.strerror or str(error)) from error
        yield sock


async def _send(sock: trio.socket.SocketType, request: bytes) -> None:
    """Send it again and again, ever more seldom."""
    wait = FIRST_WAIT
    while True:
        with contextlib.suppress(OSError):  # nothing listens there; the router may be starting
            await sock.send(request)
        await trio.sleep(wait)
        wait *= 2


async def _receive(sock: trio.socket.SocketType, request: Request) -> Reply:
    """The first answer to this request; what is none is passed over."""
    while True:
        with contextlib.suppress(OSError, WireError):
            reply = parse_reply(await sock.recv(DATAGRAM_LIMIT + 1))
            if is_to(request, reply):
                return reply


def is_to(request: Request, reply: Reply) -> bool:
    """Whether a reply is to this request."""
    match request, reply:
        case Map(), Granted():
            return (reply.nonce, reply.inner) == (request.nonce, request.inner)
        case Map(), Denied():  # without a nonce where the router doesn't know PCP
            return reply.nonce in (b"", request.nonce)
        case AskMap(), Leased():
            return reply.inner == request.inner
        case (Announce(), Announced()) | (AskOuter(), Outer()) | (_, Denied()):
            return True
    return False


def _refusal(denied: Denied, request: Request) -> MappingError:
    """What a denial means: another protocol than ours is spoken there, or we aren't welcome."""
    about_pmp = isinstance(request, AskOuter | AskMap)
    if denied.result == 1 or denied.is_pcp == about_pmp:
        return MappingError("not spoken there")
    return MappingError(NO_OUTER) if denied.no_network else MappingRefused(denied.reason)
