"""Machines and cables of the NAT laboratory: network namespaces, switches, hosts.

Strategy: each machine is a namespace, each cable a veth pair made inside two of them, so nothing
ever shows up in the machine's own network and deleting the namespaces removes everything. Their
names carry our process ID: labs don't meet, and what a killed one left is removed by the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import natlab_link
from natlab_link import Cable

PREFIX = "p2plab"
NAMESPACES = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # sched.h


class LabError(Exception):
    """The laboratory can't be built."""


def run(*command: str, feed: str | None = None) -> str:
    """Run a command to its end: its output. Raises LabError with what it complains of."""
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
        self.servers: list[subprocess.Popen[bytes]] = []
        run("ip", "netns", "add", self.namespace)
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> str:
        """Run `ip` on this machine."""
        return run("ip", "-n", self.namespace, *arguments)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a server on this machine; it ends with the laboratory."""
        silent = subprocess.DEVNULL
        words = [*self.enter, *command]
        server = subprocess.Popen(words, stdin=silent, stdout=silent, stderr=silent)
        self.servers.append(server)
        return server

    def nft(self, rules: str) -> None:
        """Add firewall rules on this machine."""
        run(*self.enter, "nft", "-f", "-", feed=rules)

    def sysctl(self, key: str, value: str) -> None:
        """Set a kernel parameter of this machine's network."""
        path = f"/proc/sys/net/{key.replace('.', '/')}"
        run(*self.enter, "sh", "-c", f"echo {value} > {path}")

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

    def tap(self, name: str) -> int:
        """A network device whose frames go to whoever holds this descriptor."""
        with self.inside():
            device = natlab_link.tap(name)
        self.ip("link", "set", name, "txqueuelen", str(natlab_link.BACKLOG))
        return device

    def bridge(self, name: str) -> None:
        """A switch with an address of its own."""
        self.ip("link", "add", name, "type", "bridge")
        self.ip("link", "set", name, "up")
        self.sysctl("ipv4.ip_forward", "1")
        # Machines on one switch with addresses of several networks: the gateway passes it on.
        self.sysctl(f"ipv4.conf.{name}.send_redirects", "0")


class Switch(Namespace):
    """A machine with a bridge that others are plugged into."""

    side = "public"  # what the machines on this bridge are

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
        self.place = switch.side
        self._cable = switch.plug(self, "eth0")
        self.address = self.address6 = ""
        self._at6: tuple[str, str] | None = None
        self.move(address)

    def move(self, address: str, gateway: str | None = None) -> None:
        """Take another address, as after a DHCP renewal in another network; the old one is gone."""
        self._network, self._gateway = address, gateway or self._gateway
        self.ip("-4", "addr", "flush", "dev", "eth0", "scope", "global")
        self.ip("addr", "add", address, "dev", "eth0", "nodad")
        self.ip("route", "replace", "default", "via", self._gateway)
        self._place, self.address = address, address.split("/")[0]

    def add6(self, address: str, gateway: str) -> None:
        """An IPv6 address as well."""
        self.ip("addr", "add", address, "dev", "eth0", "nodad")
        self.ip("route", "replace", "default", "via", gateway)
        self.address6, self._at6 = address.split("/")[0], (address, gateway)

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
        run("tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", "root", *shape)

    def delay(self, milliseconds: int) -> None:
        """Send and receive so much later, over a long cable; `limit` and `lose` come after this."""
        self.line(Cable(delay=milliseconds / 1000))

    def line(self, cable: Cable) -> None:
        """From now on the cable is long, thin or lossy, both ways. Once a machine."""
        mac = json.loads(self.ip("-j", "link", "show", "eth0"))[0]["address"]
        self.ip("link", "delete", "eth0")  # and with it the other end
        near, far = self.tap("eth0"), self._switch.tap(self._cable)
        self.ip("link", "set", "eth0", "address", mac, "up")
        self._switch.ip("link", "set", self._cable, "master", self._switch.port, "up")
        words = [*self.enter, *natlab_link.command(near, far, cable)]
        self.servers.append(subprocess.Popen(words, pass_fds=(near, far)))
        os.close(near)
        os.close(far)
        self.move(self._network, self._gateway)
        if self._at6 is not None:
            self.add6(*self._at6)
