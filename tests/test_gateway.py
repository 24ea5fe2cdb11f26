"""The default gateway: what Linux says, and a guess elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.transport.address import Address
from p2pnode.transport.nat import gateway
from p2pnode.transport.nat.gateway import Gateway, default_gateway, is_inner, parse_routes

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
little = pytest.mark.skipif(sys.byteorder != "little", reason="the kernel prints its own order")


@little
def test_default_routes_by_metric() -> None:
    """Only default routes through a gateway, the preferred one first."""
    assert parse_routes(ROUTES) == ["192.168.2.254", "192.168.1.1"]


@given(st.lists(st.lists(st.integers(0, 0xFFFF).map("{:08X}".format), max_size=12), max_size=4))
def test_other_columns_are_passed_over(rows: list[list[str]]) -> None:
    """A kernel with fewer columns has no routes for us."""
    short = "\n".join(" ".join(row[:7]) for row in rows)
    assert parse_routes("header\n" + short) == []


def test_elsewhere_it_is_guessed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first address of our network; nothing where there is no way out."""
    monkeypatch.setattr(gateway, "ROUTES", tmp_path / "none")
    ours = "192.168.7.20"
    monkeypatch.setattr(gateway, "outgoing_host", lambda _: ours)
    assert default_gateway() == Gateway("192.168.7.1", "192.168.7.20")
    monkeypatch.setattr(gateway, "outgoing_host", lambda _: None)
    assert default_gateway() is None


@little
def test_the_preferred_one_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With our address there; none where there are no routes."""
    (tmp_path / "route").write_text(ROUTES)
    monkeypatch.setattr(gateway, "ROUTES", tmp_path / "route")
    ours = {Address("192.168.2.254", 9): "192.168.2.10"}
    monkeypatch.setattr(gateway, "outgoing_host", ours.get)
    assert default_gateway() == Gateway("192.168.2.254", "192.168.2.10")
    (tmp_path / "route").write_text("")
    assert default_gateway() is None


def test_this_machine_has_one_or_none() -> None:
    """Whatever it is, asking for it raises nothing."""
    default_gateway()


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
        ("name.example", False),
    ],
)
def test_inner_addresses(host: str, inner: bool) -> None:
    """Those that a NAT stands in front of; the documentation's and names count as outer ones."""
    assert is_inner(host) == inner
