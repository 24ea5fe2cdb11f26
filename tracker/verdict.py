"""CORE: the question whether a peer can be reached, and its answer (parts of protocol.py).

A peer names one of its addresses and a nonce; the tracker dials that address, says the nonce there,
and tells what came of it. Which addresses, at what price and how often: checks.py.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final, Self

from ..transport.address import Address
from ..transport.wire import Fields
from .fields import ADDRESS_LIMIT, address, word

PAYMENT: Final = 32 * 1024
"""Bytes that a dial-back to another host costs: dialling and its handshake put less than 1 KiB on
that host. AutoNAT v2 asks for 30 to 100 kB, for handshakes of up to 10 kB."""

DIALBACK_SECONDS: Final = 5.0
"""For a whole dial-back, from name to nonce: a peer that needs longer is of little use."""

NONCE_LEAST, NONCE_MOST = 16, 32
"""Bytes of a nonce: below, it could be guessed."""


class Outcome(StrEnum):
    """What came of a dial-back: the word on the wire."""

    REACHABLE = "reachable"
    REFUSED = "refused"
    TIMED_OUT = "timed-out"
    FOREIGN = "foreign"
    UNREACHABLE = "unreachable"

    @property
    def sentence(self) -> str:
        """The same for people."""
        return OUTCOMES[self]


OUTCOMES = {
    Outcome.REACHABLE: "this peer answered",
    Outcome.REFUSED: "connection refused",
    Outcome.TIMED_OUT: "timed out",
    Outcome.FOREIGN: "something else answers there",
    Outcome.UNREACHABLE: "this peer does not answer there",
}


@dataclass(frozen=True, slots=True)
class DialBack:
    """Dial me at `address`, which I have announced, and say `nonce` there. Answered by Verdict.

    `payment` is any PAYMENT bytes where the address is of another host than the one that the
    tracker sees us at, or a name; else it may be empty.
    """

    TYPE: ClassVar[str] = "dialback"
    id: int
    address: Address
    nonce: bytes
    payment: bytes = b""

    @classmethod
    def read(cls, id: int, f: Fields) -> Self:
        """The message in these fields. Raises WireError."""
        return cls(
            id,
            address(f.text("address", ADDRESS_LIMIT), "dialback.address"),
            f.bytes("nonce", NONCE_LEAST, NONCE_MOST),
            f.bytes("payment", 0, PAYMENT),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of the dial-back: a word of Outcome, or one that only a newer tracker knows."""

    TYPE: ClassVar[str] = "verdict"
    id: int
    outcome: str

    @classmethod
    def read(cls, id: int, f: Fields) -> Self:
        """The message in these fields. Raises WireError."""
        return cls(id, word(f, "outcome", cls.TYPE))
