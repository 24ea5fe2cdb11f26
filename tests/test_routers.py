"""PCP and NAT-PMP over real datagrams: a router on the loopback network, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from p2pnode.transport.errors import MappingError, MappingRefused
from p2pnode.transport.nat.gateway import Gateway
from p2pnode.transport.nat.pcp import (
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
    parse_request,
)
from p2pnode.transport.nat.routers import (
    ASK_SECONDS,
    NO_ANSWER,
    NO_OUTER,
    Heard,
    Lease,
    PcpRouter,
    PmpRouter,
    is_to,
)

NONCE = bytes(12)
OUTER = "203.0.113.7"
Behave = Callable[[Request], list[Reply | bytes]]


def willing(request: Request) -> list[Reply | bytes]:
    """What a router that speaks both protocols answers."""
    match request:
        case Announce():
            return [Announced(7)]
        case Map():
            return [Granted(7, request.nonce, request.inner, 7001, request.lifetime, OUTER)]
        case AskOuter():
            return [Outer(7, OUTER)]
        case AskMap():
            return [Leased(7, request.inner, 7001, request.lifetime)]


@dataclass
class FakeGateway:
    """A router that answers as it is told to."""

    behave: Behave = willing
    lose: int = 0  # so many requests get lost
    asked: list[Request] = field(default_factory=list)
    spoof: Reply | None = None  # somebody else answers first, with this

    async def run(self, sock: trio.socket.SocketType, other: trio.socket.SocketType) -> None:
        """Serve for ever."""
        while True:
            data, sender = await sock.recvfrom(2000)
            self.asked.append(parse_request(data))
            if self.spoof is not None:
                await other.sendto(self.spoof.to_bytes(), sender)
            if self.lose:
                self.lose -= 1
                continue
            for reply in self.behave(self.asked[-1]):
                await sock.sendto(reply if isinstance(reply, bytes) else reply.to_bytes(), sender)


@asynccontextmanager
async def home(fake: FakeGateway) -> AsyncIterator[tuple[PcpRouter, PmpRouter]]:
    """The fake, through both protocols."""
    udp = trio.socket.SOCK_DGRAM
    with trio.socket.socket(type=udp) as sock, trio.socket.socket(type=udp) as other:
        await sock.bind(("127.0.0.1", 0))
        await other.bind(("127.0.0.1", 0))
        port, gateway = sock.getsockname()[1], Gateway("127.0.0.1", "127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fake.run, sock, other)
            yield PcpRouter(gateway, NONCE, port), PmpRouter(gateway, port)
            nursery.cancel_scope.cancel()


def virtually(main: Callable[[], Awaitable[None]]) -> None:
    """Run in virtual time."""
    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_pcp() -> None:
    """Ask, map, and end it: a mapping of no seconds, with the same nonce."""

    async def main() -> None:
        fake = FakeGateway()
        async with home(fake) as (router, _):
            assert await router.ask() == Heard(epoch=7)
            assert await router.map(6000, 6001, 60) == Lease(OUTER, 7001, 60)
            await router.unmap(6000, 7001)
        assert fake.asked == [
            Announce("127.0.0.1"),
            Map("127.0.0.1", NONCE, 6000, 6001, 60),
            Map("127.0.0.1", NONCE, 6000, 7001, 0),
        ]

    virtually(main)


def test_nat_pmp() -> None:
    """Ask, map, and end it: the outer port must be 0 then."""

    async def main() -> None:
        fake = FakeGateway()
        async with home(fake) as (_, router):
            assert await router.ask() == Heard(OUTER, 7)
            assert await router.map(6000, 6001, 60) == Lease(OUTER, 7001, 60)
            await router.unmap(6000, 7001)
        assert fake.asked == [AskOuter(), AskOuter(), AskMap(6000, 6001, 60), AskMap(6000, 0, 0)]

    virtually(main)


def test_lost_datagrams_are_sent_again() -> None:
    """After a quarter of a second, then half a second."""

    async def main() -> None:
        fake = FakeGateway(lose=2)
        async with home(fake) as (router, _):
            assert await router.ask() == Heard(epoch=7)
            assert trio.current_time() == 0.75

    virtually(main)


def test_silence_is_an_error_in_bounded_time() -> None:
    """Whatever else arrives."""

    async def main() -> None:
        fake = FakeGateway(lambda _: [b"", b"\0\x80", Granted(7, b"another nonc", 1, 1, 1, OUTER)])
        async with home(fake) as routers:
            for router in routers:
                before = trio.current_time()
                with pytest.raises(MappingError, match=NO_ANSWER):
                    await router.map(6000, 6000, 60)
                assert trio.current_time() == before + ASK_SECONDS

    virtually(main)


def test_nothing_listens_there() -> None:
    """ICMP says so; the router may still be starting, so it is asked until time is over."""

    async def main() -> None:
        async with home(FakeGateway()) as (router, _):
            pass
        with pytest.raises(MappingError, match=NO_ANSWER):
            await router.ask()

    virtually(main)


def test_a_lost_address_is_an_error() -> None:
    """The address of ours that the router knew is gone: another network."""

    async def main() -> None:
        router = PmpRouter(Gateway("127.0.0.1", "192.0.2.55"))
        with pytest.raises(MappingError, match="Cannot assign"):
            await router.ask()

    virtually(main)


def test_what_others_send_is_not_heard() -> None:
    """The same bytes from another socket, and before the router's."""

    async def main() -> None:
        fake = FakeGateway(spoof=Outer(1, "198.51.100.66"))
        async with home(fake) as (_, router):
            assert await router.ask() == Heard(OUTER, 7)

    virtually(main)


def test_a_reply_to_something_else_is_passed_over() -> None:
    """Another nonce or port, another question."""
    asked = Map("192.168.1.10", NONCE, 6000, 6000, 60)
    other = bytes(11) + b"\1"
    assert is_to(asked, Granted(1, NONCE, 6000, 7001, 60, OUTER))
    assert not is_to(asked, Granted(1, other, 6000, 7001, 60, OUTER))
    assert not is_to(asked, Granted(1, NONCE, 6001, 7001, 60, OUTER))
    assert not is_to(asked, Denied(2, 1, 2, 1, other))
    assert not is_to(asked, Announced(1))
    assert is_to(asked, Denied(2, 1, 1, 1))
    assert is_to(asked, Denied(0, 1, 1, 1))
    assert not is_to(AskMap(6000, 6000, 60), Leased(1, 6001, 6000, 60))
    assert not is_to(AskOuter(), Leased(1, 6001, 6000, 60))


@pytest.mark.parametrize(
    ("denied", "kind", "says"),
    [
        (Denied(2, 1, 2, 1, NONCE), MappingRefused, "not authorized"),
        (Denied(2, 1, 7, 1, NONCE), MappingError, NO_OUTER),
        (Denied(2, 1, 1, 1), MappingError, "not spoken there"),
        (Denied(0, 1, 1, 1), MappingError, "not spoken there"),
    ],
)
def test_pcp_denials(denied: Denied, kind: type[MappingError], says: str) -> None:
    """Not welcome, not connected, or another protocol."""

    async def main() -> None:
        async with home(FakeGateway(lambda _: [denied])) as (router, _):
            with pytest.raises(kind) as caught:
                await router.map(6000, 6000, 60)
            assert caught.value.args == (says,)
            assert isinstance(caught.value, MappingRefused) == (kind is MappingRefused)

    virtually(main)


@pytest.mark.parametrize(
    ("denied", "kind", "says"),
    [
        (Denied(0, 0, 2, 1), MappingRefused, "not authorized, or disabled"),
        (Denied(0, 0, 3, 1), MappingError, NO_OUTER),
        (Denied(2, 0, 1, 1), MappingError, "not spoken there"),
    ],
)
def test_nat_pmp_denials(denied: Denied, kind: type[MappingError], says: str) -> None:
    """Switched off, not connected, or only PCP spoken."""

    async def main() -> None:
        async with home(FakeGateway(lambda _: [denied])) as (_, router):
            with pytest.raises(kind) as caught:
                await router.map(6000, 6000, 60)
            assert caught.value.args == (says,)
            assert isinstance(caught.value, MappingRefused) == (kind is MappingRefused)

    virtually(main)
