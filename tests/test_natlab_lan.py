"""Swarms without a tracker, of real nodes: in one home by multicast DNS, and through any member.

Run by `make test-lab`, as root: the home is a bridge between network namespaces.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import natlab
import pytest
from natlab import Host, NatLab
from natlab_nodes import SLOPE, averages, connected, is_connected
from swarm import Swarm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

MDNS_GROUP, MDNS_PORT = "224.0.0.251", 5353
# A goodbye, and the session's end; a moved node begins anew within seconds.
SOON = 20.0


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


def test_two_in_one_home_meet(tmp_path: Path, lab: NatLab) -> None:
    """With --lan alone, and no tracker anywhere: they meet and average, also after one of them has
    got another address; who stops is gone at once."""
    home = lab.home("port-restricted")
    with Swarm(tmp_path) as swarm:
        alice, bob = (
            swarm.node(name, None, "--lan", *SLOPE, at=home.host(name)) for name in ("alice", "bob")
        )
        for node, other in ((alice, bob), (bob, alice)):
            status = connected(node, other)
            assert [peer.path.split()[0] for peer in status.peers] == ["direct"]
            averages(node)
            assert "no tracker is given" not in node.text
        code, seconds = bob.stop()
        assert code == 0
        assert seconds < 3
        alice.wait(lambda s: not s.peers)


def test_an_address_that_changes(tmp_path: Path, lab: NatLab) -> None:
    """It is registered anew, and they meet again."""
    home = lab.home("port-restricted")
    with Swarm(tmp_path) as swarm:
        where = [home.host(name) for name in ("alice", "bob")]
        alice, bob = (
            swarm.node(f"{host.address}", None, "--lan", *SLOPE, at=host) for host in where
        )
        connected(alice, bob)
        where[1].move("192.168.1.77/24")
        alice.wait(lambda s: any("192.168.1.77" in peer.path for peer in s.peers))
        connected(bob, alice)


def listen_for_mdns(host: Host) -> socket.socket:
    """A socket that hears what is said on that machine's network."""
    with host.inside():
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", MDNS_PORT))
        group = struct.pack("4s4s", *map(socket.inet_aton, (MDNS_GROUP, host.address)))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    sock.settimeout(SOON)
    return sock


def test_what_others_in_the_home_read(tmp_path: Path, lab: NatLab) -> None:
    """The peer ID, and not the swarm's name; without --lan nothing at all."""
    home = lab.home("port-restricted")
    said = b""
    with Swarm(tmp_path) as swarm, listen_for_mdns(home.host("other")) as other:
        quiet = swarm.node("quiet", None, *SLOPE, at=home.host("quiet"))
        quiet.wait(lambda s: s.history)
        other.settimeout(0.1)
        with pytest.raises(TimeoutError):
            other.recv(9000)
        other.settimeout(SOON)
        loud = swarm.node("loud", None, "--lan", "--swarm", "secretive", *SLOPE, at=home.host("x"))
        deadline = time.monotonic() + SOON
        while b"swarm=" not in said and time.monotonic() < deadline:
            said += other.recv(9000)
    assert loud.peer.encode() in said
    assert b"secretive" not in said


def test_a_swarm_through_one_member(tmp_path: Path, lab: NatLab) -> None:
    """Nodes that know one address each meet all the others, and a newcomer does, too, that knows
    somebody else than the first."""
    hosts = [lab.public(f"node{n}") for n in range(4)]
    with Swarm(tmp_path) as swarm:
        first = swarm.node("first", None, *SLOPE, at=hosts[0])
        first.wait(lambda s: s.listening)
        near = ("--peer", f"{hosts[0].address}:6000")
        others = [swarm.node(f"node{n}", None, *near, *SLOPE, at=hosts[n]) for n in (1, 2)]
        everybody = [first, *others]
        for node in everybody:
            node.wait(lambda s: sum(peer.state == "connected" for peer in s.peers) == 2)
        first.stop()
        near = ("--peer", f"{hosts[1].address}:6000")
        late = swarm.node("late", None, *near, *SLOPE, at=hosts[3])
        late.wait(lambda s: all(is_connected(s, node) for node in others))
        averages(late)
