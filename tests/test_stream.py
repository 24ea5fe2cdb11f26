"""A stream fills memory in as many tries as it takes, and says when it is lost."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.stream import Filling, Stream

MIB = 1 << 20


def with_streams(check: Callable[[Stream, Stream], Awaitable[None]]) -> None:
    """Run a check with both ends of a connection, and close them."""

    async def main() -> None:
        one, two = (Stream(end.detach()) for end in socket.socketpair())
        with trio.fail_after(20):
            await check(one, two)
        one.close()
        two.close()

    trio.run(main)


def empty(size: int) -> Filling:
    """Memory of this size."""
    return Filling(memoryview(bytearray(size)))


def test_what_is_sent_in_parts_arrives() -> None:
    """More than the kernel takes at once, in parts of all sizes, none left out."""
    parts = [os.urandom(size) for size in (12, 0, 16, 3 * MIB, 1, 0)]

    async def check(one: Stream, two: Stream) -> None:
        filling = empty(sum(map(len, parts)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send, *parts)
            await two.fill(filling)
        assert bytes(filling.whole) == b"".join(parts)

    with_streams(check)


def test_a_cancelled_read_goes_on_where_it_was() -> None:
    """What had come by then is in the memory, and the rest comes behind it."""

    async def check(one: Stream, two: Stream) -> None:
        filling = empty(MIB)
        await one.send(b"first")
        with trio.move_on_after(0.01):
            await two.fill(filling)
        assert bytes(filling.whole[:5]) == b"first"
        assert len(filling.left) == MIB - 5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send, bytes(MIB - 5))
            await two.fill(filling)
        assert not filling.left

    with_streams(check)


def test_the_end_is_told() -> None:
    """The other end has closed: what it sent is read, then LinkClosed; sending fails, too."""

    async def check(one: Stream, two: Stream) -> None:
        await one.send(b"last word")
        one.close()
        await two.fill(empty(9))
        with pytest.raises(LinkClosed):
            await two.fill(empty(1))
        with pytest.raises(LinkClosed):
            await two.send(b"anyone?")

    with_streams(check)


def test_closing_wakes_who_waits() -> None:
    """A reader without data and a writer without room get LinkClosed; who comes later, too."""

    async def check(one: Stream, _two: Stream) -> None:
        async def fails(call: Callable[[], Awaitable[None]]) -> None:
            with pytest.raises(LinkClosed):
                await call()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, lambda: one.fill(empty(1)))
            nursery.start_soon(fails, lambda: one.send(bytes(16 * MIB)))
            await trio.testing.wait_all_tasks_blocked(0.05)
            one.close()
            one.close()
        await fails(lambda: one.fill(empty(1)))
        await fails(lambda: one.send(b"x"))

    with_streams(check)
