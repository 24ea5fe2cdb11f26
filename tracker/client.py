"""I/O: a peer's lasting contact with one tracker.

Strategy: dial, announce, watch, and when anything at all goes wrong: say so in `state`, wait a
little longer each time, begin again. On a link three tasks work: one reads answers and hands each
to the task that asked, one announces, one watches. The first of them that fails ends the link.
What is known of the swarm (follower.py) outlives the link.

Nothing a tracker does raises here: the swarm goes on without it.
"""

import math
import random
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final

import trio

from ..transport.address import Address
from ..transport.errors import LinkClosed, TransportError
from ..transport.link import Network
from ..transport.peer_address import PeerAddress
from .checks import price
from .contact import REPLY_SECONDS, Contact
from .errors import TrackerError
from .follower import Follower, Owner
from .protocol import (
    Announce,
    Bye,
    Call,
    Called,
    Leave,
    Welcome,
)
from .record import PeerRecord
from .state import Backoff, Status, TrackerState, reason
from .verdict import DIALBACK_SECONDS, PAYMENT, DialBack, Verdict

DIAL_SECONDS: Final = 10.0
"""A connection and a handshake take three round trips; who needs longer is overloaded."""

ANNOUNCES: Final = 3
"""Announces in a TTL: two may be lost."""


def _quiet(_line: str) -> None:
    """Log nothing."""


def _unheard(_call: bytes) -> None:
    """Heed no call."""


class TrackerClient:
    """Keeps one tracker informed about this peer, and this peer about its swarm.

    `peer` is the own peer ID; `wall` is compared with the tracker's clock; `log` gets a line
    whenever the contact comes or goes.
    """

    def __init__(
        self,
        network: Network,
        address: Address,
        *,
        swarm: str,
        peer: str,
        rng: random.Random,
        wall: Callable[[], float] = time.time,
        log: Callable[[str], None] = _quiet,
    ) -> None:
        self._network = network
        self._address = address
        self._wall, self._log = wall, log
        self._backoff = Backoff(rng)
        self._follower = Follower(swarm, peer)
        self._status: Status = "connecting"
        self._detail = "connecting"
        self._why = ""
        self._welcome: Welcome | None = None  # the last one
        self._skew: float | None = None
        self._contact: Contact | None = None
        self.tracker = ""  # its peer ID, once there has been a contact
        self._due = trio.Event()
        self._leaving = False
        self._running = trio.CancelScope()
        self._trying = trio.CancelScope()

    @property
    def state(self) -> TrackerState:
        """The contact as it is now."""
        last, host = self._welcome, self._address.host
        return TrackerState(
            address=self._address,
            status=self._status,
            detail=self._detail,
            peers=len(self._follower.roster),
            listed=self._follower.listed,
            seen=last.seen if last else None,
            rejects=self._follower.roster.rejects,
            relay=PeerAddress(self.tracker, self._address) if last and last.relay else None,
            stun=Address(host, last.stun) if last and last.stun else None,
            skew=self._skew,
        )

    def refresh(self) -> None:
        """Announce a new record now, not only at the next third of the TTL."""
        self._due.set()

    def moved(self, gone: Collection[str]) -> None:
        """The machine has other addresses now, and these no more: dial anew.

        A contact from an address that is still there goes on.
        """
        if self._contact is None or self._contact.local.host in gone:
            self._backoff.reset()
            self._welcome = None  # where we were seen is past
            self._trying.cancel()

    async def dial_back(self, address: Address, nonce: bytes) -> str:
        """Let the tracker dial one of our announced addresses: the protocol.Outcome, as a word.

        Raises Refused (also by an older tracker, with MALFORMED), Silent, LinkClosed.
        """
        contact, seen = self._welcomed(), self.state.seen
        payment = bytes(PAYMENT if seen and price(address.host, seen.host) else 0)
        ask = partial(DialBack, address=address, nonce=nonce, payment=payment)
        return (await contact.try_ask(ask, Verdict, DIALBACK_SECONDS + REPLY_SECONDS)).outcome

    async def call(self, peer: str, envelope: bytes) -> None:
        """Let the tracker hand a call, of 1 to CALL_LIMIT bytes, to a peer of the swarm.

        Raises Refused (ABSENT, TOO_OFTEN; MALFORMED by an older tracker), Silent, LinkClosed.
        """
        ask = partial(Call, peer=peer, envelope=envelope)
        await self._welcomed().try_ask(ask, Called, REPLY_SECONDS)

    def knows(self, peer: str) -> bool:
        """Whether the tracker lists this peer, and a call to it can be tried."""
        return self._status == "connected" and peer in self._follower.roster

    def _welcomed(self) -> Contact:
        """The contact on which this peer is announced. Raises LinkClosed."""
        if self._contact is None or self._status != "connected":
            raise LinkClosed
        return self._contact

    async def run(
        self,
        records: Callable[[], bytes],
        on_joined: Callable[[str, PeerRecord], None],
        on_left: Callable[[str], None],
        on_call: Callable[[bytes], None] = _unheard,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep the contact until cancelled or after `leave`; call once.

        `records()` gives a freshly sealed record with a higher seq each time. `on_joined(peer ID,
        record)` comes for a new peer and again when its ways in change, `on_left(peer ID)` when the
        tracker says so, `on_call(envelope)` for what a peer has to say, as it came, whoever it is
        from; they return at once.
        """
        task_status.started()
        owner = Owner(records, on_joined, on_left, on_call)
        with self._running:
            while True:
                with trio.CancelScope() as self._trying:
                    why = await self._visit(owner)
                    wait = self._backoff.wait()
                    text = f"unreachable, next try in {math.ceil(wait)} s: {why}"
                    self._turn("unreachable", text, why)
                    await trio.sleep(wait)
                if self._trying.cancelled_caught:
                    self._turn("connecting", "connecting: this machine's addresses have changed")

    async def leave(self) -> None:
        """Tell the tracker that this peer goes, if there is a contact, and end `run`.

        Waits for the answer; the caller's cancel scope says how long at most.
        """
        self._leaving = True
        try:
            if self._contact is not None:
                await self._contact.ask(Leave, Bye, REPLY_SECONDS)
        except (TransportError, TrackerError):
            pass  # it will forget us when the TTL is over
        finally:
            self._running.cancel()

    async def _visit(self, owner: Owner) -> str:
        """One contact, from dialling to its end: why it ended."""
        try:
            with trio.fail_after(DIAL_SECONDS):
                link = await self._network.dial(self._address, "tracker")
        except trio.TooSlowError:
            return f"no connection in {DIAL_SECONDS:.0f} s"
        except (TransportError, OSError) as error:
            return reason(error, self._address)
        try:
            self.tracker = link.peer
            return await self._keep(Contact(link), owner)
        finally:
            self._contact = None
            await link.aclose()

    async def _keep(self, contact: Contact, owner: Owner) -> str:
        """Announce and watch until the first failure: what it was."""
        self._contact = contact
        welcomed = trio.Event()
        failures: list[str] = []
        async with trio.open_nursery() as nursery:

            async def part(work: Callable[..., Awaitable[None]], *args: object) -> None:
                try:
                    await work(*args)
                except (TransportError, TrackerError) as error:
                    failures.append(reason(error, self._address))
                    nursery.cancel_scope.cancel()

            nursery.start_soon(part, contact.listen)
            nursery.start_soon(part, self._announce, contact, owner, welcomed)
            await welcomed.wait()
            nursery.start_soon(part, self._follower.follow, contact, owner)
        return failures[0]

    async def _announce(self, contact: Contact, owner: Owner, welcomed: trio.Event) -> None:
        """Tell the tracker where we are, three times a TTL and whenever something changed."""
        while not self._leaving:
            self._due = trio.Event()
            announce = partial(Announce, envelope=owner.records())
            asked = trio.current_time()
            welcome = await contact.ask(announce, Welcome, REPLY_SECONDS)
            self._on_welcome(welcome, trio.current_time() - asked)
            welcomed.set()
            with trio.move_on_after(welcome.ttl / ANNOUNCES):
                await self._due.wait()

    def _on_welcome(self, welcome: Welcome, round_trip: float) -> None:
        self._backoff.reset()
        self._welcome = welcome
        told = self._wall() - round_trip / 2  # our time when the tracker looked at its clock
        self._skew = welcome.time - told if welcome.time is not None else None
        self._follower.allow(welcome.ttl)
        self._turn("connected", f"connected, seen as {welcome.seen}")

    def _turn(self, status: Status, detail: str, why: str = "") -> None:
        """Show a new state; say it once, not at every try that ends alike."""
        news = (status, why) != (self._status, self._why)
        self._status, self._detail, self._why = status, detail, why
        if news:
            self._log(f"tracker {self._address}: {detail}")
