"""`p2pnode doctor` behind real NATs: run by `make test-lab`, as root."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import natlab
import pytest
from miniupnpd import Miniupnpd, move_to_public
from natlab import KINDS, Host, Kind, NatLab
from swarm import P2PNODE, Swarm

from p2pnode.node.home import Home
from p2pnode.transport.identity import Identity

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]
TINY = str(Path(__file__).parent / "tiny.py")
ALLOW = ("allow 1024-65535 192.168.0.0/16 1024-65535",)
# Doctor's promise; what two busy cores add to start a process.
SOON, MARGIN = 12.0, 4.0


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    """Skip where there can be no laboratory, and say why."""
    if reason := natlab.missing():
        pytest.skip(reason)


@dataclass
class Clinic:
    """An internet with two trackers, each of which answers STUN; one relays."""

    lab: NatLab
    swarm: Swarm
    trackers: tuple[str, str]
    home: Home

    def ask(self, patient: Host, *flags: str, home: Home | None = None) -> dict[str, Any]:
        """What doctor says there; `verdicts` are the checks' verdicts by name."""
        trackers = [word for address in self.trackers for word in ("--tracker", address)]
        command = ("doctor", "--home", str((home or self.home).path), "--json", *trackers, *flags)
        began = time.monotonic()
        done = subprocess.run(
            [*patient.enter, *P2PNODE, *command], capture_output=True, text=True, check=False
        )
        assert time.monotonic() - began < SOON + MARGIN
        assert not done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (0 if told["able"] else 1)
        return told | {
            "verdicts": {check["name"]: check["verdict"] for check in told["checks"]},
            "details": {check["name"]: check["detail"] for check in told["checks"]},
        }


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Clinic]:
    """The laboratory, and a home with a key."""
    with NatLab() as lab, Swarm(tmp_path) as swarm:
        hosts = lab.public("tracker"), lab.public("second")
        trackers = (
            swarm.tracker(None, "--stun", "--relay", at=hosts[0]),
            swarm.tracker(None, "--stun", name="second", at=hosts[1]),
        )
        home = Home(tmp_path / "patient")
        home.create()
        Identity.generate().save(home.key)
        yield Clinic(lab, swarm, trackers, home)


def test_a_public_machine(clinic: Clinic) -> None:
    """Nothing needs to be done."""
    told = clinic.ask(clinic.lab.public("patient"))
    assert told["able"]
    assert "directly" in told["summary"]
    assert set(told["verdicts"].values()) == {"ok", "info"}


@pytest.mark.parametrize("kind", KINDS)
def test_behind_each_kind_of_router(clinic: Clinic, kind: Kind) -> None:
    """It says what kind that is, that nobody comes in, and that the relay helps."""
    router = clinic.lab.home(kind)
    told = clinic.ask(router.host("patient"))
    symmetric = kind == "symmetric"
    assert told["able"]
    assert told["verdicts"]["NAT"] == ("warn" if symmetric else "ok")
    assert ("punches holes" in told["summary"]) != symmetric
    assert told["summary"].endswith("meets the rest through a relay.")
    assert told["details"]["dial-back"] == f"{router.outside}:6000 could not be reached: timed out"
    assert told["details"]["firewall"] == "the router drops what comes in unasked"


def test_udp_that_is_blocked(clinic: Clinic) -> None:
    """It is said, and hinders nothing."""
    told = clinic.ask(clinic.lab.home("port-restricted", udp=False).host("patient"))
    assert told["able"]
    assert told["details"]["firewall"].startswith("UDP is blocked")
    assert told["verdicts"]["NAT"] == "ok"


def test_a_firewall_without_a_nat(clinic: Clinic) -> None:
    """It is the firewall that has to be opened, not a router."""
    patient = clinic.lab.public("patient")
    patient.nft(
        "table inet filter {\n chain input {\n type filter hook input priority filter\n"
        " tcp dport 6000 drop\n }\n}\n"
    )
    told = clinic.ask(patient)
    assert told["able"]
    assert told["verdicts"]["firewall"] == "warn"
    assert "allow TCP port 6000 in the firewall" in told["next"]


def test_a_port_that_leads_elsewhere(clinic: Clinic) -> None:
    """The router forwards it to another machine of the house."""
    router = clinic.lab.home("port-restricted")
    other, patient = router.host("other"), router.host("patient")
    other.start(sys.executable, "-m", "http.server", "6000")
    router.nft(
        "table ip forwards {\n chain in {\n type nat hook prerouting priority dstnat\n"
        f' iifname "wan" tcp dport 6000 dnat to {other.address}\n }}\n}}\n'
    )
    told = clinic.ask(patient)
    assert "another machine" in told["details"]["firewall"]
    assert "give it with --public" in told["next"]


def test_a_router_that_maps(clinic: Clinic, tmp_path: Path) -> None:
    """It is found and named, and nothing is mapped."""
    if reason := natlab.lacking("miniupnpd"):
        pytest.skip(reason)
    router = clinic.lab.home("port-restricted")
    move_to_public(clinic.lab, router, 2)
    daemon = Miniupnpd(router, tmp_path, ALLOW, udp=True)
    patient = router.host("patient")
    deadline = time.monotonic() + natlab.PATIENCE
    while (told := clinic.ask(patient))["verdicts"]["port mapping"] != "ok":
        assert time.monotonic() < deadline
    assert told["details"]["port mapping"] == "the router offers it (PCP)"
    assert told["summary"].startswith("The router lets others in")
    assert not daemon.mapped()


def test_nothing_gets_out(clinic: Clinic) -> None:
    """All is dropped without a word: it still ends in time, and says that this node is out."""
    patient = clinic.lab.home("port-restricted").host("patient")
    patient.nft(
        "table inet filter {\n chain output {\n type filter hook output priority filter\n"
        ' oifname "eth0" drop\n }\n}\n'
    )
    told = clinic.ask(patient)
    assert not told["able"]
    assert told["verdicts"]["tracker"] == "fail"
    assert told["details"]["firewall"] == "connections to the trackers vanish"


def test_a_node_that_runs(clinic: Clinic) -> None:
    """It is asked, and not disturbed: its tracker and its peers stay connected."""
    lab, swarm = clinic.lab, clinic.swarm
    task = ("--task", f"{TINY}:Slope", "--epochs", "0", "--batch-size", "60", "--threads", "1")
    at_home = lab.home("port-restricted").host("alice")
    alice = swarm.node("alice", clinic.trackers[0], *task, at=at_home)
    bob = swarm.node("bob", clinic.trackers[0], *task, at=lab.public("bob"))
    alice.wait(lambda s: any(p.state == "connected" for p in s.peers))
    alice.wait(lambda s: s.reachability.startswith("not reachable"))
    told = clinic.ask(at_home, home=alice.home)
    assert told["able"]
    assert told["details"]["listening"] == "on 0.0.0.0:6000, by the node that runs"
    assert told["details"]["peers"].startswith("1 connected")
    assert told["details"]["dial-back"].startswith("not reachable at")
    assert "Others can't connect" in told["summary"]
    for node in (alice, bob):
        assert "lost" not in node.text
        assert len(node.wait(lambda s: s.peers).peers) == 1
