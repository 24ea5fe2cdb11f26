"""The listening port is lent to our own sockets, to nobody else's, and comes back."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from lab import identity
from p2pnode.transport import network as module
from p2pnode.transport.address import Address
from p2pnode.transport.errors import DialError, HandshakeError, NoRoute
from p2pnode.transport.handshake import (
    HELLO_SIZE,
    REPLY_SIZE,
    Acceptor,
    Dialler,
    is_punch,
)
from p2pnode.transport.identity import Identity
from p2pnode.transport.link import Link
from p2pnode.transport.nat import holes
from p2pnode.transport.nat.calls import ADDRESSES
from p2pnode.transport.network import TcpNetwork

ALICE, BOB, EVE = identity(1), identity(2), identity(3)
HIGHER, LOWER = (ALICE, BOB) if ALICE.peer_id > BOB.peer_id else (BOB, ALICE)
HERE = "127.0.0.1"
ANYWHERE = Address(HERE, 0)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="holes are punched on Linux only")


async def forget(link: Link) -> None:
    """A handler that hangs up."""
    await link.aclose()


@asynccontextmanager
async def listening(
    handler: Callable[[Link], Awaitable[None]] = forget, host: str = HERE
) -> AsyncIterator[Address]:
    """Where Alice listens."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            listen = TcpNetwork(ALICE).listen
            yield await nursery.start(listen, Address(host, 0), {"peer": handler})
            nursery.cancel_scope.cancel()


def descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


# ── the port ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", [HERE, "0.0.0.0", "::1", "::"])
def test_another_program_finds_the_port_taken(host: str) -> None:
    """Also while holes are punched from it, and with SO_REUSEADDR, as servers have it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    loopback = "::1" if ":" in host else HERE

    async def main() -> None:
        async with listening(host=host) as where:
            others = await trio.open_tcp_listeners(0, host=loopback)
            target = Address(loopback, others[0].socket.getsockname()[1])
            async with await holes.knock(where, target) as ours:
                assert ours.socket.getsockname()[1] == where.port
                for reuse in (0, 1):
                    with socket.socket(family) as second:
                        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
                        with pytest.raises(OSError, match="already in use"):
                            second.bind((host, where.port))
                            second.listen()
            await others[0].aclose()

    trio.run(main)


def test_the_port_can_be_listened_on_again_while_links_live() -> None:
    """A node that is started anew needn't wait for the connections of the old one."""

    async def main() -> None:
        others = await trio.open_tcp_listeners(0, host=HERE)
        target = Address(HERE, others[0].socket.getsockname()[1])
        async with listening() as where:
            hole = await holes.knock(where, target)
        async with trio.open_nursery() as nursery:
            listen = TcpNetwork(ALICE).listen
            assert await nursery.start(listen, where, {"peer": forget}) == where
            nursery.cancel_scope.cancel()
        await hole.aclose()
        await others[0].aclose()

    trio.run(main)


def test_what_is_no_link_ends_with_a_reset() -> None:
    """TIME_WAIT would keep our port from the same target for a minute: here it's tried at once."""

    async def main() -> None:
        others = await trio.open_tcp_listeners(0, host=HERE)
        target = Address(HERE, others[0].socket.getsockname()[1])
        async with listening() as where:
            for _ in range(3):
                await trio.aclose_forcefully(await holes.knock(where, target))
                await trio.aclose_forcefully(await others[0].accept())
        await others[0].aclose()

    trio.run(main)


def test_other_systems_punch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the listener would have to share its port from the start: it says so and is left."""
    monkeypatch.setattr(holes.sys, "platform", "darwin")

    async def main() -> None:
        async with listening() as where:
            with pytest.raises(NoRoute, match="this system"):
                await TcpNetwork(ALICE).punch(where, [Address(HERE, 9)], BOB.peer_id)
            link = await TcpNetwork(BOB).dial(where, "peer", ALICE.peer_id)
            await link.aclose()

    trio.run(main)


def test_a_name_to_listen_on_is_no_place_to_punch_from() -> None:
    """Which of its addresses a socket would get isn't ours to guess."""
    with pytest.raises(NoRoute, match="is a name"):
        holes.usable(Address("localhost", 6000), [Address(HERE, 6000)])


def test_both_versions_of_ip_are_punched_from_both_listeners() -> None:
    """Who listens on [::] has a listener for IPv4 as well."""

    async def main() -> None:
        async with listening(host="::") as where:
            for host in (HERE, "::1"):
                others = await trio.open_tcp_listeners(0, host=host)
                target = Address(host, others[0].socket.getsockname()[1])
                async with await holes.knock(where, target) as hole:
                    assert hole.socket.getsockname()[1] == where.port
                await others[0].aclose()

    trio.run(main)
    both = (Address(HERE, 1), Address("::1", 1))
    assert holes.usable(Address("::", 6000), both) == both
    assert holes.usable(Address("0.0.0.0", 6000), both) == both[:1]
    assert holes.usable(Address("2001:db8::1", 6000), both) == both[1:]


def test_few_targets_are_tried_each_once() -> None:
    """However many addresses a peer names."""
    many = [Address(f"192.0.2.{n % 9 + 1}", 6000) for n in range(40)]
    assert holes.usable(Address("0.0.0.0", 6000), many) == tuple(many[:ADDRESSES])


# ── what targets may do to us ────────────────────────────────────────────────────────────────


async def punched_at(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> list[str]:
    """Punch at something: what came of it, and how often it was connected to."""
    said: list[str] = []

    async def counted(stream: trio.SocketStream) -> None:
        said.append("connected")
        await serve(stream)

    async with listening() as where, trio.open_nursery() as nursery:
        others = await nursery.start(partial(trio.serve_tcp, counted, 0, host=HERE))
        target = Address(HERE, others[0].socket.getsockname()[1])
        try:
            with trio.move_on_after(0.5):
                await TcpNetwork(ALICE).punch(where, [target], BOB.peer_id)
        except DialError as error:
            said.append(str(error))
        nursery.cancel_scope.cancel()
    return said


def test_a_stranger_at_a_target_is_bothered_once() -> None:
    """A web server whose address somebody named gets one connection and 52 bytes."""

    async def web(stream: trio.SocketStream) -> None:
        assert len(await stream.receive_some()) == HELLO_SIZE
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    connected, why = trio.run(punched_at, web)
    assert connected == "connected"
    assert "does not speak p2pnode/1" in why


def test_a_target_that_says_nothing_holds_up_nobody() -> None:
    """The caller's scope ends it."""

    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    assert trio.run(punched_at, silent) == ["connected"]


def test_a_nat_that_resets_is_asked_again_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time after a moment; then it is given up."""
    monkeypatch.setattr(holes, "RETRY_LEAST", 0.0)
    monkeypatch.setattr(holes, "RETRY_MOST", 0.01)

    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        linger = struct.pack("ii", 1, 0)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    *connects, why = trio.run(punched_at, reset)
    assert len(connects) == holes.CONNECTS
    assert "No" in why


def test_two_that_just_miss_each_other_do_not_go_on_so() -> None:
    """The pauses are random: the same ones on both sides would always miss by as much."""
    assert holes.RETRY_MOST >= 2 * holes.RETRY_LEAST


# ── hellos that cross ────────────────────────────────────────────────────────────────────────


async def pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Both ends of a TCP connection; who dialled doesn't show, as after a simultaneous open."""
    listeners = await trio.open_tcp_listeners(0, host=HERE)
    here = await trio.open_tcp_stream(*listeners[0].socket.getsockname())
    there = await listeners[0].accept()
    await listeners[0].aclose()
    return here, there


def test_both_ends_of_a_simultaneous_open_agree() -> None:
    """Both send a hello; the lower ID stays the dialler, the other answers."""

    async def main() -> None:
        ends = dict(zip((HIGHER, LOWER), await pair(), strict=True))
        links: dict[str, Link] = {}

        async def side(me: Identity, other: Identity) -> None:
            met = await module._punch_handshake(ends[me], me, other.peer_id)
            links[me.peer_id] = await module._settle(ends[me], met)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side, HIGHER, LOWER)
                nursery.start_soon(side, LOWER, HIGHER)
            low, high = links[LOWER.peer_id], links[HIGHER.peer_id]
            assert (low.dialled, high.dialled) == (True, False)
            assert low.punched and high.punched
            await low.send(b"hello")
            assert await high.receive() == b"hello"
            await low.aclose()
            await high.aclose()

    trio.run(main)


@pytest.mark.parametrize("me", [HIGHER, LOWER])
def test_somebody_else_behind_a_crossed_hello_is_refused(me: Identity) -> None:
    """Eve sits at the address that was named: whichever role we take, she is found out."""
    other = LOWER if me is HIGHER else HIGHER

    async def eve(stream: trio.SocketStream) -> None:
        dialler = Dialler(EVE, "peer", None, punching=True)
        await stream.send_all(dialler.hello())
        hello = await module._read_exactly(stream, HELLO_SIZE)
        assert is_punch(hello)
        if me is HIGHER:
            reply = await module._read_exactly(stream, REPLY_SIZE)
            await stream.send_all(dialler.finish(reply)[0])
        else:
            await stream.send_all(Acceptor(EVE, ["peer"]).reply(hello))

    async def main() -> None:
        here, there = await pair()
        with trio.fail_after(10):
            async with here, there, trio.open_nursery() as nursery:
                nursery.start_soon(eve, there)
                with pytest.raises(HandshakeError, match="answered, not"):
                    await module._punch_handshake(here, me, other.peer_id)

    trio.run(main)


def test_the_dialler_owes_its_proof_until_it_has_chosen() -> None:
    """Of two connections that both work the one that wasn't chosen never gets it."""

    async def main() -> None:
        here, there = await pair()

        async def answer() -> None:
            acceptor = Acceptor(ALICE, ["peer"])
            hello = await module._read_exactly(there, HELLO_SIZE)
            await there.send_all(acceptor.reply(hello))

        async with here, there, trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            met = await module._punch_handshake(here, BOB, ALICE.peer_id)
            assert (met.session.peer, met.dialled) == (ALICE.peer_id, True)
            assert len(met.last) > 0
            with trio.move_on_after(0.05) as waiting:
                await there.receive_some()
            assert waiting.cancelled_caught

    trio.run(main)


# ── the race ─────────────────────────────────────────────────────────────────────────────────


class Made:
    """A link that a race made."""

    closed = 0

    async def aclose(self) -> None:
        self.closed += 1


async def race(finish: Callable[[Made], Awaitable[None]], targets: int) -> list[Made]:
    """Several targets that all answer at once: the links that were made of them."""
    made: list[Made] = []

    async def meet(_: trio.SocketStream) -> holes.Finish[Made]:
        async def done() -> Made:
            made.append(Made())
            await finish(made[-1])
            return made[-1]

        return done

    others = [(await trio.open_tcp_listeners(0, host=HERE))[0] for _ in range(targets)]
    addresses = [Address(HERE, other.socket.getsockname()[1]) for other in others]
    async with listening() as where:
        with trio.move_on_after(0.3):
            assert await holes.Punch(where, meet).run(addresses) is made[-1]
    for other in others:
        await other.aclose()
    return made


def test_one_connection_is_finished_at_a_time() -> None:
    """The first that succeeds is the only one, however many have met."""

    async def slowly(_: Made) -> None:
        await trio.sleep(0.02)

    made = trio.run(race, slowly, 4)
    assert [link.closed for link in made] == [0]


def test_when_the_chosen_one_fails_another_is_finished() -> None:
    """The other end had chosen differently, or the line broke."""
    failures = []

    async def first_fails(link: Made) -> None:
        if not failures:
            failures.append(link)
            raise HandshakeError("the other end closed during the handshake")

    made = trio.run(race, first_fails, 3)
    assert len(made) == 2


def test_cancelled_at_any_moment_it_leaves_no_socket() -> None:
    """While it connects, while it shakes hands, while the link opens: nothing stays open."""

    async def main() -> None:
        async with listening() as where, trio.open_nursery() as nursery:
            others = await nursery.start(partial(trio.serve_tcp, forget_stream, 0, host=HERE))
            target = Address(HERE, others[0].socket.getsockname()[1])
            network, before = TcpNetwork(ALICE), descriptors()
            for milliseconds in range(12):
                with trio.move_on_after(milliseconds / 1000):
                    await network.punch(where, [target, Address(HERE, 9)], BOB.peer_id)
            await trio.sleep(0.05)
            assert descriptors() <= before + 1
            link = await TcpNetwork(BOB).dial(where, "peer", ALICE.peer_id)  # it goes on
            await link.aclose()
            nursery.cancel_scope.cancel()

    trio.run(main)


async def forget_stream(stream: trio.SocketStream) -> None:
    """Accept, and hang up when the other does."""
    with contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass
