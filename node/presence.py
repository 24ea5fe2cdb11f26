"""I/O: this node as others see it: the trackers that list it, and the ways in that it announces.

Strategy: twice a second it looks around: what addresses the machine has, at which host each tracker
sees us, what the ways in claim. Whatever of it has changed is announced at once. Where the machine
itself has moved, connections from addresses that are gone are given up at once, too: the kernel
would find out only after seconds.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from ..tracker.client import TrackerClient
from ..tracker.record import PeerRecord
from ..transport.address import Address
from ..transport.bucket import Bucket
from ..transport.envelope import Kind, seal
from ..transport.identity import Identity
from ..transport.link import Link, Network
from ..transport.nat.direct import Direct
from ..transport.nat.hosts import Machine, look
from ..transport.nat.reach import Claim, Reach, announced, relayed, valid
from ..transport.peer_address import PeerAddress
from .config import Config
from .peers import Peers
from .reachability import Reachability
from .status import TrackerStatus

# How often we look around: so late is a change announced (DHCP, another Wi-Fi, a mapping). A look
# takes 0.2 ms. A tracker that sees us elsewhere each time makes us announce no faster.
LOOK_SECONDS = 0.5
# Another sight of us, from the same addresses of ours, is another router: so often the ways in look
# again for it, and so many times at once. A tracker that makes it up keeps them no busier.
SIGHTS_PER_SECOND, SIGHTS_BURST = 1 / 60, 2


@dataclass(frozen=True, slots=True)
class Ways:
    """The ways in that are used, in the order in which they are tried.

    `direct` may be none of them: then what trackers see is noted, and not announced. `relaying`
    says whether others may leave models here.
    """

    direct: Direct
    used: Sequence[Reach]
    relaying: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class Ears:
    """Whom to tell what comes up; each returns at once.

    `call`: a peer says something through a tracker, as it came. `relays`: a tracker, by its
    address, offers these relays now. `moved`: this machine has other addresses, and no more these
    (which may be none).
    """

    call: Callable[[bytes], None] = lambda envelope: None
    relays: Callable[[str, tuple[PeerAddress, ...]], None] = lambda tracker, places: None
    moved: Callable[[Collection[str]], None] = lambda gone: None


class Presence:
    """All trackers, one peer record, all ways in."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        network: Network,
        ways: Ways,
        ears: Ears = Ears(),
        *,
        machine: Callable[[], Machine] = look,
        clock: Callable[[], float],
        wall: Callable[[], float],
        chance: random.Random,
        log: Callable[[str, str], None],
    ) -> None:
        self._config, self._identity = config, identity
        self._ways, self._ears = ways, ears
        self._clock, self._wall, self._log = clock, wall, log
        self._reachability = Reachability(
            self.addresses, clock=clock, chance=chance, log=log, news=self.announce
        )
        self._look, self._machine = machine, Machine()
        self._sights = Bucket(SIGHTS_PER_SECOND, SIGHTS_BURST)
        self._told: object = None  # the ways in of the last record
        self._offers: dict[Address, PeerAddress | None] = {}  # the relay of each tracker
        self._record_seq = 0
        self._bound: Address | None = None
        self._clients = {
            address: TrackerClient(
                network,
                address,
                swarm=config.swarm,
                peer=identity.peer_id,
                rng=chance,
                wall=wall,
                log=partial(log, "info"),
            )
            for address in config.tracker
        }

    async def run(
        self, bound: Address, peers: Peers, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Announce and watch until cancelled; `bound` is where the node listens."""
        self._bound = bound
        self._ways.direct.bound(bound)
        self._look_at_machine()
        async with trio.open_nursery() as nursery:
            for way in self._ways.used:
                await nursery.start(way.run)
            for address, client in self._clients.items():
                joined = partial(peers.joined, str(address))
                left = partial(peers.left, str(address))
                await nursery.start(client.run, self.record, joined, left, self._ears.call)
                nursery.start_soon(self._reachability.watch, client)
            nursery.start_soon(self._look_around)
            task_status.started()

    async def leave(self) -> None:
        """Tell all trackers; the caller's scope says how long at most."""
        async with trio.open_nursery() as nursery:
            for client in self._clients.values():
                nursery.start_soon(client.leave)

    # -- what others know of us ------------------------------------------------------------------

    @property
    def ways(self) -> Sequence[Reach]:
        """The ways in that are used."""
        return self._ways.used

    def claims(self) -> list[Claim]:
        """What the ways in claim now, in the light of what trackers found that dialled us back."""
        claims = valid(self._ways.used, self._clock())
        return [claim if claim.relay else self._reachability.judged(claim) for claim in claims]

    def addresses(self) -> tuple[Address, ...]:
        """What is announced now."""
        return announced(self.claims())

    def relays(self) -> tuple[PeerAddress, ...]:
        """The relays that are announced now, each peer once."""
        found = {relay.peer: relay for relay in reversed(relayed(self.claims()))}
        found.pop(self._identity.peer_id, None)
        return tuple(found.values())[::-1]

    def came_in(self, link: Link) -> None:
        """A peer dialled us: we can be reached. Through a punched hole only that one can."""
        if not link.punched:
            self._ways.direct.came_in(link.remote)

    async def dialled_back(self, link: Link) -> bool:
        """Whether this link is a tracker's that checks if it can reach us; then it is done with."""
        return await self._reachability.met(link)

    def reachability(self, came: str) -> str:
        """What trackers that dialled back found, for people; else `came`, who has come in."""
        return self._reachability.text(came)

    # -- what trackers know ----------------------------------------------------------------------

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

    def stuns(self) -> tuple[Address, ...]:
        """The STUN servers that trackers offer."""
        offers = (client.state.stun for client in self._clients.values())
        return tuple(stun for stun in offers if stun is not None)

    def statuses(self) -> Iterator[TrackerStatus]:
        """The trackers, for the screen."""
        for client in self._clients.values():
            state = client.state
            detail = state.detail.removeprefix(state.status).removeprefix(", ")
            yield TrackerStatus(str(state.address), state.status, detail, state.peers)

    @property
    def hosts(self) -> tuple[str, ...]:
        """This machine's own addresses."""
        return self._machine.hosts

    def couriers(self) -> tuple[TrackerClient, ...]:
        """The trackers that can hand on what we have to say to a peer."""
        return tuple(c for c in self._clients.values() if c.state.status == "connected")

    def guesses(self) -> tuple[Address, ...]:
        """Where our door is seen, if the NAT keeps ports: at the hosts where trackers see us."""
        seen = (client.state.seen for client in self._clients.values())
        hosts = dict.fromkeys(address.host for address in seen if address)
        return tuple(Address(host, self._bound.port) for host in hosts) if self._bound else ()

    # -- looking around --------------------------------------------------------------------------

    async def _look_around(self) -> None:
        while True:
            self._look_at_machine()
            for client in self._clients.values():
                self._look_at(client)
            self.announce()
            await trio.sleep(LOOK_SECONDS)

    def _look_at_machine(self) -> None:
        """What addresses it has: the first look, or a change of them, or nothing."""
        before = self._machine
        with contextlib.suppress(OSError):  # no descriptor free for it: a look later there may be
            self._machine = self._look()
        gone = before.every - self._machine.every
        self._ways.direct.has(self._machine.hosts)
        moved = bool(before.every) and before.hosts != self._machine.hosts
        if moved:
            hosts = ", ".join(self._machine.hosts) or "none"
            self._log("info", f"this machine's addresses have changed: {hosts}")
            self._changed()
            for client in self._clients.values():
                client.moved(gone)
        if moved or gone:
            self._ears.moved(gone)

    def _look_at(self, client: TrackerClient) -> None:
        """Where a tracker sees us, and what it offers."""
        state = client.state
        tracker, seen = str(state.address), state.seen.host if state.seen else None
        before = self._ways.direct.seen_by(tracker)
        self._ways.direct.saw(tracker, seen)
        if None not in (before, seen) and before != seen and self._sights.free(self._clock()):
            self._sights.wait(self._clock())
            self._changed()
        if self._offers.get(state.address) != state.relay:
            self._offers[state.address] = state.relay
            self._ears.relays(tracker, (state.relay,) if state.relay else ())

    def _changed(self) -> None:
        """Let the ways in look again."""
        self._reachability.changed()
        self._ways.direct.changed()
        for way in self._ways.used:
            if way is not self._ways.direct:
                way.changed()

    def announce(self) -> None:
        """Tell all trackers of our ways in, if there is news."""
        ways = (self.addresses(), self.relays(), self._ways.relaying())
        if ways != self._told:
            self._told = ways
            for client in self._clients.values():
                client.refresh()

    def record(self) -> bytes:
        """A fresh signed peer record. Wall-clock numbers grow across restarts, too."""
        self._record_seq = max(self._record_seq + 1, int(self._wall() * 1000))
        addresses = self.addresses()
        record = PeerRecord(
            swarm=self._config.swarm,
            seq=self._record_seq,
            addresses=addresses,
            created=self._wall(),
            relays=self.relays(),
            relay=bool(addresses) and self._ways.relaying(),
        )
        return seal(self._identity, Kind.PEER_RECORD, record.to_bytes())
