"""PCP and NAT-PMP: the bytes, strict parsers, and whether a router has restarted."""

from __future__ import annotations

import contextlib
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.transport.errors import WireError
from p2pnode.transport.nat.pcp import (
    DATAGRAM_LIMIT,
    Announce,
    Announced,
    AskMap,
    AskOuter,
    Denied,
    Epoch,
    Granted,
    Leased,
    Map,
    Outer,
    Reply,
    Request,
    parse_reply,
    parse_request,
    restarted,
)

NONCE = bytes(range(1, 13))
OURS = "00000000000000000000ffffc0a8010a"  # ::ffff:192.168.1.10
NOWHERE = "00000000000000000000ffff00000000"

# By hand from the figures of RFC 6887 (sections 7 and 11.1) and RFC 6886 (3.2 and 3.3); what
# miniupnpd 2.3.1 answers looks the same (tests/test_natlab_mapping.py).
REQUESTS: list[tuple[Request, str]] = [
    (Announce("192.168.1.10"), f"02 00 0000 00000000 {OURS}"),
    (
        Map("192.168.1.10", NONCE, 6000, 6001, 3600),
        f"02 01 0000 00000e10 {OURS} {NONCE.hex()} 06 000000 1770 1771 {NOWHERE}",
    ),
    (
        Map("2001:db8::5", NONCE, 6000, 0, 0, "203.0.113.9"),
        "02 01 0000 00000000 20010db8000000000000000000000005"
        f"{NONCE.hex()} 06 000000 1770 0000 00000000000000000000ffffcb007109",
    ),
    (AskOuter(), "00 00"),
    (AskMap(6000, 6001, 3600), "00 02 0000 1770 1771 00000e10"),
]
REPLIES: list[tuple[Reply, str]] = [
    (Announced(258), "02 80 00 00 00000000 00000102 000000000000000000000000"),
    (
        Granted(2, NONCE, 6000, 6001, 60, "1.2.3.10"),
        "02 81 00 00 0000003c 00000002 000000000000000000000000"
        f"{NONCE.hex()} 06 000000 1770 1771 00000000000000000000ffff0102030a",
    ),
    (Outer(2, "1.2.3.10"), "00 80 0000 00000002 0102030a"),
    (Leased(2, 6000, 6001, 60), "00 82 0000 00000002 1770 1771 0000003c"),
    (Denied(0, 2, 2, 9), "00 82 0002 00000009"),
    (Denied(2, 0, 1, 9), "02 80 00 01 00000000 00000009 000000000000000000000000"),
    (
        Denied(2, 1, 8, 9, NONCE),
        "02 81 00 08 00000000 00000009 000000000000000000000000"
        f"{NONCE.hex()} 06 000000 0000 0000 {NOWHERE}",
    ),
]


@pytest.mark.parametrize(("request_", "text"), REQUESTS)
def test_requests_are_these_bytes(request_: Request, text: str) -> None:
    """As the RFCs draw them, both ways."""
    assert request_.to_bytes().hex() == bytes.fromhex(text).hex()
    assert parse_request(bytes.fromhex(text)) == request_


@pytest.mark.parametrize(("reply", "text"), REPLIES)
def test_replies_are_these_bytes(reply: Reply, text: str) -> None:
    """As the RFCs draw them, both ways."""
    assert reply.to_bytes().hex() == bytes.fromhex(text).hex()
    assert parse_reply(bytes.fromhex(text)) == reply


ports, seconds = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
hosts4 = st.ip_addresses(v=4).map(str)
# An IPv4 address mapped into IPv6 is told as IPv4.
hosts = hosts4 | st.ip_addresses(v=6).map(lambda ip: str(IPv6Address(ip).ipv4_mapped or ip))
nonces = st.binary(min_size=12, max_size=12)


@given(
    st.builds(Announce, hosts)
    | st.builds(Map, hosts, nonces, ports, ports, seconds, hosts)
    | st.just(AskOuter())
    | st.builds(AskMap, ports, ports, seconds)
)
def test_requests_come_back(request_: Request) -> None:
    """Whatever is asked for, its bytes are read as the same."""
    assert parse_request(request_.to_bytes()) == request_


@given(
    st.builds(Announced, seconds)
    | st.builds(Granted, seconds, nonces, ports, ports, seconds, hosts)
    | st.builds(Outer, seconds, hosts4)
    | st.builds(Leased, seconds, ports, ports, seconds)
    | st.builds(Denied, st.just(0), st.integers(0, 127), st.integers(1, 0xFFFF), seconds)
    | st.builds(Denied, st.just(2), st.integers(0, 127), st.integers(1, 255), seconds)
    | st.builds(Denied, st.just(2), st.just(1), st.integers(1, 255), seconds, nonces)
)
def test_replies_come_back(reply: Reply) -> None:
    """Whatever is answered, its bytes are read as the same."""
    assert parse_reply(reply.to_bytes()) == reply


@given(
    st.binary(max_size=70)
    | st.tuples(st.sampled_from(b"\0\2"), st.sampled_from(b"\0\1\2\x80\x81\x82"), st.binary()).map(
        lambda parts: bytes(parts[:2]) + parts[2]
    )
)
def test_any_bytes_give_a_value_or_a_wire_error(data: bytes) -> None:
    """A parser has no other end."""
    for parse in (parse_request, parse_reply):
        with contextlib.suppress(WireError):
            parse(data)


GRANTED = Granted(2, NONCE, 6000, 6001, 60, "1.2.3.10").to_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\x80\0\0\0\0\0\x02\x01\x02\x03",  # three quarters of an address
        Outer(2, "1.2.3.10").to_bytes() + b"\0",
        Leased(2, 1, 1, 1).to_bytes()[:-1],
        GRANTED[:-4],
        GRANTED + b"\0",
        GRANTED.ljust(DATAGRAM_LIMIT + 4, b"\0"),
        b"\3" + GRANTED[1:],  # a later version
        GRANTED[:1] + b"\1" + GRANTED[2:],  # a request
        GRANTED[:1] + b"\x82" + GRANTED[2:],  # PEER, which we don't speak
        GRANTED[:36] + b"\x11" + GRANTED[37:],  # UDP
        b"\0\x81\0\0\0\0\0\2\x17\x70\x17\x71\0\0\0\x3c",  # UDP, in NAT-PMP
    ],
    ids=range(12),
)
def test_what_is_no_answer_is_none(data: bytes) -> None:
    """Wrong lengths, versions, operations and protocols."""
    with pytest.raises(WireError):
        parse_reply(data)


def test_what_is_reserved_is_ignored() -> None:
    """Also options that nobody asked for: later routers may say more (RFC 6887 section 7)."""
    noisy = bytearray(GRANTED + bytes.fromhex("02000004 deadbeef"))
    noisy[2], noisy[12:24], noisy[37:40] = 0xFF, b"\xff" * 12, b"\xff" * 3
    assert parse_reply(bytes(noisy)) == parse_reply(GRANTED)


def test_a_denial_says_why() -> None:
    """In words where the RFCs have some."""
    assert Denied(2, 1, 2, 0).reason == "not authorized"
    assert Denied(0, 2, 2, 0).reason == "not authorized, or disabled"
    assert Denied(2, 1, 99, 0).reason == "result 99"


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (60, 60, False),
        (55, 60, False),  # within a sixteenth and two seconds
        (50, 60, True),
        (66, 60, False),
        (72, 60, True),  # its clock jumped: also another router
        (-1, 0, False),  # rounding
        (-2, 0, True),
        (-1000, 10, True),
        (0, 1, False),
        (3500, 3600, False),
        (3300, 3600, True),
    ],
)
def test_a_restart_shows_in_the_clocks(theirs: float, ours: float, expected: bool) -> None:
    """Seconds that the router's clock and ours went on (RFC 6887 section 8.5)."""
    before = Epoch(5000, 100)
    assert restarted(before, Epoch(5000 + theirs, 100 + ours)) == expected
