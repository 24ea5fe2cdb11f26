"""CORE: whether an offered model may come in, cheapest check first.

Size → strict envelope → manifest → swarm, schema, freshness → signature → seal. Nothing of the
payload is asked for before all of them pass. What fails is a `Refusal`: a reason that is counted,
and a detail that the peer is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from . import envelope as envelopes
from .envelope import Envelope, Kind
from .errors import BadSignature, EnvelopeError, ManifestError, TransportError
from .manifest import EXPIRY, Manifest
from .messages import Run
from .veil import Unveil, plain

# Clocks of home machines are wrong by minutes, seldom by more.
CLOCK_SKEW: Final = 600.0

# The reasons, as they are counted, shown and told.
GARBAGE: Final = "garbage"
MANIFEST: Final = "manifest"
SWARM: Final = "swarm"
SCHEMA: Final = "schema"
STALE: Final = "stale"
EXPIRED: Final = "expired"
SIGNATURE: Final = "signature"
DIGEST: Final = "digest"
PROTOCOL: Final = "protocol"
SLOW: Final = "slow"
DISK: Final = "disk"
RUN: Final = "run"
FLOOD: Final = "flood"
AUTHOR: Final = "author"
MEMBER: Final = "member"
ENCODING: Final = "encoding"
SEALED: Final = "sealed"
RECIPIENT: Final = "recipient"  # the model is for others: nobody's mistake


class Refusal(Exception):
    """An offer that is not taken: `reason` is one of this module's words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Offered:
    """A model that may be fetched: its verified envelope and manifest."""

    envelope: Envelope
    manifest: Manifest


def admit(
    data: bytes,
    run: Run,
    most: int,
    newest: Callable[[str], int],
    now: float,
    unveil: Unveil = plain,
) -> Offered | None:
    """Check an offered envelope; None when that very model is here already.

    `most` is the size in bytes that a model of this run can have; `newest(peer ID)` is the highest
    sequence number taken from that peer so far (-1: none); `now` is Unix seconds by this machine's
    clock; `unveil` gives the true manifest, where members of a private swarm read more than
    others. Raises Refusal.
    """
    try:
        unverified = envelopes.peek(data)
        manifest = Manifest.from_bytes(unverified.payload)
    except EnvelopeError as error:
        raise Refusal(GARBAGE, str(error)) from None
    except ManifestError as error:
        raise Refusal(MANIFEST, str(error)) from None
    _check_run(manifest, run, most)
    last = newest(unverified.peer_id)
    if manifest.seq == last:
        return None
    _check_fresh(manifest, last, now)
    try:
        return Offered(unverified.verify(Kind.MANIFEST), unveil(manifest))
    except BadSignature as error:
        raise Refusal(SIGNATURE, str(error)) from None
    except TransportError as error:
        raise Refusal(SEALED, str(error)) from None


def _check_run(manifest: Manifest, run: Run, most: int) -> None:
    if manifest.swarm != run.swarm:
        raise Refusal(SWARM, f"a model of swarm {manifest.swarm!r}, not {run.swarm!r}")
    if manifest.schema != run.schema:
        mine, theirs = run.schema.hex()[:12], manifest.schema.hex()[:12]
        raise Refusal(SCHEMA, f"the model's schema is {theirs}…, mine is {mine}…")
    if manifest.size > most:
        raise Refusal(MANIFEST, f"says {manifest.size} bytes; this model has at most {most}")


def _check_fresh(manifest: Manifest, last: int, now: float) -> None:
    if manifest.seq < last:
        raise Refusal(STALE, f"number {manifest.seq} is older than {last}, which is here already")
    if now > manifest.expires + CLOCK_SKEW:
        raise Refusal(EXPIRED, f"expired {now - manifest.expires:.0f} s ago by my clock")
    if manifest.created > now + CLOCK_SKEW or manifest.expires > manifest.created + EXPIRY:
        ahead = manifest.created - now
        raise Refusal(EXPIRED, f"made {ahead:.0f} s in the future by my clock, or valid too long")


def identify(data: bytes) -> bytes:
    """The envelope ID of any bytes, so that a refusal can name what it refuses."""
    return blake3(data).digest()
