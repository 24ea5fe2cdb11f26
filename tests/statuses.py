"""NodeStatus values for tests: realistic ones by hand, and any at all from hypothesis."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from p2pnode.node.status import (
    EpochStatus,
    Event,
    MailboxStatus,
    NodeStatus,
    PeerStatus,
    TrackerStatus,
    TrainingStatus,
    TransferStatus,
    WayStatus,
)
from p2pnode.transport.manifest import Scores

ME = "12D3KooWGtJ7K2mQxBd9nVfR4sLpTzYhAe6uC8wXjN5oDkPrM3v1"
NOW = 1_767_225_600.0
"""2026-01-01 00:00:00 UTC."""


def peer_id(i: int) -> str:
    """A made-up peer ID whose last characters tell which it is."""
    return f"12D3KooWR8qnGZc5AhY2tVbXe7LwKfJp4sD9uMgN6xHrTPeer{i:03d}"


def swarm_of(peers: int, *, epochs: int = 4, accuracy: bool = True) -> NodeStatus:
    """A node in its epoch `epochs` + 1 that knows so many peers."""
    return NodeStatus(
        version="0.1.0",
        peer=ME,
        swarm="main",
        task="mnist",
        shard="0/3",
        public="198.51.100.7:6000",
        listening="0.0.0.0:6000",
        reachability=f"reached by {peers} peer{'s' * (peers > 1)}" if peers else "unknown",
        uptime=3753.0,
        trackers=(TrackerStatus("203.0.113.1:5555", "connected", "", peers),),
        ways=(WayStatus("mapping", "198.51.100.7:6000 by the router (PCP), for 57 min"),),
        training=TrainingStatus(
            "training", "", epochs + 1, 14, 507, 938, 3120.4, 425.0, 0.0712, "cpu", 1, 1_199_882
        ),
        history=tuple(epoch(i + 1, accuracy=accuracy) for i in range(epochs)),
        peers=tuple(neighbour(i) for i in range(peers)),
        mailbox=MailboxStatus(min(peers, 64), 4_800_000 * peers, 64, min(peers, 1)),
        transfers=(TransferStatus(peer_id(0), "in", 5, 4_800_000, 3_145_728, 1_250_000.0),),
        events=tuple(
            Event(NOW + 60 * i, ("info", "warning", "error")[i % 3], f"event number {i}")
            for i in range(8)
        ),
        rejects=(("bad signature", 3), ("replayed", 1)),
    )


def epoch(i: int, *, accuracy: bool = True) -> EpochStatus:
    """Epoch `i`, in which averaging helped by 0.5 points (and 0.01 of loss)."""
    share = 1 - 0.03 / i
    return EpochStatus(
        i,
        Scores(0.09 / i + 0.01, share - 0.005 if accuracy else None),
        Scores(0.09 / i, share if accuracy else None),
        2,
        51.2,
    )


def neighbour(i: int) -> PeerStatus:
    """Peer `i`, direct and well."""
    return PeerStatus(
        peer=peer_id(i),
        path=f"direct 203.0.113.{i}:6000",
        state="connected",
        round_trip=0.0123,
        epoch=4,
        behind=1.25,
        weight=0.3333,
        bytes_in=14_400_000,
        bytes_out=9_600_000,
        rate_in=1_250_000.0,
        rate_out=0.0,
        silent=2.0,
    )


def with_training(status: NodeStatus, **changes: Any) -> NodeStatus:
    """The same node, training otherwise."""
    return replace(status, training=replace(status.training, **changes))


_line = st.text(
    st.characters(exclude_categories=["C", "Zs", "Zl", "Zp"]) | st.just(" "), max_size=80
)
_count = st.integers(0, 2**63 - 1)
_number = st.floats(allow_nan=False, allow_infinity=False)
_scores = st.builds(Scores, _number, st.none() | st.floats(0, 1))


def _some(values: st.SearchStrategy[Any], most: int = 4) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=most).map(tuple)


def statuses(text: st.SearchStrategy[str] = _line) -> st.SearchStrategy[NodeStatus]:
    """Any status at all: absurd numbers, any state, the texts as given."""
    state = st.sampled_from(["training", "finished", "failed", "connected", "lost"]) | text
    return st.builds(
        NodeStatus,
        *[text] * 8,
        _number,
        trackers=_some(st.builds(TrackerStatus, text, state, text, _count)),
        ways=_some(st.builds(WayStatus, text, text)),
        training=st.builds(
            TrainingStatus,
            state,
            text,
            *[_count] * 4,
            _number,
            st.none() | _number,
            st.none() | _number,
            text,
            _count,
            _count,
        ),
        history=_some(st.builds(EpochStatus, _count, _scores, _scores, _count, _number)),
        peers=_some(st.builds(PeerStatus, text, text, state, *_PEER_NUMBERS), 60),
        mailbox=st.builds(MailboxStatus, *[_count] * 4),
        transfers=_some(
            st.builds(TransferStatus, text, st.sampled_from(["in", "out"]), *[_count] * 3, _number)
        ),
        events=_some(
            st.builds(Event, _number, st.sampled_from(["info", "warning", "error"]), text), 50
        ),
        rejects=_some(st.tuples(text, _count)),
        relay_in=_count,
        relay_out=_count,
    )


_PEER_NUMBERS = [
    st.none() | _number,
    st.none() | _count,
    st.none() | _number,
    st.none() | _number,
    _count,
    _count,
    _number,
    _number,
    _number,
]
