"""One suite for both networks: the real one over TCP and NNG, and the laboratory's twin."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from lab import Lab, identity
from p2pnode.transport.address import Address
from p2pnode.transport.errors import (
    DialError,
    HandshakeError,
    LinkClosed,
    ListenError,
    NoRoute,
    WireError,
)
from p2pnode.transport.link import CONTROL_LIMIT, PIECE_LIMIT, Link, Network, Piece
from p2pnode.transport.network import TcpNetwork

ALICE, BOB = identity(1), identity(2)
ANYWHERE = Address("127.0.0.1", 0)


def tcp() -> tuple[Network, Network]:
    """Alice's and Bob's real networks."""
    return TcpNetwork(ALICE), TcpNetwork(BOB)


def lab() -> tuple[Network, Network]:
    """Theirs in a laboratory."""
    lab = Lab()
    return lab.network(ALICE, "127.0.0.1"), lab.network(BOB, "127.0.0.1")


@pytest.fixture(params=[tcp, lab])
def networks(request: Any) -> tuple[Network, Network]:
    """Both kinds, one after the other."""
    made: tuple[Network, Network] = request.param()
    return made


def with_link(networks: tuple[Network, Network], check: Callable[..., Awaitable[None]]) -> None:
    """Run `check(alice's end, bob's end)`; Bob listens, Alice dials."""

    async def main() -> None:
        alice, bob = networks
        arrived: list[Link] = []
        there, over = trio.Event(), trio.Event()

        async def handler(link: Link) -> None:
            arrived.append(link)
            there.set()
            await over.wait()

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                where = await nursery.start(bob.listen, ANYWHERE, {"peer": handler})
                link = await alice.dial(where, "peer", BOB.peer_id)
                await there.wait()
                await check(link, arrived[0])
                await link.aclose()
                over.set()
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_both_ends_know_who_is_there(networks: Any) -> None:
    """The handshake proves both peer IDs, and each end knows who dialled."""

    async def check(here: Link, there: Link) -> None:
        assert (here.peer, there.peer) == (BOB.peer_id, ALICE.peer_id)
        assert (here.dialled, there.dialled) == (True, False)
        assert there.remote.host == "127.0.0.1"
        assert (here.local, there.local) == (there.remote, here.remote)

    with_link(networks, check)


def test_messages_arrive_whole_and_in_order(networks: Any) -> None:
    """Control messages of every size up to the limit arrive in order, both ways."""
    messages = [b"x", b"", b"y" * CONTROL_LIMIT] + [bytes([n]) for n in range(50)]

    async def check(here: Link, there: Link) -> None:
        for sender, receiver in ((here, there), (there, here)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, sender, messages)
                assert [await receiver.receive() for _ in messages] == messages

    with_link(networks, check)


async def send_all(link: Link, messages: list[bytes]) -> None:
    """All of them, in order."""
    for message in messages:
        await link.send(message)


def test_pieces_arrive_between_control_messages(networks: Any) -> None:
    """Model bytes and control messages share a link and keep their order."""
    body = os.urandom(PIECE_LIMIT)

    async def check(here: Link, there: Link) -> None:
        await here.send(b"before")
        await here.send_piece(Piece(7, 3, 1 << 20, body))
        await here.send(b"after")
        assert await there.receive_any() == b"before"
        piece = await there.receive_any()
        assert isinstance(piece, Piece)
        assert (piece.transfer, piece.chunk, piece.offset) == (7, 3, 1 << 20)
        assert bytes(piece.body) == body
        assert await there.receive_any() == b"after"

    with_link(networks, check)


def test_a_piece_filled_in_its_room_arrives(networks: Any) -> None:
    """A sender may write model bytes where the network will read them."""
    body = os.urandom(PIECE_LIMIT)

    async def check(here: Link, there: Link) -> None:
        for length in (1, 1000, PIECE_LIMIT):
            room = here.room(7, 3, 1 << 20, length)
            assert len(room.body) == length
            cast(memoryview, room.body)[:] = body[:length]
            await here.send_piece(room)
            piece = await there.receive_any()
            assert isinstance(piece, Piece)
            assert (piece.transfer, piece.chunk, piece.offset) == (7, 3, 1 << 20)
            assert bytes(piece.body) == body[:length]
        here.room(7, 3, 0, PIECE_LIMIT)  # one that isn't sent is nobody's business

    with_link(networks, check)


def test_a_message_too_large_is_refused_here(networks: Any) -> None:
    """The sender's own oversize message raises, and the link lives on."""

    async def check(here: Link, there: Link) -> None:
        with pytest.raises(WireError):
            await here.send(bytes(CONTROL_LIMIT + 1))
        await here.send(b"still here")
        assert await there.receive() == b"still here"

    with_link(networks, check)


def test_what_was_sent_before_closing_is_still_read(networks: Any) -> None:
    """A last word arrives although the sender closes once it is through; then LinkClosed."""

    async def check(here: Link, there: Link) -> None:
        await here.send(b"bye")
        assert await there.receive() == b"bye"
        await here.aclose()
        with pytest.raises(LinkClosed):
            await there.receive()
        with pytest.raises(LinkClosed):
            for _ in range(100):
                await there.send(b"anyone?")

    with_link(networks, check)


def test_closing_wakes_a_waiting_sender(networks: Any) -> None:
    """A sender whose peer doesn't read waits (backpressure), and closing wakes it."""

    async def check(here: Link, there: Link) -> None:
        async def flood() -> None:
            with pytest.raises(LinkClosed):
                while True:
                    await here.send_piece(Piece(1, 1, 0, bytes(PIECE_LIMIT)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await trio.testing.wait_all_tasks_blocked(0.2)
            await here.aclose()

    with_link(networks, check)


def test_a_cancelled_receive_loses_nothing(networks: Any) -> None:
    """A receive that is cancelled leaves the next message for the next receive."""

    async def check(here: Link, there: Link) -> None:
        with trio.move_on_after(0.01):
            await there.receive()
        await here.send(b"one")
        assert await there.receive() == b"one"

    with_link(networks, check)


def test_the_wrong_peer_is_not_accepted(networks: Any) -> None:
    """Dialling an address where another peer than the expected one answers fails."""

    async def main() -> None:
        alice, bob = networks
        async with trio.open_nursery() as nursery:
            where = await nursery.start(bob.listen, ANYWHERE, {"peer": forget})
            with pytest.raises(HandshakeError, match="answered"):
                await alice.dial(where, "peer", ALICE.peer_id)
            nursery.cancel_scope.cancel()

    trio.run(main)


async def forget(link: Link) -> None:
    """A handler that hangs up."""
    await link.aclose()


def test_the_wrong_service_is_named(networks: Any) -> None:
    """Dialling a peer as if it were a tracker says what is there."""

    async def main() -> None:
        alice, bob = networks
        async with trio.open_nursery() as nursery:
            where = await nursery.start(bob.listen, ANYWHERE, {"peer": forget})
            with pytest.raises(HandshakeError, match="is a peer, not a tracker"):
                await alice.dial(where, "tracker")
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_nobody_there(networks: Any) -> None:
    """Dialling where nobody listens is a DialError that names the address."""

    async def main() -> None:
        with pytest.raises(DialError, match=r"127\.0\.0\.1:9"):
            await networks[0].dial(Address("127.0.0.1", 9), "peer")

    trio.run(main)


def test_a_busy_port_is_a_clear_error(networks: Any) -> None:
    """Listening twice on one port says that it is taken and what to do."""

    async def main() -> None:
        bob = networks[1]
        async with trio.open_nursery() as nursery:
            where = await nursery.start(bob.listen, ANYWHERE, {"peer": forget})
            with pytest.raises(ListenError, match="choose another with --listen"):
                await open_and_close(bob, where)
            nursery.cancel_scope.cancel()

    trio.run(main)


async def open_and_close(network: Network, where: Address) -> None:
    """Listen until started; an error comes out bare, not in a group."""
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(network.listen, where, {"peer": forget})
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


# ── punching ─────────────────────────────────────────────────────────────────────────────────


class Door:
    """A listening port, and the links that came in at it."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.came, self.over = trio.Event(), trio.Event()

    async def handler(self, link: Link) -> None:
        self.links.append(link)
        self.came.set()
        await self.over.wait()


def punching(
    networks: tuple[Network, Network],
    check: Callable[[Door, Address, Door, Address], Awaitable[None]],
) -> None:
    """Run `check(alice's door, where it is, bob's door, where it is)`."""

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                doors = [Door(), Door()]
                places = [
                    await nursery.start(network.listen, ANYWHERE, {"peer": door.handler})
                    for network, door in zip(networks, doors, strict=True)
                ]
                await check(doors[0], places[0], doors[1], places[1])
                for door in doors:
                    door.over.set()
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_punching_to_an_open_door_comes_in_at_it(networks: Any) -> None:
    """Where the other side's NAT lets us in we land at its listener, and both know how."""

    async def check(_: Door, here: Address, bobs: Door, there: Address) -> None:
        link = await networks[0].punch(here, [there], BOB.peer_id)
        await bobs.came.wait()
        assert (link.peer, link.remote) == (BOB.peer_id, there)
        assert (link.dialled, bobs.links[0].dialled) == (True, False)
        assert (link.punched, bobs.links[0].punched) == (True, True)
        await link.send(b"through")
        assert await bobs.links[0].receive() == b"through"
        await link.aclose()

    punching(networks, check)


def test_links_that_were_dialled_are_not_punched(networks: Any) -> None:
    """Only a hole makes a punched link, at both ends."""

    async def check(_: Door, __: Address, bobs: Door, there: Address) -> None:
        link = await networks[0].dial(there, "peer", BOB.peer_id)
        await bobs.came.wait()
        assert (link.punched, bobs.links[0].punched) == (False, False)
        await link.aclose()

    punching(networks, check)


def test_punching_for_another_peer_is_given_up(networks: Any) -> None:
    """Somebody else at the address is no link, and is not asked again."""

    async def check(_: Door, here: Address, bobs: Door, there: Address) -> None:
        with pytest.raises(DialError, match="answered, not"):
            await networks[0].punch(here, [there], identity(3).peer_id)
        assert not bobs.links

    punching(networks, check)


def test_punching_where_nobody_is_is_given_up(networks: Any) -> None:
    """A machine that refuses is tried a few times, no more."""

    async def check(_: Door, here: Address, *__: Any) -> None:
        with pytest.raises(DialError, match=r"127\.0\.0\.1:9: "):
            await networks[0].punch(here, [Address("127.0.0.1", 9)], BOB.peer_id)

    punching(networks, check)


def test_targets_that_can_t_be_reached_from_the_port(networks: Any) -> None:
    """Our own address, a name, the other family, port 0: without another there is no route."""

    async def check(_: Door, here: Address, *__: Any) -> None:
        targets = [here, Address("localhost", 6000), Address("::1", 6000), Address("127.0.0.1", 0)]
        with pytest.raises(NoRoute):
            await networks[0].punch(here, targets, BOB.peer_id)

    punching(networks, check)


def test_of_several_targets_the_one_with_the_peer_counts(networks: Any) -> None:
    """Whatever the others do."""

    async def check(alices: Door, here: Address, bobs: Door, there: Address) -> None:
        targets = [Address("127.0.0.1", 9), there]
        link = await networks[0].punch(here, targets, BOB.peer_id)
        await bobs.came.wait()
        assert link.remote == there
        await link.aclose()

    punching(networks, check)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff",
        b"GET / HTTP/1.0\r\n\r\n" * 10,
        bytes(4096),
        b"p2pnode/1 tracker\n\n\n" * 9,
        b"\0SP\0\0\x11\0\0",  # NNG's own greeting, as Pair1
    ],
)
def test_garbage_on_the_port_costs_a_count(garbage: bytes) -> None:
    """Strangers that speak something else are counted and closed; peers still get in.

    Plain NNG is one of them: there is no way in without the handshake, and nothing falls back.
    """
    rejects: list[str] = []

    async def main() -> None:
        bob = TcpNetwork(BOB, rejects.append)
        async with trio.open_nursery() as nursery:
            where = await nursery.start(bob.listen, ANYWHERE, {"peer": forget})
            async with await trio.open_tcp_stream(where.host, where.port) as stream:
                await stream.send_all(garbage)
                with pytest.raises((trio.BrokenResourceError, EOFError)):
                    await stream.send_eof()
                    while True:
                        if not await stream.receive_some():
                            raise EOFError
            await (await TcpNetwork(ALICE).dial(where, "peer")).aclose()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert len(rejects) == 1
    assert "handshake" in rejects[0]


def test_the_link_survives_no_garbage_after_the_handshake() -> None:
    """A frame that the session key didn't seal ends the link, not the node."""
    from pynng import Message

    async def check(here: Any, there: Link) -> None:
        await here._pair.asend_msg(Message(b"\x00" + b"not sealed by the session key"))
        with pytest.raises(LinkClosed, match="altered"):
            await there.receive()

    with_link(tcp(), check)


def test_an_oversize_frame_ends_the_link() -> None:
    """NNG drops a connection that declares more than one frame may hold."""
    from pynng import Message

    async def check(here: Any, there: Link) -> None:
        await here._pair.asend_msg(Message(b"\x01" * (PIECE_LIMIT + CONTROL_LIMIT)))
        with pytest.raises(LinkClosed):
            await there.receive()

    with_link(tcp(), check)


def test_keepalive_is_set_for_five_seconds() -> None:
    """The kernel is told to find a vanished host within 5 s."""
    from p2pnode.transport.sockets import tune

    with socket.socket() as sock:
        tune(sock)

        def get(name: str) -> int:
            return sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))

        assert get("TCP_KEEPIDLE") + get("TCP_KEEPINTVL") * get("TCP_KEEPCNT") < 5
        assert get("TCP_USER_TIMEOUT") < 5000
