"""Real nodes behind real NATs, in network namespaces: run by `make test-lab`, as root.

Strategy: each promise of docs/nat.md is a test (test_natlab_itself.py shows that the laboratory is
what it says). The matrix is printed, and so shown in docs/nat.md. Real processes have no clock of
ours, so all waiting looks at statuses.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import natlab
import pytest
from natlab import KINDS, Kind, NatLab
from swarm import NodeProcess, Swarm

from p2pnode.node.status import NodeStatus, PeerStatus

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
TINY = str(Path(__file__).parent / "tiny.py")
SLOPE = ("--task", f"{TINY}:Slope", "--epochs", "0", "--batch-size", "60", "--threads", "1")
# TCP keepalive's promise, and what two busy cores add until a status tells it.
NOTICED, MARGIN = 5.0, 2.0
SITES = ("public", *KINDS)


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


def peer_of(status: NodeStatus, other: NodeProcess) -> PeerStatus | None:
    """What a status tells of another node."""
    return next((p for p in status.peers if p.peer == other.peer), None)


def is_connected(status: NodeStatus, other: NodeProcess) -> bool:
    """Whether a status tells of a connection to another node."""
    peer = peer_of(status, other)
    return peer is not None and peer.state == "connected"


def connected(node: NodeProcess, other: NodeProcess) -> NodeStatus:
    """Wait until these two are."""
    return node.wait(lambda status: is_connected(status, other))


def averages(node: NodeProcess, since: int = 0) -> NodeStatus:
    """Wait until an epoch after this one has averaged another's model."""
    return node.wait(lambda s: any(e.averaged for e in s.history if e.epoch > since))


def epoch(node: NodeProcess) -> int:
    """The last finished epoch."""
    return max((e.epoch for e in node.wait(lambda s: s.history).history), default=0)


def trains_on(node: NodeProcess) -> NodeStatus:
    """Wait for two epochs more."""
    since = epoch(node)
    return node.wait(lambda s: s.history[-1].epoch > since + 1)


@dataclass
class Pair:
    """Two nodes of one matrix cell, in a swarm of their own."""

    kinds: tuple[str, str]
    nodes: tuple[NodeProcess, NodeProcess]
    began: float

    def sides(self) -> Iterator[tuple[NodeProcess, NodeProcess]]:
        """Each node with the other one."""
        yield self.nodes
        yield self.nodes[1], self.nodes[0]

    def settle(self) -> bool:
        """Wait until they are connected, or each has said why it can't be: whether they are."""
        for node, other in self.sides():
            said = f"can't reach …{other.peer[-8:]}"
            node.wait(lambda s: is_connected(s, other) or said in node.text)  # noqa: B023
        return any(is_connected(node.wait(lambda s: True), o) for node, o in self.sides())

    def end(self) -> None:
        """Make room for the next cells; a peer that reaches nobody goes as politely."""
        for node in self.nodes:
            assert node.stop()[0] == 0


def start(swarm: Swarm, lab: NatLab, tracker: str, kinds: tuple[str, str]) -> Pair:
    """Start the two nodes of a cell, each behind a router of its own, or public."""
    name = "-".join(kinds)
    nodes = []
    for number, kind in enumerate(kinds):
        where = f"{name}-{number}"
        private = next((k for k in KINDS if k == kind), None)
        host = lab.home(private, f"r-{where}").host(where) if private else lab.public(where)
        flags = ("--swarm", name, "--shard", f"{number}/2")
        nodes.append(swarm.node(where, tracker, *flags, *SLOPE, at=host))
    return Pair(kinds, (nodes[0], nodes[1]), time.monotonic())


Matrix = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    """What each pair did; printed in the end, and so shown in docs/nat.md."""
    cells: Matrix = {}
    yield cells
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print("\n" + "\n".join(_lines(cells)))


def _lines(cells: Matrix) -> Iterator[str]:
    """One line a site, each pair once."""
    for number, row in enumerate(("", *SITES)):
        told = [cells.get((column, row), "") for column in SITES[:number]]
        yield "".join(f"{text:17}" for text in (row, *(told or SITES))).rstrip()


def test_a_public_peer_and_any_other(tmp_path: Path, lab: NatLab, matrix: Matrix) -> None:
    """Whatever the NAT: they meet, and the connection made from behind it carries both ways."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(at=lab.public("tracker"))
        for pair in [start(swarm, lab, tracker, ("public", site)) for site in SITES]:
            for node, other in pair.sides():
                averages(node)
                connected(node, other)
            matrix[pair.kinds] = f"direct, {time.monotonic() - pair.began:.0f} s"
            for node, site in zip(pair.nodes, pair.kinds, strict=True):
                verdict = "reachable at" if site == "public" else "not reachable at"
                node.wait(lambda s: s.reachability.startswith(verdict))  # noqa: B023
            pair.end()


@pytest.mark.parametrize("kind", KINDS)
def test_both_behind_nats(tmp_path: Path, lab: NatLab, matrix: Matrix, kind: Kind) -> None:
    """Where they don't meet, both train on alone, nothing hangs, and the status says so."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(at=lab.public("tracker"))
        others = KINDS[KINDS.index(kind) :]
        for pair in [start(swarm, lab, tracker, (kind, other)) for other in others]:
            met = pair.settle()
            for node, other in pair.sides():
                status = trains_on(node)
                told = peer_of(status, other)
                assert told is not None
                if not met:
                    assert told.state == "connecting"
                    node.wait(lambda s: s.reachability.startswith("not reachable at"))
                    assert status.history[-1].averaged == 0
                    assert status.trackers[0].state == "connected"
            matrix[pair.kinds] = "direct" if met else "alone"
            pair.end()


@dataclass
class Over6:
    """A host by its IPv6 address."""

    enter: tuple[str, ...]
    address: str


def test_over_ipv6(tmp_path: Path, lab: NatLab) -> None:
    """Who listens on IPv6 is seen, announced and met there."""
    hosts = [lab.public("alice"), lab.public("bob")]
    with Swarm(tmp_path) as swarm:
        post = lab.public("tracker")
        tracker = swarm.tracker(at=Over6(post.enter, post.address6))
        flags = ("--listen", "[::]:6000", *SLOPE)
        alice, bob = (swarm.node(h.name, tracker, *flags, at=h) for h in hosts)
        for node, other, host in ((alice, bob, hosts[0]), (bob, alice, hosts[1])):
            connected(node, other)
            status = averages(node)
            assert status.public == f"[{host.address6}]:6000"


def test_two_behind_one_nat_meet_at_home(tmp_path: Path, lab: NatLab) -> None:
    """Peers of one network find the way inside it, though the tracker sees them outside."""
    home = lab.home("port-restricted")
    hosts = [home.host("alice"), home.host("bob")]
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(at=lab.public("tracker"))
        alice, bob = (swarm.node(h.name, tracker, *SLOPE, at=h) for h in hosts)
        told = peer_of(connected(alice, bob), bob)
        assert told is not None
        assert told.path.startswith(f"direct {hosts[1].address}:")
        averages(alice)
        averages(bob)


@pytest.mark.parametrize("epochs", ["0", "2"], ids=["busy", "idle"])
def test_a_vanished_host_is_noticed(tmp_path: Path, lab: NatLab, epochs: str) -> None:
    """A pulled cable (no FIN, no RST) is noticed within 5 s; put back, they meet again.

    Busy ones wait for the acknowledgement of a model, idle ones are asked by the kernel.
    """
    hosts = [lab.public("alice"), lab.home("port-restricted").host("bob")]
    flags = (*SLOPE, "--epochs", epochs, "--stay")
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(at=lab.public("tracker"))
        alice, bob = (swarm.node(h.name, tracker, *flags, at=h) for h in hosts)
        for node, other in ((alice, bob), (bob, alice)):
            connected(node, other)
            if epochs != "0":
                node.wait(lambda s: s.training.state == "finished")
        hosts[1].unplug()
        began = time.monotonic()
        for node in (alice, bob):
            node.wait(lambda s: all(p.state != "connected" for p in s.peers))
            assert time.monotonic() - began < NOTICED + MARGIN
        if epochs == "0":
            trains_on(bob)
        hosts[1].replug()
        connected(alice, bob)
        connected(bob, alice)


def test_routers_do_not_forget_a_silent_connection(tmp_path: Path, lab: NatLab) -> None:
    """Where a router forgets what is silent for five seconds, a connection outlives long epochs."""
    home = lab.home("port-restricted")
    home.forget_after(5)
    hosts = [lab.public("alice"), home.host("bob")]
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(at=lab.public("tracker"))
        flags = (*SLOPE, "--epochs", "1", "--stay")
        alice, bob = (swarm.node(h.name, tracker, *flags, at=h) for h in hosts)
        for node, other in ((alice, bob), (bob, alice)):
            connected(node, other)
            node.wait(lambda s: s.training.state == "finished")
        time.sleep(15)
        for node in (alice, bob):
            assert not re.search("lost|unreachable", node.text)
            assert all(p.state == "connected" for p in node.wait(lambda s: s.peers).peers)


def test_a_link_that_flaps(tmp_path: Path, lab: NatLab) -> None:
    """A cable out for two seconds, three times: the connection outlives it or is made anew."""
    hosts = [lab.public("alice"), lab.public("bob")]
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(at=lab.public("tracker"))
        alice, bob = (swarm.node(h.name, tracker, *SLOPE, at=h) for h in hosts)
        connected(alice, bob)
        for _ in range(3):
            hosts[1].unplug()
            time.sleep(2)
            hosts[1].replug()
            time.sleep(1)
        averages(alice, epoch(alice))
        averages(bob, epoch(bob))


def test_an_address_that_changes(tmp_path: Path, lab: NatLab) -> None:
    """Another address by DHCP: it is announced within seconds, and the peers meet again there."""
    hosts = [lab.public("alice"), lab.public("bob")]
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(at=lab.public("tracker"))
        alice, bob = (swarm.node(h.name, tracker, *SLOPE, at=h) for h in hosts)
        connected(alice, bob)
        connected(bob, alice)
        old = hosts[1].address
        hosts[1].move(*lab.place())
        began = time.monotonic()
        bob.wait(lambda s: s.public.startswith(hosts[1].address))
        assert time.monotonic() - began < 10
        alice.wait(lambda s: not any(p.state == "connected" and old in p.path for p in s.peers))
        connected(alice, bob)
        assert time.monotonic() - began < 20
        averages(alice, epoch(alice))
        averages(bob, epoch(bob))
        # A newcomer isn't sent to the old address.
        carol = swarm.node("carol", tracker, *SLOPE, at=lab.public("carol"))
        connected(carol, bob)
        assert old not in carol.text


def test_a_thin_lossy_link_carries_models(tmp_path: Path, lab: NatLab) -> None:
    """1 Mbit/s and 2 lost packets of a hundred: slower, not broken."""
    hosts = [lab.public("alice"), lab.home("port-restricted").host("bob")]
    hosts[1].lose(1)
    hosts[1].limit("1mbit")
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(at=lab.public("tracker"))
        alice, bob = (swarm.node(h.name, tracker, *SLOPE, at=h) for h in hosts)
        averages(alice)
        averages(bob)


def test_a_long_lossy_link_carries_models(tmp_path: Path, lab: NatLab) -> None:
    """100 ms there and back and 2 lost packets of a hundred."""
    hosts = [lab.public("alice"), lab.public("bob")]
    hosts[1].lose(1)
    try:
        for host in hosts:
            host.delay(50)
    except natlab.LabError as error:
        pytest.skip(f"this kernel has no netem: {error}")
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(at=lab.public("tracker"))
        alice, bob = (swarm.node(h.name, tracker, *SLOPE, at=h) for h in hosts)
        averages(alice)
        averages(bob)
