"""I/O: dial several addresses of one peer; the first that answers counts.

Each is dialled a little after the one before (RFC 8305's "happy eyeballs"), so one that never
answers holds up no other.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ..transport.address import Address
from ..transport.errors import TransportError
from ..transport.link import Link, Network

# A connection and a handshake take three round trips; a blackholed address is given up after it.
DIAL_SECONDS = 5.0
# So much later the next address is dialled while one hasn't answered (RFC 8305 says a quarter of a
# second for a connection; a handshake has two round trips more).
STAGGER_SECONDS = 0.5


class Race:
    """One try at all addresses of a peer."""

    def __init__(self, network: Network, peer: str, addresses: tuple[Address, ...]) -> None:
        self._network, self._peer = network, peer
        self._addresses = addresses
        self._links: list[Link] = []
        self._troubles: dict[Address, str] = {}

    @property
    def trouble(self) -> str:
        """Why nobody answered."""
        return "; ".join(self._troubles[a] for a in self._addresses if a in self._troubles)

    async def run(self, over: Callable[[], bool]) -> Link | None:
        """The first link, or None where there is none, or `over()` says that none is needed."""
        try:
            async with trio.open_nursery() as nursery:
                for address in self._addresses:
                    failed = trio.Event()
                    nursery.start_soon(self._try, address, failed, nursery.cancel_scope)
                    with trio.move_on_after(STAGGER_SECONDS):
                        await failed.wait()
                    if over():
                        nursery.cancel_scope.cancel()
                        break
        except BaseException:
            await self._close(self._links)
            raise
        await self._close(self._links[1:])
        return self._links[0] if self._links else None

    async def _try(self, address: Address, failed: trio.Event, race: trio.CancelScope) -> None:
        try:
            with trio.fail_after(DIAL_SECONDS):
                self._links.append(await self._network.dial(address, "peer", self._peer))
            race.cancel()
        except trio.TooSlowError:
            self._troubles[address] = f"{address}: no answer in {DIAL_SECONDS:.0f} s"
        except (TransportError, OSError) as error:
            self._troubles[address] = str(error)
        failed.set()

    @staticmethod
    async def _close(links: list[Link]) -> None:
        """Two may answer at the same moment."""
        with trio.CancelScope(shield=True):
            for link in links:
                await link.aclose()
