"""I/O: the members whose addresses the user gave (`--peer`): each is a way into the swarm.

The user need not know who is there: whoever answers and trains the same run introduces us to the
others (gossip.py). An address is dialled until we have met somebody there; then peers.py keeps the
connection, and it is dialled again only when we have lost everybody.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from ..tracker.state import reason
from ..transport.address import Address
from ..transport.errors import TransportError
from ..transport.exchange import Exchange
from ..transport.link import Link, Network
from ..transport.session import Session

# A connection and a handshake take three round trips, and a name may have to be looked up.
DIAL_SECONDS = 5.0
# The waits between tries, as for known peers: soon again after a restart, never a storm.
RETRY_FIRST, RETRY_MOST = 0.5, 30.0
# A session that lasted so long starts the waits anew.
STEADY_SECONDS = 10.0
# How often it is looked at whether anybody is left.
LOOK_SECONDS = 1.0


@dataclass(eq=False)
class Door:
    """One address, and what became of it."""

    address: Address
    link: Link | None = None
    open: bool = False  # we have met somebody there
    tried: bool = False  # what comes of it at first is known
    trouble: str = ""


class Introducers:
    """Dials the given addresses; `met` is told of every session that is in use."""

    def __init__(
        self,
        network: Network,
        exchange: Exchange,
        addresses: Iterable[Address],
        *,
        clock: Callable[[], float],
        chance: random.Random,
        log: Callable[[str, str], None],
    ) -> None:
        self._network, self._exchange = network, exchange
        self._clock, self._chance, self._log = clock, chance, log
        self._doors = [Door(address) for address in dict.fromkeys(addresses)]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled, or until nothing is left to dial."""
        async with trio.open_nursery() as nursery:
            for door in self._doors:
                nursery.start_soon(self._knock, door)
            task_status.started()

    def settled(self) -> bool:
        """Whether each address has been tried: somebody was met there, or not."""
        return all(door.tried for door in self._doors)

    def met(self, session: Session) -> None:
        """A peer that trains the same run."""
        for door in self._doors:
            link = session.link
            if link is door.link or (link.dialled and link.remote == door.address):
                door.open = door.tried = True
                door.trouble = ""

    async def _knock(self, door: Door) -> None:
        """Dial it whenever that is needed, until it proves to be our own."""
        wait = RETRY_FIRST
        while True:
            while not self._needed(door):
                await trio.sleep(LOOK_SECONDS)
            began = self._clock()
            if await self._enter(door) == self._exchange.me:
                self._log("info", f"--peer {door.address}: this is our own address")
                return
            steady = self._clock() - began > STEADY_SECONDS
            wait = RETRY_FIRST if steady else min(2 * wait, RETRY_MOST)
            await trio.sleep(wait * self._chance.uniform(0.5, 1.0))

    def _needed(self, door: Door) -> bool:
        return not self._exchange.full and not (door.open and self._exchange.met())

    async def _enter(self, door: Door) -> str:
        """One try, and the session that comes of it, to its end; who was there, if anybody was."""
        try:
            with trio.fail_after(DIAL_SECONDS):
                door.link = await self._network.dial(door.address, "peer")
        except trio.TooSlowError:
            self._tell(door, f"no answer in {DIAL_SECONDS:.0f} s")
        except (TransportError, OSError) as error:
            self._tell(door, reason(error, door.address))
        else:
            return await self._serve(door, door.link)
        return ""

    async def _serve(self, door: Door, link: Link) -> str:
        try:
            await self._exchange.serve(link)
        finally:
            door.link, door.tried = None, True
            await link.aclose()
        # We may have met it before, at another address or over a link that it dialled.
        door.open = door.open or any(s.peer == link.peer for s in self._exchange.met())
        return link.peer

    def _tell(self, door: Door, trouble: str) -> None:
        """Say why nobody was met there, once."""
        door.tried = True
        if trouble != door.trouble:
            self._log("warning", f"--peer {door.address}: {trouble}")
        door.trouble = trouble
