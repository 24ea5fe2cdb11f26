"""I/O: bytes over a connected socket under trio, into and from memory of the caller's.

trio's own streams give a fresh bytes object for each read; model bytes go straight to where they
are needed instead. A read that is cancelled has lost nothing: `Filling` knows how far it came.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from .errors import LinkClosed

# The kernel wakes us once so much has come, or all that is due: a wake-up costs as much as copying
# some 100 KiB.
WORTH_WAKING = 256 * 1024


class Filling:
    """Memory that is filled from a stream, in as many tries as it takes."""

    __slots__ = ("left", "whole")

    def __init__(self, memory: memoryview) -> None:
        self.whole = self.left = memory


class Stream:
    """A connected socket; one task reads and one writes. All raise LinkClosed once it is lost."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._lowest = 1

    async def fill(self, filling: Filling) -> None:
        """Read until the memory is full."""
        while filling.left:
            try:
                read = self._socket.recv_into(filling.left)
            except BlockingIOError:
                await self._readable(len(filling.left))
            except OSError as error:
                raise LinkClosed(error.strerror or str(error)) from None
            else:
                if not read:
                    raise LinkClosed
                filling.left = filling.left[read:]

    async def send(self, *parts: memoryview | bytes) -> None:
        """Write all of it; cancelled in the midst, the stream is of no more use."""
        left = [memoryview(part) for part in parts]
        while left:
            try:
                sent = self._socket.sendmsg(left)
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_writable)
            except OSError as error:
                raise LinkClosed(error.strerror or str(error)) from None
            else:
                left = _after(left, sent)

    async def _readable(self, due: int) -> None:
        lowest = min(due, WORTH_WAKING)
        if lowest != self._lowest:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, lowest)
            self._lowest = lowest
        await self._wait(trio.lowlevel.wait_readable)

    async def _wait(self, until: Callable[[socket.socket], Awaitable[None]]) -> None:
        try:
            await until(self._socket)
        except (trio.ClosedResourceError, OSError, ValueError):  # closed meanwhile, or before
            raise LinkClosed from None

    def close(self) -> None:
        """Close; who waits gets LinkClosed. Safe to call twice."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def _after(parts: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of these when so many bytes are gone."""
    while parts and sent >= len(parts[0]):
        sent -= len(parts.pop(0))
    if sent:
        parts[0] = parts[0][sent:]
    return parts
