"""Asking STUN servers: the messages, what is concluded from the answers, and the asking itself."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
import trio
from asking import mapped_tcp
from golden import golden
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pnode.transport.address import Address
from p2pnode.transport.errors import StunError
from p2pnode.transport.nat import stun
from p2pnode.transport.nat.behaviour import MappingKind, Sight, classify
from p2pnode.transport.nat.stun_codec import (
    HEADER,
    MESSAGE_LIMIT,
    Binding,
    Request,
    length_of,
    parse_reply,
    parse_request,
    refusal,
    reply,
    request,
)

ID = bytes(range(12))
SEEN = Address("198.51.100.7", 6000)

# RFC 5769 section 2: a request of ICE, and answers with attributes that we don't need.
RFC_ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
RFC_REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74"
    "002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020"
    "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf"
)
RFC_IPV4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220"
    "002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004c07d4c96"
)
RFC_IPV6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf1"
    "1784c97c8292c275bfe3ed4180280004c8fb0b4c"
)

addresses = st.builds(
    lambda ip, port: Address(str(ip), port),
    st.one_of(
        st.integers(1 << 24, (224 << 24) - 1).map(IPv4Address),
        st.integers(1, (0xFF << 120) - 1).map(IPv6Address),
    ),
    st.integers(1, 65535),
)
transactions = st.binary(min_size=12, max_size=12)


def message(kind: str, *attributes: str, transaction: bytes = ID) -> bytes:
    """A message, from hex."""
    body = bytes.fromhex("".join(attributes))
    head = bytes.fromhex(kind) + len(body).to_bytes(2) + bytes.fromhex("2112a442")
    return head + transaction + body


MAPPED = "00010008" + "00011770" + "c6336407"
OTHER = "802c0008" + "00010d97" + "cb007109"


# -- the messages ----------------------------------------------------------------------------------


def test_golden_bytes() -> None:
    """What we write is what docs/protocol/stun.md says."""
    assert request(ID) == golden("stun-request")
    assert reply(ID, SEEN) == golden("stun-reply")
    assert refusal(Request(ID, (3,))) == golden("stun-refusal")


@pytest.mark.parametrize(
    ("data", "mapped"),
    [
        (RFC_IPV4, Address("192.0.2.1", 32853)),
        (RFC_IPV6, Address("2001:db8:1234:5678:11:2233:4455:6677", 32853)),
    ],
    ids=["IPv4", "IPv6"],
)
def test_the_rfc_s_answers(data: bytes, mapped: Address) -> None:
    """RFC 5769's sample responses, with attributes that we don't need, are read."""
    assert parse_reply(data, RFC_ID) == Binding(mapped)


def test_the_rfc_s_request() -> None:
    """RFC 5769's sample request is ICE's: PRIORITY is one that must be understood."""
    assert parse_request(RFC_REQUEST) == Request(RFC_ID, (0x0024,))


def test_the_xored_address_counts_and_the_plain_one_will_do() -> None:
    """Some routers rewrite addresses in packets; old servers know only the plain attribute."""
    xored = reply(ID, Address("203.0.113.9", 1))[HEADER:].hex()
    assert parse_reply(message("0101", MAPPED), ID).mapped == SEEN
    assert parse_reply(message("0101", MAPPED, xored), ID).mapped == Address("203.0.113.9", 1)


def test_the_server_s_other_address() -> None:
    """A server with two addresses names the other (RFC 5780)."""
    other = Address("203.0.113.9", 3479)
    assert parse_reply(message("0101", MAPPED, OTHER), ID) == Binding(SEEN, other)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a STUN message"),
        (message("0101", MAPPED)[:-1], "not the STUN message"),
        (message("0101", MAPPED) + bytes(4), "not the STUN message"),
        (message("0101", MAPPED).replace(b"\x21\x12\xa4\x42", bytes(4)), "not a STUN message"),
        (message("0001"), "not the STUN message"),
        (message("0111", "00090004" + "00000400"), "error 400"),
        (message("0111"), "error of no number"),
        (message("0101"), "from where it sees us"),
        (message("0101", "00010008" + "00010000" + "c6336407"), "from where it sees us"),
        (message("0101", "00010008" + "00011770" + "00000000"), "from where it sees us"),
        (message("0101", "00010008" + "00091770" + "c6336407"), "damaged"),
        (message("0101", "00280002" + "ffff0000", MAPPED).replace(b"\0\x28", b"\x80\x28"), "dama"),
        (message("0101", MAPPED, transaction=bytes(12)), "another question"),
        (bytes(MESSAGE_LIMIT + 4), "not a STUN message"),
    ],
)
def test_what_is_no_answer(data: bytes, said: str) -> None:
    """Anything else is one error, which says what is wrong."""
    with pytest.raises(StunError, match=said):
        parse_reply(data, ID)


@pytest.mark.parametrize("data", [b"", message("0101"), message("0001", "00060010" + "00" * 4)])
def test_what_is_no_request(data: bytes) -> None:
    """A server takes whole Binding requests only; an answer is none, so two can't go on talking."""
    with pytest.raises(StunError):
        parse_request(data)


@given(addresses, transactions)
def test_an_answer_says_what_was_put_in(seen: Address, transaction: bytes) -> None:
    """Whoever is seen wherever, over IPv4 or IPv6."""
    data = reply(transaction, seen)
    assert parse_reply(data, transaction) == Binding(seen)
    assert length_of(data[:HEADER]) == len(data) <= 44


@given(st.lists(st.integers(0, 0x7FFF), min_size=1, max_size=40, unique=True), transactions)
def test_a_refusal_is_short(kinds: list[int], transaction: bytes) -> None:
    """It has less than twice the bytes of what it answers."""
    asked = message("0001", *(f"{kind:04x}0000" for kind in kinds), transaction=transaction)
    try:
        found = parse_request(asked)
    except StunError:  # some of the attributes have a form, which this is not
        return
    if found.unknown:
        data = refusal(found)
        assert len(data) < 2 * len(asked)
        assert length_of(data[:HEADER]) == len(data)
        with pytest.raises(StunError, match="error 420"):
            parse_reply(data, transaction)


def read_all(data: bytes) -> None:
    """Let every reader have it."""
    for read in (parse_request, partial(parse_reply, transaction=data[8:20]), length_of):
        with suppress(StunError):
            read(data)


@given(st.binary(max_size=MESSAGE_LIMIT + 8))
def test_any_bytes_give_a_value_or_the_error(data: bytes) -> None:
    """Nothing that comes over the network does more than be refused."""
    read_all(data)


@given(
    st.sampled_from([RFC_REQUEST, RFC_IPV4, RFC_IPV6, message("0101", MAPPED, OTHER)]),
    st.lists(st.tuples(st.integers(0, 107), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 8),
)
def test_damaged_messages_give_a_value_or_the_error(
    data: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    """The same for bytes that are nearly right."""
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    read_all(bytes(damaged[: len(damaged) - cut * 4]))


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=24)), max_size=8))
def test_any_attributes_give_a_value_or_the_error(attributes: list[tuple[int, bytes]]) -> None:
    """The same for well-formed messages with anything in them."""
    body = [
        f"{kind:04x}{len(value):04x}{value.hex()}{'00' * (-len(value) % 4)}"
        for kind, value in attributes
    ]
    for kind in ("0001", "0101", "0111"):
        read_all(message(kind, *body))


# -- what is concluded -----------------------------------------------------------------------------

HOME = Address("192.168.1.10", 6000)
ONE, ONE_TOO = Address("192.0.2.1", 3478), Address("192.0.2.1", 3479)
TWO, TWO_TOO = Address("203.0.113.2", 3478), Address("203.0.113.2", 3479)


def outside(port: int, host: str = "198.51.100.7") -> Address:
    """Where a NAT may put us."""
    return Address(host, port)


Case = tuple[dict[Address, Address], MappingKind, bool | None]
CASES: dict[str, Case] = {
    "nobody answers": ({}, MappingKind.BLOCKED, None),
    "seen at home": ({ONE: HOME}, MappingKind.NO_NAT, True),
    "seen at home by two": ({ONE: HOME, TWO: HOME}, MappingKind.NO_NAT, True),
    "one server": ({ONE: outside(6000)}, MappingKind.UNKNOWN, True),
    "one host, two ports": ({ONE: outside(7), ONE_TOO: outside(7)}, MappingKind.UNKNOWN, False),
    "two agree": ({ONE: outside(7), TWO: outside(7)}, MappingKind.INDEPENDENT, False),
    "and on our port": ({ONE: outside(6000), TWO: outside(6000)}, MappingKind.INDEPENDENT, True),
    "two differ": ({ONE: outside(7), TWO: outside(8)}, MappingKind.ENDPOINT_DEPENDENT, False),
    "another address": (
        {ONE: outside(6000), TWO: outside(6000, "198.51.100.8")},
        MappingKind.ENDPOINT_DEPENDENT,
        True,
    ),
    "one host differs": (
        {ONE: outside(7), ONE_TOO: outside(8)},
        MappingKind.ENDPOINT_DEPENDENT,
        False,
    ),
    "a port for each host": (
        {ONE: outside(7), TWO: outside(8), TWO_TOO: outside(8)},
        MappingKind.ADDRESS_DEPENDENT,
        False,
    ),
    "a port for each port": (
        {ONE: outside(7), TWO: outside(8), TWO_TOO: outside(9)},
        MappingKind.ENDPOINT_DEPENDENT,
        False,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_kinds_of_nat(case: Case) -> None:
    """RFC 5780 section 4.3, as a table."""
    seen, kind, preserving = case
    found = classify(HOME, [Sight(server, mapped) for server, mapped in seen.items()])
    assert (found.kind, found.port_preserving) == (kind, preserving)
    assert found.mapped == next(iter(seen.values()), None)


# -- over UDP, in virtual time ---------------------------------------------------------------------


@dataclass
class Servers(trio.abc.SocketFactory):
    """STUN servers at addresses; each tells where it sees us, after so many lost datagrams."""

    see: dict[Address, Callable[[], Address]]
    lost: int = 0
    other: dict[Address, str] = field(default_factory=dict)
    asked: list[tuple[float, Address]] = field(default_factory=list)

    def socket(self, *_: Any) -> Any:
        return Datagrams(self)

    def answers(self, data: bytes, server: Address) -> list[bytes]:
        """What comes back for a datagram."""
        self.asked.append((trio.current_time(), server))
        lost = sum(s == server for _, s in self.asked) <= self.lost
        if server not in self.see or lost:
            return []
        transaction = parse_request(data).transaction
        attributes = reply(transaction, self.see[server]())[HEADER:].hex()
        told = message("0101", attributes, self.other.get(server, ""), transaction=transaction)
        noise = [b"noise", message("0101", MAPPED, transaction=bytes(12))]
        return [*noise, message("0101", transaction=transaction), told]


class Datagrams:
    """A UDP socket of ours, on the way to the servers."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._send, self._receive = trio.open_memory_channel[bytes](100)

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *_: object) -> None:
        self._send.close()
        self._receive.close()

    async def bind(self, _name: tuple[str, int]) -> None:
        pass

    def getsockname(self) -> tuple[str, int]:
        return HOME.host, HOME.port

    async def sendto(self, data: bytes, name: tuple[str, int]) -> None:
        if name[0] == "192.0.2.66":
            raise OSError("unreachable")
        for answer in self._servers.answers(data, Address(*name)):
            self._send.send_nowait(answer)

    async def recvfrom(self, _size: int) -> tuple[bytes, None]:
        return await self._receive.receive(), None


def over_udp(servers: Servers, *asked: Address) -> Any:
    """What asking these tells."""

    async def main() -> Any:
        trio.socket.set_custom_socket_factory(servers)
        return await stun.udp_behaviour(asked, HOME), trio.current_time() - began

    began = 0.0
    return trio.run(main, clock=MockClock(autojump_threshold=0))


def always(address: Address) -> Callable[[], Address]:
    """A server that sees us there."""
    return lambda: address


def test_two_servers_are_asked_from_one_socket() -> None:
    """And both answer at once, whatever else comes in."""
    servers = Servers({ONE: always(outside(7)), TWO: always(outside(7))})
    found, seconds = over_udp(servers, ONE, TWO)
    assert found.kind is MappingKind.INDEPENDENT
    assert seconds == 0
    assert servers.asked == [(0.0, ONE), (0.0, TWO)]


def test_a_lost_datagram_is_sent_again() -> None:
    """After half a second and then a second (RFC 8489 section 6.2.1)."""
    servers = Servers({ONE: always(HOME)}, lost=2)
    found, seconds = over_udp(servers, ONE)
    assert found.kind is MappingKind.NO_NAT
    assert [at for at, _ in servers.asked] == [0.0, 0.5, 1.5]
    assert seconds == 1.5


def test_silence_is_an_answer() -> None:
    """After three seconds UDP counts as blocked; a server without a route costs no more."""
    found, seconds = over_udp(Servers({}), ONE, Address("192.0.2.66", 3478))
    assert found.kind is MappingKind.BLOCKED
    assert seconds == 3


def test_a_server_with_two_addresses_tells_all() -> None:
    """It is asked at its other address, at its first and its other port (RFC 5780 section 4.3)."""
    other = {ONE: "802c0008" + "0001" + f"{TWO_TOO.port:04x}" + "cb007102"}
    see = {ONE: outside(7), TWO: outside(8), TWO_TOO: outside(8)}
    servers = Servers({server: always(seen) for server, seen in see.items()}, other=other)
    found, _ = over_udp(servers, ONE)
    assert found.kind is MappingKind.ADDRESS_DEPENDENT
    assert [server for _, server in servers.asked] == [ONE, TWO, TWO_TOO]


# -- over TCP, on this machine ---------------------------------------------------------------------

ANYWHERE = Address("127.0.0.1", 0)


@asynccontextmanager
async def tcp_server(
    behave: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncIterator[Address]:
    """A server on a port of this machine that does this with each connection."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, behave, listeners)
        yield Address("127.0.0.1", listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def honest(stream: trio.SocketStream) -> None:
    """Answer in two parts, then wait for the end."""
    asked = parse_request(await stream.receive_some(MESSAGE_LIMIT))
    data = reply(asked.transaction, Address(*stream.socket.getpeername()[:2]))
    await stream.send_all(data[:9])
    await stream.send_all(data[9:])
    await until_the_end(stream)


async def until_the_end(stream: trio.SocketStream) -> None:
    """Wait until the client goes."""
    with suppress(trio.BrokenResourceError):
        await stream.receive_some(1)


def test_a_listening_port_asks_where_it_is() -> None:
    """While a listener is on a port, it is asked from that port; again and again."""

    async def main() -> None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            ours = Address(*listener.getsockname())
            async with tcp_server(honest) as server:
                for _ in range(3):
                    assert await mapped_tcp(server, ours) == ours

    trio.run(main)


def test_a_mapping_is_kept_in_the_block() -> None:
    """The connection stays open there, and errors in the block are nobody else's."""
    gone = trio.Event()

    async def behave(stream: trio.SocketStream) -> None:
        await honest(stream)
        gone.set()

    async def main() -> None:
        async with tcp_server(behave) as server:
            with pytest.raises(ConnectionRefusedError):
                async with stun.tcp_binding(server, ANYWHERE) as binding:
                    assert binding.mapped.host == "127.0.0.1"
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    assert not gone.is_set()
                    raise ConnectionRefusedError
            await gone.wait()

    trio.run(main)


def test_several_servers_over_tcp() -> None:
    """All are asked from one port; those that don't answer are left out."""

    async def main() -> None:
        async with tcp_server(honest) as one, tcp_server(garbage) as two:
            found = await stun.tcp_behaviour([one, two, Address("127.0.0.1", 1)], ANYWHERE)
            assert found.kind is MappingKind.NO_NAT

    trio.run(main)


async def garbage(stream: trio.SocketStream) -> None:
    """Another protocol."""
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await until_the_end(stream)


async def closing(stream: trio.SocketStream) -> None:
    """Nothing."""
    await stream.receive_some(1)


async def resetting(stream: trio.SocketStream) -> None:
    """A reset."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, *bytes(7)]))
    await stream.receive_some(HEADER)


@pytest.mark.parametrize(
    ("behave", "said"),
    [(garbage, "not a STUN"), (closing, "closed|broke"), (resetting, "broke|reset")],
)
def test_a_server_that_is_none(
    behave: Callable[[trio.SocketStream], Awaitable[None]], said: str
) -> None:
    """It gives one error that names it."""

    async def main() -> None:
        async with tcp_server(behave) as server:
            with pytest.raises(StunError, match=f"{server}: .*({said})"):
                await mapped_tcp(server, ANYWHERE)

    trio.run(main)


def test_nobody_there_and_a_port_that_is_taken() -> None:
    """The error says which of the two addresses is to blame."""

    async def main() -> None:
        with pytest.raises(StunError, match=r"127.0.0.1:1: connection refused"):
            await mapped_tcp(Address("127.0.0.1", 1), ANYWHERE)
        with socket.create_server(("127.0.0.1", 0)) as holder:
            taken = Address(*holder.getsockname())
            with pytest.raises(StunError, match=f"{taken}: address already in use"):
                await mapped_tcp(Address("127.0.0.1", 1), taken)

    trio.run(main)


class Resolver(trio.abc.HostnameResolver):
    """One name is known."""

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        if host != b"stun.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


def test_names() -> None:
    """A server may have a name; one that doesn't exist is told, or left out where others are."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver())
        async with tcp_server(honest) as server:
            named, none = (Address(f"{name}.example", server.port) for name in ("stun", "none"))
            assert (await mapped_tcp(named, ANYWHERE)).host == "127.0.0.1"
            with pytest.raises(StunError, match=r"none.example:.*: no such host"):
                await mapped_tcp(none, ANYWHERE)
            found = await stun.tcp_behaviour([none, named], ANYWHERE)
            assert found.kind is MappingKind.NO_NAT
            found = await stun.udp_behaviour([none], ANYWHERE)
            assert found.kind is MappingKind.BLOCKED

    trio.run(main)


def test_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with too many open files hears of it, and goes on."""

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        server, local = Address("127.0.0.1", 3478), Address("127.0.0.1", 0)
        with pytest.raises(StunError, match="too many open files"):
            await mapped_tcp(server, local)
        with pytest.raises(StunError, match="too many open files"):
            await stun.udp_behaviour([server], local)

    monkeypatch.setattr(trio.socket, "socket", none_left)
    trio.run(main)
