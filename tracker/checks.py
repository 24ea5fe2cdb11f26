"""CORE: which dial-backs a tracker makes: to what address, at what price, and how many.

Strategy (as libp2p's AutoNAT v2): a dial-back makes the tracker connect to an address that a
stranger names, so it must be of no use against others. To the host that the request comes from it
is free. To another it costs the requester more bytes than the dial puts on that host, so nothing
is amplified. To an address that only means something inside some network (private, loopback,
link-local, multicast, documentation, …) there is none, unless it is the very host that the
tracker sees the requester at: then both are inside already.

Budgets are leaky buckets: for each peer, each host that asks, each host that is dialled, and in
all. Time is passed in as `now`.
"""

from typing import Final

from ..transport.address import is_name, is_public, owner
from .errors import Reason, Refused
from .limits import Limit, take
from .verdict import PAYMENT

PEER: Final = (1 / 20, 8)
"""Dial-backs for one peer: a record's addresses at once; ours asks for a few in five minutes."""

HOST: Final = (1.0, 32)
"""For all peers of one host (IPv4 address or IPv6 /64): a classroom of 256 behind one NAT asks
once a second. New peer IDs cost nothing, so the limit by peer alone would be none."""

STRANGER: Final = (1 / 10, 4)
"""To one host that is not the requester's: a home's second address is checked in time, and a
victim gets one connection in ten seconds, whoever asks for it."""

ALL: Final = (4.0, 40)
"""In all: 900 peers every five minutes make 3 a second. With five seconds a dial that is at most
60 descriptors at once, which the 900 links leave free. It bounds the memory of the others, too."""


class Budget:
    """What may still be dialled."""

    def __init__(self) -> None:
        self._peer, self._host, self._stranger, self._all = (
            Limit(*numbers) for numbers in (PEER, HOST, STRANGER, ALL)
        )

    def ask(self, peer: str, seen: str, now: float) -> None:
        """A peer asks from the host `seen`. Raises Refused TOO_OFTEN; then nothing is taken."""
        take(now, (self._all, ""), (self._peer, peer), (self._host, owner(seen)))

    def dial(self, target: str, seen: str, now: float) -> None:
        """The host `target` will be dialled. Raises Refused TOO_OFTEN."""
        if target != seen:
            take(now, (self._stranger, owner(target)))


def price(target: str, seen: str) -> int | None:
    """Bytes that a dial-back to the host `target` costs a peer seen at `seen`; None: never made.

    A DNS name costs the full price: it may be anybody's. What it stands for is judged again.
    """
    if target == seen:
        return 0
    return PAYMENT if is_name(target) or is_public(target) else None


def check_price(target: str, seen: str, paid: int) -> None:
    """Raises Refused PRIVATE_ADDRESS or UNPAID."""
    due = price(target, seen)
    if due is None:
        raise Refused(Reason.PRIVATE_ADDRESS)
    if paid < due:
        raise Refused(Reason.UNPAID)
