"""CORE: what doctor concludes: whether this node can take part, how, and what to do next.

Strategy: what fails comes first, as it keeps the node out. Otherwise the best way in counts, in the
order in which a node tries them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..tracker.verdict import Outcome
from ..transport.nat.behaviour import MappingKind
from ..transport.nat.gateway import is_inner
from .findings import Findings
from .status import printable
from .symptoms import Check, checks

FINE = "Nothing needs to be done."


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All of it: `able` says whether the node can take part, `next` what to do, in a sentence."""

    able: bool
    summary: str
    next: str
    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        """Maps and lists with plain JSON values."""
        told = asdict(self)
        for check in told["checks"]:
            check.update({key: printable(text) for key, text in check.items()})
        return told | {"summary": printable(self.summary), "next": printable(self.next)}


def diagnose(f: Findings) -> Diagnosis:
    """The conclusion."""
    found = checks(f)
    failed = next((check for check in found if check.verdict == "fail"), None)
    if failed is not None:
        summary = f"This node can't take part: {failed.detail}."
        return Diagnosis(False, summary, _sentence(failed.advice), found)
    summary, advice = _ways_in(f)
    late = next((c for c in found if c.verdict == "warn" and c.name in ("clock", "tracker")), None)
    if late is not None:
        first = _sentence(f"{late.name}: {late.advice}")
        advice = first if advice == FINE else f"{first} {advice}"
    return Diagnosis(True, summary, advice, found)


def _ways_in(f: Findings) -> tuple[str, str]:
    """How others come to this node, and what would make it better."""
    if f.inside:
        text = "Machines of this network can connect to this node. Nobody could look from outside."
        return text, "That is enough for a swarm at home; for more, use a tracker outside."
    if f.reachable:
        return "Others can connect to this node directly.", FINE
    if _maps(f):
        return "The router lets others in: a running node asks it to forward its port.", FINE
    if f.status is None and f.unreached is None:
        text = "This node can take part; whether others can connect to it isn't known."
        return text, "A tracker that sees this machine from outside would tell."
    others, all_of_them = _other_ways(f)
    text = f"Others can't connect to this node. It connects to those that can be reached{others}."
    if all_of_them:
        return text, f"Nothing needs to be done. For direct connections, {_open_up(f)}."
    return text, f"To meet all others, {_open_up(f)}, or use a tracker with --relay."


def _maps(f: Findings) -> bool:
    found = f.mapping
    inner = found is not None and found.host is not None and is_inner(found.host)
    return bool(found and found.protocol) and not inner and "mapping" in f.wishes.reach


def _other_ways(f: Findings) -> tuple[str, bool]:
    """The ways that need nobody's settings, and whether they lead to everybody."""
    kind = f.tcp.kind if f.tcp is not None else MappingKind.UNKNOWN
    punches = "punching" in f.wishes.reach and kind in (MappingKind.INDEPENDENT, MappingKind.NO_NAT)
    relayed = any(relay.seconds is not None for relay in f.relays)
    if relayed and "relay" in f.wishes.reach:
        holes = ", punches holes to others," if punches else ""
        return f"{holes} and meets the rest through a relay", True
    return (" and punches holes to others, if their NATs are as good" if punches else ""), False


def _open_up(f: Findings) -> str:
    """What the user can do to be reachable."""
    port = f.door.address.port
    here = f.hosts[0] if f.hosts else "this machine"
    if f.behind_nat is False:
        return f"allow TCP port {port} in the firewall of this machine or its provider"
    if f.unreached is not None and f.unreached.outcome is Outcome.FOREIGN:
        return f"forward another TCP port of the router to {here}, and give it with --public"
    outside = f.unreached.address.host if f.unreached else "public"
    return f"forward TCP port {port} of the router to {here} (if the router itself is {outside})"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('?') else '.'}"
