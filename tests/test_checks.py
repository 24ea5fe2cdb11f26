"""What may be dialled back: nothing that helps a stranger against others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.tracker.checks import ALL, HOST, PEER, STRANGER, Budget, check_price, price
from p2pnode.tracker.errors import Reason, Refused
from p2pnode.tracker.limits import Limit
from p2pnode.tracker.verdict import PAYMENT
from p2pnode.transport.address import Address

HOME, OTHER = "2.2.2.2", "9.9.9.9"
INSIDE = """
    10.0.0.2 192.168.0.1 172.16.0.1 100.64.0.1 127.0.0.2 169.254.169.254 224.0.0.1 0.0.0.0
    255.255.255.255 192.0.2.1 198.51.100.1 203.0.113.1 ::1 :: fe80::1 fc00::1 ff02::1 2001:db8::1
    ::ffff:10.0.0.2 64:ff9b::a00:2 2002:a00:2::1 2001::a00:2 fec0::1
"""


def refused(budget: Budget, peer: str = "alice", seen: str = HOME, now: float = 0.0) -> bool:
    """Whether a peer that asks is refused."""
    try:
        budget.ask(peer, seen, now)
    except Refused as error:
        assert error.reason == Reason.TOO_OFTEN
        return True
    return False


def test_the_own_host_is_free_and_another_costs() -> None:
    """Bytes first, where the dial goes to somebody else; a name may be anybody's."""
    assert price(HOME, HOME) == 0
    assert price("2001:4860::1", "2001:4860::1") == 0
    for target in (OTHER, "2001:4860::1", "name.example"):
        assert price(target, HOME) == PAYMENT
    check_price(OTHER, HOME, PAYMENT)
    with pytest.raises(Refused, match="payment") as caught:
        check_price(OTHER, HOME, PAYMENT - 1)
    assert caught.value.reason == Reason.UNPAID


def test_the_price_is_more_than_the_dial_costs_the_other() -> None:
    """AutoNAT v2's 30 to 100 kB."""
    assert 30_000 <= PAYMENT <= 100_000


@pytest.mark.parametrize("seen", [HOME, "192.168.0.9", "127.0.0.1", "fe80::9", "10.0.0.1"])
@pytest.mark.parametrize("target", INSIDE.split())
def test_what_lies_inside_some_network_is_never_dialled(target: str, seen: str) -> None:
    """Not for money either, and not from inside: another host of the LAN is somebody else's."""
    host = Address(target, 1).host
    assert price(host, seen) is None
    with pytest.raises(Refused) as caught:
        check_price(host, seen, 10 * PAYMENT)
    assert caught.value.reason == Reason.PRIVATE_ADDRESS
    assert price(host, host) == 0  # who is seen at that very host is inside already


def test_a_peer_s_budget() -> None:
    """A few at once, then one in so many seconds; a refusal takes nothing."""
    budget, (rate, burst) = Budget(), PEER
    assert [refused(budget) for _ in range(burst + 3)] == [False] * burst + [True] * 3
    assert not refused(budget, "bob")
    assert refused(budget, now=0.9 / rate)
    assert not refused(budget, now=1.1 / rate)
    assert refused(budget, now=1.2 / rate)


def test_new_peer_ids_buy_a_host_nothing() -> None:
    """The limit of a host holds for all peers there; an IPv6 host is its /64."""
    for hosts in ([HOME], [f"2001:4860::{n:x}" for n in range(1, 9)]):
        budget = Budget()
        answers = [refused(budget, f"peer {n}", hosts[n % len(hosts)]) for n in range(HOST[1] + 5)]
        assert answers.count(False) == HOST[1]
        assert not refused(budget, "another", OTHER)


def test_many_hosts_are_bounded_in_all() -> None:
    """Whoever asks from wherever; and what is remembered stays small."""
    budget, (rate, burst) = Budget(), ALL
    served = sum(
        not refused(budget, f"peer {n}", f"9.9.{n // 250}.{n % 250}", now=n / 100)
        for n in range(6000)
    )
    assert burst + 58 * rate <= served <= burst + 61 * rate
    assert len(budget._peer._buckets) <= burst + rate * PEER[1] / PEER[0]


def test_a_victim_is_dialled_seldom_whoever_asks() -> None:
    """Peers from anywhere share the limit of the one host that they name; one's own isn't meant."""
    budget, (rate, burst) = Budget(), STRANGER
    answers = []
    for number in range(100):
        try:
            budget.dial(OTHER, f"9.9.8.{number}", now=number / 10)
            answers.append(True)
        except Refused:
            answers.append(False)
    assert answers.count(True) == burst + int(9.9 * rate)
    for _ in range(100):
        budget.dial(HOME, HOME, now=0.0)


@given(st.lists(st.floats(0, 5), max_size=200))
def test_a_limit_never_gives_more_than_it_says(pauses: list[float]) -> None:
    """However the requests come: at most the burst and the rate over the time."""
    limit, now, taken = Limit(0.5, 3), 0.0, 0
    for pause in pauses:
        now += pause
        if limit.free("a", now):
            limit.take("a", now)
            taken += 1
    assert taken <= 3 + 0.5 * now + 1e-6
