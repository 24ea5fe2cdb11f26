"""What a connection outlives, with real nodes in the NAT laboratory: run by `make test-lab`.

Strategy: each promise of docs/nat.md about cables, routers and addresses is a test.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from natlab import NatLab
from natlab_link import Cable
from natlab_nodes import SLOPE, averages, connected, epoch, peer_of, trains_on
from swarm import Swarm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
# TCP keepalive's promise, and what two busy cores add until a status tells it.
NOTICED, MARGIN = 5.0, 2.0


@dataclass
class Over6:
    """A host by its IPv6 address."""

    enter: tuple[str, ...]
    address: str


def test_over_ipv6(tmp_path: Path, lab: NatLab) -> None:
    """Who listens on [::] is seen and announced at its IPv6 address, beside the IPv4 one."""
    hosts = [lab.public("alice"), lab.public("bob")]
    with Swarm(tmp_path) as swarm:
        post = lab.public("tracker")
        tracker = swarm.tracker(at=Over6(post.enter, post.address6))
        flags = ("--listen", "[::]:6000", *SLOPE)
        alice, bob = (swarm.node(h.name, tracker, *flags, at=h) for h in hosts)
        for node, other, host in ((alice, bob, hosts[0]), (bob, alice, hosts[1])):
            connected(node, other)
            status = averages(node)
            assert status.public in {f"[{host.address6}]:6000", f"{host.address}:6000"}
            swarm.tracker_process.says(f"[{host.address6}]:6000")


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
        assert time.monotonic() - began < 3
        alice.wait(lambda s: not any(p.state == "connected" and old in p.path for p in s.peers))
        connected(alice, bob)
        assert time.monotonic() - began < 10
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
    """100 ms there and back, and one packet of a hundred lost each way."""
    hosts = [lab.public("alice"), lab.public("bob")]
    hosts[1].line(Cable(delay=0.05, loss=0.01))
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(at=lab.public("tracker"))
        alice, bob = (swarm.node(h.name, tracker, *SLOPE, at=h) for h in hosts)
        averages(alice)
        averages(bob)
