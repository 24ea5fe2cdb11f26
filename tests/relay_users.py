"""A node as far as relays matter, and relays of the test's own, over the in-memory network.

The relays say hello and hold nothing, or misbehave. The client's exchange and sessions are real.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import trio
from fellows import Fellow

from lab import Lab, LabLink, LabNetwork, identity
from p2pnode.node.relays import Relays
from p2pnode.transport import admission, messages
from p2pnode.transport.address import Address
from p2pnode.transport.link import Link, Service
from p2pnode.transport.messages import RELAY_RUN, Done, Hello, Offer, Ping, Pong, Reject
from p2pnode.transport.outgoing import Held
from p2pnode.transport.peer_address import PeerAddress
from p2pnode.transport.session import Session

PORT = 6000


@dataclass
class Line:
    """Our network: some hosts are far away; what is dialled is noted."""

    network: LabNetwork
    far: dict[str, float] = field(default_factory=dict)  # seconds until connected
    dials: list[tuple[float, str]] = field(default_factory=list)

    async def dial(self, address: Address, service: Service, expect: str | None = None) -> LabLink:
        assert service == "relay"
        assert expect is not None
        self.dials.append((trio.current_time(), address.host))
        await trio.sleep(self.far.get(address.host, 0.0))
        return await self.network.dial(address, service, expect)

    async def listen(self, *arguments: Any, **named: Any) -> None:
        await self.network.listen(*arguments, **named)

    async def punch(self, *arguments: Any, **named: Any) -> LabLink:
        raise AssertionError("relays are dialled")


class Relay:
    """A relay of the test's own: who is with it, and what it does wrong."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.key, self.host = identity(number), f"10.0.1.{number}"
        self.place = PeerAddress(self.key.peer_id, Address(self.host, PORT))
        self._network = lab.network(self.key, self.host)
        self.mute = False  # says nothing
        self.refuses = ""  # models, for this reason
        self.offered: list[str] = []  # by whom
        self.patience = float("inf")  # seconds until it hangs up
        self.clients: list[str] = []
        self.scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[Any]) -> None:
        """Until it is killed."""
        with self.scope:
            where = self.place.address
            await self._network.listen(where, {"relay": self._serve}, task_status=task_status)

    async def _serve(self, link: Link) -> None:
        self.clients.append(link.peer)
        try:
            with trio.move_on_after(self.patience):
                await self._talk(link)
        finally:
            self.clients.remove(link.peer)

    async def _talk(self, link: Link) -> None:
        if not self.mute:
            await link.send(messages.to_bytes(Hello(RELAY_RUN, 0)))
        while True:
            message = messages.from_bytes(await link.receive())
            if isinstance(message, Ping) and not self.mute:
                await link.send(messages.to_bytes(Pong(message.number)))
            if isinstance(message, Offer):
                self.offered.append(link.peer)
                await link.send(
                    messages.to_bytes(self._answer(admission.identify(message.envelope)))
                )

    def _answer(self, model: bytes) -> Done | Reject:
        return Reject(model, self.refuses, "no") if self.refuses else Done(model)


class Client(Fellow):
    """A node, as far as relays matter."""

    def prepare(self, line: Line) -> None:
        """Its relays, that don't run."""
        self.line, self.lines, self.needs = line, list[str](), True
        self.announced: list[PeerAddress | None] = []
        self._followers: list[Client] = []
        self.relays = Relays(
            line,
            self.exchange,
            clock=trio.current_time,
            chance=random.Random(self.number),
            log=lambda level, text: self.lines.append(f"{level}: {text}"),
            needed=lambda: self.needs,
            news=self._changed_home,
        )

    def stores(self, session: Session) -> bool:
        return self.relays.stores(session.peer)

    def stored(self, session: Session, held: Held) -> None:
        super().stored(session, held)
        self.relays.stored(session.peer)

    def refused(self, session: Session, reason: str, detail: str) -> None:
        super().refused(session, reason, detail)
        self.relays.refused(session.peer, reason)

    def tells(self, other: Client) -> None:
        """From now on the other one knows where our models lie, as if a tracker told of it."""
        self._followers.append(other)

    def _changed_home(self) -> None:
        home = self.relays.home
        self.announced.append(home)
        for other in self._followers:
            other.relays.follow(self.me, (home,) if home else ())

    @property
    def dialled(self) -> list[str]:
        """Hosts, in order."""
        return [host for _, host in self.line.dials]
