"""CORE: each of doctor's findings, judged: one `Check` a line, with what to do about it.

"fail" is kept for what keeps a node from taking part at all; "warn" for what costs it peers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from statistics import median
from typing import Final, Literal

from ..tracker.verdict import Outcome
from ..transport.address import is_name
from ..transport.admission import CLOCK_SKEW
from ..transport.nat.behaviour import Behaviour, MappingKind
from ..transport.nat.gateway import is_inner
from .findings import Findings, Knock, Met

Verdict = Literal["ok", "info", "warn", "fail"]

SKEW_SHOWN, SKEW_ODD = 2.0, 60.0
"""Seconds: a clock that is set over the network is right by less than the first; one that is wrong
by more than the second may soon be wrong by CLOCK_SKEW, where others refuse what we sign."""

HOSTS_SHOWN: Final = 4
"""Addresses of this machine in one line; those that lead to the internet come first."""

DEPENDENT: Final = (MappingKind.ADDRESS_DEPENDENT, MappingKind.ENDPOINT_DEPENDENT)

GIVE_STUN: Final = "give two STUN servers with --stun HOST:PORT; any two will do"
SET_CLOCK: Final = "set the clock of this machine, best by itself: timedatectl set-ntp true"


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, how it is, and what to do (empty: nothing)."""

    name: str
    verdict: Verdict
    detail: str
    advice: str = ""


def checks(f: Findings) -> tuple[Check, ...]:
    """All lines, as they stand on the screen."""
    return tuple(check for look in LOOKS for check in look(f))


def interfaces(f: Findings) -> Iterator[Check]:
    """Whether this machine has an address at all."""
    more = len(f.hosts) - HOSTS_SHOWN
    text = ", ".join(f.hosts[:HOSTS_SHOWN]) + (f" and {more} more" if more > 0 else "")
    if f.hosts:
        yield Check("interfaces", "ok", text)
    else:
        yield Check("interfaces", "fail", "this machine has no network", "connect it to one")


def key(f: Findings) -> Iterator[Check]:
    """Whether a node could start; said only where it couldn't."""
    if not f.key:
        yield Check("key", "fail", "this home has no key yet", "make one: p2pnode init")


def listening(f: Findings) -> Iterator[Check]:
    """Whether others find a node behind the door."""
    at, (what, _, advice) = f.door.address, f.door.why.partition(": ")
    if f.door.state == "shut":
        yield Check("listening", "fail", what, advice)
    elif at.host == "localhost" or (not is_name(at.host) and ip_address(at.host).is_loopback):
        text = f"on {at}, where only programs on this machine can connect"
        yield Check("listening", "warn", text, f"--listen 0.0.0.0:{at.port} is for everybody")
    else:
        by = "by the node that runs" if f.door.state == "ours" else "which is free"
        yield Check("listening", "ok", f"on {at}, {by}")


def trackers(f: Findings) -> Iterator[Check]:
    """Who tells us of the others."""
    for tracker in f.trackers:
        if tracker.why:
            yield _no_tracker(f, tracker)
        else:
            text = f"{tracker.address} answers in {_time(tracker.round_trip)}"
            yield Check("tracker", "ok", text)
    if not f.trackers and (f.wishes.peers or f.wishes.lan):
        yield Check("tracker", "info", "none is given; members of the swarm tell of each other")
    elif not f.trackers:
        advice = "give your swarm's: --tracker HOST:PORT, or a member of it: --peer HOST:PORT"
        yield Check("tracker", "fail", "none is given: nobody would find this node", advice)


def _no_tracker(f: Findings, tracker: Met) -> Check:
    host, port = tracker.address.host, tracker.address.port
    if "refused" in tracker.why:
        advice = f"is a tracker running on {host}, and is {port} its port?"
    elif "no such host" in tracker.why:
        advice = "is the name right, and does this machine have internet access?"
    elif "is a peer" in tracker.why:
        advice = f"is a member of the swarm there? Give it with --peer {tracker.address}"
    elif "the other end" in tracker.why:
        advice = f"is {port} the tracker's port, and is its p2pnode of this version?"
    else:
        advice = f"is the address right? A firewall may stop connections to port {port}"
    others = bool(f.met) or any(peer.seconds is not None for peer in f.peers) or _connected(f)
    verdict: Verdict = "warn" if others else "fail"
    return Check("tracker", verdict, f"{tracker.address}: {tracker.why}", advice)


def _connected(f: Findings) -> bool:
    """Whether the node that runs has peers."""
    peers = f.status.peers if f.status else ()
    return any(peer.state in ("connected", "relayed") for peer in peers)


def peers(f: Findings) -> Iterator[Check]:
    """The members that are given by address, and those that the running node has."""
    for peer in f.peers:
        yield _knocked("peer", peer, "is a node running there, and can it be reached?")
    if f.status is not None:
        states = [peer.state for peer in f.status.peers]
        direct, relayed = states.count("connected"), states.count("relayed")
        text = f"{direct} connected, {relayed} through a relay, of {len(states)} known"
        yield Check("peers", "ok" if direct + relayed else "info", text)


def _knocked(name: str, knock: Knock, advice: str) -> Check:
    if knock.seconds is None:
        return Check(name, "warn", f"{knock.address}: {knock.why}", advice)
    return Check(name, "ok", f"{knock.address} answers in {_time(knock.seconds)}")


def seen_as(f: Findings) -> Iterator[Check]:
    """Where the connections of this machine come from, in the eyes of others."""
    places = {tracker.seen.host: tracker.address for tracker in f.met if tracker.seen}
    if places:
        text = ", ".join(f"{host} (by tracker {by})" for host, by in places.items())
        yield Check("seen as", "info", text)
    elif f.tcp is not None and f.tcp.mapped is not None:
        yield Check("seen as", "info", f"{f.tcp.mapped.host} (by a STUN server)")
    else:
        yield Check("seen as", "info", "unknown: no tracker answers")


def nat(f: Findings) -> Iterator[Check]:
    """What is between this machine and the others."""
    found = f.tcp if f.tcp is not None and f.tcp.mapped else f.udp
    if found is None or found.mapped is None:
        yield _unknown_nat(f)
    elif found.kind is MappingKind.NO_NAT and is_inner(found.mapped.host):
        yield Check("NAT", "info", "unknown: the STUN servers are in this network", GIVE_STUN)
    elif found.kind is MappingKind.NO_NAT:
        yield Check("NAT", "ok", "none: others see this machine's own address")
    elif found.kind is MappingKind.UNKNOWN:
        yield Check("NAT", "info", f"there is one, {_port(found)}; its kind is unknown", GIVE_STUN)
    elif found.kind in DEPENDENT:
        text = f"{found.kind}: holes can seldom be punched"
        yield Check("NAT", "warn", text)
    else:
        yield Check("NAT", "ok", f"{found.kind}, {_port(found)}: holes can be punched")


def _unknown_nat(f: Findings) -> Check:
    there = {True: "there is one, of unknown kind", False: "none", None: "unknown"}[f.behind_nat]
    if not f.servers:
        return Check("NAT", "info", f"{there}: no STUN server is known", GIVE_STUN)
    return Check("NAT", "info", f"{there}: no STUN server answers", GIVE_STUN)


def _port(found: Behaviour) -> str:
    return "keeps the port" if found.port_preserving else "changes the port"


def mapping(f: Findings) -> Iterator[Check]:
    """Whether the router would forward a port."""
    found, name = f.mapping, "port mapping"
    running = _way(f, "mapping")
    if running:
        yield Check(name, "info", running)
    elif found is None:
        yield Check(name, "info", "the router gave no answer in time")
    elif found.protocol and found.host and is_inner(found.host):
        text = f"the router's own address is {found.host}: another NAT is in front of it"
        yield Check(name, "warn", text)
    elif found.protocol:
        off = "" if "mapping" in f.wishes.reach else ", which reach switches off"
        yield Check(name, "ok", f"the router offers it ({found.protocol}){off}")
    else:
        verdict: Verdict = "info" if found.needless else "warn"
        yield Check(name, verdict, found.why)


def _way(f: Findings, name: str) -> str:
    """What the running node says of one way in."""
    ways = f.status.ways if f.status else ()
    return next((way.detail for way in ways if way.name == name), "")


def dial_back(f: Findings) -> Iterator[Check]:
    """Whether a stranger gets in."""
    verdict: Verdict
    if f.status is not None:
        verdict = "warn" if f.unreached else "ok" if f.reachable else "info"
        yield Check("dial-back", verdict, f.status.reachability)
    elif f.reached is not None:
        whence = "by a tracker in this network" if f.inside else "from outside"
        verdict = "info" if f.inside else "ok"
        yield Check("dial-back", verdict, f"{f.reached.address} was reached {whence}")
    elif f.unreached is not None:
        text = f"{f.unreached.address} could not be reached: {f.unreached.why}"
        yield Check("dial-back", "warn", text)
    else:
        whys = [each.why for each in f.dialbacks if each.why]
        yield Check("dial-back", "info", f"not checked: {(whys or ['no tracker can try it'])[0]}")


def relays(f: Findings) -> Iterator[Check]:
    """Whether those who can't come in can leave their models somewhere."""
    running = _way(f, "relay")
    if running:
        yield Check("relay", "info", running)
    for relay in f.relays:
        yield _knocked("relay", relay, "is it overloaded, or has it stopped?")
    if not f.relays and not running:
        text = "none is known: no tracker offers one"
        advice = "ask for a tracker that is started with --relay"
        yield Check("relay", "info" if f.reachable else "warn", text, advice)


def clock(f: Findings) -> Iterator[Check]:
    """Whether our signatures are from the time that others think it is."""
    skews = [tracker.skew for tracker in f.met if tracker.skew is not None]
    if not skews:
        yield Check("clock", "info", "no tracker tells the time")
        return
    skew = median(skews)
    side = "behind" if skew > 0 else "ahead of"
    plural = "s'" if len(skews) > 1 else "'s"
    if abs(skew) < SKEW_SHOWN:
        yield Check("clock", "ok", f"agrees with the tracker{plural}")
    elif abs(skew) < CLOCK_SKEW:
        text = f"{abs(skew):,.0f} s {side} the tracker{plural}"
        odd = abs(skew) >= SKEW_ODD
        yield Check("clock", "warn" if odd else "info", text, SET_CLOCK if odd else "")
    else:
        text = f"{abs(skew):,.0f} s {side} the tracker{plural}: others refuse models from this node"
        yield Check("clock", "fail", text, SET_CLOCK)


def firewall(f: Findings) -> Iterator[Check]:
    """What seems to be blocked: a guess from all the rest."""
    guesses = [*_outward(f), *_inward(f)]
    if guesses:
        bad = f.unreached is not None and f.behind_nat is False
        yield Check("firewall", "warn" if bad else "info", "; ".join(guesses))
    elif f.met:
        yield Check("firewall", "ok", "nothing seems to be blocked")
    else:
        yield Check("firewall", "info", "unknown: no tracker answers")


def _outward(f: Findings) -> Iterator[str]:
    timeouts = [tracker for tracker in f.trackers if "no connection" in tracker.why]
    if timeouts and not f.met:
        yield "connections to the trackers vanish"
    if f.udp is not None and f.udp.mapped is None and f.tcp is not None and f.tcp.mapped:
        yield "UDP is blocked (only STUN and port mapping use it)"


def _inward(f: Findings) -> Iterator[str]:
    who = "the router" if f.behind_nat else "a firewall, here or at the provider,"
    match f.unreached.outcome if f.unreached else None:
        case Outcome.TIMED_OUT | Outcome.UNREACHABLE:
            yield f"{who} drops what comes in unasked"
        case Outcome.REFUSED:
            yield f"{who} refuses what comes in unasked"
        case Outcome.FOREIGN:
            yield "the port leads to another machine"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "no time"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


LOOKS: Final = (
    interfaces,
    key,
    listening,
    trackers,
    peers,
    seen_as,
    nat,
    mapping,
    dial_back,
    relays,
    clock,
    firewall,
)
