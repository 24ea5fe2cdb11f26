"""CORE: what a peer and its tracker say to each other, as frozen values and as bytes.

Strategy: a peer asks, the tracker answers; the `id` of the question stands in the answer, so
several may be on the way. Each message is one deterministic CBOR map whose "t" is its type, read
through one table a direction. Parsing gives a value that is right or raises ProtocolError.

What came later than the first peers is left out where it has its default value, so that messages
without it have the bytes that they always had; older peers ignore it.

The pages of docs/protocol/tracker.md show each message with the same bytes as the tests.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import ClassVar, Final, Self, TypeAlias, TypeVar

from ..transport import wire
from ..transport.address import PORT_LIMIT, Address
from ..transport.envelope import ENVELOPE_LIMIT
from ..transport.errors import WireError
from ..transport.wire import Fields
from .errors import ProtocolError
from .fields import ADDRESS_LIMIT, PEER_LIMIT, address, peer, word
from .record import RECORD_LIMIT
from .verdict import PAYMENT, DialBack, Verdict

REQUEST_LIMIT: Final = PAYMENT + RECORD_LIMIT + 256
"""Bytes of a question: a payment or a record, and the fields beside it."""

REPLY_LIMIT: Final = ENVELOPE_LIMIT
"""Bytes of an answer: what a control message may carry on every link."""

PAGE_ITEMS: Final = 2048
"""Records or peer IDs in one answer; REPLY_LIMIT lets 1500 of the shortest records through."""

CURSOR_LIMIT: Final = 32
"""Bytes of a cursor; ours has 24."""

CALL_LIMIT: Final = 1024
"""Bytes of a call: a signed request to punch a hole has 400, with eight addresses."""

CALLS: Final = 8
"""Calls in one answer, and as many wait for a peer: who punches eight holes at once is busy."""

TTL_LEAST, TTL_MOST = 1.0, 3600.0
"""Seconds that a tracker may ask for: below, it would be flooded; above, the dead live too long."""

WATCH_SECONDS: Final = 25.0
"""A watch is answered by then: NAT tables and firewalls forget an idle connection after 30 s."""


_LATER: Final = {"later": True}
"""Marks a field that is written only where it differs from its default."""


@dataclass(frozen=True, slots=True)
class Announce:
    """I am here: `envelope` is my signed record. Answered by Welcome."""

    TYPE: ClassVar[str] = "announce"
    id: int
    envelope: bytes

    @classmethod
    def read(cls, id: int, f: Fields) -> Self:
        """The message in these fields. Raises WireError."""
        return cls(id, f.bytes("envelope", 1, RECORD_LIMIT))


@dataclass(frozen=True, slots=True)
class Watch:
    """What is new since `cursor`? Answered by Events, at the latest after 25 s.

    The cursor is the last answer's; an empty one asks for the whole list.
    """

    TYPE: ClassVar[str] = "watch"
    id: int
    cursor: bytes = b""

    @classmethod
    def read(cls, id: int, f: Fields) -> Self:
        """The message in these fields. Raises WireError."""
        return cls(id, f.bytes("cursor", 0, CURSOR_LIMIT))


@dataclass(frozen=True, slots=True)
class Leave:
    """I go. Answered by Bye."""

    TYPE: ClassVar[str] = "leave"
    id: int

    @classmethod
    def read(cls, id: int, f: Fields) -> Self:
        """The message; it has no fields."""
        return cls(id)


@dataclass(frozen=True, slots=True)
class Call:
    """Hand this `envelope` to `peer` of my swarm. Answered by Called.

    What is in it is between the two; trackers don't open it.
    """

    TYPE: ClassVar[str] = "call"
    id: int
    peer: str
    envelope: bytes

    @classmethod
    def read(cls, id: int, f: Fields) -> Self:
        """The message in these fields. Raises WireError."""
        return cls(
            id,
            peer(f.text("peer", PEER_LIMIT), "call.peer"),
            f.bytes("envelope", 1, CALL_LIMIT),
        )


@dataclass(frozen=True, slots=True)
class Welcome:
    """The record is kept for `ttl` seconds; `seen` is where the announcing connection came from.

    The tracker offers more at the host that was dialled: with `relay` it relays, at the same port;
    `stun` is a port that answers STUN, over UDP and TCP (0: none). `time` is its clock, Unix
    seconds.
    """

    TYPE: ClassVar[str] = "welcome"
    id: int
    ttl: float
    seen: Address
    relay: bool = field(default=False, metadata=_LATER)
    stun: int = field(default=0, metadata=_LATER)
    time: float | None = field(default=None, metadata=_LATER)

    @classmethod
    def read(cls, id: int, f: Fields) -> Self:
        """The message in these fields. Raises WireError."""
        ttl = f.number("ttl")
        if not TTL_LEAST <= ttl <= TTL_MOST:
            raise WireError(f"ttl is {ttl}, must be from {TTL_LEAST} to {TTL_MOST}")
        return cls(
            id,
            ttl,
            address(f.text("seen", ADDRESS_LIMIT), "welcome.seen"),
            f.boolean("relay", default=False),
            f.integer("stun", 0, PORT_LIMIT, default=0),
            f.number("time", default=None),
        )


@dataclass(frozen=True, slots=True)
class Events:
    """What is new: apply `left` (peer IDs), then `joined` (signed records, of new or moved peers).

    `fresh` opens a whole list: who is known and does not come on this page or a following one has
    left, or has not come back yet to a tracker that was started anew. `calls`: what other peers
    of the swarm have to say to this one (see Call).
    """

    TYPE: ClassVar[str] = "events"
    id: int
    cursor: bytes
    fresh: bool
    joined: tuple[bytes, ...]
    left: tuple[str, ...]
    calls: tuple[bytes, ...] = field(default=(), metadata=_LATER)

    @classmethod
    def read(cls, id: int, f: Fields) -> Self:
        """The message in these fields. Raises WireError."""
        joined, left = f.items("joined", PAGE_ITEMS), f.items("left", PAGE_ITEMS)
        calls = f.items("calls", CALLS)
        return cls(
            id,
            f.bytes("cursor", 0, CURSOR_LIMIT),
            f.boolean("fresh"),
            tuple(joined.bytes(key, 1, RECORD_LIMIT) for key in joined),
            tuple(peer(left.text(key, PEER_LIMIT), "events.left") for key in left),
            tuple(calls.bytes(key, 1, CALL_LIMIT) for key in calls),
        )


@dataclass(frozen=True, slots=True)
class Bye:
    """The record is forgotten."""

    TYPE: ClassVar[str] = "bye"
    id: int

    @classmethod
    def read(cls, id: int, f: Fields) -> Self:
        """The message; it has no fields."""
        return cls(id)


@dataclass(frozen=True, slots=True)
class Called:
    """The call is on its way; whether the peer heeds it shows only in what it does."""

    TYPE: ClassVar[str] = "called"
    id: int

    @classmethod
    def read(cls, id: int, f: Fields) -> Self:
        """The message; it has no fields."""
        return cls(id)


@dataclass(frozen=True, slots=True)
class Refusal:
    """No. `reason` is a word of errors.Reason, or one that only a newer tracker knows.

    The id is 0 where the question's could not be read or the whole connection is refused.
    """

    TYPE: ClassVar[str] = "error"
    id: int
    reason: str

    @classmethod
    def read(cls, id: int, f: Fields) -> Self:
        """The message in these fields. Raises WireError."""
        return cls(id, word(f, "reason", cls.TYPE))


Request: TypeAlias = Announce | Watch | Leave | DialBack | Call
Reply: TypeAlias = Welcome | Events | Bye | Refusal | Verdict | Called
Message: TypeAlias = Request | Reply
M = TypeVar("M", bound=Message)
_Table: TypeAlias = Mapping[str, Callable[[int, Fields], M]]

_REQUESTS: Final[_Table[Request]] = {
    Announce.TYPE: Announce.read,
    Watch.TYPE: Watch.read,
    Leave.TYPE: Leave.read,
    DialBack.TYPE: DialBack.read,
    Call.TYPE: Call.read,
}
_REPLIES: Final[_Table[Reply]] = {
    Welcome.TYPE: Welcome.read,
    Events.TYPE: Events.read,
    Bye.TYPE: Bye.read,
    Refusal.TYPE: Refusal.read,
    Verdict.TYPE: Verdict.read,
    Called.TYPE: Called.read,
}


def to_bytes(message: Message) -> bytes:
    """The one encoding of a message."""
    value: dict[str, object] = {"t": message.TYPE}
    for part in fields(message):
        item = getattr(message, part.name)
        if item != part.default or not part.metadata.get("later"):
            value[part.name] = str(item) if isinstance(item, Address | StrEnum) else item
    return wire.encode(value)


def parse_request(data: bytes) -> Request:
    """The question in these bytes (at most REQUEST_LIMIT). Raises ProtocolError for any others."""
    return _parse(data, _REQUESTS, "request", 1, REQUEST_LIMIT)


def parse_reply(data: bytes) -> Reply:
    """The answer in these bytes (at most REPLY_LIMIT). Raises ProtocolError for any others."""
    return _parse(data, _REPLIES, "reply", 0, REPLY_LIMIT)


def _parse(data: bytes, table: _Table[M], what: str, first_id: int, limit: int) -> M:
    id = 0
    try:
        f = Fields.parse(data, what=what, limit=limit)
        id = f.integer("id", first_id)
        name = f.text("t", 16)
        if name not in table:
            raise WireError(f"{what}.t is wrong: must be one of {', '.join(table)}")
        return table[name](id, f)
    except WireError as error:
        raise ProtocolError(str(error), id) from error
