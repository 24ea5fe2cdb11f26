"""I/O: TCP connections from the port that a listener is on: punching holes into NATs.

A NAT lets in what answers to what went out. So both peers connect to each other at the same time,
each from the port that the other knows of: each one's SYN opens its own NAT for the other's, and
the two meet in TCP's simultaneous open (RFC 9293 section 3.5, RFC 5128 section 3.4). What comes a
little early is dropped, and the kernel says it again after a second. A NAT that answers with a
reset is asked again at once.

On Linux several sockets may have one port if all of them have SO_REUSEPORT. The listener gets it
only after it listens: another program that wants the port is still told that it is taken, as it
doesn't ask to share (seen on Linux 6.18: plain, and with SO_REUSEADDR, on the same address, on
0.0.0.0 beside 127.0.0.1, and on [::]; one of another user that does ask is refused, too). The other
systems want it from all before the first one binds, so there nothing is punched.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

import trio

from ..address import Address, is_name
from ..errors import DialError, HandshakeError, NoRoute
from .calls import ADDRESSES

CONNECTS: Final = 8
"""Connections to one target that may fail at once: a NAT that resets what comes too early."""

RETRY_LEAST, RETRY_MOST = 0.1, 0.2
"""Seconds until such a target is tried again; at random, or two that just miss each other would
go on to."""

_RESET: Final = struct.pack("ii", 1, 0)
_LINGER: Final = struct.pack("ii", 0, 0)


class Closable(Protocol):
    """What comes of a hole."""

    async def aclose(self) -> None:
        """Close it."""


L = TypeVar("L", bound=Closable)
Finish = Callable[[], Awaitable[L]]


def share(listener: trio.socket.SocketType) -> None:
    """Let other sockets of ours use this listener's port, where the system can do that."""
    if sys.platform == "linux":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def keep(stream: trio.SocketStream) -> None:
    """From now on this connection closes as any other: what was sent still arrives."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)


def usable(local: Address, targets: Sequence[Address]) -> tuple[Address, ...]:
    """Those that can be reached from our port at all, each once. Raises NoRoute without any."""
    if sys.platform != "linux":
        raise NoRoute("this system lends a listener's port to no other socket")
    if is_name(local.host):
        raise NoRoute(f"{local} is a name; holes are punched from an IP address")
    fitting = [
        target
        for target in dict.fromkeys(targets)
        if target.port and target != local and not is_name(target.host)
        if reaches(local.host, target.host)
    ]
    if not fitting:
        raise NoRoute(f"no address that {local} could connect to")
    return tuple(fitting[:ADDRESSES])


def reaches(local: str, target: str) -> bool:
    """Whether one of our listeners at this IP address speaks the target's version of IP.

    [::] stands for both versions, with a listener for each.
    """
    return local == "::" or (":" in local) == (":" in target)


class Punch(Generic[L]):
    """Connecting from one port to several targets until one of them proves to be the peer.

    `meet` shakes hands on a connection up to where the other end has proved who it is, and gives
    what finishes it. One connection is finished at a time: both ends let the same one win.
    """

    def __init__(
        self, local: Address, meet: Callable[[trio.SocketStream], Awaitable[Finish[L]]]
    ) -> None:
        self._local, self._meet = local, meet
        self._one = trio.Lock()
        self._links: list[L] = []
        self._trouble = ""

    async def run(self, targets: Sequence[Address]) -> L:
        """The first that succeeds; the others are closed. Raises DialError when all are given up.

        Cancelled, it leaves no socket.
        """
        fitting = usable(self._local, targets)
        try:
            async with trio.open_nursery() as nursery:
                for target in fitting:
                    nursery.start_soon(self._try, target, nursery.cancel_scope)
        except BaseException:
            with trio.CancelScope(shield=True):
                for link in self._links:
                    await link.aclose()
            raise
        if not self._links:
            raise DialError(self._trouble)
        return self._links[0]

    async def _try(self, target: Address, race: trio.CancelScope) -> None:
        """One target, until it is through, gives up, or another one is."""
        for _ in range(CONNECTS):
            try:
                stream = await knock(self._local, target)
                try:
                    await self._talk(stream, race)
                    return
                finally:
                    await trio.aclose_forcefully(stream)
            except HandshakeError as error:
                self._trouble = f"{target}: {error}"
                return  # somebody else is there; it is not bothered again
            except OSError as error:
                self._trouble = f"{target}: {os.strerror(error.errno or 0).lower()}"
            except trio.BrokenResourceError:
                self._trouble = f"{target}: the connection broke"
            await trio.sleep(random.uniform(RETRY_LEAST, RETRY_MOST))

    async def _talk(self, stream: trio.SocketStream, race: trio.CancelScope) -> None:
        finish = await self._meet(stream)
        async with self._one:
            self._links.append(await finish())
            race.cancel()


async def knock(local: Address, target: Address) -> trio.SocketStream:
    """One connection from our listening port; raises OSError. Until `keep` it ends with a reset.

    In TIME_WAIT it would keep our port from this very target for a minute.
    """
    six = ":" in target.host
    host = "0.0.0.0" if local.host == "::" and not six else local.host
    sock = trio.socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        await sock.bind((host, local.port))
        await sock.connect((target.host, target.port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)
