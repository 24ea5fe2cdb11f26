"""I/O: what doctor looks with on a real machine."""

from __future__ import annotations

from functools import partial

from ..transport.address import Address
from ..transport.nat import hosts, stun_codec
from ..transport.nat.gateway import default_gateway
from ..transport.nat.mapping import probe
from ..transport.nat.outlook import needless
from ..transport.nat.stun import tcp_behaviour, udp_behaviour
from .control import Control
from .doctor import Tools
from .errors import ControlError
from .findings import Mapping
from .home import Home
from .status import NodeStatus


def instruments(home: Home) -> Tools:
    """Those of this machine; the node is the one that runs with this home."""
    stun_codec.load()  # before round trips are measured
    return Tools(
        hosts=lambda: hosts.look().hosts,
        status=partial(running, home),
        mapping=offered_mapping,
        udp=udp_behaviour,
        tcp=tcp_behaviour,
    )


def running(home: Home) -> NodeStatus | None:
    """What the node says that runs with this home, if one does. Blocks for a moment."""
    try:
        with Control(home.control_path()) as node:
            return node.status()
    except ControlError:
        return None


async def offered_mapping(bound: Address) -> Mapping:
    """Whether the router would forward a port to who listens there; nothing is mapped."""
    gateway = default_gateway()
    why = needless(bound, gateway)
    if why:
        return Mapping(why=why, needless=True)
    found = await probe(gateway)
    spoken = [one for one in found if one.outcome == "answers"]
    if not spoken:
        return Mapping(why=f"the router answers none of {', '.join(p.protocol for p in found)}")
    outer = next((one.host for one in spoken if one.host), None)
    return Mapping(protocol=spoken[0].protocol, host=outer)
