"""What doctor may find: a public machine, one at home, one behind a symmetric NAT."""

from __future__ import annotations

from dataclasses import replace

from p2pnode.node.findings import DialledBack, Door, Findings, Knock, Mapping, Met, Wishes
from p2pnode.tracker.verdict import Outcome
from p2pnode.transport.address import Address
from p2pnode.transport.nat.behaviour import Behaviour, MappingKind

TRACKER, SECOND = Address("8.8.8.8", 5555), Address("8.8.4.4", 5555)
US, DOOR = "2.2.2.2", Address("0.0.0.0", 6000)
HOME = "192.168.1.10"
WAYS = ("direct", "mapping", "punching", "relay")
SEEN = Address(US, 50_000)
MET = Met(TRACKER, round_trip=0.012, seen=SEEN, skew=0.1)
RELAY = Knock(TRACKER, 0.02)


def out(outcome: Outcome | None, why: str = "") -> DialledBack:
    """A dial-back."""
    return DialledBack(Address(US, 6000), outcome, why or (outcome.sentence if outcome else ""))


def nat(kind: MappingKind, *, keeps: bool = True) -> Behaviour:
    """What STUN servers tell."""
    seen = None if kind is MappingKind.BLOCKED else SEEN
    return Behaviour(kind, seen, keeps if seen else None)


PUBLIC = Findings(
    wishes=Wishes(WAYS),
    key=True,
    door=Door(DOOR, "free"),
    hosts=(US,),
    trackers=(MET,),
    dialbacks=(out(Outcome.REACHABLE),),
    servers=2,
    udp=nat(MappingKind.NO_NAT),
    tcp=nat(MappingKind.NO_NAT),
    mapping=Mapping(why=f"not needed: this machine's own address is {US}", needless=True),
)
AT_HOME = replace(
    PUBLIC,
    hosts=(HOME,),
    dialbacks=(out(Outcome.TIMED_OUT),),
    relays=(RELAY,),
    udp=nat(MappingKind.INDEPENDENT),
    tcp=nat(MappingKind.INDEPENDENT),
    mapping=Mapping(why="the router answers none of PCP, NAT-PMP, UPnP"),
)
SYMMETRIC = replace(
    AT_HOME,
    udp=nat(MappingKind.ENDPOINT_DEPENDENT, keeps=False),
    tcp=nat(MappingKind.ENDPOINT_DEPENDENT, keeps=False),
)
