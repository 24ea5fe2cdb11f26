"""Peers in the local network: found, lost, and never believed more than a hint.

The network is this file's: services by name, and who browses. `test_natlab_lan.py` has the real
one.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from lab import identity
from p2pnode.node import lan as module
from p2pnode.node.lan import LOOK_SECONDS, RETRY_SECONDS, Lan
from p2pnode.node.lan_service import HOSTS_LIMIT, Service, digest, own, read
from p2pnode.node.listings import HINTS_LIMIT, LAN
from p2pnode.transport.address import Address

ALICE, BOB, CAROL = (identity(n).peer_id for n in (1, 2, 3))
BOUND = Address("0.0.0.0", 6000)
ABOUT = {"txtvers": "1", "peer": BOB, "swarm": digest("main")}
BOBS = Service("bob", 6000, ("192.168.1.2",), ABOUT)
HERE = (Address("192.168.1.2", 6000),)

pytestmark = pytest.mark.usefixtures("inline_threads")


@dataclass
class Air:
    """The local network: what is registered, and who listens."""

    services: dict[str, Service] = field(default_factory=dict)
    listeners: list[Callable[[str, bool], None]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    opened: list[tuple[str, ...]] = field(default_factory=list)
    trouble: OSError | None = None

    def come(self, service: Service) -> None:
        """A service comes, or says something new."""
        self.services[service.name] = service
        for tell in self.listeners:
            tell(service.name, True)

    def go(self, name: str) -> None:
        """It says goodbye, or its time is over."""
        del self.services[name]
        for tell in self.listeners:
            tell(name, False)

    def mdns(self, hosts: tuple[str, ...]) -> FakeMdns:
        self.opened.append(hosts)
        if self.trouble:
            raise self.trouble
        return FakeMdns(self)


@dataclass
class FakeMdns:
    """One node's multicast DNS."""

    air: Air
    own: str = ""
    tell: Callable[[str, bool], None] | None = None

    def browse(self, tell: Callable[[str, bool], None]) -> None:
        self.tell = tell
        self.air.listeners.append(tell)
        for name in self.air.services:
            tell(name, True)

    def register(self, service: Service) -> None:
        self.own = service.name
        self.air.come(service)

    def resolve(self, name: str) -> Service | None:
        self.air.asked.append(name)
        return self.air.services.get(name)

    def close(self) -> None:
        if self.tell:
            self.air.listeners.remove(self.tell)
        if self.own in self.air.services:
            self.air.go(self.own)


@dataclass
class Node:
    """One node's Lan, and what it was told."""

    air: Air
    peer: str = ALICE
    hosts: tuple[str, ...] = ("192.168.1.1",)
    found_peers: dict[str, tuple[Address, ...]] = field(default_factory=dict)
    lost_peers: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lan = Lan(
            self.peer,
            "main",
            self,
            hosts=lambda: self.hosts,
            log=lambda _level, line: self.lines.append(line),
            mdns=self.air.mdns,
        )

    def found(self, peer: str, hints: tuple[Address, ...]) -> None:
        self.found_peers[peer] = hints

    def lost(self, source: str, peer: str) -> None:
        assert source == LAN
        del self.found_peers[peer]
        self.lost_peers.append(peer)


def on_air(check: Callable[[Air, Node], Awaitable[None]]) -> None:
    """Run a check with a node that takes part, in virtual time."""

    async def main() -> None:
        air = Air()
        node = Node(air)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.lan.run, BOUND)
            await trio.sleep(0.1)
            await check(air, node)
            nursery.cancel_scope.cancel()
        assert ALICE not in air.services
        assert not air.listeners

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_node_registers_and_leaves() -> None:
    """It is found as long as it runs, and gone afterwards (`on_air` looks); it finds itself, which
    is no news."""

    async def check(air: Air, node: Node) -> None:
        service = air.services[ALICE]
        assert (service.port, service.hosts) == (6000, ("192.168.1.1",))
        assert service.about == ABOUT | {"peer": ALICE}
        assert air.asked == [ALICE]
        assert not node.found_peers

    on_air(check)


def test_others_are_found_and_lost() -> None:
    """Those that were there before and those that come; each with its newest addresses."""

    async def check(air: Air, node: Node) -> None:
        air.come(BOBS)
        await trio.sleep(0.1)
        assert node.found_peers == {BOB: HERE}
        air.come(replace(BOBS, port=7000))
        await trio.sleep(0.1)
        assert node.found_peers == {BOB: (Address("192.168.1.2", 7000),)}
        air.go("bob")
        await trio.sleep(0.1)
        assert node.lost_peers == [BOB]
        other = Node(air, CAROL, ("192.168.1.3",))
        async with trio.open_nursery() as nursery:
            await nursery.start(other.lan.run, BOUND)
            await trio.sleep(0.1)
            assert list(other.found_peers) == [ALICE]
            assert list(node.found_peers) == [CAROL]
            nursery.cancel_scope.cancel()
        await trio.sleep(0.1)
        assert not node.found_peers

    on_air(check)


def test_a_peer_under_two_names() -> None:
    """It is lost when both are gone."""

    async def check(air: Air, node: Node) -> None:
        air.come(BOBS)
        air.come(replace(BOBS, name="bob-2"))
        await trio.sleep(0.1)
        air.go("bob")
        await trio.sleep(0.1)
        assert list(node.found_peers) == [BOB]
        air.go("bob-2")
        await trio.sleep(0.1)
        assert node.lost_peers == [BOB]

    on_air(check)


def test_a_name_that_becomes_another_peer_s() -> None:
    """What was said before is past."""

    async def check(air: Air, node: Node) -> None:
        air.come(BOBS)
        await trio.sleep(0.1)
        air.come(replace(BOBS, about=ABOUT | {"peer": CAROL}))
        await trio.sleep(0.1)
        assert (list(node.found_peers), node.lost_peers) == ([CAROL], [BOB])
        air.come(replace(BOBS, about={}))
        await trio.sleep(0.1)
        assert not node.found_peers

    on_air(check)


def test_an_address_that_changes() -> None:
    """Everything is begun anew with the new one, within seconds or when told; without any address
    that others can reach, nothing is registered."""

    async def check(air: Air, node: Node) -> None:
        air.come(BOBS)
        node.hosts = ("192.168.1.77",)
        await trio.sleep(LOOK_SECONDS + 0.1)
        assert air.services[ALICE].hosts == air.opened[-1] == ("192.168.1.77",)
        assert list(node.found_peers) == [BOB]
        assert len(air.listeners) == 1
        node.lan.changed()
        await trio.sleep(0.1)
        assert len(air.opened) == 3
        node.hosts = ()
        await trio.sleep(LOOK_SECONDS + 0.1)
        assert ALICE not in air.services
        node.hosts = ("192.168.1.1",)
        await trio.sleep(LOOK_SECONDS + 0.1)
        assert ALICE in air.services

    on_air(check)


def test_no_multicast_here() -> None:
    """It is said once, and tried again."""

    async def check(air: Air, node: Node) -> None:
        air.trouble = OSError(101, "Network is unreachable")
        node.lan.changed()
        await trio.sleep(3 * RETRY_SECONDS)
        assert len(node.lines) == 1
        assert node.lines[0].endswith("(--lan): Network is unreachable")
        air.trouble = None
        await trio.sleep(RETRY_SECONDS)
        assert ALICE in air.services

    on_air(check)


def test_made_up_services_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many the first are looked at; those that go make room."""
    monkeypatch.setattr(module, "FOUND_LIMIT", 5)

    async def check(air: Air, node: Node) -> None:
        for number in range(20):
            air.come(replace(BOBS, name=f"fake{number}", about={}))
        await trio.sleep(0.1)
        assert len(node.lan._peers) == 5
        assert len(air.asked) == 5
        air.come(BOBS)
        await trio.sleep(0.1)
        assert not node.found_peers
        air.go("fake0")
        air.come(BOBS)
        await trio.sleep(0.1)
        assert list(node.found_peers) == [BOB]

    on_air(check)


def test_news_from_threads_that_outlive_the_node() -> None:
    """A thread of zeroconf's that tells something later does no harm."""
    tells: list[Callable[[str, bool], None]] = []

    async def check(air: Air, node: Node) -> None:
        tells.extend(air.listeners)
        node.lan.changed()
        await trio.sleep(0.1)
        thread = threading.Thread(target=tells[0], args=("late", True))
        thread.start()
        thread.join()
        await trio.sleep(0.1)
        assert "late" not in node.lan._peers

    on_air(check)
    tells[0]("later", True)


# ── what is said, and believed ───────────────────────────────────────────────────────────────


def test_what_a_node_registers() -> None:
    """Its peer ID, a hash of its swarm's name, and the addresses at which it listens."""
    hosts = ("192.168.1.1", "2001:db8::1", "10.0.0.1")
    service = own(ALICE, "main", Address("0.0.0.0", 6000), hosts)
    assert service == Service(ALICE, 6000, ("192.168.1.1", "10.0.0.1"), ABOUT | {"peer": ALICE})
    both = own(ALICE, "main", Address("::", 6000), hosts)
    assert both is not None
    assert both.hosts == hosts
    one = own(ALICE, "main", Address("10.0.0.1", 6000), hosts)
    assert one is not None
    assert one.hosts == ("10.0.0.1",)
    assert own(ALICE, "main", Address("127.0.0.1", 6000), hosts) is None
    assert "main" not in str(service)


@pytest.mark.parametrize(
    "wrong",
    [
        {"about": {}},
        {"about": ABOUT | {"txtvers": "2"}},
        {"about": ABOUT | {"swarm": digest("other")}},
        {"about": ABOUT | {"swarm": "main"}},
        {"about": ABOUT | {"peer": "12D3KooWnot"}},
        {"about": ABOUT | {"peer": "x" * 9000}},
        {"port": 0},
        {"port": 70000},
        {"hosts": ()},
        {"hosts": ("127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.251", "ff02::fb")},
        {"hosts": ("not an address",)},
        {"hosts": ("localhost",)},
    ],
)
def test_what_is_not_believed(wrong: dict[str, object]) -> None:
    """Other versions, other swarms, wrong IDs and ports, and addresses that would be our own."""
    assert read(BOBS, "main") == (BOB, HERE)
    assert read(replace(BOBS, **wrong), "main") is None  # type: ignore[arg-type]


def test_few_addresses_are_taken() -> None:
    """However many are said, in whatever order; link-local ones with their interface."""
    hosts = ("127.0.0.1", "fe80::2%eth0", *(f"10.0.0.{n}" for n in range(1, 200)))
    found = read(replace(BOBS, hosts=hosts), "main")
    assert found is not None
    assert len(found[1]) == HINTS_LIMIT < HOSTS_LIMIT
    assert found[1][0] == Address("fe80::2%eth0", 6000)


@given(
    st.integers(-1, 70000),
    st.lists(st.text(max_size=40)),
    st.dictionaries(st.sampled_from(["txtvers", "peer", "swarm"]), st.text(max_size=80)),
)
def test_any_service_is_a_peer_or_nothing(
    port: int, hosts: list[str], about: dict[str, str]
) -> None:
    """Any answer gives a peer with addresses, or None."""
    found = read(Service("x", port, tuple(hosts), ABOUT | about), "main")
    assert found is None or len(found[1]) > 0
