"""The processes of bench/relay.py: a relay, authors, a receiver, and members that use relays.

Each is told through `control` what to do, and answers there. Times are Unix seconds by the clock of
this machine, which all of them share.
"""

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import trio

from p2pnode.node.mailbox import Mailbox
from p2pnode.node.orders import Model
from p2pnode.node.relays import Relays
from p2pnode.node.training import FILE_OVERHEAD, manifest_of
from p2pnode.transport.address import Address
from p2pnode.transport.admission import STALE
from p2pnode.transport.envelope import Kind, peek, seal
from p2pnode.transport.exchange import Exchange, Terms
from p2pnode.transport.identity import Identity
from p2pnode.transport.messages import Run
from p2pnode.transport.network import TcpNetwork
from p2pnode.transport.outgoing import Held
from p2pnode.transport.pace import Limits
from p2pnode.transport.peer_address import PeerAddress
from p2pnode.transport.relay import Relay
from p2pnode.transport.shelf import SHARE, Shelf

HOST = "127.0.0.1"
RUN = Run("bench", "bench", bytes(32), 0, ())
# Files in the mailbox of who receives: more than there are authors.
MODELS = 64
ANYWHERE = Address(HOST, 0)


def pss(pid: str = "self") -> int:
    """Bytes of memory of a process; a page that several processes share counts in parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


async def told(control: Connection) -> Any:
    """What we are told next; a thread waits for it."""
    return await trio.to_thread.run_sync(control.recv, abandon_on_cancel=True)


def log(_level: str, _text: str) -> None:
    """Nobody reads it."""


# ── a relay ──────────────────────────────────────────────────────────────────────────────────


def relay(control: Connection, folder: Path, space: int) -> None:
    """A relay as a tracker or node runs it; answers whatever it is told with its PSS."""

    async def serve() -> None:
        identity = Identity.generate()
        shelf = Shelf(folder, max(space, SHARE << 20), time.time)
        made = Relay(
            shelf,
            admits=lambda peer, swarm: True,
            clock=trio.current_time,
            wall=time.time,
            chance=random.Random(1),
            log=log,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(made.run)
            listen = partial(TcpNetwork(identity).listen, ANYWHERE, {"relay": made.serve})
            bound = await nursery.start(listen)
            control.send(str(PeerAddress(identity.peer_id, bound)))
            while await told(control):
                control.send(pss())
            nursery.cancel_scope.cancel()

    trio.run(serve)


# ── peers ────────────────────────────────────────────────────────────────────────────────────


class Own:
    """A library with nothing but our own newest model: an author's."""

    def __init__(self) -> None:
        self.model: Held | None = None

    def newest(self, _peer: str) -> int:
        """We have whatever a relay offers, as it does to all who are there."""
        return 1 << 63

    def held(self) -> list[Held]:
        """What we serve."""
        return [self.model] if self.model else []

    def part(self, offered: Any) -> Any:
        """Nothing comes in."""
        raise OSError("an author takes no models")

    file = part


@dataclass
class Peer:
    """The parts of a node that move models; what the exchange reports sets an event, or is sent."""

    library: Any
    size: int
    on_filed: Callable[[Any], None] = lambda offered: None
    identity: Identity = field(default_factory=Identity.generate)
    fan_out: int = 8
    limits: Limits | None = None
    ready: trio.Event = field(default_factory=trio.Event)
    at_relay: trio.Event = field(default_factory=trio.Event)
    relays: Relays | None = None

    def __post_init__(self) -> None:
        self.network = TcpNetwork(self.identity)
        self.exchange = Exchange(
            self.identity.peer_id,
            self.library,
            self,
            clock=trio.current_time,
            wall=time.time,
            fan_out=self.fan_out,
            max_peers=50,
            chance=random.Random(),
            limits=self.limits,
        )
        self.exchange.agree(Terms(RUN, self.size + FILE_OVERHEAD))

    async def connect(self, place: PeerAddress, service: Any, nursery: trio.Nursery) -> None:
        """A session with a peer or a relay, ready for use."""
        await nursery.start(self.exchange.run)
        link = await self.network.dial(place.address, service, place.peer)
        serve: Callable[[Any], Awaitable[Any]] = self.exchange.serve
        nursery.start_soon(self.exchange.serve_relay if service == "relay" else serve, link)
        await self.ready.wait()

    async def publish(self, path: Path) -> None:
        """What a node does with a new model of its worker's: digest, sign, offer."""
        older = self.library.model
        model = Model(1, 1.0, path, 1, None, None, None, (), "raw")
        make = partial(manifest_of, model, RUN, older, time.time())
        manifest = await trio.to_thread.run_sync(make)
        data = seal(self.identity, Kind.MANIFEST, manifest.to_bytes())
        held = Held(data, peek(data).id, self.identity.peer_id, manifest, path)
        self.library.model = held
        self.exchange.announce(held)

    # -- Observer --------------------------------------------------------------------------------

    def met(self, _session: Any) -> None:
        """The other one is there."""
        self.ready.set()

    relay_met = met

    def stores(self, session: Any) -> bool:
        """Our models lie at our relay."""
        return self.relays is None or self.relays.stores(session.peer)

    def stored(self, _session: Any, _held: Any) -> None:
        """Our model lies there."""
        self.at_relay.set()

    def filed(self, offered: Any) -> None:
        """A model is in the mailbox."""
        self.on_filed(offered)

    def parted(self, _session: Any) -> None:
        """The other one is gone."""

    relay_parted = parted

    def delivered(self, _session: Any, _held: Any) -> None:
        """The receiver says that it has it."""

    def rejected(self, reason: str, _peer: str, detail: str) -> None:
        """Must not happen here, but to who wants no models."""
        if reason != STALE:
            raise RuntimeError(f"rejected: {reason}, {detail}")

    def refused(self, _session: Any, reason: str, detail: str) -> None:
        """Must not happen here."""
        raise RuntimeError(f"refused: {reason}, {detail}")


# ── throughput ───────────────────────────────────────────────────────────────────────────────


def authors(control: Connection, model: Path, place: str, service: str, count: int) -> None:
    """So many authors, each with a session of its own. They publish when they are told (who, or
    all), and the file is the same for all: only its signature differs."""

    async def main() -> None:
        peers = [Peer(Own(), model.stat().st_size) for _ in range(count)]
        by_id = {peer.identity.peer_id: peer for peer in peers}
        async with trio.open_nursery() as nursery:
            for peer in peers:
                await peer.connect(PeerAddress.parse(place), service, nursery)
            control.send(list(by_id))
            while who := await told(control):
                nursery.start_soon(by_id[who].publish, model)
            nursery.cancel_scope.cancel()

    trio.run(main)


def receiver(control: Connection, folder: Path, place: str, size: int) -> None:
    """Files what it is offered, and tells whose that was, and when; at a relay, or (without a
    place) at its own door, where it is told of."""

    async def main() -> None:
        def filed(offered: Any) -> None:
            control.send((offered.envelope.peer_id, time.time()))

        identity = Identity.generate()
        mailbox = Mailbox(folder, identity.peer_id, MODELS)
        peer = Peer(mailbox, size, filed, identity)
        async with trio.open_nursery() as nursery:
            if place:
                await peer.connect(PeerAddress.parse(place), "relay", nursery)
                control.send("")
            else:
                await nursery.start(peer.exchange.run)
                handlers: Any = {"peer": peer.exchange.serve}
                bound = await nursery.start(peer.network.listen, ANYWHERE, handlers)
                control.send(str(PeerAddress(identity.peer_id, bound)))
            await told(control)
            nursery.cancel_scope.cancel()

    trio.run(main)


# ── memory ───────────────────────────────────────────────────────────────────────────────────


def fill(control: Connection, model: Path, place: str) -> None:
    """So many authors as it is told, one after the other, store a model and go."""

    async def store() -> None:
        peer = Peer(Own(), model.stat().st_size)
        async with trio.open_nursery() as nursery:
            await peer.connect(PeerAddress.parse(place), "relay", nursery)
            await peer.publish(model)
            await peer.at_relay.wait()
            nursery.cancel_scope.cancel()

    while count := control.recv():
        for _ in range(count):
            trio.run(store)
        control.send("stored")


# ── a lost relay ─────────────────────────────────────────────────────────────────────────────


def member(control: Connection, folder: Path, model: Path, pause: float) -> None:
    """A node that nobody reaches: it has a home relay, and follows another member.

    It is told ("offer", places) and ("follow", peer, places), and tells ("home", places) and
    ("filed", when it was published, when it came). With a pause it publishes so often.
    """

    async def main() -> None:
        def filed(offered: Any) -> None:
            control.send(("filed", offered.manifest.created, time.time()))

        def news() -> None:
            home = relays.home
            control.send(("home", [str(home)] if home else []))

        identity = Identity.generate()
        library: Any = Own() if pause else Mailbox(folder, identity.peer_id, MODELS)
        peer = Peer(library, model.stat().st_size, filed, identity)
        relays = peer.relays = Relays(
            peer.network,
            peer.exchange,
            clock=trio.current_time,
            chance=random.Random(),
            log=log,
            needed=lambda: True,
            news=news,
        )
        control.send(identity.peer_id)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            await nursery.start(relays.run)
            if pause:
                nursery.start_soon(publish, peer)
            while order := await told(control):
                what, *arguments, places = order
                who = arguments[0] if arguments else "bench"
                tell = relays.follow if what == "follow" else relays.offered
                tell(who, tuple(map(PeerAddress.parse, places)))
            nursery.cancel_scope.cancel()

    async def publish(peer: Peer) -> None:
        while True:
            await peer.publish(model)
            await trio.sleep(pause)

    trio.run(main)
