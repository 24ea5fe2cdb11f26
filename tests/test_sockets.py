"""What NNG does with a connection of ours: the documented bytes, no leak, no message in between."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from blake3 import blake3
from fellows import Fellow, Rogue, fellows
from golden import golden
from models import manifest, sealed

from lab import identity
from p2pnode.transport import messages, network, sockets
from p2pnode.transport.address import Address
from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.handshake import REPLY_SIZE, Dialler, Session
from p2pnode.transport.link import PIECE_LIMIT, Link, Piece
from p2pnode.transport.manifest import CHUNK
from p2pnode.transport.messages import Fetch, Offer
from p2pnode.transport.network import TcpNetwork
from p2pnode.transport.outgoing import Held

ALICE, BOB = identity(1), identity(2)
ANYWHERE = Address("127.0.0.1", 0)
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Peak:
    """The most memory above that of the beginning."""

    def __init__(self) -> None:
        self._before, self.growth = resident(), 0

    def look(self) -> None:
        self.growth = max(self.growth, resident() - self._before)


async def raw(where: Address) -> tuple[trio.SocketStream, Session]:
    """A connection after the handshake, in the hands of the test."""
    stream = await trio.open_tcp_stream(where.host, where.port)
    dialler = Dialler(ALICE, "peer", None)
    await stream.send_all(dialler.hello())
    proof, session = dialler.finish(await exactly(stream, REPLY_SIZE))
    await stream.send_all(proof)
    return stream, session


async def exactly(stream: trio.SocketStream, size: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        assert part
        data += part
    return data


def listening(
    test: Callable[[Address, list[Link]], Awaitable[None]], rejected: Callable[[str], None] = print
) -> None:
    """Run a test while Bob listens; his links are in the list as they come, and stay open."""

    async def main() -> None:
        links: list[Link] = []

        async def handler(link: Link) -> None:
            links.append(link)
            await trio.sleep_forever()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                where = await nursery.start(
                    TcpNetwork(BOB, rejected).listen, ANYWHERE, {"peer": handler}
                )
                await test(where, links)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def first(links: list[Link]) -> Link:
    """Bob's first link."""
    while not links:
        await trio.lowlevel.checkpoint()
    return links[0]


# ── the bytes ────────────────────────────────────────────────────────────────────────────────

SP_PAIR1 = bytes.fromhex("0053500000110000")
ONE_HOP = bytes.fromhex("00000001")


def framed(frame: bytes) -> bytes:
    """As docs/protocol/handshake.md says."""
    return (len(ONE_HOP + frame)).to_bytes(8, "big") + ONE_HOP + frame


def test_frames_are_as_documented() -> None:
    """After the handshake: SP's header, then length, Pair1's header, kind and content. So a peer
    needs no NNG."""

    async def test(where: Address, links: list[Link]) -> None:
        stream, session = await raw(where)
        await stream.send_all(SP_PAIR1 + framed(b"\x00" + session.sender.seal(b"hey")))
        bob = await first(links)
        assert await bob.receive() == b"hey"
        await bob.send(b"ping")
        await bob.send_piece(Piece(7, 2, 1 << 20, b"model bytes"))
        sealed_ping = len(b"ping") + 16
        expected = SP_PAIR1 + framed(bytes(1 + sealed_ping)) + framed(golden("peer-piece"))
        came = await exactly(stream, len(expected))
        at = len(SP_PAIR1) + 8 + 4 + 1
        assert session.receiver.open(came[at : at + sealed_ping]) == b"ping"
        assert came[:at] + bytes(sealed_ping) + came[at + sealed_ping :] == expected
        await stream.aclose()

    listening(test)


@pytest.mark.parametrize(
    "frame", [b"", b"\x00", b"\x02hello", b"\x01" + bytes(15), b"\x01" + bytes(7), b"\xff" * 40]
)
def test_frames_of_no_known_kind_end_the_link(frame: bytes) -> None:
    """Empty, too short, or of another kind: the link is closed, nothing else happens."""

    async def test(where: Address, links: list[Link]) -> None:
        stream, _ = await raw(where)
        await stream.send_all(SP_PAIR1 + framed(frame))
        with pytest.raises(LinkClosed):
            await (await first(links)).receive_any()
        await stream.aclose()

    listening(test)


@pytest.mark.parametrize(
    "said", [b"", b"\x00SP", b"GET / HTTP/1.1\r\n\r\n", SP_PAIR1[:-3] + b"\x10\0\0"]
)
def test_a_peer_that_speaks_no_pair_is_no_link(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It proved who it is, and then said nothing or something else: it never becomes a link."""
    monkeypatch.setattr(network, "HANDSHAKE_SECONDS", 0.1)

    async def test(where: Address, links: list[Link]) -> None:
        stream, _ = await raw(where)
        if said:
            await stream.send_all(said)
        await stream.receive_some(len(SP_PAIR1))
        with contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        assert links == []
        await stream.aclose()

    listening(test)


def test_a_peer_that_leaves_at_once_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """However early it goes: it never becomes a link, or the link tells that it is lost."""
    monkeypatch.setattr(network, "HANDSHAKE_SECONDS", 0.2)
    rejects: list[str] = []

    async def test(where: Address, links: list[Link]) -> None:
        for number in range(20):
            stream, _ = await raw(where)
            await stream.send_all(SP_PAIR1)
            for _ in range(number):
                await trio.lowlevel.checkpoint()
            await stream.aclose()
        while len(links) + len(rejects) < 20:
            await trio.lowlevel.checkpoint()
        for link in links:
            with pytest.raises(LinkClosed):
                await link.receive()

    listening(test, rejects.append)


def test_a_socket_that_nng_refuses_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hand-over that fails leaves no descriptor open."""

    class Refuses:
        """NNG without memory."""

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def nng_listener_start(self, *_: object) -> int:
            return 2  # NNG_ENOMEM

    real = vars(sockets)["lib"]
    monkeypatch.setattr(sockets, "lib", Refuses())
    one, two = socket.socketpair()
    with two:
        two.setblocking(False)
        with pytest.raises(LinkClosed, match="memory"):
            sockets._hand_over(one.detach(), lambda _pipe: None, lambda _pipe: None)
        assert two.recv(1) == b""


def test_model_bytes_don_t_wait_in_the_kernel() -> None:
    """What is queued before the network is bounded, so an offer isn't stuck behind it."""
    with socket.socket() as sock:
        sockets.tune(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            unsent = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert unsent == sockets.UNSENT


# ── memory ───────────────────────────────────────────────────────────────────────────────────


def test_a_link_takes_little_memory_however_much_goes_over_it() -> None:
    """200 MiB from one end to the other in a process that is both: a few pieces at a time."""
    peak = Peak()

    async def test(where: Address, links: list[Link]) -> None:
        alice = await TcpNetwork(ALICE).dial(where, "peer")
        bob, body = await first(links), bytes(PIECE_LIMIT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_pieces, alice, body, 200)
            for number in range(200):
                piece = await bob.receive_any()
                assert isinstance(piece, Piece)
                assert piece.chunk == number
                peak.look()
        await alice.aclose()

    listening(test)
    assert peak.growth < 64 * MIB


async def send_pieces(link: Link, body: bytes, count: int) -> None:
    """So many pieces, one after the other."""
    for number in range(count):
        await link.send_piece(Piece(1, number, 0, body))


def test_cancelled_and_failed_sends_leak_nothing() -> None:
    """A send that is cancelled, or fails because the link is closed, frees its message. (pynng
    alone forgets it: 40 × 5 MB grew a process by 200 MB.)"""
    peak = Peak()

    async def test(where: Address, links: list[Link]) -> None:
        for number in range(64):
            alice = await TcpNetwork(ALICE).dial(where, "peer")
            with trio.move_on_after(0.02):  # Bob reads nothing, so this is stuck soon
                await send_pieces(alice, bytes(PIECE_LIMIT), 100)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails, alice)
                await trio.sleep(0.001)
                await alice.aclose()
            while len(links) <= number:
                await trio.lowlevel.checkpoint()
            await links[number].aclose()
            peak.look()

    listening(test)
    assert peak.growth < 64 * MIB


async def fails(link: Link) -> None:
    """A send that the closing of the link ends."""
    with pytest.raises(LinkClosed):
        while True:
            await link.send_piece(Piece(1, 0, 0, bytes(PIECE_LIMIT)))


def large(fellow: Fellow, seq: int, mebibytes: int) -> Held:
    """A model that is never whole in memory, published."""
    path = fellow.folder / "outbox" / f"{seq}.safetensors"
    digests = bytearray()
    with path.open("wb") as file:
        for number in range(mebibytes):
            chunk = number.to_bytes(4, "big") * (CHUNK // 4)
            digests += blake3(chunk).digest()
            file.write(chunk)
    described = manifest(
        b"", seq=seq, size=mebibytes * MIB, chunk_size=CHUNK, digests=bytes(digests)
    )
    return fellow.mailbox.publish(path, sealed(fellow.number, described))


def test_a_large_model_takes_little_memory_on_its_way(tmp_path: Path) -> None:
    """200 MiB from mailbox to mailbox, digested and written, with both peers in this process."""

    async def main() -> None:
        async with fellows(None, tmp_path, 2) as (alice, bob):
            model, peak = large(alice, 1, 200), Peak()
            await bob.dial(alice)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, peak)
                await bob.until(lambda: bool(bob.filed_models))
                nursery.cancel_scope.cancel()
            assert bob.filed_models == [model.id]
            assert peak.growth < 64 * MIB
            for fellow in (alice, bob):  # pytest would keep the files for three runs
                fellow.have(model.id).path.unlink()

    trio.run(main)


async def watch(peak: Peak) -> None:
    """Look now and then."""
    while True:
        peak.look()
        await trio.sleep(0.005)


def test_an_offer_overtakes_a_large_model(tmp_path: Path) -> None:
    """While a peer that reads slowly is sent a model, an offer waits for two pieces at most: those
    that NNG had taken; what the kernels hold is on its way."""

    async def main() -> None:
        async with fellows(None, tmp_path, 1) as (alice,):
            link = await TcpNetwork(identity(9)).dial(alice.address, "peer", alice.me)
            mallory = Rogue(9, link)
            await mallory.greet()
            model = large(alice, 1, 100)
            await mallory.say(Fetch(1, model.id, ((0, 100),), 1000))
            upload = alice.exchange.sessions[mallory.me].outgoing
            taken = -1
            while not upload.open or upload.open[1].upload.sent != taken:
                taken = upload.open[1].upload.sent if upload.open else -1
                await trio.sleep(0.1)  # until nothing moves any more
            alice.exchange.announce(alice.publish(2))
            before = 0
            while True:
                frame = await link.receive_any()
                if isinstance(frame, Piece):
                    before += len(frame.body)
                elif isinstance(messages.from_bytes(frame), Offer):
                    break
            assert before <= taken
            await link.aclose()
            model.path.unlink(missing_ok=True)

    trio.run(main)
