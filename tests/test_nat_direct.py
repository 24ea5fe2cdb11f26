"""The direct way in: what is announced, how sure, and in which order."""

from __future__ import annotations

import pytest

from p2pnode.transport.address import Address
from p2pnode.transport.nat.direct import SIGHTS_LIMIT, Direct
from p2pnode.transport.nat.reach import ADDRESSES_LIMIT, Claim, Confidence, announced, valid

EVERYWHERE, EVERYWHERE6 = Address("0.0.0.0", 6000), Address("::", 6000)


def hosts(direct: Direct) -> list[str]:
    """Where it can be reached, best first."""
    return [str(address) for address in announced(valid([direct], 0.0))]


def test_what_the_user_says_counts() -> None:
    """With --public that address is announced, and no other, whatever trackers see."""
    direct = Direct(Address("2.2.2.2", 6000))
    direct.bound(EVERYWHERE)
    direct.saw("tracker", "9.9.9.9")
    assert direct.claims(0.0) == (Claim(Address("2.2.2.2", 6000), Confidence.GIVEN),)


def test_nothing_is_claimed_before_we_listen() -> None:
    """A sight of us is of no use without our port."""
    direct = Direct(None)
    direct.saw("tracker", "9.9.9.9")
    assert direct.claims(0.0) == ()


@pytest.mark.parametrize("text", ["127.0.0.1:6001", "[2001:db8::1]:6001", "name.example:6001"])
def test_a_bound_address_is_announced(text: str) -> None:
    """Who listens on one address of the machine can be reached there."""
    direct = Direct(None)
    direct.bound(Address.parse(text))
    direct.saw("tracker", "9.9.9.9")
    assert direct.claims(0.0) == (Claim(Address.parse(text), Confidence.GIVEN),)


def test_sights_and_own_addresses_are_guesses() -> None:
    """Listening everywhere: where we were seen, the latest first, then what the machine has, each
    once and with our port."""
    direct = Direct(None)
    direct.bound(EVERYWHERE)
    direct.has(("10.0.0.5", "9.9.9.9", "192.168.7.7"))
    assert direct.saw("tracker", "8.8.8.8")
    assert direct.saw("another tracker", "9.9.9.9")
    assert not direct.saw("a third one", "9.9.9.9")
    assert hosts(direct) == [
        "9.9.9.9:6000",
        "8.8.8.8:6000",
        "10.0.0.5:6000",
        "192.168.7.7:6000",
    ]
    assert {claim.confidence for claim in direct.claims(0.0)} == {Confidence.GUESSED}


def test_the_same_word_again_changes_nothing() -> None:
    """Trackers are asked again and again; what is announced, and its order, stays."""
    direct = Direct(None)
    direct.bound(EVERYWHERE)
    direct.saw("one", "8.8.8.8")
    direct.saw("two", "9.9.9.9")
    assert not direct.saw("one", "8.8.8.8")
    assert not direct.saw("three", None)
    assert hosts(direct) == ["9.9.9.9:6000", "8.8.8.8:6000"]


def test_an_address_that_we_had_is_not_announced() -> None:
    """After a move the old address may be somebody else's, and costs who dials it seconds."""
    direct = Direct(None)
    direct.bound(EVERYWHERE)
    direct.has(("10.0.0.5",))
    direct.saw("tracker", "9.9.9.9")
    direct.has(("172.16.3.3",))
    assert direct.saw("tracker", None)
    assert direct.seen_by("tracker") is None
    assert hosts(direct) == ["172.16.3.3:6000"]
    assert direct.saw("tracker", "8.8.8.8")
    assert direct.seen_by("tracker") == "8.8.8.8"
    assert hosts(direct) == ["8.8.8.8:6000", "172.16.3.3:6000"]


def test_only_hosts_that_we_listen_on_are_guessed() -> None:
    """Who listens on 0.0.0.0 isn't reached over IPv6; on [::] by both, as IPv4 is served, too."""
    both = ["[2001:db8::7]:6000", "9.9.9.9:6000"]
    for bound, expected in ((EVERYWHERE, both[1:]), (EVERYWHERE6, both)):
        direct = Direct(None)
        direct.bound(bound)
        for host in ("9.9.9.9", "2001:db8::7", "name.example"):
            direct.saw(f"saw {host}", host)
        assert hosts(direct) == expected


def test_a_record_has_room_for_a_few() -> None:
    """Of many trackers' sights the latest are announced, beside the machine's own addresses."""
    direct = Direct(None)
    direct.bound(EVERYWHERE)
    direct.has(tuple(f"10.1.1.{number}" for number in range(20)))
    for number in range(20):
        direct.saw(f"tracker {number}", f"10.0.0.{number}")
    seen = [f"10.0.0.{number}:6000" for number in (19, 18, 17, 16)]
    own = [f"10.1.1.{number}:6000" for number in range(ADDRESSES_LIMIT - SIGHTS_LIMIT)]
    assert hosts(direct) == seen + own


@pytest.mark.parametrize(
    ("remote", "proved"),
    [
        ("8.8.8.8", ["9.9.9.9"]),
        ("10.0.0.9", ["10.0.0.5"]),
        ("100.64.0.1", ["10.0.0.5"]),
        ("2001:4860::1", ["2001:4860::7"]),
        ("fd00::9", ["fd00::7"]),
        ("name.example", []),
    ],
)
def test_who_came_in_proves_the_way_on_its_side(remote: str, proved: list[str]) -> None:
    """A peer of the same home doesn't show that others can come in, nor IPv6 that IPv4 works."""
    direct = Direct(None)
    direct.bound(EVERYWHERE6)
    direct.has(("10.0.0.5", "2001:4860::7", "fd00::7"))
    direct.saw("tracker", "9.9.9.9")
    direct.came_in(Address(remote, 40000))
    sure = [c.address.host for c in direct.claims(0.0) if c.confidence is Confidence.PROVED]
    assert sure == proved
    direct.changed()
    assert {claim.confidence for claim in direct.claims(0.0)} == {Confidence.GUESSED}


@pytest.mark.parametrize("public", ["2.2.2.2:6000", "name.example:6000"])
def test_who_came_in_proves_what_the_user_said(public: str) -> None:
    """An address from the side that it is on, a name from any."""
    direct = Direct(Address.parse(public))
    direct.bound(EVERYWHERE)
    direct.came_in(Address("8.8.8.8", 40000))
    assert [claim.confidence for claim in direct.claims(0.0)] == [Confidence.PROVED]
