"""I/O: a tracker dials a peer back, to tell it whether it can be reached from outside.

Strategy: connect from a fresh port (never the one that the tracker listens on: a NAT may let that
through because the peer spoke to it), shake hands as with any peer, and accept only the peer that
asked. Then the link carries one message, the peer's own nonce, and the peer closes. So the tracker
knows that it reached this peer, and the peer that the tracker did reach it.

Which addresses, at what price and how many: checks.py.
"""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import trio

from ..transport.address import Address, is_name
from ..transport.errors import DialError, HandshakeError, LinkClosed, NoRoute
from ..transport.link import Network
from .checks import Budget, check_price, price
from .errors import Reason, Refused
from .verdict import DIALBACK_SECONDS, DialBack, Outcome

Resolve: TypeAlias = Callable[[Address], Awaitable[str | None]]
"""The host that a name stands for; None for an unknown one."""


async def resolve(address: Address) -> str | None:
    """The first IP address of a name."""
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        return None
    return Address(str(found[0][4][0]).split("%")[0], address.port).host


class DialBacks:
    """All dial-backs of one tracker."""

    def __init__(
        self, network: Network, clock: Callable[[], float], resolve: Resolve = resolve
    ) -> None:
        self._network, self._clock, self._resolve = network, clock, resolve
        self._budget = Budget()
        self._asking: set[str] = set()

    async def check(self, peer: str, seen: str, request: DialBack) -> Outcome:
        """Dial the peer, whose link comes from the host `seen`. Raises Refused."""
        check_price(request.address.host, seen, len(request.payment))
        with self._only_one(peer):
            self._budget.ask(peer, seen, self._clock())
            return await self._within_time(peer, seen, request)

    @contextmanager
    def _only_one(self, peer: str) -> Iterator[None]:
        """One dial-back at a time for a peer, however many links it has."""
        if peer in self._asking:
            raise Refused(Reason.TOO_OFTEN)
        self._asking.add(peer)
        try:
            yield
        finally:
            self._asking.discard(peer)

    async def _within_time(self, peer: str, seen: str, request: DialBack) -> Outcome:
        """What became of it; of a stranger's host no more than yes or no, always equally late."""
        deadline = trio.current_time() + DIALBACK_SECONDS
        outcome, target = Outcome.TIMED_OUT, request.address.host
        with trio.move_on_at(deadline):
            target = await self._target(request, seen)
            self._budget.dial(target, seen, self._clock())
            outcome = await self._dial(peer, Address(target, request.address.port), request.nonce)
        if outcome is Outcome.REACHABLE or target == seen:
            return outcome
        await trio.sleep_until(deadline)  # how long it took would tell about that host's ports
        return Outcome.UNREACHABLE

    async def _target(self, request: DialBack, seen: str) -> str:
        """The host to dial: a name's is judged like one that was given. Raises Refused."""
        if not is_name(request.address.host):
            return request.address.host
        host = await self._resolve(request.address)
        if host is None or price(host, seen) is None:
            raise Refused(Reason.NO_ROUTE)  # alike, so that nobody learns of the names inside here
        return host

    async def _dial(self, peer: str, address: Address, nonce: bytes) -> Outcome:
        try:
            link = await self._network.dial(address, "peer", peer)
        except NoRoute:
            raise Refused(Reason.NO_ROUTE) from None
        except DialError:
            return Outcome.REFUSED
        except HandshakeError:
            return Outcome.FOREIGN
        try:
            with contextlib.suppress(LinkClosed):
                await link.send(nonce)
                await link.receive()  # the peer closes when it has read the nonce
        finally:
            await link.aclose()
        return Outcome.REACHABLE
