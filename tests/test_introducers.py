"""`--peer`: any member's address is a way into the swarm.

Real exchanges and sessions over the in-memory network, in virtual time.
"""

from __future__ import annotations

import random
from typing import Any

import trio
from stations import Station, stage

from lab import Lab
from p2pnode.node.introducers import DIAL_SECONDS, RETRY_FIRST, RETRY_MOST, Introducers
from p2pnode.transport.address import Address
from p2pnode.transport.link import Link
from p2pnode.transport.session import Session

HOUR = 3600.0


class Joiner(Station):
    """A station that may be given addresses; no tracker is there."""

    introducers: Introducers | None = None

    async def join(self, *addresses: Address) -> Introducers:
        """Dial these addresses from now on."""
        self.answering = set()
        self.introducers = Introducers(
            self.wire,
            self.exchange,
            addresses,
            clock=trio.current_time,
            chance=random.Random(1),
            log=lambda _level, line: self.lines.append(line),
        )
        await self._nursery.start(self.introducers.run)
        return self.introducers

    def met(self, session: Session) -> None:
        super().met(session)
        if self.introducers:
            self.introducers.met(session)

    def forget_all(self) -> None:
        """What peers.py would do in half a minute."""
        for peer in list(self.peers.known):
            self.peers._forget(peer, "for the test")


def join(check: Any, count: int = 2, **options: Any) -> None:
    """Run a check with so many joiners."""
    stage(check, count, kind=Joiner, **options)


def test_whoever_is_there_will_do() -> None:
    """An address is dialled without a peer ID until there is somebody, less often each time."""

    async def check(_lab: Lab, alice: Joiner, bob: Joiner) -> None:
        door = await alice.join(bob.address)
        assert not door.settled()
        await trio.sleep(300)
        assert door.settled()
        assert alice.waits[0] < 3 * RETRY_FIRST
        assert RETRY_MOST / 2 <= alice.waits[-1] <= RETRY_MOST
        assert len(alice.lines) == 1
        assert alice.lines == ["--peer 10.0.0.2:6000: connection refused"]
        await bob.listen()
        await trio.sleep(RETRY_MOST)
        assert alice.state_of(bob) == bob.state_of(alice) == "connected"
        dials = len(alice.wire.dials)
        await trio.sleep(HOUR)
        assert len(alice.wire.dials) == dials

    join(check)


def test_an_address_that_swallows_everything() -> None:
    """It is given up after a while, and said once."""

    async def check(_lab: Lab, alice: Joiner) -> None:
        alice.wire.holes.add("10.0.0.98")
        door = await alice.join(Address("10.0.0.98", 6000))
        await trio.sleep(DIAL_SECONDS + 0.1)
        assert door.settled()
        await trio.sleep(100)
        assert len(alice.lines) == 1
        assert "no answer in 5 s" in alice.lines[0]

    join(check, 1)


def test_our_own_address_is_left_alone() -> None:
    """The same --peer may be given to all nodes."""

    async def check(_lab: Lab, alice: Joiner) -> None:
        await alice.listen()
        door = await alice.join(alice.address)
        await trio.sleep(HOUR)
        assert len(alice.wire.dials) == 1
        assert door.settled()
        assert alice.lines == ["--peer 10.0.0.1:6000: this is our own address"]

    join(check, 1)


def test_it_is_dialled_again_when_nobody_is_left() -> None:
    """After an outage that lost everybody; not while there is anybody."""

    async def check(lab: Lab, alice: Joiner, bob: Joiner, carol: Joiner) -> None:
        await bob.listen()
        await carol.listen()
        await alice.join(bob.address)
        await trio.sleep(1)
        alice.hear_of(carol)
        await trio.sleep(1)
        alice.peers._forget(bob.peer, "for the test")
        dials = len(alice.wire.dials)
        bob.exchange.sessions[alice.peer].close("for the test")
        await trio.sleep(HOUR)
        assert len(alice.wire.dials) == dials
        assert bob.state_of(alice) != "connected"
        with lab.cut(alice.address.host):
            alice.forget_all()
            await trio.sleep(100)
        await trio.sleep(RETRY_MOST)
        assert alice.state_of(bob) == "connected"

    join(check, 3)


def test_a_member_that_is_met_already() -> None:
    """A peer that dialled us, or that we know under another address, isn't dialled time and
    again."""

    async def check(lab: Lab, alice: Joiner, bob: Joiner) -> None:
        await alice.listen()
        await bob.listen()
        other = Address("10.0.0.22", 6000)
        lab.listeners[other] = lab.listeners[bob.address]
        bob.hear_of(alice)
        await trio.sleep(5)
        await alice.join(bob.address, other)
        await trio.sleep(HOUR)
        assert len(alice.wire.dials) < 5
        assert alice.state_of(bob) == bob.state_of(alice) == "connected"
        assert len(lab.links) == 2  # the two ends

    join(check)


def test_another_run_is_no_way_in() -> None:
    """Somebody who trains something else is tried again, but seldom."""

    async def check(_lab: Lab, alice: Joiner, bob: Joiner) -> None:
        await bob.listen()
        door = await alice.join(bob.address)
        await trio.sleep(HOUR)
        assert door.settled()
        assert HOUR / RETRY_MOST / 2 < len(alice.wire.dials) < 3 * HOUR / RETRY_MOST

    join(check, schemas=[bytes(32), b"\1" * 32])


def test_the_wrong_kind_of_address() -> None:
    """A tracker's address given as a peer's is said to be one."""

    async def check(lab: Lab, alice: Joiner, bob: Joiner) -> None:
        async def serve(link: Link) -> None:
            await trio.sleep_forever()

        await bob._nursery.start(_as_tracker, bob, serve)
        await alice.join(bob.address)
        await trio.sleep(10)
        assert len(alice.lines) == 1
        assert "the other end is a tracker, not a peer" in alice.lines[0]

    join(check)


async def _as_tracker(station: Joiner, handler: Any, *, task_status: Any) -> None:
    await station.wire.listen(station.address, {"tracker": handler}, task_status=task_status)


def test_nobody_is_dialled_without_room() -> None:
    """A node that has all the peers it may have looks for no more."""

    async def check(_lab: Lab, alice: Joiner, bob: Joiner) -> None:
        await bob.listen()
        alice.exchange._max_peers = 0
        await alice.join(bob.address)
        await trio.sleep(100)
        assert not alice.wire.dials

    join(check)
