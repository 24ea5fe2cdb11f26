"""Routers of the NAT laboratory: what their kinds mean, as nftables rules.

Strategy: a router takes what belongs to a connection from inside, or what its NAT let in, and drops
the rest without a word. `masquerade` keeps the port where it can: Linux's NAT is port-restricted.
Whatever goes out is noted (the port outside, and whose it is); who may come in by these notes is
what a full cone and a hairpin add.
"""

from __future__ import annotations

from typing import Literal

from natlab_machines import Host, Namespace, Switch

Kind = Literal["full-cone", "port-restricted", "symmetric", "carrier-grade"]
KINDS: tuple[Kind, ...] = ("full-cone", "port-restricted", "symmetric", "carrier-grade")

RULES = """
table ip nat {{
  map tcp_hosts {{ {hosts} }}
  map udp_hosts {{ {hosts} }}
  chain leave {{
    type nat hook postrouting priority srcnat
    oifname "wan" masquerade {flags}
    oifname "lan" ct status dnat ip saddr {lan}.0/24 snat to {address}
  }}
  chain note {{
    type filter hook postrouting priority srcnat + 10
    oifname "wan" ct direction original meta l4proto tcp update @tcp_hosts {note}
    oifname "wan" ct direction original meta l4proto udp update @udp_hosts {note}
  }}
  chain enter {{
    type nat hook prerouting priority dstnat
    {doors}
  }}
}}
table ip filter {{
  chain forward {{
    type filter hook forward priority filter; policy drop
    {blocked}
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
# For as long as home routers remember.
HOSTS = (
    "type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 5m; size 4096;"
)
NOTE = "{ ct reply proto-dst : ct original ip saddr . ct original proto-src }"
# A full cone: whoever sent from a port is reached at it by everybody.
CONE = 'iifname "wan"'
# A hairpin: also by those inside, who are seen at their own address outside.
HAIRPIN = 'iifname "lan" ip daddr {address}'
DOOR = """
    {door} dnat ip to tcp dport map @tcp_hosts
    {door} dnat ip to udp dport map @udp_hosts
"""
NO_UDP = """
    iifname "wan" meta l4proto udp drop
    oifname "wan" meta l4proto udp drop
"""


class Router(Switch):
    """A home router, or a carrier's: `wan` outside, the bridge `lan` inside, NAT between."""

    def __init__(self, machines: list[Namespace], name: str, lan: str, kind: Kind) -> None:
        """`lan` is the network inside, without its last number: "192.168.1"."""
        super().__init__(name, "lan")
        self._machines, self._lan, self.kind = machines, lan, kind
        self.above: Router | None = None
        self.side = f"behind {name}"
        self.address = self.outside = ""
        self._hosts = 9
        self.ip("addr", "add", f"{lan}.1/24", "dev", "lan")

    def uplink(self, switch: Switch, address: str, gateway: str) -> None:
        """Where this router's `wan` is plugged in."""
        switch.plug(self, "wan")
        self.ip("addr", "add", address, "dev", "wan")
        self.ip("route", "add", "default", "via", gateway)
        self.address = address.split("/")[0]
        self.above = switch if isinstance(switch, Router) else None
        self.outside = self.above.outside if self.above else self.address

    def rules(self, *, udp: bool, hairpin: bool) -> None:
        """What its kind says; without `udp` no datagram passes, in or out."""
        doors = [CONE] * (self.kind == "full-cone")
        doors += [HAIRPIN.format(address=self.address)] * hairpin
        self.nft(
            RULES.format(
                hosts=HOSTS,
                note=NOTE,
                flags="fully-random" if self.kind == "symmetric" else "",
                lan=self._lan,
                address=self.address,
                doors="".join(DOOR.format(door=door) for door in doors),
                blocked="" if udp else NO_UDP,
            )
        )

    def forget_after(self, seconds: int) -> None:
        """Forget connections that are silent for so long (Linux: five days; many routers: less)."""
        self.sysctl("netfilter.nf_conntrack_tcp_timeout_established", str(seconds))

    def place(self) -> tuple[str, str]:
        """The next free address inside, and the gateway."""
        self._hosts += 1
        return f"{self._lan}.{self._hosts}/24", f"{self._lan}.1"

    def host(self, name: str) -> Host:
        """A machine at home."""
        host = Host(name, self, *self.place())
        self._machines.append(host)
        return host
