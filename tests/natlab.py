"""A laboratory of network namespaces: an internet, public hosts, home routers with NAT.

    with NatLab() as lab:
        server = lab.public("server")                 # 198.51.100.10
        laptop = lab.home("symmetric").host("laptop") # 192.168.1.10, behind a router
        subprocess.run([*laptop.enter, "curl", server.address])
        with laptop.inside():
            sock = socket.create_connection((server.address, 80))

Strategy: each machine is a namespace, each cable a veth pair made inside two of them, so nothing
ever shows up in the machine's own network and deleting the namespaces removes everything. Their
names carry our process ID: labs don't meet, and what a killed one left is removed by the next.
The addresses are those that documentation uses (RFC 5737, RFC 3849), 100.64.0.0/10 between a home
and its carrier (RFC 6598), and 192.168.0.0/16 at home. What is private gets lost on the internet
without an answer, as it does at most providers.

`natlab_shell.py` is a topology for people to try things in (docs/howto/nat-lab.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

PREFIX = "p2plab"
NAMESPACES = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # sched.h
TOOLS = ("ip", "nft", "tc")
# The internet's networks: gateways and prefix lengths.
GATEWAYS = ("192.0.2.1/24", "198.51.100.1/24", "203.0.113.1/24")
GATEWAY6 = "2001:db8::1/64"
LOST = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")

Kind = Literal["full-cone", "port-restricted", "symmetric", "carrier-grade"]
KINDS: tuple[Kind, ...] = ("full-cone", "port-restricted", "symmetric", "carrier-grade")

# A router takes what belongs to a connection from inside, or what its NAT let in, and drops the
# rest without a word. `masquerade` keeps the port where it can: Linux's NAT is port-restricted.
ROUTER = """
table ip nat {{
  {cone}
  chain leave {{
    type nat hook postrouting priority srcnat
    oifname "wan" masquerade {flags}
  }}
}}
table ip filter {{
  chain forward {{
    type filter hook forward priority filter; policy drop
    ct state established,related accept
    ct status dnat accept
    iifname "lan" accept  # also from one cable to the next, where bridges ask the firewall
  }}
  chain input {{
    type filter hook input priority filter; policy drop
    ct state established,related accept
    iifname {{ "lo", "lan" }} accept
  }}
}}
"""
# Whoever sent from a port is reached at it by everybody, for as long as home routers remember.
CONE = """
  map tcp_hosts { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 5m; size 4096; }
  map udp_hosts { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 5m; size 4096; }
  chain note {
    type filter hook postrouting priority srcnat - 10
    oifname "wan" meta l4proto tcp update @tcp_hosts { tcp sport : ip saddr . tcp sport }
    oifname "wan" meta l4proto udp update @udp_hosts { udp sport : ip saddr . udp sport }
  }
  chain enter {
    type nat hook prerouting priority dstnat
    iifname "wan" dnat ip to tcp dport map @tcp_hosts
    iifname "wan" dnat ip to udp dport map @udp_hosts
  }
"""  # noqa: E501


M = TypeVar("M", bound="Namespace")


class LabError(Exception):
    """The laboratory can't be built."""


def missing() -> str:
    """Why there can be no laboratory on this machine; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install iproute2 nftables"
    try:
        with NatLab() as lab:
            lab.home("full-cone")
    except LabError as error:
        return str(error)
    return ""


def _run(*command: str, feed: str | None = None) -> str:
    done = subprocess.run(command, input=feed, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _enter(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, CLONE_NEWNET):
        raise LabError(f"setns: {os.strerror(ctypes.get_errno())}")


class Namespace:
    """One machine's network."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.namespace = f"{PREFIX}-{os.getpid()}-{name}"
        self.enter: tuple[str, ...] = ("ip", "netns", "exec", self.namespace)
        self._file = NAMESPACES / self.namespace
        _run("ip", "netns", "add", self.namespace)
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> str:
        """Run `ip` on this machine."""
        return _run("ip", "-n", self.namespace, *arguments)

    def nft(self, rules: str) -> None:
        """Add firewall rules on this machine."""
        _run(*self.enter, "nft", "-f", "-", feed=rules)

    def sysctl(self, key: str, value: str) -> None:
        """Set a kernel parameter of this machine's network."""
        path = f"/proc/sys/net/{key.replace('.', '/')}"
        _run(*self.enter, "sh", "-c", f"echo {value} > {path}")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The sockets that this thread makes in this block are this machine's, also afterwards."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as home, self._file.open() as there:
            _enter(libc, there.fileno())
            try:
                yield
            finally:
                _enter(libc, home.fileno())

    def bridge(self, name: str) -> None:
        """A switch with an address of its own."""
        self.ip("link", "add", name, "type", "bridge")
        self.ip("link", "set", name, "up")
        self.sysctl("ipv4.ip_forward", "1")
        # Machines on one switch with addresses of several networks: the gateway passes it on.
        self.sysctl(f"ipv4.conf.{name}.send_redirects", "0")


class Switch(Namespace):
    """A machine with a bridge that others are plugged into."""

    def __init__(self, name: str, bridge: str) -> None:
        super().__init__(name)
        self.port = bridge
        self.bridge(bridge)
        self._plugs = 0

    def plug(self, other: Namespace, device: str) -> str:
        """A cable from here to a device of the other machine: the name of this end."""
        self._plugs += 1
        near = f"port{self._plugs}"
        peer = ("peer", "name", device, "netns", other.namespace)
        self.ip("link", "add", near, "type", "veth", *peer)
        self.ip("link", "set", near, "master", self.port, "up")
        other.ip("link", "set", device, "up")
        return near


class Host(Namespace):
    """A machine that runs programs, on one cable."""

    def __init__(self, name: str, switch: Switch, address: str, gateway: str) -> None:
        super().__init__(name)
        self._switch, self._gateway = switch, gateway
        self.place = f"behind {switch.name}" if isinstance(switch, Router) else "public"
        self._cable = switch.plug(self, "eth0")
        self.address = self.address6 = ""
        self.move(address)

    def move(self, address: str, gateway: str | None = None) -> None:
        """Take another address, as after a DHCP renewal in another network; the old one is gone."""
        self._gateway = gateway or self._gateway
        self.ip("-4", "addr", "flush", "dev", "eth0", "scope", "global")
        self.ip("addr", "add", address, "dev", "eth0", "nodad")
        self.ip("route", "replace", "default", "via", self._gateway)
        self.address = address.split("/")[0]

    def add6(self, address: str, gateway: str) -> None:
        """An IPv6 address as well."""
        self.ip("addr", "add", address, "dev", "eth0", "nodad")
        self.ip("route", "replace", "default", "via", gateway)
        self.address6 = address.split("/")[0]

    def unplug(self) -> None:
        """Pull the cable: no FIN, no RST, nothing."""
        self._switch.ip("link", "set", self._cable, "down")

    def replug(self) -> None:
        """Put the cable back."""
        self._switch.ip("link", "set", self._cable, "up")

    def lose(self, percent: int) -> None:
        """From now on lose so many of a hundred packets that come in and go out."""
        drop = f"numgen random mod 100 < {percent} drop"
        hooks = ("input", "output")
        chains = "".join(
            f"chain {hook} {{ type filter hook {hook} priority filter; "
            f'{"iifname" if hook == "input" else "oifname"} "eth0" {drop}; }}\n'
            for hook in hooks
        )
        self.nft(f"table inet lossy {{\n{chains}}}\n")

    def limit(self, rate: str) -> None:
        """Send no faster than this (`2mbit`), with a short queue."""
        shape = ("tbf", "rate", rate, "burst", "16kb", "latency", "100ms")
        _run("tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", "root", *shape)

    def delay(self, milliseconds: int) -> None:
        """Send so much later; raises LabError where the kernel has no netem."""
        delay = ("netem", "delay", f"{milliseconds}ms")
        _run("tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", "root", *delay)


class Router(Switch):
    """A home router, or a carrier's: `wan` outside, the bridge `lan` inside, NAT between."""

    def __init__(self, lab: NatLab, name: str, lan: str, kind: Kind) -> None:
        """`lan` is the network inside, without its last number: "192.168.1"."""
        super().__init__(name, "lan")
        self._lab, self._lan, self.kind = lab, lan, kind
        self._hosts = 9
        self.address = ""
        self.ip("addr", "add", f"{lan}.1/24", "dev", "lan")
        cone = CONE if kind == "full-cone" else ""
        flags = "fully-random" if kind == "symmetric" else ""
        self.nft(ROUTER.format(cone=cone, flags=flags))

    def uplink(self, switch: Switch, address: str, gateway: str) -> None:
        """Where this router's `wan` is plugged in."""
        switch.plug(self, "wan")
        self.ip("addr", "add", address, "dev", "wan")
        self.ip("route", "add", "default", "via", gateway)
        self.address = address.split("/")[0]

    def forget_after(self, seconds: int) -> None:
        """Forget connections that are silent for so long (Linux: five days; many routers: less)."""
        self.sysctl("netfilter.nf_conntrack_tcp_timeout_established", str(seconds))

    def place(self) -> tuple[str, str]:
        """The next free address inside, and the gateway."""
        self._hosts += 1
        return f"{self._lan}.{self._hosts}/24", f"{self._lan}.1"

    def host(self, name: str) -> Host:
        """A machine at home."""
        return self._lab.add(Host(name, self, *self.place()))


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

    def home(self, kind: Kind, name: str | None = None) -> Router:
        """A home router of this kind; `carrier-grade` has a carrier's router in front of it."""
        self._homes += 1
        name = name or f"home{self._homes}"
        lan = f"192.168.{self._homes}"
        router = self.add(Router(self, name, lan, kind))
        if kind == "carrier-grade":
            carrier = self.add(Router(self, f"{name}-isp", f"100.64.{self._homes}", kind))
            carrier.uplink(self._internet, *self.place())
            router.uplink(carrier, *carrier.place())
        else:
            router.uplink(self._internet, *self.place())
        return router


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
            for pid in _run("ip", "netns", "pids", path.name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _run("ip", "netns", "delete", path.name)
