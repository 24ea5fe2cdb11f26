"""The default gateway: what Linux says, and a guess elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.transport.nat import gateway
from p2pnode.transport.nat.gateway import Gateway, gateways, is_inner, parse_routes, parse_routes6

# From a laptop with a cable, WLAN and a container network; on a little-endian machine.
ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\tFE02A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0
tun0\t00000000\t0100000A\t0003\t0\t0\t50\t00000080\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth0\t0000FEA9\t00000000\t0001\t0\t0\t1000\t0000FFFF\t0\t0\t0
"""
ZERO = "0" * 32
ROUTES6 = f"""\
20010db8000000000000000000000000 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     eth0
{ZERO} 00 {ZERO} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003    wlan0
{ZERO} 00 {ZERO} 00 20010db8000000000000000000000001 00000064 00000001 00000000 00000003     eth0
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo
"""
little = pytest.mark.skipif(sys.byteorder != "little", reason="the kernel prints its own order")


@little
def test_default_routes_by_metric() -> None:
    """Only default routes through a gateway, the preferred one first."""
    assert parse_routes(ROUTES) == ["192.168.2.254", "192.168.1.1"]


def test_default_routes_of_ipv6() -> None:
    """A link-local gateway with its interface."""
    assert parse_routes6(ROUTES6) == ["2001:db8::1", "fe80::1%wlan0"]


@given(st.lists(st.lists(st.integers(0, 0xFFFF).map("{:08X}".format), max_size=12), max_size=4))
def test_other_columns_are_passed_over(rows: list[list[str]]) -> None:
    """A kernel with fewer columns has no routes for us."""
    short = "\n".join(" ".join(row[:7]) for row in rows)
    assert parse_routes("header\n" + short) == []
    assert parse_routes6(short) == []


def without_routes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system that has no such files."""
    monkeypatch.setattr(gateway, "ROUTES", tmp_path / "none")
    monkeypatch.setattr(gateway, "ROUTES6", tmp_path / "none")


def test_elsewhere_it_is_guessed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first address of our network; nothing where there is no way out."""
    without_routes(monkeypatch, tmp_path)
    ours = "192.168.7.20"
    monkeypatch.setattr(gateway, "outgoing_host", lambda _: ours)
    assert gateways() == (Gateway("192.168.7.1", "192.168.7.20"),)
    monkeypatch.setattr(gateway, "outgoing_host", lambda _: None)
    assert gateways() == ()


@little
def test_both_families(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each with our address on the way out."""
    (tmp_path / "4").write_text(ROUTES)
    (tmp_path / "6").write_text(ROUTES6)
    monkeypatch.setattr(gateway, "ROUTES", tmp_path / "4")
    monkeypatch.setattr(gateway, "ROUTES6", tmp_path / "6")
    ours = {gateway.OUTSIDE: "192.168.2.10", gateway.OUTSIDE6: "2001:db8::10"}
    monkeypatch.setattr(gateway, "outgoing_host", ours.get)
    assert gateways() == (
        Gateway("192.168.2.254", "192.168.2.10"),
        Gateway("2001:db8::1", "2001:db8::10"),
    )


def test_this_machine_has_some_or_none() -> None:
    """Whatever it is, asking for it raises nothing."""
    assert len(gateways()) <= 2


@pytest.mark.parametrize(
    ("host", "inner"),
    [
        ("192.168.1.10", True),
        ("10.9.8.7", True),
        ("172.16.0.1", True),
        ("172.32.0.1", False),
        ("100.64.1.1", True),
        ("100.128.1.1", False),
        ("169.254.3.3", True),
        ("192.0.0.2", True),
        ("192.0.2.1", False),
        ("203.0.113.9", False),
        ("fe80::1", True),
        ("fd00::1", True),
        ("2001:db8::1", False),
    ],
)
def test_inner_addresses(host: str, inner: bool) -> None:
    """Those that a NAT stands in front of; the documentation's count as outer ones."""
    assert is_inner(host) == inner
