"""I/O: this node as others see it: the trackers that list it, and the addresses it announces."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import trio

from ..tracker.client import TrackerClient
from ..tracker.record import PeerRecord
from ..transport.address import Address
from ..transport.envelope import Kind, seal
from ..transport.identity import Identity
from ..transport.link import Link, Network
from ..transport.nat.direct import Direct, outgoing_host
from ..transport.nat.reach import announced
from .config import Config
from .peers import Peers
from .reachability import Reachability
from .status import TrackerStatus

# How often the machine's own address towards the trackers is looked at (DHCP, another Wi-Fi).
ADDRESS_SECONDS = 5.0
# How often the trackers' sight of us is looked at: a newcomer can't be dialled before. A tracker
# that sees us elsewhere each time makes us announce no faster.
SIGHT_SECONDS = 0.5


class Presence:
    """All trackers, one peer record, one way in (more with transport.nat's other ways)."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        network: Network,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        chance: random.Random,
        log: Callable[[str, str], None],
    ) -> None:
        self._swarm, self._identity = config.swarm, identity
        self._clock, self._wall, self._log = clock, wall, log
        self._direct = Direct(config.public)
        self._reachability = Reachability(
            self._direct, self.addresses, clock=clock, chance=chance, log=log, news=self._refresh
        )
        self._record_seq = 0
        self._clients = {
            address: TrackerClient(
                network,
                address,
                swarm=config.swarm,
                peer=identity.peer_id,
                rng=chance,
                log=partial(log, "info"),
            )
            for address in config.tracker
        }

    async def run(
        self, bound: Address, peers: Peers, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Announce and watch until cancelled; `bound` is where the node listens."""
        self._direct.bound(bound)
        async with trio.open_nursery() as nursery:
            for address, client in self._clients.items():
                joined = partial(peers.joined, str(address))
                left = partial(peers.left, str(address))
                await nursery.start(client.run, self._record, joined, left)
                nursery.start_soon(self._watch_own_host, address)
                nursery.start_soon(self._watch_sight, client)
                nursery.start_soon(self._reachability.watch, client)
            task_status.started()
            if not self._clients:
                self._log("warning", "no tracker is given: nobody will find this node (--tracker)")

    async def leave(self) -> None:
        """Tell all trackers; the caller's scope says how long at most."""
        async with trio.open_nursery() as nursery:
            for client in self._clients.values():
                nursery.start_soon(client.leave)

    def came_in(self) -> None:
        """A peer dialled us: we can be reached."""
        self._direct.came_in()

    async def dialled_back(self, link: Link) -> bool:
        """Whether this link is a tracker's that checks if it can reach us; then it is done with."""
        return await self._reachability.met(link)

    def reachability(self, came: str) -> str:
        """What trackers that dialled back found, for people; else `came`, who has come in."""
        return self._reachability.text(came)

    def addresses(self) -> tuple[Address, ...]:
        """What is announced now."""
        return announced([self._direct], self._clock())

    def answering(self) -> set[str]:
        """The trackers that answer now."""
        clients = self._clients.items()
        return {str(address) for address, c in clients if c.state.status == "connected"}

    def settled(self) -> bool:
        """Whether every tracker has told who is there, or is known not to answer."""
        states = [client.state for client in self._clients.values()]
        return all(state.listed or state.status == "unreachable" for state in states)

    def listed(self) -> int:
        """How many other peers there should be: the longest of the trackers' lists."""
        return max((client.state.peers for client in self._clients.values()), default=0)

    def statuses(self) -> Iterator[TrackerStatus]:
        """The trackers, for the screen."""
        for client in self._clients.values():
            state = client.state
            detail = state.detail.removeprefix(state.status).removeprefix(", ")
            yield TrackerStatus(str(state.address), state.status, detail, state.peers)

    async def _watch_own_host(self, tracker: Address) -> None:
        """Look from which address we talk to a tracker: the machine may move."""
        while True:
            # Looking up the tracker's name can take long; leaving doesn't wait for it.
            own = await trio.to_thread.run_sync(outgoing_host, tracker, abandon_on_cancel=True)
            self._saw(f"towards {tracker}", own)
            await trio.sleep(ADDRESS_SECONDS)

    async def _watch_sight(self, client: TrackerClient) -> None:
        """Look where a tracker sees us."""
        while True:
            seen = client.state.seen
            self._saw(f"by {client.state.address}", seen.host if seen else None)
            await trio.sleep(SIGHT_SECONDS)

    def _saw(self, source: str, host: str | None) -> None:
        """Announce a new address everywhere."""
        if host is not None and self._direct.saw(source, host):
            self._refresh()

    def _refresh(self) -> None:
        for client in self._clients.values():
            client.refresh()

    def _record(self) -> bytes:
        """A fresh signed peer record. Wall-clock numbers grow across restarts, too."""
        self._record_seq = max(self._record_seq + 1, int(self._wall() * 1000))
        record = PeerRecord(
            swarm=self._swarm,
            seq=self._record_seq,
            addresses=self.addresses(),
            created=self._wall(),
        )
        return seal(self._identity, Kind.PEER_RECORD, record.to_bytes())
