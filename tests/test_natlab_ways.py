"""Ways to meet where nobody can be dialled, with real nodes in the NAT laboratory: `make test-lab`.

Strategy: each promise of docs/nat.md about relays, holes and newcomers is a test. The matrix of
NATs is test_natlab.py, mapped ports test_natlab_mapping.py, the home without a tracker
test_natlab_lan.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from natlab import Host, Kind, NatLab
from natlab_nodes import SLOPE, averages, connected, epoch, relayed, trains_on
from swarm import NodeProcess, Process, Swarm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
# A relay that is gone is replaced in a dial and a hello; two busy cores and a status add to that.
# That a pulled cable is one takes TCP keepalive five seconds more.
REPLACED, NOTICED = 5.0, 5.0


def tracker(swarm: Swarm, host: Host) -> str:
    """A tracker that relays and answers STUN."""
    return swarm.tracker(None, "--relay", "--stun", name=host.name, at=host)


def start(
    swarm: Swarm, trackers: Sequence[str], hosts: Sequence[Host], *flags: str
) -> list[NodeProcess]:
    """A node on each of these machines, all in one swarm."""
    known = [word for address in trackers for word in ("--tracker", address)]
    return [
        swarm.node(host.name, None, *known, *SLOPE, "--shard", f"{n}/{len(hosts)}", *flags, at=host)
        for n, host in enumerate(hosts)
    ]


def homes(lab: NatLab, kind: Kind, *, udp: bool = True) -> list[Host]:
    """Alice's machine and Bob's, at two homes with such routers."""
    return [lab.home(kind, udp=udp).host(name) for name in ("alice", "bob")]


def both_ways(nodes: Sequence[NodeProcess]) -> list[tuple[NodeProcess, NodeProcess]]:
    """Each of two nodes with the other one."""
    one, two = nodes
    return [(one, two), (two, one)]


def home_relay(node: NodeProcess) -> str:
    """Wait until a node's models lie at a relay: its address."""
    lies = re.compile(r"our models lie at ([0-9.]+:[0-9]+)")

    def found(node: NodeProcess) -> list[re.Match[str]]:
        status = node.wait(lambda s: s.ways)
        return [match for way in status.ways if (match := lies.match(way.detail))]

    node.wait(lambda s: any(lies.match(way.detail) for way in s.ways))
    return found(node)[0][1]


def models_at(tracker: Path) -> set[str]:
    """The models that a tracker's relay holds."""
    return {path.name for path in (tracker / "tracker-relay").glob("*.model")}


def test_two_that_are_never_online_together(tmp_path: Path, lab: NatLab) -> None:
    """Behind symmetric NATs, one at a time: the relay keeps their models meanwhile."""
    with Swarm(tmp_path) as swarm:
        address = tracker(swarm, lab.public("tracker"))
        alice_at, bob_at = homes(lab, "symmetric")
        (alice,) = start(swarm, [address], [alice_at], "--bootstrap", "never")
        home_relay(alice)
        trains_on(alice)
        assert alice.stop()[0] == 0
        (bob,) = start(swarm, [address], [bob_at], "--bootstrap", "never")
        averages(bob)
        trains_on(bob)
        assert bob.stop()[0] == 0
        since = max(int(number) for number in re.findall(r"epoch ([0-9]+):", alice.text))
        alice.start()
        averages(alice, since)


@pytest.mark.parametrize("end", ["killed", "unplugged"])
def test_a_lost_relay_is_replaced(tmp_path: Path, lab: NatLab, end: str) -> None:
    """Of two, the one in use goes: within seconds models travel through the other one."""
    with Swarm(tmp_path) as swarm:
        hosts = [lab.public("one"), lab.public("two")]
        relays: dict[str, tuple[Process, Host]] = {}
        for host in hosts:
            address = tracker(swarm, host)
            relays[address] = swarm.tracker_process, host
        nodes = start(swarm, list(relays), homes(lab, "symmetric"))
        for node, other in both_ways(nodes):
            averages(node)
            relayed(node, other)
        lost = home_relay(nodes[0])
        process, host = relays[lost]
        host.unplug() if end == "unplugged" else process.kill()
        began = time.monotonic()
        for node in nodes:
            node.wait(lambda s: not any(lost in p.path for p in s.peers))
            node.wait(lambda s: not any(lost in way.detail for way in s.ways))
            assert home_relay(node) != lost
        took = time.monotonic() - began
        assert took < REPLACED + NOTICED * (end == "unplugged")
        for node, other in both_ways(nodes):
            averages(node, epoch(node))
            relayed(node, other)


def test_the_nearest_relay(tmp_path: Path, lab: NatLab) -> None:
    """Of two relays the one is taken that answers first; the other is a tenth of a second away."""
    hosts = [lab.public("far"), lab.public("near")]
    hosts[0].delay(50)
    with Swarm(tmp_path) as swarm:
        far, near = (tracker(swarm, host) for host in hosts)
        for node in start(swarm, [far, near], homes(lab, "symmetric")):
            assert home_relay(node) == near
            averages(node)


def test_a_hole_over_a_long_way(tmp_path: Path, lab: NatLab) -> None:
    """Two who are far from each other, and not equally far from their tracker, meet; from then on
    no model goes through the relay."""
    hosts = homes(lab, "port-restricted")
    hosts[0].delay(80)
    hosts[1].delay(20)
    with Swarm(tmp_path) as swarm:
        address = tracker(swarm, lab.public("tracker"))
        nodes = start(swarm, [address], hosts)
        for node, other in both_ways(nodes):
            connected(node, other)
        trains_on(nodes[0])  # what was on its way to the relay has arrived
        stored = models_at(tmp_path / "tracker")
        for node in nodes:
            averages(node, epoch(node))
        assert models_at(tmp_path / "tracker") == stored


def test_a_newcomer_while_every_tracker_is_down(tmp_path: Path, lab: NatLab) -> None:
    """Any member that can be dialled lets one in, and tells of the others."""
    hosts = [lab.public("alice"), lab.public("bob")]
    with Swarm(tmp_path) as swarm:
        nodes = start(swarm, [tracker(swarm, lab.public("tracker"))], hosts)
        for node, other in both_ways(nodes):
            connected(node, other)
        swarm.tracker_process.kill()
        member = ("--peer", f"{hosts[0].address}:6000")
        (carol,) = start(swarm, [], [lab.home("symmetric").host("carol")], *member)
        for other in nodes:
            connected(carol, other)
        averages(carol)


@pytest.mark.parametrize("kind", ["port-restricted", "symmetric"])
def test_where_udp_is_blocked(tmp_path: Path, lab: NatLab, kind: Kind) -> None:
    """Everything works over TCP alone: holes, where there can be some, and relays."""
    reached = relayed if kind == "symmetric" else connected
    with Swarm(tmp_path) as swarm:
        address = tracker(swarm, lab.public("tracker"))
        for node, other in both_ways(start(swarm, [address], homes(lab, kind, udp=False))):
            averages(node)
            reached(node, other)


@pytest.mark.parametrize("hairpin", [True, False])
def test_two_homes_of_one_carrier(tmp_path: Path, lab: NatLab, hairpin: bool) -> None:
    """They share an address: where the carrier turns them round they meet at it, at two ports; else
    the relay carries on."""
    first = lab.home("carrier-grade", hairpin=hairpin)
    second = lab.home("port-restricted", behind=first.above)
    with Swarm(tmp_path) as swarm:
        address = tracker(swarm, lab.public("tracker"))
        (alice,) = start(swarm, [address], [first.host("alice")])
        (bob,) = start(swarm, [address], [second.host("bob")], "--listen", "0.0.0.0:6001")
        for node, other in both_ways([alice, bob]):
            averages(node)
            (connected if hairpin else relayed)(node, other)


@pytest.mark.parametrize("hairpin", [True, False])
def test_two_behind_one_full_cone(tmp_path: Path, lab: NatLab, hairpin: bool) -> None:
    """Whether or not their router turns them round, they find the way inside."""
    home = lab.home("full-cone", hairpin=hairpin)
    hosts = [home.host("alice"), home.host("bob")]
    with Swarm(tmp_path) as swarm:
        address = tracker(swarm, lab.public("tracker"))
        for node, other in both_ways(start(swarm, [address], hosts)):
            connected(node, other)
            averages(node)
