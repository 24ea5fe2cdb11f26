"""What doctor makes of its findings, and how it tells them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from findings import (
    AT_HOME,
    DOOR,
    HOME,
    MET,
    PUBLIC,
    RELAY,
    SECOND,
    SEEN,
    SYMMETRIC,
    TRACKER,
    US,
    WAYS,
    nat,
    out,
)
from statuses import swarm_of

from p2pnode.cli.doctor import screen
from p2pnode.node.diagnosis import diagnose
from p2pnode.node.findings import DialledBack, Door, Findings, Knock, Mapping, Met, Wishes
from p2pnode.node.status import WayStatus
from p2pnode.node.symptoms import LOOKS, Check
from p2pnode.tracker.verdict import Outcome
from p2pnode.transport.address import Address
from p2pnode.transport.nat.behaviour import Behaviour, MappingKind


def check(found: Findings, name: str) -> Check:
    """The first line of this name."""
    return next(c for c in diagnose(found).checks if c.name == name)


# -- what is made of it ----------------------------------------------------------------------------


def seen_at(host: str) -> Findings:
    """One tracker sees us there; there is no STUN server."""
    met = replace(MET, seen=Address(host, 50_000))
    return replace(AT_HOME, trackers=(met,), servers=0, udp=None, tcp=None)


CASES: dict[str, tuple[Findings, bool, str, str]] = {
    "public": (PUBLIC, True, "Others can connect to this node directly", "Nothing needs"),
    "the router maps": (
        replace(AT_HOME, mapping=Mapping("PCP", US)),
        True,
        "The router lets others in",
        "Nothing needs",
    ),
    "mapping is switched off": (
        replace(AT_HOME, mapping=Mapping("PCP", US), wishes=Wishes(("direct", "relay"))),
        True,
        "meets the rest through a relay",
        "Nothing needs",
    ),
    "a router behind a router": (
        replace(AT_HOME, mapping=Mapping("UPnP", "192.168.0.2")),
        True,
        "punches holes to others, and meets the rest through a relay",
        f"forward TCP port 6000 of the router to {HOME} (if the router itself is {US})",
    ),
    "symmetric, with a relay": (
        SYMMETRIC,
        True,
        "can be reached and meets the rest through a relay",
        "Nothing needs to be done. For direct connections",
    ),
    "symmetric, alone": (
        replace(SYMMETRIC, relays=()),
        True,
        "It connects to those that can be reached.",
        "or use a tracker with --relay",
    ),
    "a relay that is dead": (
        replace(SYMMETRIC, relays=(Knock(TRACKER, None, "connection refused"),)),
        True,
        "It connects to those that can be reached.",
        "or use a tracker with --relay",
    ),
    "holes only": (
        replace(AT_HOME, relays=()),
        True,
        "punches holes to others, if their NATs are as good",
        "To meet all others",
    ),
    "a firewall": (
        replace(PUBLIC, dialbacks=(out(Outcome.TIMED_OUT),)),
        True,
        "Others can't connect",
        "allow TCP port 6000 in the firewall of this machine or its provider",
    ),
    "another machine's port": (
        replace(AT_HOME, dialbacks=(out(Outcome.FOREIGN),)),
        True,
        "Others can't connect",
        f"forward another TCP port of the router to {HOME}, and give it with --public",
    ),
    "a network of its own": (
        replace(seen_at(HOME), dialbacks=(DialledBack(Address(HOME, 6000), Outcome.REACHABLE),)),
        True,
        "Machines of this network can connect to this node",
        "a tracker outside",
    ),
    "nobody looked": (
        replace(AT_HOME, dialbacks=(out(None, "the tracker has no way to that address"),)),
        True,
        "isn't known",
        "would tell",
    ),
    "no network": (replace(PUBLIC, hosts=()), False, "has no network", "Connect it"),
    "no key": (replace(PUBLIC, key=False), False, "no key", "p2pnode init"),
    "a taken port": (
        replace(PUBLIC, door=Door(DOOR, "shut", f"{DOOR} is taken: choose another")),
        False,
        "0.0.0.0:6000 is taken.",
        "Choose another.",
    ),
    "nobody to ask": (replace(PUBLIC, trackers=()), False, "none is given", "--tracker HOST:PORT"),
    "a dead tracker": (
        replace(PUBLIC, trackers=(Met(TRACKER, "connection refused"),)),
        False,
        f"{TRACKER}: connection refused",
        "Is a tracker running on 8.8.8.8, and is 5555 its port?",
    ),
    "a wrong name": (
        replace(PUBLIC, trackers=(Met(TRACKER, "no such host (unknown)"),)),
        False,
        "no such host",
        "Is the name right",
    ),
    "a peer for a tracker": (
        replace(PUBLIC, trackers=(Met(TRACKER, "the other end is a peer, not a tracker"),)),
        False,
        "the other end is a peer",
        "Is a member of the swarm there? Give it with --peer 8.8.8.8:5555.",
    ),
    "something else for a tracker": (
        replace(PUBLIC, trackers=(Met(TRACKER, "the other end does not speak p2pnode/1"),)),
        False,
        "does not speak p2pnode/1",
        "Is 5555 the tracker's port, and is its p2pnode of this version?",
    ),
    "one dead tracker of two": (
        replace(PUBLIC, trackers=(MET, Met(SECOND, "no connection in 4 s"))),
        True,
        "Others can connect to this node directly",
        "Tracker: is the address right? A firewall may stop connections to port 5555",
    ),
    "a dead tracker and a member": (
        replace(PUBLIC, trackers=(Met(TRACKER, "timed out"),), peers=(RELAY,)),
        True,
        "Others can connect",
        "Tracker:",
    ),
    "a clock that is an hour late": (
        replace(PUBLIC, trackers=(replace(MET, skew=3600.0),)),
        False,
        "3,600 s behind the tracker's",
        "Set the clock",
    ),
    "a clock that is minutes early": (
        replace(PUBLIC, trackers=(replace(MET, skew=-200.0),)),
        True,
        "Others can connect",
        "Clock: set the clock",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_conclusions(case: tuple[Findings, bool, str, str]) -> None:
    """Whether the node can take part, how, and what to do next."""
    found, able, summary, advice = case
    told = diagnose(found)
    assert told.able is able
    assert summary in told.summary
    assert advice in told.next


def test_who_can_take_part_has_no_failure() -> None:
    """The exit code and the signs on the screen say the same."""
    for found, able, *_ in CASES.values():
        assert able is not any(c.verdict == "fail" for c in diagnose(found).checks)


AT_WORK = replace(
    PUBLIC,
    hosts=(HOME,),
    trackers=(replace(MET, seen=Address(HOME, 50_000)),),
    dialbacks=(DialledBack(Address(HOME, 6000), Outcome.REACHABLE),),
    servers=0,
    udp=None,
    tcp=None,
)
"""With a tracker in the same private network."""

LINES: list[tuple[Findings, str, str, str]] = [
    (PUBLIC, "interfaces", "ok", US),
    (replace(PUBLIC, hosts=tuple("abcdef")), "interfaces", "ok", "a, b, c, d and 2 more"),
    (PUBLIC, "listening", "ok", "on 0.0.0.0:6000, which is free"),
    (replace(PUBLIC, door=Door(DOOR, "ours")), "listening", "ok", "by the node that runs"),
    (
        replace(PUBLIC, door=Door(Address("127.0.0.1", 6000), "free")),
        "listening",
        "warn",
        "only programs on this machine",
    ),
    (
        replace(PUBLIC, door=Door(Address("localhost", 6000), "free")),
        "listening",
        "warn",
        "only programs on this machine",
    ),
    (
        replace(PUBLIC, door=Door(Address("name.example", 6000), "free")),
        "listening",
        "ok",
        "on name.example:6000",
    ),
    (PUBLIC, "tracker", "ok", f"{TRACKER} answers in 12 ms"),
    (
        replace(PUBLIC, trackers=(), wishes=Wishes(WAYS, lan=True)),
        "tracker",
        "info",
        "members of the swarm tell of each other",
    ),
    (replace(PUBLIC, peers=(Knock(SEEN, 1.25),)), "peer", "ok", f"{SEEN} answers in 1.2 s"),
    (replace(PUBLIC, peers=(Knock(SEEN, None, "refused"),)), "peer", "warn", "refused"),
    (PUBLIC, "seen as", "info", f"{US} (by tracker {TRACKER})"),
    (replace(PUBLIC, trackers=()), "seen as", "info", f"{US} (by a STUN server)"),
    (replace(PUBLIC, trackers=(), tcp=None), "seen as", "info", "unknown"),
    (PUBLIC, "NAT", "ok", "none: others see this machine's own address"),
    (AT_HOME, "NAT", "ok", "endpoint-independent, keeps the port: holes can be punched"),
    (SYMMETRIC, "NAT", "warn", "endpoint-dependent (symmetric): holes can seldom be punched"),
    (
        replace(AT_HOME, tcp=nat(MappingKind.UNKNOWN, keeps=False)),
        "NAT",
        "info",
        "there is one, changes the port; its kind is unknown",
    ),
    (
        replace(AT_HOME, tcp=nat(MappingKind.BLOCKED), udp=nat(MappingKind.BLOCKED)),
        "NAT",
        "info",
        "there is one, of unknown kind: no STUN server answers",
    ),
    (
        replace(PUBLIC, servers=0, tcp=None, udp=None),
        "NAT",
        "info",
        "none: no STUN server is known",
    ),
    (
        replace(PUBLIC, trackers=(), servers=0, tcp=None, udp=None),
        "NAT",
        "info",
        "unknown: no STUN server is known",
    ),
    (replace(AT_HOME, tcp=nat(MappingKind.BLOCKED)), "NAT", "ok", "endpoint-independent"),
    (seen_at(US), "NAT", "info", "there is one, of unknown kind: no STUN server is known"),
    (seen_at(HOME), "NAT", "info", "unknown: no STUN server is known"),
    (seen_at("127.0.0.1"), "NAT", "info", "unknown: no STUN server is known"),
    (seen_at("100.64.0.7"), "NAT", "info", "there is one, of unknown kind"),
    (
        replace(AT_HOME, tcp=Behaviour(MappingKind.NO_NAT, Address(HOME, 6000), True)),
        "NAT",
        "info",
        "unknown: the STUN servers are in this network",
    ),
    (AT_WORK, "dial-back", "info", f"{HOME}:6000 was reached by a tracker in this network"),
    (replace(AT_HOME, mapping=Mapping("PCP", US)), "port mapping", "ok", "offers it (PCP)"),
    (
        replace(AT_HOME, mapping=Mapping("PCP"), wishes=Wishes(("relay",))),
        "port mapping",
        "ok",
        "which reach switches off",
    ),
    (
        replace(AT_HOME, mapping=Mapping("PCP", "100.64.0.2")),
        "port mapping",
        "warn",
        "another NAT is in front of it",
    ),
    (AT_HOME, "port mapping", "warn", "answers none"),
    (PUBLIC, "port mapping", "info", "not needed"),
    (replace(PUBLIC, mapping=None), "port mapping", "info", "no answer in time"),
    (PUBLIC, "dial-back", "ok", f"{US}:6000 was reached from outside"),
    (AT_HOME, "dial-back", "warn", f"{US}:6000 could not be reached: timed out"),
    (replace(PUBLIC, dialbacks=()), "dial-back", "info", "no tracker can try it"),
    (replace(PUBLIC, dialbacks=(out(None, "too often"),)), "dial-back", "info", "too often"),
    (AT_HOME, "relay", "ok", f"{TRACKER} answers in 20 ms"),
    (PUBLIC, "relay", "info", "none is known"),
    (replace(AT_HOME, relays=()), "relay", "warn", "none is known"),
    (PUBLIC, "clock", "ok", "agrees with the tracker's"),
    (
        replace(PUBLIC, trackers=tuple(replace(MET, skew=s) for s in (5.0, 9.0, 900.0))),
        "clock",
        "info",
        "9 s behind the trackers'",
    ),
    (replace(PUBLIC, trackers=(replace(MET, skew=None),)), "clock", "info", "no tracker tells"),
    (PUBLIC, "firewall", "ok", "nothing seems to be blocked"),
    (AT_HOME, "firewall", "info", "the router drops what comes in unasked"),
    (
        replace(PUBLIC, dialbacks=(out(Outcome.REFUSED),)),
        "firewall",
        "warn",
        "a firewall, here or at the provider, refuses",
    ),
    (
        replace(AT_HOME, dialbacks=(out(Outcome.FOREIGN),)),
        "firewall",
        "info",
        "the port leads to another machine",
    ),
    (replace(AT_HOME, udp=nat(MappingKind.BLOCKED)), "firewall", "info", "UDP is blocked"),
    (
        replace(PUBLIC, trackers=(Met(TRACKER, "no connection in 4 s"),)),
        "firewall",
        "info",
        "connections to the trackers vanish",
    ),
]


@pytest.mark.parametrize(
    ("found", "name", "verdict", "text"), LINES, ids=[f"{r[1]}: {r[3]}" for r in LINES]
)
def test_lines(found: Findings, name: str, verdict: str, text: str) -> None:
    """Each finding in words."""
    line = check(found, name)
    assert line.verdict == verdict
    assert text in line.detail


def running(reachability: str, **ways: str) -> Findings:
    """The node itself tells."""
    status = replace(
        swarm_of(3),
        reachability=reachability,
        ways=tuple(WayStatus(name, detail) for name, detail in ways.items()),
    )
    return replace(AT_HOME, dialbacks=(), status=status, door=Door(DOOR, "ours"))


def test_a_running_node_tells_what_it_knows() -> None:
    """Its dial-backs, its mapping, its relay, its peers."""
    shut_out = "not reachable at 2.2.2.2:6000: timed out; others can't dial it"
    found = running(shut_out, mapping="2.2.2.2:6000 (PCP)", relay="8.8.8.8")
    assert check(found, "dial-back") == Check("dial-back", "warn", shut_out)
    assert check(found, "firewall").detail == "the router drops what comes in unasked"
    assert "(if the router itself is 2.2.2.2)" in diagnose(found).next
    assert check(found, "port mapping").detail == "2.2.2.2:6000 (PCP)"
    assert check(found, "relay").detail == "8.8.8.8"
    assert check(found, "peers").detail == "3 connected, 0 through a relay, of 3 known"
    assert "Others can't connect" in diagnose(found).summary
    assert "directly" in diagnose(running("reachable from outside")).summary
    assert "directly" in diagnose(running("reached by 2 peers")).summary
    assert check(running("nobody came in yet"), "dial-back").verdict == "info"


def test_a_node_with_peers_needs_no_tracker() -> None:
    """A tracker that is down doesn't keep out who is in."""
    found = replace(running("reached by 2 peers"), trackers=(Met(TRACKER, "timed out"),))
    assert diagnose(found).able


# -- how it is told --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 20, 40, 80, 200])
def test_it_fits_on_one_screen(width: int) -> None:
    """At 80 cells each case has 24 lines at most; no line is ever too wide."""
    for found, *_ in CASES.values():
        lines = screen(diagnose(found), width)
        assert all(line.cell_len <= width for line in lines)
        assert width < 80 or len(lines) <= 24


def test_the_screen() -> None:
    """Signs, names, words, the conclusion, and what to do next."""
    lines = [line.plain for line in screen(diagnose(SYMMETRIC), 80)]
    assert lines[0] == f"  ✓ interfaces    {HOME}"
    assert "  ! NAT           endpoint-dependent (symmetric): holes can seldom be punched" in lines
    assert lines[-5:-2] == [
        "",
        "  Others can't connect to this node. It connects to those that can be reached",
        "  and meets the rest through a relay.",
    ]


def test_hostile_words_are_harmless() -> None:
    """What a tracker makes us say can't steer a terminal, nor break the JSON."""
    found = diagnose(replace(PUBLIC, dialbacks=(out(None, "\x1b[2J\nno\ud800"),)))
    assert all(line.plain.isprintable() for line in screen(found, 80))
    json.dumps(found.to_json()).encode()


def test_json() -> None:
    """Names and verdicts are for programs."""
    told = diagnose(SYMMETRIC).to_json()
    assert set(told) == {"able", "summary", "next", "checks"}
    assert told["able"] is True
    assert [c["name"] for c in told["checks"]] == [
        *("interfaces", "listening", "tracker", "seen as", "NAT", "port mapping"),
        *("dial-back", "relay", "clock", "firewall"),
    ]
    assert told["checks"][0] == {
        "name": "interfaces",
        "verdict": "ok",
        "detail": HOME,
        "advice": "",
    }


def test_every_look_is_shown() -> None:
    """No finding is left out of the screen."""
    names = {c.name for found, *_ in CASES.values() for c in diagnose(found).checks}
    assert len(names) == len(LOOKS)
