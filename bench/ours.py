"""p2pnode's own way of bench/delivery.py and bench/memory.py: the parts of a node that move models.

The exchange, the mailbox and the network are the node's; what is left out is the worker and the
tracker.
"""

import random
import shutil
import time
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rivals import HOST, Meter, Place

SCHEMA = bytes(32)  # the exchange only compares it


class Watch:
    """What a node would do with the exchange's news: here only the last step counts."""

    def __init__(self) -> None:
        import trio

        self.met_one, self.filed_one, self.delivered_one = trio.Event(), trio.Event(), trio.Event()

    def met(self, _session: Any) -> None:
        """The other one is there."""
        self.met_one.set()

    def filed(self, _offered: Any) -> None:
        """It is in the mailbox."""
        self.filed_one.set()

    def delivered(self, _session: Any, _held: Any) -> None:
        """The receiver says that it has it."""
        self.delivered_one.set()

    def parted(self, session: Any) -> None:
        """The other one is gone."""

    def rejected(self, reason: str, _peer: str, detail: str) -> None:
        """Must not happen here."""
        raise RuntimeError(f"rejected: {reason}, {detail}")

    def refused(self, _session: Any, reason: str, detail: str) -> None:
        """Must not happen here."""
        raise RuntimeError(f"refused: {reason}, {detail}")


@dataclass
class Peer:
    """The parts of a node that move models."""

    place: Place
    watch: Watch = field(default_factory=Watch)
    fan_out: int = 8

    def __post_init__(self) -> None:
        import trio

        from p2pnode.node.mailbox import Mailbox
        from p2pnode.node.training import FILE_OVERHEAD
        from p2pnode.transport.exchange import Exchange, Terms
        from p2pnode.transport.identity import Identity
        from p2pnode.transport.messages import Run
        from p2pnode.transport.network import TcpNetwork

        self.identity = Identity.generate()
        me = self.identity.peer_id
        self.run = Run("bench", "bench", SCHEMA, 0, ())
        self.network = TcpNetwork(self.identity)
        self.mailbox = Mailbox(self.place.folder, me, 64)
        self.exchange = Exchange(
            me,
            self.mailbox,
            self.watch,
            clock=trio.current_time,
            wall=time.time,
            fan_out=self.fan_out,
            max_peers=50,
            chance=random.Random(1),
        )
        self.exchange.agree(Terms(self.run, self.place.size + FILE_OVERHEAD))

    async def publish(self, path: Path) -> None:
        """What a node does with a new model of its worker's: digest, sign, offer."""
        import trio

        from p2pnode.node.orders import Model
        from p2pnode.node.training import manifest_of
        from p2pnode.transport.envelope import Kind, seal

        model, older = Model(1, 1.0, path, 1, None, None, None, (), "raw"), self.mailbox.own
        make = partial(manifest_of, model, self.run, older, time.time())
        manifest = await trio.to_thread.run_sync(make)
        data = seal(self.identity, Kind.MANIFEST, manifest.to_bytes())
        self.exchange.announce(await trio.to_thread.run_sync(self.mailbox.publish, path, data))
        if older is not None:
            await trio.to_thread.run_sync(self.mailbox.discard, older.path)


def send_p2pnode(control: Connection, place: Place, port: int) -> None:
    """A node whose worker writes a new model each round."""
    import trio

    from p2pnode.transport.address import Address

    async def send() -> None:
        peer = Peer(place)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            link = await peer.network.dial(Address(HOST, port), "peer")
            nursery.start_soon(peer.exchange.serve, link)
            await peer.watch.met_one.wait()
            while number := await trio.to_thread.run_sync(control.recv):
                path = place.folder / "outbox" / f"{number}.safetensors"
                await trio.to_thread.run_sync(shutil.copyfile, place.model, path)
                meter, start = Meter(), time.monotonic()
                peer.watch.delivered_one = trio.Event()
                await peer.publish(path)
                await peer.watch.delivered_one.wait()
                control.send((start, meter.cost()))
            nursery.cancel_scope.cancel()

    trio.run(send)


def receive_p2pnode(control: Connection, place: Place) -> None:
    """A node that files what it is offered."""
    import trio

    from p2pnode.transport.address import Address

    async def receive() -> None:
        peer = Peer(place)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.exchange.run)
            listen = partial(peer.network.listen, Address(HOST, 0), {"peer": peer.exchange.serve})
            control.send((await nursery.start(listen)).port)
            while await trio.to_thread.run_sync(control.recv):
                peer.watch.filed_one = trio.Event()
                meter = Meter()
                control.send("ready")
                await peer.watch.filed_one.wait()
                control.send((time.monotonic(), meter.cost()))
            nursery.cancel_scope.cancel()

    trio.run(receive)
