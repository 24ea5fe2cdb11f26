"""HOST:PORT in every spelling that people use, and a clear line for every other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.transport.address import Address, is_name, is_public
from p2pnode.transport.errors import AddressError

STEADY = settings(deadline=None, derandomize=True)
"""The same examples in every run, however busy the machine is."""

GOOD = {
    "1.2.3.4:6000": ("1.2.3.4", 6000),
    "0.0.0.0:0": ("0.0.0.0", 0),
    "127.0.0.1:65535": ("127.0.0.1", 65535),
    "[::1]:6000": ("::1", 6000),
    "[::]:6000": ("::", 6000),
    "[2001:DB8:0:0::1]:6000": ("2001:db8::1", 6000),
    "[::ffff:1.2.3.4]:6000": ("1.2.3.4", 6000),
    "[fe80::1%eth0]:6000": ("fe80::1%eth0", 6000),
    "localhost:6000": ("localhost", 6000),
    "Name.Example:6000": ("name.example", 6000),
    "name.example.:6000": ("name.example", 6000),
    "my_host-1:80": ("my_host-1", 80),
    "xn--bcher-kva.example:80": ("xn--bcher-kva.example", 80),
    "1.example:80": ("1.example", 80),
    " 1.2.3.4:6000\n": ("1.2.3.4", 6000),
    "1.2.3.4:06000": ("1.2.3.4", 6000),
}


@pytest.mark.parametrize("text", GOOD)
def test_good_addresses(text: str) -> None:
    """Addresses are read and normalised; str() gives text that reads the same."""
    address = Address.parse(text)
    assert (address.host, address.port) == GOOD[text]
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":6000",
        "6000",
        "1.2.3.4",
        "1.2.3.4:",
        "1.2.3.4:a",
        "1.2.3.4:-1",
        "1.2.3.4:+1",
        "1.2.3.4:6_0",
        "1.2.3.4:٣",
        "1.2.3.4:65536",
        "1.2.3.4:123456",
        "1.2.3.4:1:2",
        "1.2.3:6000",
        "1.2.3.256:6000",
        "01.2.3.4:6000",
        "::1:6000",
        "::1",
        "[::1]",
        "[::1]6000",
        "[::1:6000",
        "[]:6000",
        "[1.2.3.4]:6000",
        "[name]:6000",
        "[::1%]:6000",
        "[fe80::1%a b]:6000",
        "[fe80::1%\x1b[2J]:6000",
        "a b:6000",
        "-a:6000",
        "a-:6000",
        "a..b:6000",
        ".:6000",
        "*:6000",
        "é.example:6000",
        "\u212aelvin.example:6000",  # the Kelvin sign lowers to an ASCII k
        "http://a:6000",
        "user@a:6000",
        "tcp://1.2.3.4:6000",
        "a" * 64 + ":6000",
        "a." * 127 + "aa:6000",
        "a:6000\0",
        "x" * 100_000,
    ],
)
def test_bad_addresses(text: str) -> None:
    """Everything else is AddressError: one short line that says what to write."""
    with pytest.raises(AddressError) as caught:
        Address.parse(text)
    said = str(caught.value)
    assert "HOST:PORT" in said or "from 0 to 65535" in said
    assert said.isprintable()
    assert len(said) < 600


def test_a_default_port() -> None:
    """The port may be left out where there is a default, and wins where it is given."""
    assert Address.parse("1.2.3.4", 6000) == Address("1.2.3.4", 6000)
    assert Address.parse("[::1]", 6000) == Address("::1", 6000)
    assert Address.parse("name", default_port=0) == Address("name", 0)
    assert Address.parse("name:1", 6000) == Address("name", 1)
    with pytest.raises(AddressError):
        Address.parse("::1", 6000)


def test_equal_places_are_equal_values() -> None:
    """Built from a socket's numbers or from text, one place is one value."""
    assert Address("::FFFF:1.2.3.4", 1) == Address("1.2.3.4", 1) == Address.parse("1.2.3.4:1")
    assert len({Address("0:0::1", 1), Address("::1", 1), Address.parse("[::1]:1")}) == 1
    assert str(Address("::1", 6000)) == "[::1]:6000"


@pytest.mark.parametrize("port", [-1, 65536])
def test_ports_are_checked_when_built(port: int) -> None:
    """An address with an impossible port cannot be built."""
    with pytest.raises(AddressError, match="port"):
        Address("a", port)


PORTS = st.integers(0, 65535)


@STEADY
@given(st.ip_addresses().map(str), PORTS)
def test_any_ip_address_round_trips(host: str, port: int) -> None:
    """Any IPv4 or IPv6 address survives str() and parse()."""
    address = Address(host, port)
    assert Address.parse(str(address)) == address


@STEADY
@given(
    st.text(max_size=40)
    | st.text("[]:.%0123456789abcdefx-_", max_size=30)
    | st.builds("{}:{}".format, st.text(max_size=20), PORTS)
)
def test_any_text_gives_an_address_or_address_error(text: str) -> None:
    """Any text gives AddressError, or an address whose str() reads the same."""
    try:
        address = Address.parse(text, default_port=1)
    except AddressError:
        return
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("host", ["2.2.2.2", "100.63.0.1", "223.1.1.1", "2a00::1", "2001:4860::1"])
def test_public_hosts(host: str) -> None:
    """Addresses that are the same machine for everybody."""
    assert is_public(host)
    assert not is_name(host)


SPECIAL = """
    10.0.0.1 100.64.0.1 127.0.0.1 169.254.1.1 198.51.100.1 224.0.0.1 0.0.0.0 240.0.0.1 ::1
    fe80::1%eth0 fd00::1 ff0e::1 2001:db8::1 64:ff9b::808:808 2002:808:808::1 fec0::1 5f00::1
"""


@pytest.mark.parametrize("host", SPECIAL.split())
def test_hosts_of_some_network(host: str) -> None:
    """Special addresses are not public, nor those that stand for an IPv4 address."""
    assert not is_public(host)
    assert not is_name(host)


def test_names_are_not_public() -> None:
    """What a name stands for isn't known here."""
    assert not is_public("name.example")
    assert is_name("name.example")
