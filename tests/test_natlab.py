"""Real nodes behind real NATs, in network namespaces: run by `make test-lab`, as root.

Strategy: each promise of docs/nat.md is a test (test_natlab_itself.py shows that the laboratory is
what it says). The matrix is printed, and so shown in docs/nat.md. Real processes have no clock of
ours, so all waiting looks at statuses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from natlab import KINDS, Kind, NatLab
from natlab_nodes import SLOPE, averages, connected, is_connected, peer_of, trains_on
from swarm import NodeProcess, Swarm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
SITES = ("public", *KINDS)


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
