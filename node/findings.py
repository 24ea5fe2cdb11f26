"""CORE: what `p2pnode doctor` finds out, before anybody judges it (diagnosis.py does).

A part that wasn't looked at, or gave nothing in time, is None or empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from ..tracker.verdict import Outcome
from ..transport.address import Address, is_name
from ..transport.nat.behaviour import Behaviour, MappingKind
from ..transport.nat.gateway import is_inner
from ..transport.peer_address import PeerAddress
from .status import NodeStatus

SHUT_OUT: Final = re.compile(r"not reachable at (\S+): ([^;]+)")
"""How reachability.py says it."""

LOOPBACK: Final = {"127.0.0.1", "::1"}
"""Where a tracker on the same machine sees us."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where peers come in: `ours` where a node listens, `shut` where none could, and why not."""

    address: Address
    state: Literal["free", "ours", "shut"]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Knock:
    """Whether a peer or relay answers at an address: the seconds that took, or None and why not."""

    address: Address
    seconds: float | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class DialledBack:
    """What a tracker found at an address of ours; None where it was not checked, and why."""

    address: Address
    outcome: Outcome | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Met:
    """A tracker: what it says, or (`why`) that there was no contact.

    `round_trip` in seconds; `seen` is where it sees us, `skew` how many seconds its clock is ahead.
    """

    address: Address
    why: str = ""
    round_trip: float | None = None
    seen: Address | None = None
    relay: PeerAddress | None = None
    stun: Address | None = None
    skew: float | None = None


@dataclass(frozen=True, slots=True)
class Mapping:
    """Whether the router maps ports: the protocol it speaks, or (`why`) why there is none.

    `needless`: there is no router that could.
    """

    protocol: str = ""
    host: str | None = None
    why: str = ""
    needless: bool = False


@dataclass(frozen=True, slots=True)
class Wishes:
    """The settings that matter here: the ways in that may be used, and how peers are found."""

    reach: tuple[str, ...]
    lan: bool = False
    peers: int = 0


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything."""

    wishes: Wishes
    key: bool
    """Whether there is a key, which a node needs to start."""
    door: Door
    hosts: tuple[str, ...] = ()
    """The addresses of this machine, the most useful first."""
    trackers: tuple[Met, ...] = ()
    dialbacks: tuple[DialledBack, ...] = ()
    peers: tuple[Knock, ...] = ()
    relays: tuple[Knock, ...] = ()
    servers: int = 0
    """STUN servers that were asked."""
    udp: Behaviour | None = None
    tcp: Behaviour | None = None
    mapping: Mapping | None = None
    status: NodeStatus | None = None
    """Of the node that runs with this home."""

    @property
    def met(self) -> tuple[Met, ...]:
        """The trackers that answered."""
        return tuple(tracker for tracker in self.trackers if not tracker.why)

    @property
    def reached(self) -> DialledBack | None:
        """A dial-back that came through."""
        return next((d for d in self.dialbacks if d.outcome is Outcome.REACHABLE), None)

    @property
    def unreached(self) -> DialledBack | None:
        """A dial-back that did not."""
        tried = (*self.dialbacks, *_told(self.status.reachability if self.status else ""))
        failed = (d for d in tried if d.outcome not in (None, Outcome.REACHABLE))
        return next(failed, None)

    @property
    def reachable(self) -> bool:
        """Whether others have come in, as far as is known."""
        if self.status is not None:
            return self.status.reachability.startswith(("reachable", "reached"))
        return self.reached is not None

    @property
    def inside(self) -> bool:
        """Whether all that is known is that machines of this network come in."""
        if self.status is not None or self.reached is None or is_name(self.reached.address.host):
            return False
        return is_inner(self.reached.address.host)

    @property
    def behind_nat(self) -> bool | None:
        """Whether there is a NAT; None where nobody could say."""
        nat = self.tcp if self.tcp is not None and self.tcp.mapped else self.udp
        if nat is not None and nat.mapped is not None and not is_inner(nat.mapped.host):
            return nat.kind is not MappingKind.NO_NAT
        seen = {tracker.seen.host for tracker in self.met if tracker.seen} - LOOPBACK
        ours = seen & set(self.hosts)
        if not seen or (ours and all(map(is_inner, ours))):
            return None  # who is in the same network can't tell
        return not ours


def _told(reachability: str) -> tuple[DialledBack, ...]:
    """The failed dial-back of which a node's status tells."""
    match = SHUT_OUT.match(reachability)
    outcome = next((o for o in Outcome if match and o.sentence == match[2]), None)
    return (DialledBack(Address.parse(match[1]), outcome, match[2]),) if match and outcome else ()
