"""CORE: calls: how two peers agree, through a tracker, to connect to each other at one moment.

    caller  → call    where I am seen: will you?
    callee  → answer  where I am seen: ready
    caller  → go      now; I connect when this has reached you

As libp2p's DCUtR does it. Each of them is an envelope of kind "call", signed by its sender and for
one peer of one swarm; `nonce` holds the three together. Trackers hand them on and can't make any.

A call makes a stranger's machine connect to addresses that we name, so it is heeded only where that
is of no use against others: public addresses (`targets`), each call once (`Ear`), for half a
minute. How often: node/punch_limits.py.

docs/protocol/punching.md shows the same bytes as the tests.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import Final, Self

from .. import wire
from ..address import Address, is_name, is_public
from ..admission import CLOCK_SKEW
from ..envelope import Kind, peek, seal
from ..errors import AddressError, CallError, EnvelopeError, IdentityError, WireError
from ..identity import Identity, public_key
from ..manifest import SWARM_LIMIT
from ..wire import Fields

VERSION: Final = 1

CALL_LIMIT: Final = 1024
"""Bytes of a signed call: with four IPv6 addresses and the longest name of a swarm it has 700."""

NONCE: Final = 16
"""Bytes that hold the three together; random, so nobody else has the same."""

LIFETIME: Final = 30.0
"""Seconds that a call is worth anything: the three steps take a few, through a slow tracker too."""

ADDRESSES: Final = 4
"""Addresses of one peer that are tried: as servers see them, and what can be guessed."""

A_HOST: Final = 2
"""Addresses that count of one host: as a server sees our port, and as it is inside. More would
make others knock at the doors of a host."""

HEARD: Final = 1000
"""Peers whose newest call is remembered: far more than call within the time that it counts."""

DOCUMENTATION: Final = tuple(
    map(ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"))
)
"""Nobody's addresses (RFC 5737, RFC 3849): they harm nobody, and laboratories use them."""

_TEXT: Final = 64  # characters of an address or a peer ID, before the exact check


class Step(StrEnum):
    """Which of the three it is."""

    CALL = "call"
    ANSWER = "answer"
    GO = "go"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one peer says to another (`to`, a peer ID). Raises CallError for wrong values.

    `addresses` are where the sender's listening port may be seen, best first. `created` and
    `expires` are Unix seconds of the sender's clock; `created` grows with each of its calls.
    """

    swarm: str
    to: str
    step: Step
    nonce: bytes
    addresses: tuple[Address, ...]
    created: float
    expires: float
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise CallError(f"version {self.version}, this p2pnode reads version {VERSION}")
        if not 1 <= len(self.swarm) <= SWARM_LIMIT or len(self.nonce) != NONCE:
            raise CallError("the swarm's name or the nonce has a wrong length")
        if len(self.addresses) > ADDRESSES or not all(map(_is_place, self.addresses)):
            raise CallError(f"at most {ADDRESSES} addresses, each an IP address and a port from 1")
        times = math.isfinite(self.created) and math.isfinite(self.expires)
        if not times or not 0 < self.expires - self.created <= LIFETIME:
            raise CallError(f"a call is valid for at most {LIFETIME:.0f} s")
        try:
            public_key(self.to)
        except IdentityError as error:
            raise CallError(str(error)) from error

    def to_bytes(self) -> bytes:
        """The deterministic CBOR map, what goes into the envelope."""
        return wire.encode(
            {
                "version": self.version,
                "swarm": self.swarm,
                "to": self.to,
                "step": self.step.value,
                "nonce": self.nonce,
                "addresses": [str(address) for address in self.addresses],
                "created": float(self.created),
                "expires": float(self.expires),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The call in these bytes. Raises CallError for any others."""
        try:
            f = Fields.parse(data, what="call", limit=CALL_LIMIT)
            texts = f.items("addresses", ADDRESSES)
            return cls(
                version=f.integer("version"),
                swarm=f.text("swarm", SWARM_LIMIT),
                to=f.text("to", _TEXT),
                step=_step(f.text("step", _TEXT)),
                nonce=f.bytes("nonce", NONCE, NONCE),
                addresses=tuple(Address.parse(texts.text(key, _TEXT)) for key in texts),
                created=f.number("created"),
                expires=f.number("expires"),
            )
        except (WireError, AddressError) as error:
            raise CallError(str(error)) from error

    def sealed(self, identity: Identity) -> bytes:
        """The signed envelope that travels."""
        return seal(identity, Kind.CALL, self.to_bytes())


def _step(text: str) -> Step:
    try:
        return Step(text)
    except ValueError:
        raise WireError(f"call.step is wrong: must be one of {', '.join(Step)}") from None


def _is_place(address: Address) -> bool:
    return bool(address.port) and not is_name(address.host)


def is_target(host: str) -> bool:
    """Whether a stranger may make us connect to this host: not to one that is inside a network."""
    if is_public(host):
        return True
    return not is_name(host) and any(ip_address(host) in network for network in DOCUMENTATION)


def targets(addresses: tuple[Address, ...], own: tuple[Address, ...]) -> tuple[Address, ...]:
    """Those that we connect to when another names them: public, not ours, few of one host."""
    hosts: Counter[str] = Counter()
    found = []
    for address in dict.fromkeys(addresses):
        hosts[address.host] += 1
        if is_target(address.host) and address not in own and hosts[address.host] <= A_HOST:
            found.append(address)
    return tuple(found)


class Ear:
    """What this peer hears: calls that are for it, fresh, and each once."""

    def __init__(self, me: str, swarm: str) -> None:
        self._me, self._swarm = me, swarm
        self._newest: dict[str, float] = {}  # by peer, the one that was heard last at the end

    def hear(self, data: bytes, now: float) -> tuple[str, Call]:
        """Who calls, and what; `now` is Unix seconds by our clock. Raises CallError.

        Of each peer only what is newer than its last: so nothing is heard twice, and whoever holds
        calls back can't say them later.
        """
        try:
            unverified = peek(data, limit=CALL_LIMIT)
            call = Call.from_bytes(unverified.payload)
            self._check(unverified.peer_id, call, now)
            peer = unverified.verify(Kind.CALL).peer_id
        except EnvelopeError as error:
            raise CallError(str(error)) from error
        self._note(peer, call.created)
        return peer, call

    def _check(self, peer: str, call: Call, now: float) -> None:
        if (call.to, call.swarm) != (self._me, self._swarm) or peer == self._me:
            raise CallError("it is for somebody else")
        if now > call.expires + CLOCK_SKEW or call.created > now + CLOCK_SKEW:
            raise CallError(f"made {now - call.created:.0f} s ago by this machine's clock")
        if call.created <= self._newest.get(peer, -math.inf):
            raise CallError("a later one was heard before")

    def _note(self, peer: str, created: float) -> None:
        self._newest.pop(peer, None)
        self._newest[peer] = created
        if len(self._newest) > HEARD:
            del self._newest[next(iter(self._newest))]
