"""Strangers at a real port: each costs little, is counted, and keeps nobody out for long."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from lab import identity
from p2pnode.transport import network as module
from p2pnode.transport.address import Address
from p2pnode.transport.errors import DialError, HandshakeError, ListenError, NoRoute
from p2pnode.transport.handshake import HELLO_SIZE, REPLY_SIZE, Dialler, magic
from p2pnode.transport.link import Link
from p2pnode.transport.network import TcpNetwork

ALICE, BOB = identity(1), identity(2)
HERE = "127.0.0.1"


class Port:
    """Bob's listening port: what he counted, and the links that he got."""

    def __init__(self) -> None:
        self.rejects: list[str] = []
        self.links = 0
        self.network = TcpNetwork(BOB, self._count)
        self._changed = trio.Event()

    def _count(self, reason: str) -> None:
        self.rejects.append(reason)
        self._wake()

    async def handler(self, link: Link) -> None:
        self.links += 1
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def rejected(self, count: int) -> None:
        """Until so many strangers were refused."""
        while len(self.rejects) < count:
            await self._changed.wait()

    async def stranger(self, host: str = HERE) -> trio.SocketStream:
        """A TCP connection from an address of this machine, and nothing said yet."""
        return await trio.open_tcp_stream(self.where.host, self.where.port, local_address=host)

    async def friend(self) -> None:
        """A peer gets in."""
        before = self.links
        link = await TcpNetwork(ALICE).dial(self.where, "peer", BOB.peer_id)
        while self.links == before:
            await self._changed.wait()
        await link.aclose()

    async def opens(self, nursery: trio.Nursery, host: str = HERE) -> None:
        self.where = await nursery.start(
            self.network.listen, Address(host, 0), {"peer": self.handler}
        )


@asynccontextmanager
async def port(host: str = HERE) -> AsyncIterator[Port]:
    """Bob listens."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            opened = Port()
            await opened.opens(nursery, host)
            yield opened
            nursery.cancel_scope.cancel()


async def closed(stream: trio.SocketStream) -> None:
    """The other end hangs up."""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass


# ── strangers ────────────────────────────────────────────────────────────────────────────────


def test_silent_strangers_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects and says nothing, or stops in the middle, is closed after a few seconds."""
    monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.05)

    async def main() -> None:
        async with port() as bob:
            hello = Dialler(ALICE, "peer", None).hello()
            for said in (b"", b"p2p", hello[:-1], hello):
                stream = await bob.stranger()
                await stream.send_all(said)
                await closed(stream)
            await bob.rejected(4)
            assert bob.rejects == ["handshake: too slow"] * 4
            monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 5.0)
            await bob.friend()

    trio.run(main)


async def drip(stream: trio.SocketStream) -> None:
    """A byte now and then."""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(magic("peer")[:1])
                await trio.sleep(0.01)


def test_slow_strangers_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then doesn't make the time longer."""
    monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.1)

    async def main() -> None:
        async with port() as bob, trio.open_nursery() as nursery:
            stream = await bob.stranger()
            nursery.start_soon(drip, stream)
            await bob.rejected(1)
            assert bob.rejects == ["handshake: too slow"]

    trio.run(main)


def test_one_host_can_t_crowd_out_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one host only so many may shake hands at once; others still get in."""
    monkeypatch.setattr(module, "MAX_STRANGERS_A_HOST", 3)

    async def main() -> None:
        async with port("0.0.0.0") as bob:
            bob.where = Address(HERE, bob.where.port)
            crowd = [await bob.stranger("127.0.0.2") for _ in range(3)]
            await closed(await bob.stranger("127.0.0.2"))
            assert ["too many strangers at once" in reason for reason in bob.rejects] == [True]
            await bob.friend()
            await crowd.pop().aclose()
            await bob.rejected(2)
            one_more = await bob.stranger("127.0.0.2")
            await one_more.send_all(Dialler(ALICE, "peer", None).hello())
            assert await one_more.receive_some(1)
            for stream in (*crowd, one_more):
                await stream.aclose()

    trio.run(main)


def test_a_host_has_a_whole_ipv6_network() -> None:
    """One machine has 2**64 addresses of its own: they count as one host."""

    def from_host(host: str) -> Any:
        return SimpleNamespace(socket=SimpleNamespace(getpeername=lambda: (host, 6000, 0, 0)))

    one, two, other = (f"2001:db8:0:{n}" for n in ("1::5", "1:9::1", "2::5"))
    assert module._owner_of(from_host(one)) == module._owner_of(from_host(two))
    assert module._owner_of(from_host(one)) != module._owner_of(from_host(other))
    assert module._owner_of(from_host("::ffff:1.2.3.4")) == "1.2.3.4"


def test_strangers_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many hosts they come from; when they are gone there is room again."""
    monkeypatch.setattr(module, "MAX_STRANGERS", 4)

    async def main() -> None:
        async with port("0.0.0.0") as bob:
            bob.where = Address(HERE, bob.where.port)
            crowd = [await bob.stranger(f"127.0.0.{n}") for n in range(2, 6)]
            await closed(await bob.stranger("127.0.0.9"))
            assert len(bob.rejects) == 1
            for stream in crowd:
                await stream.aclose()
            await bob.rejected(5)
            await bob.friend()
            assert not bob.network._strangers

    trio.run(main)


def test_many_peers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst of joining peers fits within the limits."""

    async def main() -> None:
        async with port() as bob:
            async with trio.open_nursery() as nursery:
                for _ in range(module.MAX_STRANGERS_A_HOST):
                    nursery.start_soon(bob.friend)
            assert bob.rejects == []

    trio.run(main)


def test_a_stranger_that_hangs_up_costs_a_count() -> None:
    """At any moment, politely or by a reset: the port goes on."""

    async def main() -> None:
        async with port() as bob:
            hello = Dialler(ALICE, "peer", None).hello()
            count = 0
            for said in (b"", hello[:20], hello):
                for reset in (False, True):
                    stream = await bob.stranger()
                    if said:
                        await stream.send_all(said)
                    if reset:
                        linger = struct.pack("ii", 1, 0)
                        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    await stream.aclose()
                    count += 1
                    await bob.rejected(count)
            assert all(reason.startswith("handshake: ") for reason in bob.rejects)
            await bob.friend()
            assert bob.links == 1

    trio.run(main)


def test_what_strangers_say_is_never_counted_under_its_own_name() -> None:
    """Reasons are ours alone: a stranger can't fill the table of counts or the screen."""

    async def main() -> None:
        async with port() as bob:
            for number in range(20):
                stream = await bob.stranger()
                await stream.send_all(f"p2pnode/1 \x1b[{number}m".encode().ljust(HELLO_SIZE))
                await closed(stream)
            await bob.rejected(20)
            assert len(set(bob.rejects)) == 1

    trio.run(main)


def test_a_proof_that_is_wrong_is_no_link() -> None:
    """Who can't finish the handshake never reaches the handler."""

    async def main() -> None:
        async with port() as bob:
            stream = await bob.stranger()
            dialler = Dialler(ALICE, "peer", None)
            await stream.send_all(dialler.hello())
            reply = b""
            while len(reply) < REPLY_SIZE:
                reply += await stream.receive_some(REPLY_SIZE - len(reply))
            proof, _ = dialler.finish(reply)
            await stream.send_all(proof[:-1] + bytes([proof[-1] ^ 1]))
            await closed(stream)
            assert bob.links == 0
            assert "altered, replayed or reordered" in bob.rejects[0]

    trio.run(main)


def test_refused_strangers_leave_no_descriptors() -> None:
    """Neither do links that came and went."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    async def main() -> None:
        async with port() as bob:
            await bob.friend()
            before = descriptors()
            for _ in range(20):
                await (await bob.stranger()).aclose()
                await bob.friend()
            await bob.rejected(20)
            assert descriptors() <= before + 4  # NNG reaps in threads of its own

    trio.run(main)


# ── dialling ─────────────────────────────────────────────────────────────────────────────────


async def dialling(serve: Callable[[trio.SocketStream], Awaitable[None]], message: str) -> None:
    """Dial something else than a peer."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host=HERE))
        where = Address(HERE, listeners[0].socket.getsockname()[1])
        with pytest.raises(HandshakeError, match=message):
            await TcpNetwork(ALICE).dial(where, "peer")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak p2pnode/1"),
        (b"", "closed during the handshake"),
        (magic("peer"), "closed during the handshake"),
        (magic("peer") + bytes(200), "unusable X25519 key"),
        (magic("peer") + bytes(range(200)), "altered"),
        (magic("tracker"), "is a tracker, not a peer"),
    ],
)
def test_dialling_something_else(said: bytes, message: str) -> None:
    """What answers in a peer's place is told in a line."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(said)

    trio.run(dialling, serve, message)


def test_dialling_is_given_up_with_the_caller_s_scope() -> None:
    """A peer that accepts and never answers costs what the caller allows, and no descriptor."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            hangs = partial(trio.serve_tcp, sleeps, 0, host=HERE)
            listeners = await nursery.start(hangs)
            where = Address(HERE, listeners[0].socket.getsockname()[1])
            with trio.move_on_after(0.05) as scope:
                await TcpNetwork(ALICE).dial(where, "peer")
            assert scope.cancelled_caught
            nursery.cancel_scope.cancel()

    trio.run(main)


async def sleeps(_connection: object) -> None:
    """Accept and never answer."""
    await trio.sleep_forever()


@pytest.mark.parametrize("name", ["nobody.invalid", "x" * 63 + ".invalid"])
def test_unknown_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that isn't known is a DialError in a line."""

    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", unknown)
    with pytest.raises(DialError, match=f"{name}:9: no such host"):
        trio.run(TcpNetwork(ALICE).dial, Address(name, 9), "peer")


# ── listening ────────────────────────────────────────────────────────────────────────────────


def needs_ipv6() -> None:
    """Skip where the machine has none."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")


def test_ipv6() -> None:
    """Peers meet over IPv6 as well."""
    needs_ipv6()

    async def main() -> None:
        async with port("::1") as bob:
            assert str(bob.where).startswith("[::1]:")
            await bob.friend()
            assert bob.links == 1

    trio.run(main)


def test_everywhere_is_ipv4_too() -> None:
    """Who listens on [::] serves IPv4 at the same port."""
    needs_ipv6()

    async def main() -> None:
        async with port("::") as bob:
            listening = bob.where.port
            for host in (HERE, "::1"):
                bob.where = Address(host, listening)
                await bob.friend()

    trio.run(main)


def test_everywhere_on_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """[::] is IPv4 alone there, and no error."""
    real = trio.open_tcp_listeners

    async def without(number: int, *, host: str) -> list[trio.SocketListener]:
        if host == "::":
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return await real(number, host=host)

    monkeypatch.setattr(trio, "open_tcp_listeners", without)

    async def main() -> None:
        async with port("::") as bob:
            bob.where = Address(HERE, bob.where.port)
            await bob.friend()

    trio.run(main)


def test_everywhere_is_taken_where_one_version_is() -> None:
    """A port that another program has for IPv4 is told as taken, and nothing stays open."""
    needs_ipv6()

    async def main() -> None:
        with socket.create_server(("0.0.0.0", 0)) as other:
            taken = Address("::", other.getsockname()[1])
            with pytest.raises(ListenError, match="is taken by another program"):
                await TcpNetwork(BOB).listen(taken, {}, task_status=trio.TASK_STATUS_IGNORED)
            with socket.create_server(("::", taken.port), family=socket.AF_INET6):
                pass

    trio.run(main)


@pytest.mark.parametrize("host", ["192.0.2.1", "nobody.invalid"])
def test_addresses_that_are_not_ours(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listening on another machine's address, or an unknown name, says what to do."""

    async def known(name: str, *args: object, **kwargs: object) -> object:
        if name == "nobody.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return socket.getaddrinfo(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(trio.socket, "getaddrinfo", known)

    async def main() -> None:
        with pytest.raises(ListenError, match="is not an address of this machine"):
            await TcpNetwork(BOB).listen(
                Address(host, 0),
                {"peer": sleeps},
                task_status=trio.TASK_STATUS_IGNORED,
            )

    trio.run(main)


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.ECONNREFUSED])
def test_no_way_is_told_from_no_answer(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without IPv6 can't say that nobody answers there."""

    async def connect(*_: object, **__: object) -> None:
        raise OSError("all attempts failed") from ExceptionGroup("", [OSError(number, "no")])

    monkeypatch.setattr(trio, "open_tcp_stream", connect)
    with pytest.raises(DialError, match=os.strerror(number).lower()) as caught:
        trio.run(TcpNetwork(ALICE).dial, Address("2001:4860::1", 6000), "peer")
    assert isinstance(caught.value, NoRoute) == (number != errno.ECONNREFUSED)
