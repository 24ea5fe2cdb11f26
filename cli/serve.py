"""`p2pnode tracker serve`: a tracker on a port of this machine, until it is told to stop."""

import os
from collections.abc import Callable

import trio

from ..node.signals import ending
from ..tracker.registry import INSTANCE, Registry
from ..tracker.server import TrackerServer
from ..transport.address import Address
from ..transport.identity import Identity
from ..transport.network import TcpNetwork
from .logs import Log, Printer, to_stdout


async def serve_tracker(
    address: Address, identity: Identity, write: Callable[[bytes], object] = to_stdout
) -> None:
    """Serve until SIGINT or SIGTERM. Raises ListenError where the address can't be had."""
    log, printer = Log(), Printer(write)

    def tell(text: str) -> None:
        printer.put(log.line(text))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(printer.run)
            await nursery.start(stop_on_signal, nursery.cancel_scope)
            server = TrackerServer(Registry(os.urandom(INSTANCE)), log=tell)
            network = TcpNetwork(identity, Strangers(tell).refused)
            bound = await nursery.start(server.serve, network, address)
            tell(f"tracker {identity.peer_id}: listening on {bound}")
    finally:
        await printer.finish()


async def stop_on_signal(
    scope: trio.CancelScope, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
) -> None:
    """Cancel the scope at the first signal that ends us."""
    with trio.open_signal_receiver(*ending()) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


class Strangers:
    """Tells of connections that proved no identity: the 1st, 10th, 100th, as scanners make many."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._count = 0

    def refused(self, reason: str) -> None:
        """One more, and why."""
        self._count += 1
        if str(self._count).rstrip("0") == "1":
            plural = "" if self._count == 1 else "s"
            self._tell(f"{self._count} connection{plural} refused, the last: {reason}")
