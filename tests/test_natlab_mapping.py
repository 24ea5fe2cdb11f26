"""Port mapping against a real router daemon (miniupnpd), in network namespaces: `make test-lab`.

Strategy: a program with a `Mapped` runs at home, and what it says, what the router has mapped, and
who gets in are looked at until they are as they should be, or patience is over.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import natlab
import pytest
from miniupnpd import Miniupnpd, move_to_public
from natlab import Host, NatLab
from natlab_nodes import SLOPE, averages, connected, peer_of
from swarm import Swarm

from p2pnode.transport.nat.routers import NO_OUTER

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
MAPPER = str(Path(__file__).parent / "mapper.py")
PROTOCOLS = ("PCP", "NAT-PMP", "UPnP")
ALLOW = ("allow 1024-65535 192.168.0.0/16 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535")
PATIENCE = 20.0
LEAVING = 0.8
# A lease for tests, and how much later miniupnpd may look after it.
LEASE, LATER = 6, 6.0
PORT = 6000


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    """Skip where there can be no laboratory, or no miniupnpd, and say why."""
    reason = natlab.missing() or natlab.lacking("miniupnpd")
    if reason:
        pytest.skip(reason)


@pytest.fixture
def lab() -> Iterator[NatLab]:
    """A laboratory with nothing but the internet in it."""
    with NatLab() as lab:
        yield lab


def until(true: Callable[[], object], patience: float = PATIENCE) -> float:
    """Wait for something: how long it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + patience, "it doesn't come true"
        time.sleep(0.05)
    return time.monotonic() - began


class Mapper:
    """The program, on a machine at home."""

    def __init__(self, host: Host, protocol: str = "any", lease: int = 600) -> None:
        words = [*host.enter, sys.executable, MAPPER, protocol, str(PORT), str(lease), "1"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.said.extend(line.strip() for line in lines)

    def wait(self, detail: str) -> None:
        """Until it says this."""
        try:
            until(lambda: self.said[-1:] == [detail])
        except AssertionError:
            raise AssertionError(f"it says {self.said}") from None

    def end(self, how: signal.Signals) -> float:
        """End it: how long that took. `ip netns exec` becomes the program."""
        began = time.monotonic()
        self.process.send_signal(how)
        self.process.wait(PATIENCE)
        self._reader.join()
        return time.monotonic() - began


@contextlib.contextmanager
def mapper(host: Host, protocol: str = "any", lease: int = 600) -> Iterator[Mapper]:
    """The program, for a while."""
    program = Mapper(host, protocol, lease)
    try:
        yield program
    finally:
        program.end(signal.SIGKILL)


def home(
    lab: NatLab, folder: Path, rules: Sequence[str] = ALLOW, *, udp: bool = True
) -> tuple[Miniupnpd, Host]:
    """A laptop behind a router with miniupnpd."""
    router = lab.home("port-restricted")
    move_to_public(lab, router, 10)
    return Miniupnpd(router, folder, rules, udp=udp), router.host("laptop")


def gets_in(host: Host, address: str) -> bool:
    """Whether that machine reaches the program at the router's address."""
    try:
        with host.inside():
            sock = socket.create_connection((address, PORT), 1)
    except OSError:
        return False
    with sock:
        return sock.recv(4) == b"here"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_others_come_in_until_it_leaves(lab: NatLab, tmp_path: Path, protocol: str) -> None:
    """Through each protocol: mapped, somebody on the internet connects, and nothing is left."""
    router, laptop = home(lab, tmp_path)
    outside = lab.public("outside")
    assert not gets_in(outside, router.router.address)
    with mapper(laptop, protocol) as program:
        program.wait(f"{router.router.address}:{PORT}, by {protocol}")
        assert gets_in(outside, router.router.address)
        assert router.mapped() == [PORT]
        took = program.end(signal.SIGTERM)
        assert program.process.returncode == 0
        assert took < LEAVING
    assert router.mapped() == []
    assert not gets_in(outside, router.router.address)


def test_pcp_is_preferred(lab: NatLab, tmp_path: Path) -> None:
    """Where all three are spoken there is one mapping, by PCP."""
    router, laptop = home(lab, tmp_path)
    with mapper(laptop) as program:
        program.wait(f"{router.router.address}:{PORT}, by PCP")
        assert router.mapped() == [PORT]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_leases_are_renewed_and_end(lab: NatLab, tmp_path: Path, protocol: str) -> None:
    """It stays for more than two leases; when a killed program's lease ends nothing is left."""
    router, laptop = home(lab, tmp_path)
    with mapper(laptop, protocol, LEASE) as program:
        program.wait(f"{router.router.address}:{PORT}, by {protocol}")
        end = time.monotonic() + 2.5 * LEASE
        while time.monotonic() < end:
            assert router.mapped() == [PORT]
            time.sleep(0.2)
        program.end(signal.SIGKILL)
    until(lambda: router.mapped() == [], LEASE + LATER)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_restarted_router_is_told_again(lab: NatLab, tmp_path: Path, protocol: str) -> None:
    """At the next look, which is a second later here."""
    router, laptop = home(lab, tmp_path)
    outside = lab.public("outside")
    with mapper(laptop, protocol) as program:
        program.wait(f"{router.router.address}:{PORT}, by {protocol}")
        time.sleep(5)  # clocks must differ by more than the two seconds that are forgiven
        router.restart()
        assert router.mapped() == []
        until(lambda: router.mapped() == [PORT])
        assert gets_in(outside, router.router.address)


def test_a_router_that_maps_nothing(lab: NatLab) -> None:
    """No daemon at all: it says so, and hangs nowhere."""
    with mapper(lab.home("port-restricted").host("laptop")) as program:
        program.wait("the router answers none of PCP, NAT-PMP, UPnP")
        assert program.end(signal.SIGTERM) < LEAVING


def test_a_machine_without_a_router(lab: NatLab) -> None:
    """Nobody is asked."""
    laptop = lab.home("port-restricted").host("laptop")
    laptop.ip("route", "delete", "default")
    with mapper(laptop) as program:
        program.wait("this machine has no router to ask (no default gateway)")


def test_a_public_machine_maps_nothing(lab: NatLab) -> None:
    """It can be reached already."""
    server = lab.public("server")
    with mapper(server) as program:
        program.wait(f"not needed: this machine's own address is {server.address}")


def test_behind_two_routers(lab: NatLab, tmp_path: Path) -> None:
    """miniupnpd behind a carrier's NAT doesn't map: that is told."""
    router = lab.home("carrier-grade")
    Miniupnpd(router, tmp_path, ALLOW, udp=True)
    with mapper(router.host("laptop")) as program:
        program.wait(NO_OUTER)


def test_a_router_that_refuses(lab: NatLab, tmp_path: Path) -> None:
    """Its owner allows nobody to map. (Asked by PCP, miniupnpd 2.3.1 looks for a port for ever.)"""
    _, laptop = home(lab, tmp_path, ALLOW[1:], udp=False)
    with mapper(laptop) as program:
        program.wait("the router refuses UPnP: not authorized")


def test_nodes_meet_through_a_mapping(lab: NatLab, tmp_path: Path) -> None:
    """Two nodes behind NATs that can't be punched through: one comes in at the other's router."""
    router, laptop = home(lab, tmp_path)
    other = lab.home("symmetric").host("other")
    door = f"{router.router.address}:{PORT}"
    flags = ("--reach", "mapping", *SLOPE)
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(at=lab.public("tracker"))
        alice, bob = (swarm.node(h.name, tracker, *flags, at=h) for h in (laptop, other))
        told = peer_of(connected(bob, alice), alice)
        assert told is not None
        assert told.path == f"direct {door}"
        assert f"{door}, by PCP" in [way.detail for way in averages(alice).ways]
        averages(bob)
        assert alice.stop()[0] == 0
    assert router.mapped() == []
