"""Holes through real NATs, between real networks, with a real tracker: run by `make test-lab`.

Strategy: each machine is a network namespace, in which a thread of this process runs trio. Two
nodes, as far as punching matters, find each other through the tracker and try at the same time.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import natlab
import pytest
import trio
from natlab import Host, Kind, NatLab, Router

from lab import identity
from p2pnode.node.puncher import TRIES, TURN_SECONDS, Puncher
from p2pnode.tracker.client import TrackerClient
from p2pnode.tracker.record import PeerRecord
from p2pnode.tracker.registry import INSTANCE, Registry
from p2pnode.tracker.server import TrackerServer
from p2pnode.transport.address import Address
from p2pnode.transport.envelope import Kind as Signed
from p2pnode.transport.envelope import seal
from p2pnode.transport.link import Link
from p2pnode.transport.nat import stun_server
from p2pnode.transport.nat.punch import ANSWER_SECONDS, PUNCH_SECONDS
from p2pnode.transport.nat.punching import Punched
from p2pnode.transport.network import TcpNetwork

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
PORT = 6000
HERE, THERE, TRACKER = 1, 2, 9
# What a node has for one meeting: all tries, and the wait for the other's call.
MOST = TURN_SECONDS + TRIES * (ANSWER_SECONDS + PUNCH_SECONDS)


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    """Skip where there can be no laboratory, and say why."""
    if reason := natlab.missing():
        pytest.skip(reason)


@pytest.fixture
def lab() -> Iterator[NatLab]:
    """A laboratory with nothing but the internet in it."""
    with NatLab() as lab:
        yield lab


@dataclass
class Machine:
    """A thread in a namespace that runs a program until it is stopped."""

    host: Host
    program: Callable[[trio.Event], Awaitable[None]]
    error: BaseException | None = None

    def start(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self._thread.start()
        assert self._ready.wait(natlab.PATIENCE), self.error

    def stop(self) -> None:
        trio.from_thread.run_sync(self._over.set, trio_token=self._token)
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _live(self) -> None:
        try:
            with self.host.inside():
                trio.run(self._main)
        except BaseException as error:  # shown where the machine is stopped
            self.error = error

    async def _main(self) -> None:
        self._token, self._over = trio.lowlevel.current_trio_token(), trio.Event()
        self._ready.set()
        await self.program(self._over)


async def tracker(address: Address, over: trio.Event) -> None:
    """A tracker that answers STUN, too."""
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(stun_server.serve, Address("0.0.0.0", 0))
        server = TrackerServer(Registry(bytes(INSTANCE)), stun=bound.port)
        await nursery.start(server.serve, TcpNetwork(identity(TRACKER)), address)
        await over.wait()
        nursery.cancel_scope.cancel()


@dataclass
class Node:
    """What of a node punches holes; `links` are those that it got, whoever called."""

    number: int
    tracker: Address
    other: int
    listen: Address = field(default_factory=lambda: Address("0.0.0.0", PORT))
    links: list[Link] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)
    rejects: list[str] = field(default_factory=list)
    took: float | None = None  # seconds until there was a link; None where there was none
    tried: bool = False
    meetings: int = 1  # one after another, each when the link of the one before is closed

    async def live(self, over: trio.Event) -> None:
        """Be in the swarm, and meet the other one."""
        self.network = TcpNetwork(identity(self.number), self.rejects.append)
        self.client = self._client()
        self.punched = Punched(self._servers, needed=lambda: True, clock=trio.current_time)
        self.puncher = self._puncher()
        async with trio.open_nursery() as nursery:
            welcome = {"peer": self._welcome}
            self.punched.bound(await nursery.start(self.network.listen, self.listen, welcome))
            await nursery.start(self.punched.run)
            await nursery.start(self.puncher.run)
            quiet: Any = lambda *_: None  # noqa: E731
            run = partial(self.client.run, self._record, quiet, quiet, self.puncher.heard)
            await nursery.start(run)
            nursery.start_soon(self._meet)
            await over.wait()
            nursery.cancel_scope.cancel()

    def _client(self) -> TrackerClient:
        return TrackerClient(
            self.network,
            self.tracker,
            swarm="main",
            peer=identity(self.number).peer_id,
            rng=random.Random(self.number),
        )

    def _puncher(self) -> Puncher:
        return Puncher(
            self.network,
            identity(self.number),
            "main",
            self.punched,
            trackers=lambda: [self.client],
            guesses=self._guesses,
            knows=lambda peer: True,
            on_link=self._talk,
            wall=time.time,
            log=lambda *_: None,
        )

    def _servers(self) -> list[Address]:
        return [self.client.state.stun] if self.client.state.stun else []

    def _guesses(self) -> tuple[Address, ...]:
        seen = self.client.state.seen
        return (Address(seen.host, PORT),) if seen else ()

    def _record(self) -> bytes:
        now = time.time()
        record = PeerRecord(swarm="main", seq=int(now * 1e6), addresses=(), created=now)
        return seal(identity(self.number), Signed.PEER_RECORD, record.to_bytes())

    async def _meet(self) -> None:
        peer = identity(self.other).peer_id
        while not self.client.knows(peer):
            await trio.sleep(0.02)
        self._began = trio.current_time()
        for _ in range(self.meetings):
            link = await self.puncher.attempt(peer)
            if link is not None:
                await self._talk(link)
                await link.aclose()
        self.tried = True

    async def _welcome(self, link: Link) -> None:
        """Somebody came in at the listener."""
        self.puncher.met(link.peer)
        await self._talk(link)

    async def _talk(self, link: Link) -> None:
        """Show that the link carries something both ways, and keep it."""
        if self.took is None:
            self.took = trio.current_time() - self._began
        self.links.append(link)
        await link.send(b"from %d" % self.number)
        self.heard.append(await link.receive())
        await trio.sleep(0.2)


def meet(
    lab: NatLab, here: Host, there: Host, *, six: bool = False, **options: Any
) -> tuple[Node, Node]:
    """Both try until both have their links or have given up; `six`: over IPv6."""
    server = lab.public("tracker")
    where = Address(server.address6 if six else server.address, 7000)
    nodes = Node(HERE, where, THERE, **options), Node(THERE, where, HERE, **options)
    programs = (partial(tracker, where), *(node.live for node in nodes))
    machines = [Machine(*pair) for pair in zip((server, here, there), programs, strict=True)]
    try:
        for machine in machines:
            machine.start()
        deadline = time.monotonic() + MOST + 5
        while time.monotonic() < deadline and not all(map(done, nodes)):
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        for machine in reversed(machines):
            machine.stop()
    return nodes


def done(node: Node) -> bool:
    """Whether it has met the other one as often as it should, or has given up."""
    return node.tried or len(node.heard) == node.meetings


def outside(host: Host, lab: NatLab) -> str:
    """The public address of a machine."""
    routers = {m.side: m.outside for m in lab.machines if isinstance(m, Router)}
    return routers.get(host.place, host.address)


PAIRS: list[tuple[Kind, Kind]] = [
    ("port-restricted", "port-restricted"),
    ("port-restricted", "carrier-grade"),
    ("carrier-grade", "carrier-grade"),
    ("full-cone", "port-restricted"),
    ("full-cone", "full-cone"),
    ("full-cone", "symmetric"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_hole_is_punched(lab: NatLab, one: Kind, other: Kind) -> None:
    """Two that let nobody in meet directly, in a second or so, at the first try."""
    here, there = lab.home(one, "one").host("here"), lab.home(other, "other").host("there")
    nodes = meet(lab, here, there)
    for node, host in zip(nodes, (there, here), strict=True):
        assert node.heard == [b"from %d" % node.other]
        assert [link.remote.host for link in node.links] == [outside(host, lab)]
        assert node.links[0].punched
        assert node.took is not None
        assert node.took < PUNCH_SECONDS
    assert nodes[0].links[0].dialled != nodes[1].links[0].dialled
    print(f"\n{one} × {other}: {max(node.took or 0 for node in nodes):.2f} s")


@pytest.mark.parametrize("other", ["port-restricted", "symmetric", "carrier-grade"])
def test_what_can_t_be_punched_is_given_up(lab: NatLab, other: Kind) -> None:
    """A symmetric NAT takes another port for each; in bounded time both leave it at that."""
    here, there = lab.home("symmetric", "one").host("here"), lab.home(other, "other").host("there")
    began = time.monotonic()
    nodes = meet(lab, here, there)
    assert time.monotonic() - began < MOST + 2
    for node in nodes:
        assert node.tried
        assert not node.links
        assert not node.rejects


def test_one_that_is_public_is_reached_by_the_other(lab: NatLab) -> None:
    """Its own dialling leads nowhere; the call turns the connection round."""
    here, there = lab.home("symmetric", "one").host("here"), lab.public("there")
    for node in meet(lab, here, there):
        assert node.heard == [b"from %d" % node.other]


WALL = """
table inet wall {
  chain input {
    type filter hook input priority filter; policy drop
    iifname "lo" accept
    ct state established,related accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
  }
}
"""


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_two_behind_firewalls_meet(lab: NatLab, six: bool) -> None:
    """No NAT, but nobody lets anybody in: the same way leads through."""
    here, there = lab.public("here"), lab.public("there")
    for host in (here, there):
        host.nft(WALL)
    listen = Address("::" if six else "0.0.0.0", PORT)
    for node in meet(lab, here, there, six=six, listen=listen):
        assert node.heard == [b"from %d" % node.other]
        assert node.links[0].punched
        assert (":" in node.links[0].remote.host) == six


def test_they_meet_again_at_once(lab: NatLab) -> None:
    """Ports and NAT tables remember the connection that was closed: that is in nobody's way."""
    here, there = (lab.home("port-restricted", name).host(f"at-{name}") for name in ("a", "b"))
    for node in meet(lab, here, there, meetings=3):
        assert node.heard == [b"from %d" % node.other] * 3


def test_a_lossy_line_takes_a_little_longer(lab: NatLab) -> None:
    """The kernel repeats its SYN after a second; there are three tries."""
    here, there = (lab.home("port-restricted", name).host(f"at-{name}") for name in ("a", "b"))
    here.lose(10)
    there.lose(10)
    for node in meet(lab, here, there):
        assert node.heard == [b"from %d" % node.other]
