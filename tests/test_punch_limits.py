"""What others can make this node do by calling it, and how long it leaves a peer alone."""

from __future__ import annotations

from p2pnode.node.punch_limits import (
    ALL,
    CALLER,
    HOST,
    PEERS,
    REST_FIRST,
    REST_MOST,
    PunchLimits,
    Rests,
)
from p2pnode.transport.address import Address
from p2pnode.transport.nat.calls import A_HOST, ADDRESSES, targets
from p2pnode.transport.nat.holes import CONNECTS

VICTIM = "8.8.8.8"


def test_one_peer_calls_a_few_times_and_then_seldom() -> None:
    """Three tries and one more at once, then one in half a minute."""
    limits = PunchLimits()
    assert [limits.call("eve", 0.0) for _ in range(6)] == [True] * CALLER[1] + [False] * 2
    assert limits.call("bob", 0.0)
    assert not limits.call("eve", 29.0)
    assert limits.call("eve", 30.0)


def test_peer_ids_cost_nothing_so_all_together_are_bounded() -> None:
    """A thousand made-up peers that call at once."""
    limits = PunchLimits()
    assert sum(limits.call(f"eve {n}", 0.0) for n in range(1000)) == ALL[1]
    assert sum(limits.call(f"eve {n}", 10.0) for n in range(1000, 2000)) == 10 * ALL[0]


def test_a_victim_gets_few_packets_whoever_calls() -> None:
    """However many peers name it, at whatever ports: 16 holes at once, one in ten seconds then."""
    limits, packets = PunchLimits(), 0
    for number in range(1000):
        named = tuple(Address(VICTIM, 1 + number * ADDRESSES + n) for n in range(ADDRESSES))
        packets += CONNECTS * len(limits.punch(targets(named, ()), now=number / 1000))
    assert packets <= HOST[1] * A_HOST * CONNECTS == 256
    many = [limits.punch([Address(VICTIM, 80)], 1 + second) for second in range(100)]
    assert sum(map(bool, many)) == 100 * HOST[0]


def test_of_ipv6_a_whole_network_is_one_host() -> None:
    """One owner has 2**64 addresses."""
    limits = PunchLimits()
    allowed = [limits.punch([Address(f"2001:4860::{n:x}", 80)], 0.0) for n in range(1, 100)]
    assert sum(map(bool, allowed)) == HOST[1]


def test_other_hosts_are_not_affected() -> None:
    """Of several targets those that are free are connected to."""
    limits = PunchLimits()
    for _ in range(HOST[1]):
        assert limits.punch([Address(VICTIM, 80)], 0.0)
    other = Address("9.9.9.9", 6000)
    assert limits.punch([Address(VICTIM, 80), other], 0.0) == (other,)


def test_rests_grow() -> None:
    """2, 4, 8, 16, 30, 30 minutes; what fails within a rest is no news."""
    rests, now, seen = Rests(), 0.0, []
    for _ in range(6):
        assert rests.failed("bob", now)
        assert not rests.failed("bob", now + 1)
        until = now
        while not rests.over("bob", until):
            until += 60.0
        seen.append((until - now) / 60)
        now = until
    assert seen == [2, 4, 8, 16, 30, 30]
    assert (REST_FIRST, REST_MOST) == (120, 1800)


def test_success_and_a_new_address_end_a_rest() -> None:
    """And the next one is short again."""
    rests = Rests()
    rests.failed("bob", 0.0)
    rests.failed("bob", 120.0)
    rests.end("bob")
    assert rests.over("bob", 121.0)
    rests.failed("bob", 121.0)
    assert rests.over("bob", 121.0 + REST_FIRST)
    assert rests.over("carol", 0.0)


def test_what_is_remembered_is_bounded() -> None:
    """Peers in any number."""
    rests = Rests()
    for number in range(PEERS + 10):
        rests.failed(f"peer {number}", 0.0)
    assert len(rests._rests) == PEERS
