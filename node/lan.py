"""I/O: find peers in the local network, and be found there, by multicast DNS (`--lan`).

lan_service.py says what nodes tell of themselves and what is believed of it, mdns.py does it, in
threads. Here those threads meet trio: services that come wait in a bounded queue to be asked where
they are, by a few askers, so that one that never answers holds up few. When this machine's
addresses change, all of it is begun anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final, Protocol

import trio

from ..transport.address import Address
from . import lan_service
from .lan_service import Service
from .listings import LAN
from .mdns import Mdns, Zeroconf

FOUND_LIMIT: Final = 256
"""Services that are looked at; no local network has more nodes, and anybody can make up more."""

ASKERS: Final = 4
"""Services that are asked at once, each for a few seconds at most."""

LOOK_SECONDS: Final = 2.0
"""How often it is looked at whether this machine's addresses have changed."""

RETRY_SECONDS: Final = 30.0
"""Where multicast isn't possible it is tried again: the network may be up by then."""

CLOSE_SECONDS: Final = 0.7
"""Saying goodbye takes a third of a second; a node has stopped after two."""


class Ear(Protocol):
    """Who is told (peers.py)."""

    def found(self, peer: str, hints: tuple[Address, ...]) -> None:
        """This peer is said to be there."""

    def lost(self, source: str, peer: str) -> None:
        """It isn't any more."""


class Lan:
    """One node in the local network; `hosts()` gives this machine's own addresses."""

    def __init__(
        self,
        me: str,
        swarm: str,
        ear: Ear,
        *,
        hosts: Callable[[], tuple[str, ...]],
        log: Callable[[str, str], None],
        mdns: Callable[[tuple[str, ...]], Mdns] = Zeroconf,
    ) -> None:
        self._me, self._swarm, self._ear = me, swarm, ear
        self._hosts, self._log, self._mdns = hosts, log, mdns
        self._peers: dict[str, str] = {}  # services that are there → other peers' IDs, or ""
        self._wake = trio.Event()
        self._trouble = ""

    async def run(
        self, bound: Address, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Be found and find until cancelled; then others are told that we are gone."""
        task_status.started()
        while True:
            self._wake = trio.Event()
            service = self._service(bound)
            async with trio.open_nursery() as nursery:
                if service is not None:
                    nursery.start_soon(self._keep, service)
                await self._change(bound, service)
                nursery.cancel_scope.cancel()

    def changed(self) -> None:
        """The network has changed: begin anew."""
        self._wake.set()

    def _service(self, bound: Address) -> Service | None:
        return lan_service.own(self._me, self._swarm, bound, self._hosts())

    async def _change(self, bound: Address, service: Service | None) -> None:
        """Until this machine has other addresses."""
        while not self._wake.is_set() and self._service(bound) == service:
            with trio.move_on_after(LOOK_SECONDS):
                await self._wake.wait()

    # -- taking part -------------------------------------------------------------------------------

    async def _keep(self, service: Service) -> None:
        """Take part, as soon as that is possible."""
        while True:
            try:
                await self._take_part(service)
            except OSError as error:
                self._tell(error.strerror or str(error))
            await trio.sleep(RETRY_SECONDS)

    def _tell(self, trouble: str) -> None:
        """Say once why it isn't possible."""
        if trouble != self._trouble:
            self._log("warning", f"no peers can be found in the local network (--lan): {trouble}")
        self._trouble = trouble

    async def _take_part(self, service: Service) -> None:
        """Until cancelled; raises OSError where it isn't possible."""
        mdns = await trio.to_thread.run_sync(self._mdns, service.hosts)
        send, receive = trio.open_memory_channel[str](FOUND_LIMIT)
        try:
            with send, receive:
                await trio.to_thread.run_sync(mdns.browse, self._tell_soon(send))
                # Who cancels doesn't wait until all have been told: `close` takes it back.
                await trio.to_thread.run_sync(mdns.register, service, abandon_on_cancel=True)
                self._trouble = ""
                async with trio.open_nursery() as nursery:
                    for _ in range(ASKERS):
                        nursery.start_soon(self._ask, mdns, receive)
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await trio.to_thread.run_sync(mdns.close, abandon_on_cancel=True)
            for name in list(self._peers):
                self._gone(name)

    def _tell_soon(self, waiting: trio.MemorySendChannel[str]) -> Callable[[str, bool], None]:
        """What threads may call."""
        token = trio.lowlevel.current_trio_token()

        def tell(name: str, there: bool) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._told, waiting, name, there)

        return tell

    async def _ask(self, mdns: Mdns, names: trio.MemoryReceiveChannel[str]) -> None:
        async for name in names:
            service = await trio.to_thread.run_sync(mdns.resolve, name, abandon_on_cancel=True)
            if service is not None and name in self._peers:
                self._answered(name, service)

    # -- what is there -----------------------------------------------------------------------------

    def _told(self, waiting: trio.MemorySendChannel[str], name: str, there: bool) -> None:
        """A service came, changed, or went."""
        if not there:
            self._gone(name)
        elif name in self._peers or len(self._peers) < FOUND_LIMIT:
            # So many as don't fit can only be made up; and we may just be ending.
            with contextlib.suppress(trio.WouldBlock, trio.ClosedResourceError):
                waiting.send_nowait(name)
                self._peers.setdefault(name, "")

    def _answered(self, name: str, service: Service) -> None:
        peer, hints = lan_service.read(service, self._swarm) or ("", ())
        peer = "" if peer == self._me else peer
        if peer != self._peers[name]:
            self._gone(name)
        self._peers[name] = peer
        if peer:
            self._ear.found(peer, hints)

    def _gone(self, name: str) -> None:
        peer = self._peers.pop(name, "")
        if peer and peer not in self._peers.values():
            self._ear.lost(LAN, peer)
