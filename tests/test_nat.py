"""The ways in: what is announced, how sure, and in which order."""

from __future__ import annotations

import socket

import pytest

from p2pnode.transport.address import Address
from p2pnode.transport.nat.direct import FINDINGS_LIMIT, Direct, outgoing_host
from p2pnode.transport.nat.reach import ADDRESSES_LIMIT, Claim, Confidence, announced

EVERYWHERE, EVERYWHERE6 = Address("0.0.0.0", 6000), Address("::", 6000)


class Way:
    """A way in that claims what it is told."""

    name = "way"

    def __init__(self, *claims: Claim) -> None:
        self._claims = claims

    def claims(self, now: float) -> tuple[Claim, ...]:
        return self._claims


def hosts(direct: Direct) -> list[str]:
    """Where it can be reached, best first."""
    return [str(address) for address in announced([direct], 0.0)]


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


def test_sights_are_guesses() -> None:
    """Listening everywhere: where we were seen, with our port, the latest news first, each once."""
    direct = Direct(None)
    direct.bound(EVERYWHERE)
    assert direct.saw("ourselves", "10.0.0.5")
    assert direct.saw("tracker", "9.9.9.9")
    assert not direct.saw("another tracker", "9.9.9.9")
    assert hosts(direct) == ["9.9.9.9:6000", "10.0.0.5:6000"]
    assert {claim.confidence for claim in direct.claims(0.0)} == {Confidence.GUESSED}


def test_the_same_word_again_changes_nothing() -> None:
    """Sources are asked again and again; what is announced, and its order, stays."""
    direct = Direct(None)
    direct.bound(EVERYWHERE)
    direct.saw("ourselves", "10.0.0.5")
    direct.saw("tracker", "9.9.9.9")
    assert not direct.saw("ourselves", "10.0.0.5")
    assert hosts(direct) == ["9.9.9.9:6000", "10.0.0.5:6000"]


def test_an_address_that_we_had_is_not_announced() -> None:
    """After a move the old address may be somebody else's, and costs who dials it seconds."""
    direct = Direct(None)
    direct.bound(EVERYWHERE)
    direct.saw("ourselves", "10.0.0.5")
    direct.saw("tracker", "9.9.9.9")
    assert direct.saw("ourselves", "172.16.3.3")
    assert hosts(direct) == ["172.16.3.3:6000", "9.9.9.9:6000"]
    assert direct.saw("tracker", "8.8.8.8")
    assert hosts(direct) == ["8.8.8.8:6000", "172.16.3.3:6000"]


def test_only_hosts_that_we_listen_on_are_guessed() -> None:
    """Who listens on IPv4 alone isn't reached over IPv6, nor the other way; nor by a name."""
    for bound, expected in ((EVERYWHERE, "9.9.9.9:6000"), (EVERYWHERE6, "[2001:db8::7]:6000")):
        direct = Direct(None)
        direct.bound(bound)
        for host in ("9.9.9.9", "2001:db8::7", "name.example"):
            direct.saw(f"saw {host}", host)
        assert hosts(direct) == [expected]


def test_a_record_has_room_for_a_few() -> None:
    """Of many trackers' sights the latest are announced."""
    direct = Direct(None)
    direct.bound(EVERYWHERE)
    for number in range(20):
        direct.saw(f"tracker {number}", f"10.0.0.{number}")
    assert hosts(direct) == [f"10.0.0.{n}:6000" for n in range(19, 19 - ADDRESSES_LIMIT, -1)]


def test_who_came_in_proves_the_way() -> None:
    """Once a peer has dialled us, our claims are no guesses any more."""
    for direct in (Direct(Address("2.2.2.2", 6000)), Direct(None)):
        direct.bound(EVERYWHERE)
        direct.saw("tracker", "9.9.9.9")
        direct.came_in()
        assert [claim.confidence for claim in direct.claims(0.0)] == [Confidence.PROVED]


def test_looks_from_outside() -> None:
    """A success proves an address for its time, failures make it a guess, one success outweighs."""
    public, other = Address("2.2.2.2", 6000), Address("3.3.3.3", 6000)
    direct = Direct(public)
    direct.found(public, "one", False, 10.0)
    assert direct.claims(9.0) == (Claim(public, Confidence.GUESSED),)
    assert direct.claims(10.0) == (Claim(public, Confidence.GIVEN),)
    direct.found(public, "two", True, 20.0)
    direct.found(other, "two", True, 30.0)  # announced no more
    assert direct.claims(9.0) == (Claim(public, Confidence.PROVED, 20.0),)
    assert direct.claims(20.0) == (Claim(public, Confidence.GIVEN),)
    direct.found(public, "two", False, 40.0)
    assert direct.claims(19.0) == (Claim(public, Confidence.GUESSED),)


def test_a_failed_look_outweighs_who_came_in() -> None:
    """Peers of the LAN come in while those outside can't: that address is announced last."""
    direct = Direct(None)
    direct.bound(EVERYWHERE)
    direct.saw("ourselves", "10.0.0.5")
    direct.saw("tracker", "9.9.9.9")
    direct.came_in()
    direct.found(Address("9.9.9.9", 6000), "tracker", False, 10.0)
    assert hosts(direct) == ["10.0.0.5:6000", "9.9.9.9:6000"]


def test_looks_fill_no_memory() -> None:
    """Of any number of addresses the latest looks are kept."""
    direct = Direct(None)
    for number in range(1, 1000):
        direct.found(Address("9.9.9.9", number), "tracker", True, 1.0)
    assert len(direct._findings) == FINDINGS_LIMIT


def test_the_surest_way_comes_first() -> None:
    """Claims of all ways, the surest first, none twice, none that has run out, at most eight."""
    one, two, three = (Address(f"1.1.1.{n}", 1) for n in (1, 2, 3))
    ways = [
        Way(Claim(one, Confidence.GUESSED), Claim(two, Confidence.GUESSED)),
        Way(Claim(three, Confidence.PROVED, until=10.0), Claim(two, Confidence.GIVEN)),
    ]
    assert announced(ways, 9.0) == (three, two, one)
    assert announced(ways, 10.0) == (two, one)
    many = Way(*(Claim(Address("1.1.1.1", port), Confidence.GUESSED) for port in range(1, 20)))
    assert len(announced([many], 0.0)) == ADDRESSES_LIMIT


def test_the_outgoing_host_towards_this_machine() -> None:
    """Towards an address of this machine it is that address; no packet is sent."""
    assert outgoing_host(Address("127.0.0.1", 9)) == "127.0.0.1"


def test_no_way_out_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name gives no address, and no error."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert outgoing_host(Address("nobody.invalid", 9)) is None
