"""The matrix of NATs: two real nodes behind each pair of routers. Run by `make test-lab`, as root.

Strategy: each cell is a swarm of its own with two `p2pnode run`, all at one tracker that relays and
answers STUN. A row runs at once. It is printed how they are connected in the end, and how long it
took from the start of both processes until each had averaged the other's model; docs/nat.md shows
that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from natlab import KINDS, NatLab
from natlab_nodes import SLOPE, averages, connected, relayed
from swarm import NodeProcess, Swarm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
SITES = ("public", *KINDS)
# Where models came through a relay first, there is a direct connection so soon after.
UPGRADED = 15.0


@dataclass
class Pair:
    """Two nodes of one matrix cell, in a swarm of their own."""

    sites: tuple[str, str]
    nodes: tuple[NodeProcess, NodeProcess]
    began: float

    @property
    def way(self) -> str:
        """How they have to be connected: who dials from a symmetric NAT must find an open door."""
        hidden = "symmetric" in self.sites and not {"public", "full-cone"} & {*self.sites}
        return "relay" if hidden else "direct"

    def watch(self) -> str:
        """Wait until both average the other's models: how they are connected, after how long."""
        for node in self.nodes:
            averages(node)
        took = time.monotonic() - self.began
        reached = relayed if self.way == "relay" else connected
        for node, other in (self.nodes, self.nodes[::-1]):
            reached(node, other)
        assert time.monotonic() - self.began - took < UPGRADED
        return f"{self.way}, {took:.0f} s"

    def end(self) -> None:
        """Make room for the next cells."""
        for node in self.nodes:
            assert node.stop()[0] == 0


def start(swarm: Swarm, lab: NatLab, tracker: str, sites: tuple[str, str]) -> Pair:
    """Start the two nodes of a cell, each behind a router of its own, or public."""
    name = "-".join(sites)
    nodes = []
    for number, site in enumerate(sites):
        where = f"{name}-{number}"
        kind = next((k for k in KINDS if k == site), None)
        host = lab.home(kind, f"r-{where}").host(where) if kind else lab.public(where)
        flags = ("--swarm", name, "--shard", f"{number}/2")
        nodes.append(swarm.node(where, tracker, *flags, *SLOPE, at=host))
    return Pair(sites, (nodes[0], nodes[1]), time.monotonic())


Matrix = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    """What each pair did; printed in the end."""
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


@pytest.mark.parametrize("site", SITES)
def test_every_pair_trains_together(tmp_path: Path, lab: NatLab, matrix: Matrix, site: str) -> None:
    """Whatever the NATs, both average the other's models: directly where both keep their port."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(None, "--relay", "--stun", at=lab.public("tracker"))
        others = SITES[SITES.index(site) :]
        pairs = [start(swarm, lab, tracker, (site, other)) for other in others]
        with ThreadPoolExecutor(len(pairs)) as watchers:
            told = watchers.map(Pair.watch, pairs)
            matrix.update(zip([pair.sites for pair in pairs], told, strict=True))
        for pair in pairs:
            pair.end()
