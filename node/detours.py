"""CORE: what helps with peers that can't be dialled: relays with their models, holes to punch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from ..transport.link import Link
from ..transport.peer_address import PeerAddress

Places: TypeAlias = tuple[PeerAddress, ...]


@dataclass(frozen=True, slots=True)
class Detours:
    """What peers.py asks of relays and hole punching; by default there is nothing to ask.

    `unreached`: this peer can't be dialled, and these relays hold its models; none of them when
    that is over. `moved`: it has other addresses now. `offered`: this peer relays for others at
    these places; none when it no longer does. `punch`: open a hole together with this peer; None
    where that fails. `via`: the relay that this peer's models come through now.
    """

    unreached: Callable[[str, Places], None] = lambda peer, relays: None
    offered: Callable[[str, Places], None] = lambda peer, places: None
    moved: Callable[[str], None] = lambda peer: None
    punch: Callable[[str], Awaitable[Link | None]] | None = None
    via: Callable[[str], PeerAddress | None] = lambda peer: None
