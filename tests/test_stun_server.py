"""Our STUN server: what it answers, to whom, and how much of it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from asking import mapped_tcp
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from p2pnode.transport.address import Address
from p2pnode.transport.errors import ListenError, StunError
from p2pnode.transport.nat import stun, stun_server
from p2pnode.transport.nat.behaviour import MappingKind
from p2pnode.transport.nat.stun_codec import (
    MESSAGE_LIMIT,
    TRANSACTION,
    parse_reply,
    request,
    transaction_of,
)
from p2pnode.transport.nat.stun_server import (
    ALL,
    CONNECTION_SECONDS,
    CONNECTIONS,
    CONNECTIONS_A_HOST,
    HOST,
    HOSTS_LIMIT,
    Answers,
    Server,
)

ID = bytes(range(TRANSACTION))
ASKED = request(ID)
CHANGE_REQUEST = ASKED[:3] + b"\x08" + ASKED[4:] + bytes.fromhex("0003000400000006")


def host(number: int) -> Address:
    """One of many hosts."""
    return Address(f"198.{18 + (number >> 16)}.{number >> 8 & 255}.{number & 255}", 6000)


# -- what is answered, and how much ----------------------------------------------------------------


def test_whoever_asks_is_told_where_it_is() -> None:
    """Over IPv4 and IPv6, in an answer of at most 44 bytes."""
    for seen in (Address("198.51.100.7", 6000), Address("2001:db8::7", 6000)):
        answer = Answers().to(ASKED, seen, 0.0)
        assert answer is not None
        assert parse_reply(answer, ID).mapped == seen
        assert len(answer) <= 44


def test_who_wants_more_is_refused() -> None:
    """An answer from another address (RFC 5780) is one that we can't give, and must not feign."""
    answer = Answers().to(CHANGE_REQUEST, host(1), 0.0)
    assert answer is not None
    with pytest.raises(StunError, match="error 420"):
        parse_reply(answer, ID)


@given(st.binary(max_size=MESSAGE_LIMIT + 8))
def test_anything_else_gets_no_answer(data: bytes) -> None:
    """No answer ever has more than a few bytes more than what it answers."""
    answer = Answers().to(data, host(1), 0.0)
    assert answer is None or len(answer) < 2 * len(data)


def test_an_answer_gets_no_answer() -> None:
    """So a forged sender can't set two servers talking to each other."""
    answers = Answers()
    for asked in (ASKED, CHANGE_REQUEST):
        answer = answers.to(asked, host(1), 0.0)
        assert answer is not None
        assert answers.to(answer, host(2), 0.0) is None


def count(answers: Answers, seen: Address, times: int, now: float) -> int:
    """How many of so many questions are answered."""
    return sum(answers.to(ASKED, seen, now) is not None for _ in range(times))


def test_a_host_gets_so_many_answers() -> None:
    """A burst, then so many a second; others aren't the worse for it."""
    answers = Answers()
    rate, burst = HOST
    assert count(answers, host(1), 1000, 0.0) == burst
    assert count(answers, host(2), 1, 0.0) == 1
    assert count(answers, host(1), 1000, 2.0) == 2 * rate


def test_an_ipv6_host_has_a_whole_network() -> None:
    """A /64 is one host: everybody has 2^64 addresses in it."""
    answers = Answers()
    asked = (Address(f"2001:db8::{n:x}", 6000) for n in range(1, 1000))
    assert sum(count(answers, seen, 1, 0.0) for seen in asked) == HOST[1]


def test_all_together_get_so_many_answers() -> None:
    """Senders can be forged: there is a limit in all."""
    answers = Answers()
    rate, burst = ALL
    assert sum(count(answers, host(n), 1, 0.0) for n in range(3000)) == burst
    assert sum(count(answers, host(n), 1, 1.0) for n in range(3000)) == rate


def test_hosts_are_forgotten() -> None:
    """However many forged senders ask for however long, few are remembered."""
    answers = Answers()
    for number in range(30_000):
        answers.to(ASKED, host(number), number / ALL[0])
    assert len(answers._hosts) <= HOSTS_LIMIT


def test_forged_datagrams_cost_tcp_nothing() -> None:
    """Nodes ask over TCP before they punch: nobody can use that up in their name."""
    server = Server()
    count(server._over_udp, host(1), 1000, 0.0)
    assert count(server._over_udp, host(1), 1, 0.0) == 0
    assert count(server._over_tcp, host(1), 1, 0.0) == 1


# -- connections, in virtual time ------------------------------------------------------------------


class Stranger:
    """The server's end of a connection from somewhere; `near` is the other."""

    def __init__(self, seen: Address) -> None:
        self._seen = seen
        self.socket = self
        self.near, self._far = memory_stream_pair()
        self.send_all, self.receive_some = self._far.send_all, self._far.receive_some
        self.aclose = self._far.aclose

    def getpeername(self) -> tuple[str, int]:
        return self._seen.host, self._seen.port

    async def asks(self) -> bool:
        """Whether a question is answered; no: the connection is over."""
        try:
            await self.near.send_all(ASKED)
            return bool(await self.near.receive_some(MESSAGE_LIMIT))
        except trio.BrokenResourceError:
            return False


def connect(nursery: trio.Nursery, server: Server, seen: Address) -> Stranger:
    """Somebody connects."""
    stranger = Stranger(seen)
    nursery.start_soon(server.connection, stranger)  # type: ignore[arg-type]
    return stranger


def test_a_connection_ends_in_time() -> None:
    """It may ask now and then; after its time it is over, and silent ones are, too."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = Server()
            one, silent = (connect(nursery, server, host(n)) for n in (1, 2))
            for _ in range(3):
                await trio.sleep(CONNECTION_SECONDS / 4)
                assert await one.asks()
            await trio.sleep(CONNECTION_SECONDS / 4 + 1)
            assert not await one.asks()
            assert not await silent.asks()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_who_asks_too_often_is_cut_off() -> None:
    """A connection gets no more than a host does over UDP."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            one = connect(nursery, Server(), host(1))
            answered = [await one.asks() for _ in range(100)]
            assert sum(answered) == HOST[1]

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\nHost: x\r\n", bytes(20), ASKED[:3]])
def test_noise_ends_a_connection(noise: bytes) -> None:
    """Another protocol, or half a message."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            one = connect(nursery, Server(), host(1))
            await one.near.send_all(noise)
            await one.near.send_eof()
            assert await one.near.receive_some(1) == b""

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("hosts", "most"), [(1, CONNECTIONS_A_HOST), (999, CONNECTIONS)], ids=["one host", "all"]
)
def test_so_many_connections_at_once(hosts: int, most: int) -> None:
    """One more is closed; when one has gone there is room again."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = Server()
            crowd = [connect(nursery, server, host(n % hosts)) for n in range(most)]
            assert all([await stranger.asks() for stranger in crowd])
            assert not await connect(nursery, server, host(0)).asks()
            await crowd[0].near.aclose()
            await wait_all_tasks_blocked()
            assert await connect(nursery, server, host(0)).asks()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


# -- on this machine -------------------------------------------------------------------------------

ANYWHERE = Address("127.0.0.1", 0)


@asynccontextmanager
async def serving(address: Address) -> AsyncIterator[Address]:
    """The server, on its port."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(stun_server.serve, address)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("where", ["127.0.0.1", "::1"])
def test_one_port_over_udp_and_tcp(where: str) -> None:
    """Our own client, over both, IPv4 and IPv6; afterwards the port is free again."""
    anywhere = Address(where, 0)

    async def main() -> None:
        async with serving(anywhere) as server:
            assert (await mapped_tcp(server, anywhere)).host == where
            for ask in (stun.udp_behaviour, stun.tcp_behaviour):
                assert (await ask([server], anywhere)).kind is MappingKind.NO_NAT
        async with serving(server) as again:
            assert again == server

    try:
        socket.create_server((where, 0), family=stun._family(anywhere)).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    trio.run(main)


def test_a_foreign_client() -> None:
    """coturn's client finds itself."""
    program = shutil.which("turnutils_stunclient")
    if program is None:
        pytest.skip("no turnutils_stunclient: apt-get install coturn")

    async def main() -> None:
        async with serving(ANYWHERE) as server:
            command = (program, "-p", str(server.port), server.host)
            done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT)
            assert b"UDP reflexive addr: 127.0.0.1:" in done.stdout

    trio.run(main)


def test_a_datagram_that_is_nothing() -> None:
    """It gets no answer, and the next question does."""

    async def main() -> None:
        async with serving(ANYWHERE) as server:
            with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
                await sock.bind(("127.0.0.1", 0))
                for data in (b"", b"?", bytes(MESSAGE_LIMIT), bytes(2000), ASKED):
                    await sock.sendto(data, (server.host, server.port))
                assert transaction_of(await sock.recv(MESSAGE_LIMIT)) == ID

    trio.run(main)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_a_port_that_is_taken(kind: socket.SocketKind) -> None:
    """It needs the port over TCP and UDP; the error says which address is to blame."""

    async def main() -> None:
        with socket.socket(type=kind) as holder:
            holder.bind(("127.0.0.1", 0))
            taken = Address(*holder.getsockname())
            async with trio.open_nursery() as nursery:
                with pytest.raises(ListenError, match=rf"{taken} \(STUN\) is taken by another"):
                    await nursery.start(stun_server.serve, taken)

    trio.run(main)


class Busy(trio.abc.SocketFactory):
    """The first UDP socket finds its port taken."""

    def __init__(self) -> None:
        self.made = 0

    def socket(self, family: int = -1, type: int = -1, proto: int = -1) -> trio.socket.SocketType:
        sock = trio.socket.from_stdlib_socket(socket.socket(family, type, proto))
        if type == socket.SOCK_DGRAM:
            self.made += 1
            if self.made == 1:
                sock.close()
        return sock


def test_any_free_port_is_free_for_both() -> None:
    """With port 0 another is taken where UDP is in use; nothing is left open meanwhile."""

    async def main() -> None:
        busy = Busy()
        trio.socket.set_custom_socket_factory(busy)
        async with serving(ANYWHERE) as server:
            assert busy.made == 2
            assert (await mapped_tcp(server, ANYWHERE)).host == "127.0.0.1"

    trio.run(main)
