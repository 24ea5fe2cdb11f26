"""The direct way in: others connect to the address that we listen on."""

from __future__ import annotations

import ipaddress
from typing import Any

import trio

from ..address import Address
from .gateway import is_inner
from .reach import Claim, Confidence

# Of the hosts at which we were seen, so many are claimed: IPv4 and IPv6, each by two providers. So
# trackers that see us elsewhere each time leave room for the addresses that this machine has.
SIGHTS_LIMIT = 4


class Direct:
    """Others connect to the address that we listen on, with nothing in between.

    With `--public` that address is known. Without, it is guessed: the hosts under which trackers
    saw us and the machine's own addresses, each with the port that we listen on. A peer that comes
    in proves what is on its side of the NAT: one from the same home says nothing of the world
    outside.
    """

    name = "direct"
    detail = ""

    def __init__(self, public: Address | None) -> None:
        self._public = public
        self._bound: Address | None = None
        self._machine: tuple[str, ...] = ()  # the hosts that we are, the most useful first
        self._seen: dict[str, str] = {}  # by tracker; the last one is the latest news
        self._came = set[tuple[bool, int]]()  # the sides that we were dialled from

    def bound(self, address: Address) -> None:
        """We listen here."""
        self._bound = address

    def has(self, hosts: tuple[str, ...]) -> None:
        """This machine has these addresses now, the most useful first."""
        self._machine = hosts

    def saw(self, tracker: str, host: str | None) -> bool:
        """A tracker sees us at this host now, or doesn't. True where that changes our claims.

        What it saw before is past: the address may be somebody else's by now.
        """
        if self._seen.get(tracker) == host:
            return False
        before = set(self._seen.values())
        self._seen.pop(tracker, None)
        if host is not None:
            self._seen[tracker] = host
        return set(self._seen.values()) != before

    def seen_by(self, tracker: str) -> str | None:
        """Where this tracker saw us last."""
        return self._seen.get(tracker)

    def came_in(self, remote: Address) -> None:
        """A peer has dialled us, from there."""
        side = _side(remote.host)
        if side is not None:
            self._came.add(side)

    async def run(self, *, task_status: Any) -> None:
        """Nothing needs to be done: others tell (`has`, `saw`, `came_in`)."""
        task_status.started()
        await trio.sleep_forever()

    def changed(self) -> None:
        """Who came in came into the network from before."""
        self._came.clear()

    def claims(self, now: float) -> tuple[Claim, ...]:
        """The addresses, as sure as they are without a look from outside."""
        given = self._public or self._bound
        if given is None:
            return ()
        if self._public is not None or not _is_unspecified(given.host):
            return (Claim(given, self._proved(given.host, Confidence.GIVEN)),)
        return tuple(
            Claim(Address(host, given.port), self._proved(host, Confidence.GUESSED))
            for host in self._hosts()
            if _listened(host, given.host)
        )

    def _hosts(self) -> list[str]:
        """Where we may be found: the latest sights of us first, then what this machine is."""
        seen = list(dict.fromkeys(reversed(self._seen.values())))[:SIGHTS_LIMIT]
        return list(dict.fromkeys([*seen, *self._machine]))

    def _proved(self, host: str, unproved: Confidence) -> Confidence:
        """Whether somebody came in from the side where this host means something."""
        side = _side(host)
        came = bool(self._came) if side is None else side in self._came
        return Confidence.PROVED if came else unproved


def _listened(host: str, bound: str) -> bool:
    """Whether who listens on 0.0.0.0 or [::] listens on this host; [::] serves IPv4, too."""
    ip = _ip(host)
    return ip is not None and (ip.version == 4 or ":" in bound)


def _side(host: str) -> tuple[bool, int] | None:
    """On which side of a NAT an IP address lies (inside?), and its version; None for a name."""
    ip = _ip(host)
    return None if ip is None else (is_inner(host), ip.version)


def _is_unspecified(host: str) -> bool:
    ip = _ip(host)
    return ip is not None and ip.is_unspecified


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that this host is; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
