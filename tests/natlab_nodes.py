"""Real nodes in the NAT laboratory: what to start them with, and what to wait for.

Strategy: real processes have no clock of ours, so all waiting looks at statuses.
"""

from __future__ import annotations

from pathlib import Path

from swarm import NodeProcess

from p2pnode.node.status import NodeStatus, PeerStatus

TINY = str(Path(__file__).parent / "tiny.py")
SLOPE = ("--task", f"{TINY}:Slope", "--epochs", "0", "--batch-size", "60", "--threads", "1")


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


def relayed(node: NodeProcess, other: NodeProcess) -> NodeStatus:
    """Wait until the other's models come through a relay."""
    return node.wait(lambda s: (p := peer_of(s, other)) is not None and p.state == "relayed")


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
