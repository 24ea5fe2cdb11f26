"""This machine's own addresses: those that are of use to others, the most useful first."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.transport.address import Address, is_public, owner
from p2pnode.transport.nat.hosts import HOSTS_LIMIT, look, outgoing_host, useful


def test_the_way_out_comes_first_then_public_then_private() -> None:
    """As a home's laptop with a cable, Wi-Fi and a VPN has them."""
    found = [
        ("lo", "127.0.0.1"),
        ("eth0", "192.168.1.7"),
        ("wlan0", "192.168.1.8"),
        ("tun0", "10.8.0.2"),
        ("eth0", "2001:4860::7"),
    ]
    assert useful(found, {"192.168.1.8"}) == (
        "192.168.1.8",
        "2001:4860::7",
        "192.168.1.7",
        "10.8.0.2",
    )


@pytest.mark.parametrize(
    ("interface", "host"),
    [
        ("lo", "127.0.0.1"),
        ("lo", "::1"),
        ("eth0", "fe80::1"),
        ("eth0", "169.254.7.7"),
        ("eth0", "0.0.0.0"),
        ("eth0", "ff02::1"),
        ("docker0", "172.17.0.1"),
        ("br-0123456789ab", "172.18.0.1"),
        ("virbr0", "192.168.122.1"),
        ("podman1", "10.89.0.1"),
        ("vboxnet0", "192.168.56.1"),
        ("vmnet8", "192.168.57.1"),
        ("lxdbr0", "10.0.3.1"),
        ("cni0", "10.244.0.1"),
        ("vEthernet (WSL)", "172.20.0.1"),
    ],
)
def test_what_only_this_machine_knows_is_left_out(interface: str, host: str) -> None:
    """Loopback, link-local, and what leads to its own containers and virtual machines."""
    assert useful([(interface, host)], {host}) == ()


@pytest.mark.parametrize("interface", ["eth0", "wlp3s0", "br0", "br-lan", "bond0", "wg0", "en0"])
def test_interfaces_towards_others_are_kept(interface: str) -> None:
    """Also a bridge that a user has made, and a VPN: its members reach each other there."""
    assert useful([(interface, "10.0.0.7")], ()) == ("10.0.0.7",)


def test_one_address_of_each_ipv6_network() -> None:
    """The one that we talk from, of a stable and several temporary ones."""
    found = [("eth0", f"2001:4860::{n}") for n in range(1, 5)] + [("eth0", "fd00::1")]
    assert useful(found, {"2001:4860::3"}) == ("2001:4860::3", "fd00::1")


IPS = st.ip_addresses().map(str)


@given(st.lists(st.tuples(st.sampled_from(["eth0", "lo", "docker0"]), IPS)), st.sets(IPS))
def test_any_addresses_are_bounded_and_in_order(
    found: list[tuple[str, str]], outgoing: set[str]
) -> None:
    """Few, none twice, none that nobody has, those that we talk from before all others."""
    hosts = useful(found, outgoing)
    assert len(hosts) <= HOSTS_LIMIT
    assert len({owner(host) for host in hosts}) == len(hosts)
    assert set(hosts) <= {host for _, host in found}
    rank = [(host not in outgoing, not is_public(host)) for host in hosts]
    assert rank == sorted(rank)


def test_this_machine() -> None:
    """It has loopback at least, and tells others of nothing that it doesn't have."""
    machine = look()
    assert "127.0.0.1" in machine.every
    assert set(machine.hosts) <= machine.every
    assert not {"127.0.0.1", "::1"} & set(machine.hosts)
    assert all(Address(host, 1).host == host for host in machine.every)
    assert look() == machine


def test_the_outgoing_host_towards_this_machine() -> None:
    """Towards an address of this machine it is that address; no packet is sent."""
    assert outgoing_host(Address("127.0.0.1", 9)) == "127.0.0.1"


def test_no_way_out_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name gives no address, and no error."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert outgoing_host(Address("nobody.invalid", 9)) is None
