"""The NAT laboratory does what its names say: run by `make test-lab`, as root.

Strategy: plain sockets on its machines, no p2pnode. What nodes do behind these routers is only
worth knowing if the routers are what they are called (RFC 4787 has the terms).
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import statistics
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import natlab
import pytest
from aioice import stun
from natlab import KINDS, Host, Kind, NatLab
from natlab_link import Cable

pytestmark = pytest.mark.lab
# A datagram here takes less than a millisecond.
SHORT = 0.5
# A SYN that came too early is sent again after one second.
AGAIN = 2.5
PORT = 6000


def listener(host: Host, port: int = 0) -> socket.socket:
    """A listening socket on that machine."""
    with host.inside():
        sock = socket.create_server(("0.0.0.0", port), reuse_port=True)
    sock.settimeout(SHORT)
    return sock


def udp(host: Host, port: int = 0) -> socket.socket:
    """A datagram socket on that machine."""
    with host.inside():
        sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", port))
    sock.settimeout(SHORT)
    return sock


def arrives(sender: socket.socket, receiver: socket.socket, to: tuple[str, int]) -> bool:
    """Whether a datagram gets through."""
    sender.sendto(b"?", to)
    try:
        return receiver.recvfrom(8)[0] == b"?"
    except TimeoutError:
        return False


def seen_by(receiver: socket.socket, sender: socket.socket, address: str) -> tuple[str, int]:
    """From where a datagram comes."""
    sender.sendto(b"!", (address, receiver.getsockname()[1]))
    host, port = receiver.recvfrom(8)[1]
    return host, port


@pytest.mark.parametrize("kind", KINDS)
def test_a_router_does_what_its_kind_says(lab: NatLab, kind: Kind) -> None:
    """Mapping and filtering, by asking two servers as STUN does (RFC 5780)."""
    laptop = lab.home(kind).host("laptop")
    one, two = lab.public("one"), lab.public("two")
    with contextlib.ExitStack() as sockets:
        inside, here, there = (sockets.enter_context(udp(m)) for m in (laptop, one, two))
        other = sockets.enter_context(udp(one))
        outside = seen_by(here, inside, one.address)
        assert outside[0] != laptop.address
        assert arrives(here, inside, outside)
        # Nobody else gets in, except at a full cone.
        assert arrives(other, inside, outside) == (kind == "full-cone")
        assert arrives(there, inside, outside) == (kind == "full-cone")
        # The same place on the way to another server, except at a symmetric one.
        assert (seen_by(there, inside, two.address) == outside) == (kind != "symmetric")
        assert (outside[1] == inside.getsockname()[1]) == (kind != "symmetric")


@pytest.mark.parametrize("kind", KINDS)
def test_unasked_for_connections_are_dropped(lab: NatLab, kind: Kind) -> None:
    """A listening port behind any of the routers can't be dialled: no answer, not a refusal."""
    home = lab.home(kind)
    laptop, server = home.host("laptop"), lab.public("server")
    with listener(laptop, PORT), server.inside(), socket.socket() as dialler:
        dialler.settimeout(SHORT)
        with pytest.raises(TimeoutError):
            dialler.connect((home.outside, PORT))
    with listener(server, PORT), laptop.inside():
        socket.create_connection((server.address, PORT), SHORT).close()


def crossing(host: Host, to: str) -> socket.socket:
    """A socket that dials there from the port that it is itself dialled at."""
    with host.inside():
        sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("0.0.0.0", PORT))
    with contextlib.suppress(BlockingIOError):
        sock.connect((to, PORT))
    return sock


def connected(dialled: Iterable[socket.socket]) -> set[socket.socket]:
    """Those that have been answered in time."""
    time.sleep(AGAIN)
    answered = select.select([], list(dialled), [], 0)[1]
    return {s for s in answered if not s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)}


def test_who_can_dial_each_other_at_once(lab: NatLab) -> None:
    """TCP's simultaneous open gets where both routers keep the port, only there."""
    pairs = tuple(itertools.combinations_with_replacement(KINDS, 2))
    with contextlib.ExitStack() as stack:
        ends = {}
        for pair in pairs:
            one, two = (lab.home(kind) for kind in pair)
            ways = ((one.host(f"{one.name}h"), two), (two.host(f"{two.name}h"), one))
            ends[pair] = [stack.enter_context(crossing(h, to.outside)) for h, to in ways]
        met = connected(itertools.chain.from_iterable(ends.values()))
        for pair in pairs:
            assert met.issuperset(ends[pair]) == ("symmetric" not in pair), pair


@pytest.mark.parametrize("hairpin", [True, False])
@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_hairpin_or_none(lab: NatLab, kind: Kind, hairpin: bool) -> None:
    """With one, machines inside meet at their ports outside; seen there by their outer address."""
    home = lab.home(kind, hairpin=hairpin)
    alice, bob, server = home.host("alice"), home.host("bob"), lab.public("server")
    with udp(alice) as one, udp(bob) as two, udp(server) as post:
        outside = seen_by(post, one, server.address)
        assert arrives(two, one, outside) == hairpin
        if hairpin:
            two.sendto(b"!", outside)
            assert one.recvfrom(8)[1][0] == home.outside
    with listener(server, PORT) as post, listener(alice, PORT) as door:
        with crossing(alice, server.address), bob.inside(), socket.socket() as dialler:
            connection, outside = post.accept()
            connection.close()
            dialler.settimeout(SHORT)
            with contextlib.suppress(OSError):
                dialler.connect(outside)
        assert bool(select.select([door], [], [], 0)[0]) == hairpin


@pytest.mark.parametrize("hairpin", [True, False])
def test_two_homes_of_one_carrier(lab: NatLab, hairpin: bool) -> None:
    """They share an outer address, and meet at it if their carrier has a hairpin."""
    first = lab.home("carrier-grade", hairpin=hairpin)
    second = lab.home("port-restricted", behind=first.above)
    assert first.outside == second.outside
    server = lab.public("server")
    with udp(first.host("alice")) as one, udp(second.host("bob")) as two, udp(server) as post:
        there, here = (seen_by(post, sock, server.address) for sock in (one, two))
        assert not arrives(one, two, here)
        assert arrives(two, one, there) == hairpin


def test_a_long_cable(lab: NatLab) -> None:
    """It takes its time, each way, and loses, alters and reorders nothing."""
    server, laptop = lab.public("server"), lab.home("port-restricted").host("laptop")
    laptop.delay(40)
    data = bytes(range(256)) * 40_000
    with listener(server, PORT) as door, laptop.inside():
        began = time.monotonic()
        with socket.create_connection((server.address, PORT), AGAIN) as dialler:
            assert 0.08 <= time.monotonic() - began < 0.08 + SHORT
            connection, _ = door.accept()
            with connection, ThreadPoolExecutor(1) as sender:
                connection.settimeout(AGAIN)
                sending = sender.submit(dialler.sendall, data)
                parts = iter(lambda: connection.recv(65536), b"")
                sending.add_done_callback(lambda _: dialler.shutdown(socket.SHUT_WR))
                assert b"".join(parts) == data


def test_a_router_that_blocks_udp(lab: NatLab) -> None:
    """No datagram gets out or in; TCP does."""
    home = lab.home("full-cone", udp=False)
    laptop, server = home.host("laptop"), lab.public("server")
    with udp(laptop, PORT) as inside, udp(server, PORT) as post:
        assert not arrives(inside, post, (server.address, PORT))
        assert not arrives(post, inside, (home.outside, PORT))
    with listener(server, PORT), laptop.inside():
        socket.create_connection((server.address, PORT), SHORT).close()


def test_a_stun_server_answers_over_udp_and_tcp(lab: NatLab) -> None:
    """Real coturn on a public machine says where we seem to be."""
    if reason := natlab.lacking("turnserver"):
        pytest.skip(reason)
    home, server = lab.home("symmetric"), lab.stun("stun")
    laptop = home.host("laptop")
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        question = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        with laptop.inside(), socket.socket(type=kind) as sock:
            sock.settimeout(SHORT)
            sock.connect((server.address, natlab.STUN_PORT))
            sock.send(bytes(question))
            host, port = stun.parse_message(sock.recv(512)).attributes["XOR-MAPPED-ADDRESS"]
            assert host == home.outside
            assert port != sock.getsockname()[1]


def links() -> str:
    """This machine's own network devices."""
    command = ("ip", "-o", "link")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_nothing_is_left_behind() -> None:
    """A laboratory that fails takes everything with it, also programs that still run."""
    before = links()
    with pytest.raises(RuntimeError, match="on purpose"), NatLab() as lab:
        sleeper = subprocess.Popen([*lab.public("server").enter, "sleep", "600"])
        while Path(f"/proc/{sleeper.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        raise RuntimeError("on purpose")
    assert sleeper.wait(10) != 0
    assert links() == before
    assert not list(natlab.NAMESPACES.glob(f"{lab.prefix}*"))


def test_what_a_killed_laboratory_left_is_removed() -> None:
    """The next one removes the namespaces of a process that is gone."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = f"{natlab.PREFIX}-{gone.pid}-server"
    subprocess.run(["ip", "netns", "add", left], check=True)
    with NatLab():
        assert not (natlab.NAMESPACES / left).exists()


def test_a_long_lossy_line(lab: NatLab) -> None:
    """What is sent comes back after the delay both ways, but for the share that is lost."""
    far, near = lab.public("far"), lab.public("near")
    far.line(Cable(delay=0.025, loss=0.1))
    with udp(far, PORT) as echo, udp(near) as asking:
        while _trip(asking, echo, far.address, 0) is None:
            pass  # ARP's packets get lost, too
        trips = [_trip(asking, echo, far.address, number) for number in range(1, 201)]
    back = [trip for trip in trips if trip is not None]
    assert min(back) >= 0.05
    assert statistics.median(back) < 0.07
    assert len(back) == pytest.approx(200 * 0.81, abs=20)


def _trip(asking: socket.socket, echo: socket.socket, host: str, number: int) -> float | None:
    """Seconds that a datagram takes there and back; None where it gets lost."""
    began, sent = time.monotonic(), number.to_bytes(2)
    for sock in (echo, asking):
        sock.settimeout(0.2)
    asking.sendto(sent, (host, PORT))
    with contextlib.suppress(TimeoutError):
        while (came := echo.recvfrom(8))[0] != sent:
            pass  # one that ARP has held up
        echo.sendto(*came)
        while asking.recv(8) != sent:
            pass
        return time.monotonic() - began
    return None


@pytest.mark.parametrize("upwards", [True, False], ids=["up", "down"])
def test_a_thin_line(lab: NatLab, upwards: bool) -> None:
    """One TCP stream reaches nearly the rate, either way."""
    far, near = lab.public("far"), lab.public("near")
    far.line(Cable(delay=0.01, rate=20e6))
    sender, receiver = (far, near) if upwards else (near, far)
    with listener(receiver, PORT) as door:
        with sender.inside():
            out = socket.create_connection((receiver.address, PORT))
        came, _ = door.accept()
        with out, came:
            out.setblocking(False)
            came.settimeout(SHORT)
            began, got = time.monotonic(), 0
            while time.monotonic() - began < 3:
                with contextlib.suppress(BlockingIOError):
                    out.send(bytes(1 << 16))
                got += len(came.recv(1 << 16))
    assert 0.5 < 8 * got / 3 / 20e6 < 1.05
