"""Our STUN client behind real NATs, against coturn: run by `make test-lab`, as root."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import natlab
import pytest
import trio
from asking import mapped_tcp
from natlab import STUN_PORT, Host, Kind, NatLab
from natlab_machines import run

from p2pnode.transport.address import Address
from p2pnode.transport.errors import StunError
from p2pnode.transport.nat import stun
from p2pnode.transport.nat.behaviour import Behaviour, MappingKind

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
ANY = Address("0.0.0.0", 6000)
INDEPENDENT, DEPENDENT = MappingKind.INDEPENDENT, MappingKind.ENDPOINT_DEPENDENT
KINDS: dict[Kind, tuple[MappingKind, bool]] = {
    "full-cone": (INDEPENDENT, True),
    "port-restricted": (INDEPENDENT, True),
    "symmetric": (DEPENDENT, False),
    "carrier-grade": (INDEPENDENT, True),
}


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    """Skip where there can be no laboratory, and say why."""
    if reason := natlab.missing() or natlab.lacking("turnserver"):
        pytest.skip(reason)


@pytest.fixture
def lab() -> Iterator[NatLab]:
    """A laboratory with nothing but the internet in it."""
    with NatLab() as lab:
        yield lab


def coturn(lab: NatLab, name: str) -> Host:
    """coturn on a machine with two IPv4 addresses, so that it speaks RFC 5780, and an IPv6 one."""
    host = lab.public(name)
    second = f"203.0.113.{200 + len(lab.machines)}"
    host.ip("addr", "add", f"{second}/24", "dev", "eth0", "nodad")
    listen = [f"--listening-ip={ip}" for ip in (host.address, second, host.address6)]
    quiet = ("--no-cli", "--no-tls", "--no-dtls", "--pidfile=", "--log-file=stdout")
    host.start("turnserver", "-n", "--stun-only", *listen, *quiet)
    with host.inside():
        trio.run(until_it_answers, Address(host.address, STUN_PORT))
    return host


async def until_it_answers(server: Address) -> None:
    """A server that starts needs a moment."""
    with trio.fail_after(natlab.PATIENCE):
        while True:
            with contextlib.suppress(StunError):
                await mapped_tcp(server, Address("0.0.0.0", 0))
                return
            await trio.sleep(0.02)


def behaviours(machine: Host, *servers: Host) -> tuple[Behaviour, Behaviour]:
    """What is found over UDP and over TCP."""
    addresses = [Address(server.address, STUN_PORT) for server in servers]
    with machine.inside():
        over_udp = trio.run(stun.udp_behaviour, addresses, ANY)
        return over_udp, trio.run(stun.tcp_behaviour, addresses, ANY)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_a_router(lab: NatLab, kind: Kind) -> None:
    """Over TCP two servers tell it; over UDP one with two addresses does alone."""
    home = lab.home(kind)
    laptop, one, two = home.host("laptop"), coturn(lab, "one"), coturn(lab, "two")
    for found in (*behaviours(laptop, one, two), behaviours(laptop, one)[0]):
        assert (found.kind, found.port_preserving) == KINDS[kind]
        assert found.mapped is not None
        assert found.mapped.host == home.outside
    assert behaviours(laptop, one)[1].kind is MappingKind.UNKNOWN


def test_no_nat(lab: NatLab) -> None:
    """A public machine is seen where it is, over IPv4 and IPv6."""
    server, host = coturn(lab, "server"), lab.public("host")
    for found in behaviours(host, server):
        assert found == Behaviour(MappingKind.NO_NAT, Address(host.address, ANY.port), True)
    there, here = Address(server.address6, STUN_PORT), Address("::", 6000)
    with host.inside():
        assert trio.run(stun.udp_behaviour, [there], here).kind is MappingKind.NO_NAT
        assert trio.run(mapped_tcp, there, here) == Address(host.address6, 6000)


def test_udp_that_is_blocked(lab: NatLab) -> None:
    """Nobody answers over UDP, and over TCP all is as it was."""
    laptop = lab.home("port-restricted", udp=False).host("laptop")
    over_udp, over_tcp = behaviours(laptop, coturn(lab, "one"), coturn(lab, "two"))
    assert over_udp.kind is MappingKind.BLOCKED
    assert over_tcp.kind is INDEPENDENT


def test_a_foreign_client_agrees(lab: NatLab) -> None:
    """coturn's own client finds the same of a symmetric NAT and of another."""
    program = shutil.which("turnutils_natdiscovery")
    if program is None:
        pytest.skip("no turnutils_natdiscovery: apt-get install coturn")
    server = coturn(lab, "server")
    told: dict[Kind, str] = {"symmetric": "Address and Port Dependent", "full-cone": "Endpoint Ind"}
    for kind, words in told.items():
        laptop = lab.home(kind).host(f"at-{kind}")
        command = (*laptop.enter, program, "-m", "-p", str(STUN_PORT), server.address)
        assert words in run(*command)
