"""A laboratory of network namespaces: an internet, public hosts, home routers with NAT.

    with NatLab() as lab:
        server = lab.public("server")                 # 198.51.100.10
        laptop = lab.home("symmetric").host("laptop") # 192.168.1.10, behind a router
        subprocess.run([*laptop.enter, "curl", server.address])
        with laptop.inside():
            sock = socket.create_connection((server.address, 80))

The addresses are those that documentation uses (RFC 5737, RFC 3849), 100.64.0.0/10 between a home
and its carrier (RFC 6598), and 192.168.0.0/16 at home. What is private gets lost on the internet
without an answer, as it does at most providers.

`natlab_machines.py` is how namespaces are cabled, `natlab_router.py` what routers do, and
`natlab_shell.py` a topology for people to try things in (docs/howto/nat-lab.md).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from natlab_machines import NAMESPACES, PREFIX, Host, LabError, Namespace, Switch, run
from natlab_router import KINDS, Kind, Router

__all__ = ["KINDS", "NAMESPACES", "PREFIX", "Host", "Kind", "LabError", "NatLab", "Router"]

TOOLS = ("ip", "nft", "tc")
# The internet's networks: gateways and prefix lengths.
GATEWAYS = ("192.0.2.1/24", "198.51.100.1/24", "203.0.113.1/24")
GATEWAY6 = "2001:db8::1/64"
LOST = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
STUN_PORT = 3478
# A server that starts needs a moment; one that can't start shouldn't hold up the tests.
PATIENCE = 10.0

M = TypeVar("M", bound=Namespace)


@cache
def missing() -> str:
    """Why there can be no laboratory on this machine; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if reason := lacking(*TOOLS):
        return reason
    try:
        with NatLab() as lab:
            lab.home("full-cone")
    except LabError as error:
        return str(error)
    return ""


def lacking(*programs: str) -> str:
    """Which of these programs aren't installed, and where to read more; empty if all are."""
    absent = [program for program in programs if shutil.which(program) is None]
    return f"no {', '.join(absent)}: see docs/howto/nat-lab.md" if absent else ""


class NatLab:
    """All machines of one laboratory; gone when the block ends, with whatever runs in them."""

    prefix = f"{PREFIX}-{os.getpid()}-"

    def __init__(self) -> None:
        self.machines: list[Namespace] = []
        self._publics = 9
        self._homes = 0

    def __enter__(self) -> Self:
        remove_leftovers()
        try:
            self._internet = self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        """Every namespace of this process, also those that a failure kept us from noting."""
        _remove_namespaces(self.prefix)
        for server in (server for machine in self.machines for server in machine.servers):
            server.wait()

    def _build(self) -> Switch:
        internet = Switch("internet", "net")
        internet.sysctl("ipv6.conf.all.forwarding", "1")
        for gateway in (*GATEWAYS, GATEWAY6):
            internet.ip("addr", "add", gateway, "dev", "net", "nodad")
        for network in LOST:
            internet.ip("route", "add", "blackhole", network)
        return internet

    def add(self, machine: M) -> M:
        """Note a machine."""
        self.machines.append(machine)
        return machine

    def place(self) -> tuple[str, str]:
        """The next free public address, each in the next network, and its gateway."""
        self._publics += 1
        gateway, length = GATEWAYS[self._publics % len(GATEWAYS)].split("/")
        return f"{gateway.rpartition('.')[0]}.{self._publics}/{length}", gateway

    def public(self, name: str) -> Host:
        """A machine with a public IPv4 address and an IPv6 address."""
        host = self.add(Host(name, self._internet, *self.place()))
        host.add6(f"2001:db8::{self._publics}/64", GATEWAY6.split("/")[0])
        return host

    def stun(self, name: str) -> Host:
        """A public machine where coturn answers STUN over UDP and TCP, at port 3478."""
        host = self.public(name)
        told = ("--no-cli", "--no-tls", "--no-dtls", "--pidfile=", "--log-file=stdout")
        host.start("turnserver", "-n", "--stun-only", f"--listening-ip={host.address}", *told)
        _await_server(host, STUN_PORT)
        return host

    def home(
        self,
        kind: Kind,
        name: str | None = None,
        *,
        behind: Router | None = None,
        udp: bool = True,
        hairpin: bool = False,
    ) -> Router:
        """A home router of this kind, on the internet or behind another router.

        `carrier-grade` has a carrier's router in front of it. Without `udp` no datagram passes.
        With `hairpin` machines inside reach each other at the ports that they are seen at outside.
        """
        self._homes += 1
        name, number = name or f"home{self._homes}", self._homes
        home = self.add(Router(self.machines, name, f"192.168.{number}", kind))
        if kind == "carrier-grade" and behind is None:
            behind = self.add(Router(self.machines, f"{name}-isp", f"100.64.{number}", kind))
            behind.uplink(self._internet, *self.place())
            behind.rules(udp=udp, hairpin=hairpin)
        home.uplink(behind or self._internet, *(behind or self).place())
        home.rules(udp=udp, hairpin=hairpin)
        return home


def _await_server(host: Host, port: int) -> None:
    """Wait until somebody listens there."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with host.inside(), contextlib.suppress(OSError):
            socket.create_connection((host.address, port), 1).close()
            return
        time.sleep(0.02)
    raise LabError(f"nothing listens at {host.address}:{port}")


def remove_leftovers() -> None:
    """Remove what laboratories left whose process is gone."""
    for path in NAMESPACES.glob(f"{PREFIX}-*"):
        owner = path.name.split("-")[1]
        if not Path(f"/proc/{owner}").exists():
            _remove_namespaces(f"{PREFIX}-{owner}-")


def _remove_namespaces(prefix: str) -> None:
    """Kill what runs in these namespaces, and delete them: their cables go with them."""
    for path in NAMESPACES.glob(f"{prefix}*"):
        with contextlib.suppress(LabError):
            for pid in run("ip", "netns", "pids", path.name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "delete", path.name)
