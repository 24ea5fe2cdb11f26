"""CORE: a peer record: where one peer can be reached, signed by itself.

A record travels as the envelope that its peer signed (kind "peer-record"). Trackers and peers
both open it with `open_record`, so whoever hands records on can't make or change one.

docs/protocol/tracker.md shows the same bytes as the tests.
"""

import math
from dataclasses import dataclass
from typing import Final, Self

from ..transport import wire
from ..transport.address import Address
from ..transport.envelope import Kind, peek
from ..transport.errors import BadSignature, EnvelopeError, WireError
from ..transport.manifest import SWARM_LIMIT
from ..transport.peer_address import PeerAddress
from ..transport.wire import INTEGER, Fields
from .errors import Reason, RecordError, Refused
from .fields import ADDRESS_LIMIT, PEER_ADDRESS_LIMIT, address, peer_address

VERSION: Final = 1

ADDRESSES: Final = 8
"""Addresses in a record: IPv4, IPv6, a name, and room for mapped and relayed ones."""

RECORD_LIMIT: Final = 4 * 1024
"""Bytes of a signed record: ten of the longest names make 3 KiB, a usual record has 230 bytes."""

RELAYS: Final = 2
"""Relays in a record: a peer has one, and two for a moment while it changes from one to another."""


def check_swarm(name: str) -> str:
    """The name, if a swarm may have it. Raises RecordError."""
    if not 1 <= len(name) <= SWARM_LIMIT or not name.isprintable():
        raise RecordError(f"a swarm's name has 1 to {SWARM_LIMIT} printable characters")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRecord:
    """Where a peer can be reached, in its own words. Raises RecordError for wrong values.

    `seq` grows with every record of the peer; `created` is Unix seconds of its clock, for people
    only. A peer that nobody can dial has no addresses: it dials the others, and who can't be
    dialled either finds its models at its `relays`. `relay`: the peer is one for others, too.
    """

    swarm: str
    seq: int
    addresses: tuple[Address, ...]
    created: float
    relays: tuple[PeerAddress, ...] = ()
    relay: bool = False
    version: int = VERSION

    def __post_init__(self) -> None:
        check_swarm(self.swarm)
        if self.version != VERSION:
            raise RecordError(f"version {self.version}, this p2pnode reads version {VERSION}")
        if not 0 <= self.seq <= INTEGER or not math.isfinite(self.created):
            raise RecordError("seq must be from 0 to 2**63-1, created a finite number")
        if len(self.addresses) > ADDRESSES or not all(a.port for a in self.addresses):
            raise RecordError(f"at most {ADDRESSES} addresses, each with a port from 1")
        self._check_relays()

    def _check_relays(self) -> None:
        twice = len({relay.peer for relay in self.relays}) < len(self.relays)
        if len(self.relays) > RELAYS or twice or not all(r.address.port for r in self.relays):
            raise RecordError(f"at most {RELAYS} relays, each once, with a port from 1")
        if self.relay and not self.addresses:
            raise RecordError("who relays for others has an address")

    @property
    def ways(self) -> object:
        """All that tells others how to reach this peer: if it is the same, a record is no news."""
        return self.addresses, self.relays, self.relay

    def to_bytes(self) -> bytes:
        """The deterministic CBOR map, what goes into the envelope."""
        value: dict[str, object] = {
            "version": self.version,
            "swarm": self.swarm,
            "seq": self.seq,
            "addresses": [str(address) for address in self.addresses],
            "created": float(self.created),
        }
        if self.relays:
            value["relays"] = [str(relay) for relay in self.relays]
        if self.relay:
            value["relay"] = True
        return wire.encode(value)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The record in these bytes. Raises RecordError for any others."""
        try:
            f = Fields.parse(data, what="record", limit=RECORD_LIMIT)
            texts, relays = f.items("addresses", ADDRESSES), f.items("relays", RELAYS)
            return cls(
                version=f.integer("version"),
                swarm=f.text("swarm", SWARM_LIMIT),
                seq=f.integer("seq"),
                addresses=tuple(
                    address(texts.text(key, ADDRESS_LIMIT), "record.addresses") for key in texts
                ),
                created=f.number("created"),
                relays=tuple(
                    peer_address(relays.text(key, PEER_ADDRESS_LIMIT), "record.relays")
                    for key in relays
                ),
                relay=f.boolean("relay", default=False),
            )
        except WireError as error:
            raise RecordError(str(error)) from error


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A record whose signature was checked: the bytes as they came, their peer, what they say."""

    data: bytes
    peer: str
    record: PeerRecord


def open_record(data: bytes, *, signer: str | None = None) -> SignedRecord:
    """Check a signed record, cheap things first; `signer` is the one peer that may have signed.

    Raises Refused with MALFORMED, FOREIGN_KEY or BAD_SIGNATURE.
    """
    try:
        unverified = peek(data, limit=RECORD_LIMIT)
        if signer is not None and unverified.peer_id != signer:
            raise Refused(Reason.FOREIGN_KEY)
        record = PeerRecord.from_bytes(unverified.payload)
        if unverified.peer_id in {relay.peer for relay in record.relays}:
            raise RecordError("a peer is not its own relay")
        return SignedRecord(data, unverified.verify(Kind.PEER_RECORD).peer_id, record)
    except BadSignature:
        raise Refused(Reason.BAD_SIGNATURE) from None
    except (EnvelopeError, RecordError):
        raise Refused(Reason.MALFORMED) from None
