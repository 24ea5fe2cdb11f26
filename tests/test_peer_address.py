"""PEERID@HOST:PORT as text."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import identity
from p2pnode.transport.address import Address
from p2pnode.transport.errors import AddressError
from p2pnode.transport.peer_address import PeerAddress

PEER = identity(1).peer_id


@pytest.mark.parametrize("where", ["1.2.3.4:6000", "[2001:db8::1]:6000", "relay.example:5555"])
def test_text_round_trips(where: str) -> None:
    """What str() gives is read back as the same value."""
    place = PeerAddress(PEER, Address.parse(where))
    assert str(place) == f"{PEER}@{where}"
    assert PeerAddress.parse(str(place)) == place


def test_a_default_port() -> None:
    """The port may be left out where there is a default."""
    assert PeerAddress.parse(f"{PEER}@1.2.3.4", 6000).address == Address("1.2.3.4", 6000)


@pytest.mark.parametrize("text", ["1.2.3.4:6000", f"{PEER}x@1.2.3.4:6000", "@1.2.3.4:6000", PEER])
def test_no_peer_id(text: str) -> None:
    """Without a right peer ID the error says what to write."""
    with pytest.raises(AddressError, match="write PEERID@HOST:PORT"):
        PeerAddress.parse(text)


@given(st.text(max_size=80))
def test_any_text(text: str) -> None:
    """Any text gives a value or an AddressError."""
    with contextlib.suppress(AddressError):
        PeerAddress.parse(text)
