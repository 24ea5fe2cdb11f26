"""The direct way in: others connect to the address that we listen on."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import trio

from ..address import Address
from .reach import ADDRESSES_LIMIT, Claim, Confidence

# What is remembered of looks from outside: eight addresses and as many trackers.
FINDINGS_LIMIT = ADDRESSES_LIMIT**2


class Direct:
    """Others connect to the address that we listen on, with nothing in between.

    With `--public` that address is known. Without, it is guessed: the hosts under which trackers
    saw us and the machine's own outgoing addresses, each with the port that we listen on. Trackers
    that dial back say how it is: where one came through, the claim is proved for a while; where
    none did, it is no more than a guess.
    """

    name = "direct"
    detail = ""

    def __init__(self, public: Address | None) -> None:
        self._public = public
        self._bound: Address | None = None
        self._seen: dict[str, str] = {}  # by source; the last one is the latest news
        self._proved = False
        # (address, who looked) → whether we were reached there, and until when that holds
        self._findings: dict[tuple[Address, str], tuple[bool, float]] = {}

    def bound(self, address: Address) -> None:
        """We listen here."""
        self._bound = address

    def saw(self, source: str, host: str) -> bool:
        """The newest word of one source: we are at this host. True where that changes our claims.

        A source is a tracker that saw us, or a look at our own machine; what it said before is
        past: the address may be somebody else's by now.
        """
        if self._seen.get(source) == host:
            return False
        before = set(self._seen.values())
        self._seen.pop(source, None)
        self._seen[source] = host
        return set(self._seen.values()) != before

    def came_in(self) -> None:
        """A peer has dialled us."""
        self._proved = True

    def found(self, address: Address, by: str, reached: bool, until: float) -> None:
        """Somebody has tried to reach us at an address; `by` says who, the newest word counts."""
        self._findings.pop((address, by), None)
        self._findings[address, by] = (reached, until)
        if len(self._findings) > FINDINGS_LIMIT:
            del self._findings[next(iter(self._findings))]

    async def run(self, *, task_status: Any) -> None:
        """Nothing needs to be done: others tell (`saw`, `found`, `came_in`)."""
        task_status.started()
        await trio.sleep_forever()

    def changed(self) -> None:
        """What others have found is about the network from before."""
        self._findings.clear()
        self._proved = False

    def claims(self, now: float) -> tuple[Claim, ...]:
        """The addresses to announce."""
        return tuple(self._judged(claim, now) for claim in self._given())

    def _judged(self, claim: Claim, now: float) -> Claim:
        """A claim in the light of what was found: one success counts more than any failure."""
        found = [
            (reached, until)
            for (address, _), (reached, until) in self._findings.items()
            if address == claim.address and until > now
        ]
        proofs = [until for reached, until in found if reached]
        if proofs:
            return Claim(claim.address, Confidence.PROVED, max(proofs))
        return Claim(claim.address, Confidence.GUESSED) if found else claim

    def _given(self) -> tuple[Claim, ...]:
        """The addresses, as sure as they are without a look from outside."""
        sure = Confidence.PROVED if self._proved else None
        if self._public is not None:
            return (Claim(self._public, sure or Confidence.GIVEN),)
        if self._bound is None:
            return ()
        bound = _ip(self._bound.host)
        if bound is None or not bound.is_unspecified:
            return (Claim(self._bound, sure or Confidence.GIVEN),)
        return tuple(
            Claim(Address(host, self._bound.port), sure or Confidence.GUESSED)
            for host in dict.fromkeys(reversed(self._seen.values()))
            if (ip := _ip(host)) is not None and ip.version == bound.version
        )


def outgoing_host(towards: Address) -> str | None:
    """The address of this machine from which it would talk to another (no packet is sent)."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            towards.host, towards.port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0]).split("%")[0]
    except OSError:
        return None


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that this host is; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
