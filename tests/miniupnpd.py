"""A real router daemon in the NAT laboratory: miniupnpd, which speaks PCP, NAT-PMP and UPnP-IGD.

Strategy: it runs in a router's namespace and writes its rules into chains of a table of its own
there. It maps nothing where the outer address isn't a public one, and knows the documentation's
networks as not public; so its router moves to 1.2.3.0/24, which is nobody's inside the laboratory.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from natlab import NatLab
from natlab_machines import run
from natlab_router import Router

PUBLIC = "1.2.3"
TABLE = """
table inet miniupnpd {
  chain miniupnpd { }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
  chain forward { type filter hook forward priority filter - 1; jump miniupnpd; }
  chain prerouting { type nat hook prerouting priority dstnat - 1; jump prerouting_miniupnpd; }
  chain postrouting { type nat hook postrouting priority srcnat; jump postrouting_miniupnpd; }
}
"""
# `min_lifetime` so that tests needn't wait for the usual two minutes.
SETTINGS = """
ext_ifname=wan
listening_ip=lan
ipv6_disable=yes
enable_upnp=yes
min_lifetime=2
secure_mode=yes
system_uptime=no
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
uuid=00000000-0000-0000-0000-000000000001
"""


class Miniupnpd:
    """miniupnpd on a router; it ends with the laboratory."""

    def __init__(self, router: Router, folder: Path, rules: Sequence[str], *, udp: bool) -> None:
        """`rules` say who may map what; with `udp` it speaks PCP and NAT-PMP, too."""
        self.router = router
        self._pid = folder / f"{router.name}.pid"
        self._config = folder / f"{router.name}.conf"
        lines = (f"enable_natpmp={'yes' if udp else 'no'}", *rules, "")
        self._config.write_text(SETTINGS + "\n".join(lines))
        router.nft(TABLE)
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._pid.unlink(missing_ok=True)
        return self.router.start("miniupnpd", "-d", "-f", str(self._config), "-P", str(self._pid))

    def restart(self) -> None:
        """As when the router is switched off and on: what it had mapped is gone."""
        self._process.terminate()
        self._process.wait()
        for chain in ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"):
            self.router.nft(f"flush chain inet miniupnpd {chain}")
        self._process = self._start()

    def mapped(self) -> list[int]:
        """The outer ports that are mapped."""
        chain = ("list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd")
        rules = run(*self.router.enter, "nft", *chain)
        return [int(port) for port in re.findall(r"dport (\d+) dnat", rules)]


def move_to_public(lab: NatLab, router: Router, number: int) -> None:
    """Give a router on the internet an address that miniupnpd takes for a public one."""
    internet = ("ip", "-n", f"{lab.prefix}internet")
    run(*internet, "addr", "replace", f"{PUBLIC}.1/24", "dev", "net")
    router.ip("addr", "flush", "dev", "wan", "scope", "global")
    router.ip("addr", "add", f"{PUBLIC}.{number}/24", "dev", "wan")
    router.ip("route", "replace", "default", "via", f"{PUBLIC}.1")
    router.address = router.outside = f"{PUBLIC}.{number}"
