"""I/O: how this node meets the others: who there is, and the ways between us.

This file only joins the parts. Trackers (presence.py), members whose address the user gave
(introducers.py), the local network (lan.py) and the peers that we are connected with (gossip.py)
say who there is; peers.py connects to each of them. Where that fails, a hole is punched
(puncher.py), and relays (relays.py) carry the models until then. `Reach`es are the ways in for
others: the door itself, a port of the router, a hole, a relay; `--reach` says which are used.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

import trio

from ..transport.address import Address
from ..transport.exchange import Exchange
from ..transport.identity import Identity
from ..transport.link import Handlers, Link
from ..transport.nat.direct import Direct
from ..transport.nat.gateway import is_inner
from ..transport.nat.mapping import Mapped
from ..transport.nat.punching import Punched
from ..transport.nat.reach import Confidence, Reach
from ..transport.network import TcpNetwork
from ..transport.relay import Relay, RelayStatus
from ..transport.session import Session
from ..transport.shelf import Shelf
from .config import Config
from .detours import Detours
from .gossip import Gossip
from .introducers import Introducers
from .lan import Lan
from .peers import Peers
from .presence import Ears, Presence, Ways
from .puncher import Puncher
from .relays import Relays
from .status import WayStatus

Log = Callable[[str, str], None]


class Meeting:
    """All parts that have to do with other nodes, but for the models (exchange.py).

    `folder` is where models that are held for others lie, if `--relay` is given.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        network: TcpNetwork,
        exchange: Exchange,
        folder: Path,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        chance: random.Random,
        log: Log,
    ) -> None:
        self._config, self._identity, self._network = config, identity, network
        self._exchange, self._log = exchange, log
        self._clock, self._wall, self._chance = clock, wall, chance
        secret = identity.sign(b"p2pnode/1 mapping")
        self._direct, self._mapped = Direct(config.public), Mapped(secret=secret, chance=chance)
        self._punched = Punched(self._stuns, needed=self._behind_nat, clock=clock)
        self.relays = self._make_relays()
        self.puncher = self._make_puncher()
        self.presence = self._make_presence()
        self.peers = self._make_peers()
        self._gossip = self._make_gossip()
        self._introducers = Introducers(
            network, exchange, config.peer, clock=clock, chance=chance, log=log
        )
        self._lan = Lan(
            identity.peer_id, config.swarm, self.peers, hosts=lambda: self.presence.hosts, log=log
        )
        self._relay = self._make_relay(folder) if config.relay else None

    # -- what it is made of ------------------------------------------------------------------------

    def _used(self) -> list[Reach]:
        """The ways in that may be used, in the order in which they are tried."""
        ways: tuple[Reach, ...] = (self._direct, self._mapped, self._punched, self.relays)
        return [way for way in ways if way.name in self._config.reach]

    def _detours(self) -> Detours:
        """What helps with peers that can't be dialled."""
        detours = Detours()
        if self._uses(self._punched):
            detours = replace(detours, moved=self.puncher.moved, punch=self.puncher.attempt)
        if self._uses(self.relays):
            relays = self.relays
            detours = replace(
                detours, unreached=relays.follow, offered=relays.offered, via=relays.via
            )
        return detours

    def _uses(self, way: Reach) -> bool:
        return way.name in self._config.reach

    def _make_relays(self) -> Relays:
        return Relays(
            self._network,
            self._exchange,
            clock=self._clock,
            chance=self._chance,
            log=self._log,
            needed=self._needs_relay,
            news=lambda: self.presence.announce(),
        )

    def _make_puncher(self) -> Puncher:
        return Puncher(
            self._network,
            self._identity,
            self._config.swarm,
            self._punched,
            trackers=lambda: self.presence.couriers(),
            guesses=lambda: (*self.presence.guesses(), *self.presence.addresses()),
            knows=self._would_meet,
            on_link=self._exchange.serve,
            wall=self._wall,
            log=self._log,
        )

    def _make_presence(self) -> Presence:
        return Presence(
            self._config,
            self._identity,
            self._network,
            Ways(self._direct, self._used(), self._relaying),
            Ears(self._on_call, self.relays.offered, self._moved),
            clock=self._clock,
            wall=self._wall,
            chance=self._chance,
            log=self._log,
        )

    def _make_peers(self) -> Peers:
        return Peers(
            self._network,
            self._exchange,
            clock=self._clock,
            chance=self._chance,
            answering=self.presence.answering,
            log=self._log,
            detours=self._detours(),
        )

    def _make_gossip(self) -> Gossip:
        return Gossip(
            self._identity.peer_id,
            self._config.swarm,
            self.peers,
            own=self.presence.record,
            clock=self._clock,
            chance=self._chance,
        )

    def _make_relay(self, folder: Path) -> Relay:
        return Relay(
            Shelf(folder, self._config.relay_space, self._wall),
            admits=lambda peer, swarm: swarm == self._config.swarm,
            clock=self._clock,
            wall=self._wall,
            chance=self._chance,
            log=self._log,
            limits=self._exchange.limits,
        )

    # -- life --------------------------------------------------------------------------------------

    def handlers(self) -> Handlers:
        """What we offer to who dials us."""
        beside: Handlers = {"relay": self._relay.serve} if self._relay else {}
        return {"peer": self._welcome, **beside}

    async def start(self, nursery: trio.Nursery) -> None:
        """What must be there before others come in."""
        await nursery.start(self.peers.run)
        if self._relay is not None:
            await nursery.start(self._relay.run)

    async def run(self, bound: Address, *, task_status: trio.TaskStatus[None]) -> None:
        """Meet others until cancelled; `bound` is where we listen."""
        self._mapped.bound(bound)
        self._punched.bound(bound)
        async with trio.open_nursery() as nursery:
            for part in (self._gossip, self._introducers, self.puncher):
                await nursery.start(part.run)
            await nursery.start(self.presence.run, bound, self.peers)
            if self._config.lan:
                await nursery.start(self._lan.run, bound)
            task_status.started()
            self._warn(bound)

    def _warn(self, bound: Address) -> None:
        """Say what in the settings keeps others away."""
        if not (self._config.tracker or self._config.peer or self._config.lan):
            text = "this node looks for nobody: give it a --tracker, a --peer or --lan"
            self._log("warning", f"{text}, unless others name it with --peer")
        hosts = self.presence.hosts
        if bound.host == "0.0.0.0" and hosts and all(":" in host for host in hosts):
            text = f"this machine has IPv6 addresses only: give --listen [::]:{bound.port}"
            self._log("warning", text)

    async def leave(self) -> None:
        """Tell all trackers; the caller's scope says how long at most."""
        self.relays.leave()
        await self.presence.leave()

    async def _welcome(self, link: Link) -> None:
        if not await self.presence.dialled_back(link):
            await self._exchange.serve(link)

    # -- what sessions tell ------------------------------------------------------------------------

    def met(self, session: Session) -> None:
        """A session with a peer is in use."""
        self.peers.met(session)
        self._gossip.met(session)
        self._introducers.met(session)
        self.puncher.met(session.peer)
        if not session.link.dialled:
            self.presence.came_in(session.link)

    def parted(self, session: Session) -> None:
        """It has ended."""
        self.peers.parted(session)
        self._gossip.parted(session)

    def stores(self, session: Session) -> bool:
        """Whether our models are to lie at this relay: somebody gets them in no other way."""
        alone = not self._exchange.met() or bool(self.peers.unconnected)
        return alone and self.relays.stores(session.peer)

    # -- what others ask ---------------------------------------------------------------------------

    def settled(self) -> bool:
        """Whether all who may know who there is have told, or are known not to answer."""
        return self.presence.settled() and self._introducers.settled()

    def listed(self) -> int:
        """How many other peers there should be."""
        return max(self.presence.listed(), self._gossip.listed())

    def statuses(self) -> Iterator[WayStatus]:
        """The ways in, for the screen; what we hold for others, too."""
        for way in self.presence.ways:
            if way.detail:
                yield WayStatus(way.name, way.detail)
        if self._relay is not None:
            yield WayStatus("relaying", _holding(self._relay.status))

    # -- what the parts ask of one another ---------------------------------------------------------

    def _hidden(self) -> bool:
        """Whether others can't reach us at an address of ours, as far as we know."""
        return not any(
            c.confidence >= Confidence.GIVEN and not (c.relay or is_inner(c.address.host))
            for c in self.presence.claims()
        )

    def _behind_nat(self) -> bool:
        """Whether our door is seen at a port of a NAT that has to be kept awake."""
        mapped = self._uses(self._mapped) and bool(self._mapped.claims(self._clock()))
        outside = any(not is_inner(host) for host in self.presence.hosts)
        return not (self._config.public or mapped or outside)

    def _would_meet(self, peer: str) -> bool:
        """Whether we want a connection with this peer."""
        new = peer in self.peers.known and peer not in self._exchange.sessions
        return new and not self._exchange.full

    def _needs_relay(self) -> bool:
        return self._hidden() or bool(self.peers.unconnected)

    def _relaying(self) -> bool:
        """Whether we are of use as a relay."""
        return self._relay is not None and not self._hidden()

    def _stuns(self) -> tuple[Address, ...]:
        return (*self.presence.stuns(), *self._config.stun)

    def _on_call(self, envelope: bytes) -> None:
        if self._uses(self._punched):
            self.puncher.heard(envelope)

    def _moved(self, gone: Collection[str]) -> None:
        self._exchange.drop_from(gone)
        self._lan.changed()


def _holding(relay: RelayStatus) -> str:
    taken, space = relay.taken / 1e6, relay.space / 1e6
    counted = ((relay.models, "model"), (relay.clients, "peer"))
    models, peers = (f"{n} {what}{'s' * (n != 1)}" for n, what in counted)
    return f"{models} held, {taken:,.0f} of {space:,.0f} MB, for {peers}"
