"""PEERID@HOST:PORT: an address, and who must answer there."""

from dataclasses import dataclass

from .address import Address
from .errors import AddressError, IdentityError
from .identity import public_key


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Who answers at an address: PEERID@HOST:PORT."""

    peer: str
    address: Address

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> "PeerAddress":
        """Read "12D3KooW…@1.2.3.4:6000". Raises AddressError."""
        peer, at, place = text.strip().partition("@")
        try:
            public_key(peer)
        except IdentityError:
            at = ""
        if not at:
            raise AddressError(f"{text[:300]!r}: write PEERID@HOST:PORT (p2pnode id shows the ID)")
        return cls(peer, Address.parse(place, default_port))

    def __str__(self) -> str:
        return f"{self.peer}@{self.address}"
