"""`p2pnode tracker serve`: a tracker on a port of this machine, until it is told to stop.

A relay listens at the tracker's port, too; a STUN server has a port of its own.
"""

import os
import random
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from ..node.signals import ending
from ..tracker.registry import INSTANCE, Registry
from ..tracker.server import TrackerServer
from ..transport.address import Address
from ..transport.identity import Identity
from ..transport.link import Handlers
from ..transport.network import TcpNetwork
from ..transport.relay import Relay
from ..transport.shelf import Shelf
from .logs import Log, Printer, to_stdout

OPEN_FILES: Final = 4096
"""Descriptors: 900 links, 256 clients of a relay that each read some models, 128 STUN connections
and as many strangers are more than the 1024 that a process usually has."""


@dataclass(frozen=True, slots=True)
class Services:
    """What a tracker serves: `relay` is the folder of the models that it holds, in so many bytes;
    either may be None."""

    address: Address
    stun: Address | None = None
    relay: Path | None = None
    space: int = 0


async def serve_tracker(
    services: Services, identity: Identity, write: Callable[[bytes], object] = to_stdout
) -> None:
    """Serve until SIGINT or SIGTERM. Raises ListenError where an address can't be had."""
    take_open_files()
    log, printer = Log(), Printer(write)

    def tell(text: str) -> None:
        printer.put(log.line(text))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(printer.run)
            await nursery.start(stop_on_signal, nursery.cancel_scope)
            await _start(services, identity, tell, nursery)
    finally:
        await printer.finish()


def take_open_files() -> None:
    """Let this process have OPEN_FILES, or as many of them as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _start(
    services: Services, identity: Identity, tell: Callable[[str], None], nursery: trio.Nursery
) -> None:
    """Start all services; each is ready before the next one begins, and the tracker is the last."""
    registry = Registry(os.urandom(INSTANCE))
    beside: Handlers = {}
    stun = 0
    if services.stun is not None:
        from ..transport.nat import stun_server

        bound = await nursery.start(stun_server.serve, services.stun)
        stun = bound.port
        tell(f"STUN: listening on {bound}")
    if services.relay is not None:
        relay = _relay(services.relay, services.space, registry, tell)
        await nursery.start(relay.run)
        beside = {"relay": relay.serve}
        tell(f"relay: models lie in {services.relay}")
    server = TrackerServer(
        registry, relay=services.relay is not None, stun=stun, wall=time.time, log=tell
    )
    network = TcpNetwork(identity, Strangers(tell).refused)
    serve = partial(server.serve, beside=beside)
    bound = await nursery.start(serve, network, services.address)
    tell(f"tracker {identity.peer_id}: listening on {bound}")


def _relay(folder: Path, space: int, registry: Registry, tell: Callable[[str], None]) -> Relay:
    """A relay for the members of the registry's swarms."""
    return Relay(
        Shelf(folder, space, time.time),
        admits=lambda peer, swarm: registry.lists(swarm, peer),
        clock=trio.current_time,
        wall=time.time,
        chance=random.Random(),
        log=lambda level, text: tell(text),
    )


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
