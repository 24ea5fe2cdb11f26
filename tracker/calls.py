"""CORE: how many calls a tracker hands on, from whom and to whom.

Strategy: a call makes the tracker send something to a peer that didn't ask for it. So leaky buckets
bound it from every side: what one peer sends; what one host sends, as new peer IDs cost nothing,
and what it sends to one and the same peer, so that no host can use up alone what others may say to
that peer; what one peer is sent by all; and all together.

To connect through two NATs takes three calls, two by one side and one by the other, and mostly
succeeds at once (97.6 % of the successes in the largest study of libp2p's DCUtR); three tries make
nine. The numbers let a peer that starts among 50 such peers say all that in half a minute.
"""

from typing import Final

from .limits import Limit, take

CALLER: Final = (2.0, 32)
"""By one peer: half of 50 peers are called twice, the others answered once. That is 75 calls."""

HOST: Final = (8.0, 256)
"""By all peers of one host (IPv4 address or IPv6 /64): a classroom of 25 that starts at once."""

PAIR: Final = (1.0, 32)
"""By all peers of one host to one peer: ten of a classroom meet it at once, with three calls each.
So it takes four hosts to use up what is left to that peer."""

CALLEE: Final = (4.0, 64)
"""To one peer: 4 KiB and four signatures to check a second, which it doesn't feel."""

ALL: Final = (64.0, 512)
"""In all: 64 KiB a second. Half of 900 peers can begin a connection within ten seconds."""


class Budget:
    """What may still be handed on."""

    def __init__(self) -> None:
        self._caller, self._host, self._pair, self._callee, self._all = (
            Limit(*numbers) for numbers in (CALLER, HOST, PAIR, CALLEE, ALL)
        )

    def call(self, caller: str, host: str, callee: str, now: float) -> None:
        """A peer at `host` (as address.owner has it) calls another.

        Raises Refused TOO_OFTEN; then nothing is taken.
        """
        take(
            now,
            (self._all, ""),
            (self._callee, callee),
            (self._pair, f"{host} {callee}"),
            (self._host, host),
            (self._caller, caller),
        )
