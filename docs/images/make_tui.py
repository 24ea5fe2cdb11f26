"""Draws docs/images/tui.svg, the picture of the live screen in the README.

    python docs/images/make_tui.py

The node is invented but plausible: the third peer of an MNIST swarm in its sixth epoch.
"""

import io
import os
import re
import time
from pathlib import Path
from typing import Final

from rich.console import Console

from p2pnode.cli.tui import render
from p2pnode.node.status import (
    EpochStatus,
    Event,
    MailboxStatus,
    NodeStatus,
    PeerStatus,
    TrackerStatus,
    TrainingStatus,
    TransferStatus,
)
from p2pnode.transport.identity import short
from p2pnode.transport.manifest import Scores

WIDTH: Final = 100
HEIGHT: Final = 40
PICTURE: Final = Path(__file__).with_name("tui.svg")

SWARM: Final = (
    "12D3KooWLmQzJ5rV8yTnEaXcPs4uGhBd2KfWx7NpRt9Mv3kYqU6e",
    "12D3KooWD7kRwYx3pNhVtQmC5sJzLgBu8EaFe2XnTi6Ko4WqMd9r",
    "12D3KooWPq8vTsBnHc4Xe2LyWdKm7RjGz5UfAo3NiYt6Ek9SgCx1",
    "12D3KooWS5nKmEoJb9WtYqLhXa2Rf7DvPc3GuZx8Ti6NsQy4HjBw",
)
MEAN: Final = ((0.9579, 0.9742), (0.9747, 0.9812), (0.9798, 0.9843), (0.9831, 0.9861))
LATER: Final = ((0.9856, 0.9879),)
START: Final = 1_767_254_400.0
"""2026-01-01 08:00:00 UTC."""


def main() -> None:
    """Write the picture."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    console = Console(
        file=io.StringIO(), width=WIDTH, height=HEIGHT, record=True, force_terminal=True,
        color_system="truecolor",
    )  # fmt: skip
    console.print(render(node(), width=WIDTH, height=HEIGHT))
    svg = console.export_svg(title="p2pnode run --shard 0/3", unique_id="p2pnode")
    # No fonts from elsewhere: the reader's own monospace one will do.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    PICTURE.write_text(svg, encoding="utf-8")


def node() -> NodeStatus:
    """The node in the picture."""
    return NodeStatus(
        version="0.1.0",
        peer=SWARM[0],
        swarm="main",
        task="mnist",
        shard="0/3",
        public="198.51.100.7:6000",
        listening="0.0.0.0:6000",
        reachability="reachable from outside",
        uptime=187.0,
        trackers=(TrackerStatus("tracker.example.org:5555", "connected", "", 4),),
        training=TrainingStatus(
            "training", "", 6, 14, 171, 313, 2310.0, 238.0, 0.0512, "cpu", 2, 1_199_882
        ),
        history=tuple(epoch(i, *scores) for i, scores in enumerate((*MEAN, *LATER), 1)),
        peers=peers(),
        mailbox=MailboxStatus(3, 14_399_016, 64, 1),
        transfers=(TransferStatus(SWARM[2], "in", 5, 4_799_672, 3_145_728, 6_400_000.0),),
        events=events(),
        rejects=(("stale", 1),),
    )


def epoch(number: int, before: float, after: float) -> EpochStatus:
    """One epoch with these accuracies; losses to match."""
    averaged = 1 if number == 1 else 2
    scores = [Scores(round(3.2 * (1 - share), 4), share) for share in (before, after)]
    return EpochStatus(number, scores[0], scores[1], averaged, 27.4)


def peers() -> tuple[PeerStatus, ...]:
    """Two that go along, and one that has just joined."""
    return (
        PeerStatus(
            SWARM[1], "direct 203.0.113.24:6000", "connected", 0.0182, 5, 0.2, 0.36,
            23_998_360, 23_998_360, 0.0, 0.0, 1.0,
        ),
        PeerStatus(
            SWARM[2], "direct [2001:db8::17]:6000", "connected", 0.0417, 4, 1.1, 0.27,
            22_344_416, 19_198_688, 6_400_000.0, 0.0, 0.0,
        ),
        PeerStatus(
            SWARM[3], "connecting", "connecting", None, None, None, None,
            0, 0, 0.0, 0.0, 3.0,
        ),
    )  # fmt: skip


def events() -> tuple[Event, ...]:
    """What has happened so far."""
    return (
        Event(START + 9, "info", "ready: 20000 samples on cpu, 2 threads"),
        Event(START + 10, "info", f"met {short(SWARM[1])} at 203.0.113.24:6000"),
        Event(START + 31, "info", f"met {short(SWARM[2])} at [2001:db8::17]:6000"),
        Event(
            START + 152,
            "warning",
            f"rejected (stale) from {short(SWARM[2])}: number 41 is older than 42, here already",
        ),
    )


if __name__ == "__main__":
    main()
