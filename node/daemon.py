"""I/O: the one nursery that wires a node together.

`run_node` starts the parts, passes what one reports to the others that care, and ends them in
order. Training never waits for the network, and the network never for training: between them are a
slot for our newest model (training.py) and the mailbox folder (mailbox.py).
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, TypeAlias

import trio

from ..transport.address import Address
from ..transport.admission import Offered
from ..transport.exchange import Exchange
from ..transport.identity import Identity, short
from ..transport.network import TcpNetwork
from ..transport.outgoing import Held
from ..transport.pace import Limits, Pace
from ..transport.session import Session
from . import control
from .board import Board, Facts
from .config import Config
from .errors import NodeError, leaves
from .home import Home
from .mailbox import Mailbox
from .meeting import Meeting
from .signals import ending
from .start import Start
from .status import NodeStatus, printable
from .training import Training

# A view draws, or writes lines, as long as the node runs; it asks for the status when it likes.
View: TypeAlias = Callable[[Callable[[], NodeStatus]], Awaitable[None]]

# Leaving politely (trackers, peers) may take so long; with killing the worker it stays under 2 s.
LEAVE_SECONDS = 0.8


class Node:
    """One running node: the parts, and what passes between them."""

    def __init__(self, config: Config, identity: Identity, home: Home) -> None:
        self._config, self._home = config, home
        clock, wall, chance = trio.current_time, time.time, random.Random()
        folder = home.swarm_folder(config.swarm)
        self.board = Board(_facts(config, identity), clock, wall)
        self.network = TcpNetwork(identity, self.board.reject)
        self.mailbox = Mailbox(folder, identity.peer_id, config.mailbox_models)
        self.exchange = Exchange(
            identity.peer_id,
            self.mailbox,
            self,
            clock=clock,
            wall=wall,
            fan_out=config.fan_out,
            max_peers=config.max_peers,
            chance=chance,
            limits=Limits(Pace(config.up), Pace(config.down)),
        )
        self.meeting = Meeting(
            config,
            identity,
            self.network,
            self.exchange,
            home.path / "relay",
            clock=clock,
            wall=wall,
            chance=chance,
            log=self.log,
        )
        self._start = Start(config.bootstrap, self.meeting, self.exchange, self.mailbox, clock)
        self.training = Training(
            config,
            identity,
            folder,
            self.mailbox,
            self.exchange,
            self._start,
            self.board,
            clock=clock,
            wall=wall,
            log=self.log,
        )
        self._bound: Address | None = None
        self._stopping = trio.Event()

    # -- life ------------------------------------------------------------------------------------

    async def run(self, view: View) -> None:
        """Until training is done (without `--stay`) or `stop` is called."""
        async with trio.open_nursery() as viewing:
            viewing.start_soon(view, self.status)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._live, nursery)
                await self._stopping.wait()  # also while it starts: a name server may hang
                await self._leave()
                nursery.cancel_scope.cancel()
            viewing.cancel_scope.cancel()

    async def _live(self, nursery: trio.Nursery) -> None:
        await self._start_parts(nursery)
        await self.training.run()
        if self._config.stay:
            self.log("info", "serving the last model until stopped (--stay)")
        else:
            self.stop()

    async def _start_parts(self, nursery: trio.Nursery) -> None:
        """Each part is ready before the next one needs it; a taken port is told first."""
        listen = self._config.listen
        await nursery.start(self.exchange.run)
        await self.meeting.start(nursery)
        self._bound = await nursery.start(self.network.listen, listen, self.meeting.handlers())
        self.log("info", f"listening on {self._bound}")
        await nursery.start(control.serve, self._home.control_path(), self.status)
        await nursery.start(self.meeting.run, self._bound)

    def stop(self) -> bool:
        """End the node politely; False if it is ending already."""
        ending = self._stopping.is_set()
        self._stopping.set()
        return not ending

    async def _leave(self) -> None:
        """Tell trackers and peers, within LEAVE_SECONDS."""
        with trio.move_on_after(LEAVE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.meeting.leave)
                nursery.start_soon(self.exchange.leave)

    def status(self) -> NodeStatus:
        """The node at this moment."""
        presence = self.meeting.presence
        public = presence.addresses()
        return self.board.snapshot(
            public=str(public[0]) if public else "",
            listening=str(self._bound or ""),
            reachability=presence.reachability(self.board.came_in()),
            trackers=presence.statuses(),
            ways=self.meeting.statuses(),
            peers=self.meeting.peers,
            exchange=self.exchange,
            mailbox=self.mailbox,
        )

    def log(self, level: str, text: str) -> None:
        """An event for people."""
        self.board.event(level, printable(text))

    # -- Observer: what the exchange reports -----------------------------------------------------

    def met(self, session: Session) -> None:
        """A peer that trains the same run."""
        self.board.met(session)
        self.meeting.met(session)
        self.log("info", f"met {short(session.peer)} at {session.link.remote}")
        self._start.met(session)

    def parted(self, session: Session) -> None:
        """A session is over."""
        self.board.parted(session)
        self.meeting.parted(session)

    def filed(self, offered: Offered) -> None:
        """A model is in the mailbox."""
        self._start.filed()

    def delivered(self, session: Session, held: Held) -> None:
        """A peer has our model."""
        self.training.answered(session, held)

    def stores(self, session: Session) -> bool:
        """Whether our models are to lie at this relay."""
        return self.meeting.stores(session)

    def stored(self, session: Session, held: Held) -> None:
        """A relay has our model."""
        self.training.answered(session, held)
        self.meeting.relays.stored(session.peer)

    def relay_met(self, session: Session) -> None:
        """A relay is ready for use; relays.py tells of it."""

    def relay_parted(self, session: Session) -> None:
        """A session with a relay is over."""
        self.board.relay_parted(session)

    def rejected(self, reason: str, peer: str, detail: str) -> None:
        """A peer's mistake: counted and shown."""
        self.board.reject(reason)
        self.log("warning", f"rejected ({reason}) from {short(peer)}: {detail}")

    def refused(self, session: Session, reason: str, detail: str) -> None:
        """A peer, or a relay, refuses our model."""
        self.training.answered(session)
        if session.relay:
            self.meeting.relays.refused(session.peer, reason)
        self.log("warning", f"{short(session.peer)} refuses our model ({reason}): {detail}")


def _facts(config: Config, identity: Identity) -> Facts:
    return Facts(
        version("p2pnode"),
        identity.peer_id,
        config.swarm,
        config.task,
        config.shard,
        config.epochs,
        config.mailbox_models,
    )


def run_node(config: Config, identity: Identity, home: Home, view: View) -> int:
    """Run a node until it is done or stopped; gives the exit code.

    Raises NodeError and TransportError for what the user can mend (a busy port, a wrong task).
    """
    with home.lock():
        trio.run(_main, config, identity, home, view)
    return 0


async def _main(config: Config, identity: Identity, home: Home, view: View) -> None:
    node = Node(config, identity, home)
    try:
        with trio.open_signal_receiver(*ending()) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop_on_signal, signals, node, nursery.cancel_scope)
                await node.run(view)
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None


async def _stop_on_signal(signals: Any, node: Node, scope: trio.CancelScope) -> None:
    """The first signal ends the node politely, the second at once."""
    async for number in signals:
        node.log("info", f"stopping ({signal.Signals(number).name})")
        if not node.stop():
            scope.cancel()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Nurseries wrap errors in groups; people are shown the one that matters, ours first."""
    errors = list(leaves(group))
    return next((error for error in errors if isinstance(error, NodeError)), errors[0])
