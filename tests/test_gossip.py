"""Peers tell each other whom they are connected with: a swarm without a tracker hangs together.

Real exchanges and sessions over the in-memory network, in virtual time.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import trio
from stations import ALICE, BOB, CAROL, TRACKER, Station, stage

from lab import Lab, identity
from p2pnode.node import gossip as module
from p2pnode.node.gossip import LISTED_LIMIT, MOVE_SECONDS, TELL_SECONDS, Gossip
from p2pnode.node.listings import member
from p2pnode.node.peers import FORGET_SECONDS
from p2pnode.tracker.record import PeerRecord
from p2pnode.transport import messages
from p2pnode.transport.address import Address
from p2pnode.transport.envelope import Kind, seal
from p2pnode.transport.messages import Bye, Hello, Peers, Ping, Pong, Run
from p2pnode.transport.peer_address import PeerAddress
from p2pnode.transport.session import TELLINGS_BURST, Session

RUN = Run("main", "mnist", bytes(32), 1, ())
DAVE = identity(4).peer_id


def sealed(number: int, seq: int = 1, *, swarm: str = "main", **more: Any) -> bytes:
    """A signed record of peer `number`."""
    fields: dict[str, Any] = {"addresses": (Address(f"10.0.0.{number}", 6000),)} | more
    record = PeerRecord(swarm=swarm, seq=seq, created=0.0, **fields)
    return seal(identity(number), Kind.PEER_RECORD, record.to_bytes())


class Talker(Station):
    """A station that tells, and counts what it is told; no tracker is there."""

    def __init__(self, lab: Lab, number: int, nursery: trio.Nursery, schema: bytes) -> None:
        super().__init__(lab, number, nursery, schema)
        self.number, self.answering = number, set()
        self.heard: Counter[str] = Counter()  # messages, records, and of these by whom
        self.ways: dict[str, Any] = {}
        self.rejects: list[tuple[str, str]] = []
        self.gossip = Gossip(
            self.peer,
            "main",
            self.peers,
            own=self._own,
            clock=trio.current_time,
            chance=random.Random(number),
        )

    async def start(self) -> None:
        await super().start()
        await self._nursery.start(self.gossip.run)

    def _own(self) -> bytes:
        return sealed(self.number, 1 + int(trio.current_time() * 1000), **self.ways)

    def met(self, session: Session) -> None:
        super().met(session)
        self.gossip.met(session)
        told = session.on_peers

        def count(message: Peers) -> None:
            self.heard["messages"] += 1
            self.heard["records"] += len(message.records)
            self.heard[session.peer] += len(message.records)
            told(message)

        session.on_peers = count

    def parted(self, session: Session) -> None:
        super().parted(session)
        self.gossip.parted(session)

    def rejected(self, reason: str, peer: str, detail: str) -> None:
        self.rejects.append((reason, peer))

    def sees(self, other: Talker) -> bool:
        """Whether they have a session."""
        return self.state_of(other) == "connected"


def talk(check: Any, count: int = 2) -> None:
    """Run a check with so many talkers, all listening."""

    async def listening(lab: Lab, *talkers: Talker) -> None:
        for talker in talkers:
            await talker.listen()
        await check(lab, *talkers)

    stage(listening, count, kind=Talker)


def test_a_newcomer_that_knows_one_meets_all() -> None:
    """Whoever it dials tells it of the others, and them of it."""

    async def check(_lab: Lab, *talkers: Talker) -> None:
        for one, other in pairwise(talkers):
            one.hear_of(other)
            await trio.sleep(3)
            one.peers.left(TRACKER, other.peer)
        await trio.sleep(5)
        assert all(one is other or one.sees(other) for one in talkers for other in talkers)

    talk(check, 5)


def test_a_peer_behind_a_nat_is_told_of() -> None:
    """One that nobody can dial is known with its relays, as long as the one that sees it says so;
    a relay that changes is news."""

    async def check(lab: Lab, alice: Talker, bob: Talker, carol: Talker) -> None:
        relay = PeerAddress(DAVE, Address("10.0.0.4", 6000))
        for hidden in (bob, carol):
            hidden.ways = {"addresses": (), "relays": (relay,)}
            hidden.hear_of(alice)
        await trio.sleep(600)
        assert alice.sees(bob)
        assert alice.sees(carol)
        assert bob.state_of(carol) == carol.state_of(bob) == "connecting"
        assert bob.helpers.unreached[CAROL] == carol.helpers.unreached[BOB] == (DAVE,)
        carol.ways = {"addresses": ()}
        await trio.sleep(2 * TELL_SECONDS + MOVE_SECONDS)
        assert bob.helpers.unreached[CAROL] == ()
        with lab.cut(alice.address.host):
            await trio.sleep(FORGET_SECONDS + 3)
        assert bob.state_of(carol) is None

    talk(check, 3)


def test_what_one_hears_is_not_passed_on() -> None:
    """Only one's own sessions are told of: a record of a peer that is gone doesn't circulate."""

    async def check(lab: Lab, alice: Talker, bob: Talker) -> None:
        bob.hear_of(alice)
        rogue = await Rogue.meet(lab, alice)
        await rogue.tell(sealed(3), sealed(4))
        await trio.sleep(5)
        assert bob.peers.known[CAROL].state == "connecting"
        assert DAVE in alice.peers.known
        assert DAVE not in bob.peers.known
        await rogue.link.aclose()
        await trio.sleep(FORGET_SECONDS + 3)
        assert list(bob.peers.known) == [ALICE]

    talk(check)


def test_who_moves_is_found_at_its_new_place() -> None:
    """A new record is told to all within a second, and dialled when the session is lost."""

    async def check(lab: Lab, alice: Talker, bob: Talker) -> None:
        alice.hear_of(bob)
        await trio.sleep(5)
        alice.peers.left(TRACKER, BOB)
        bob.ways = {"addresses": (Address("10.0.0.77", 6000),)}
        await trio.sleep(TELL_SECONDS + MOVE_SECONDS + 1)
        lab.listeners[Address("10.0.0.77", 6000)] = lab.listeners[bob.address]
        with lab.cut(bob.address.host):
            await trio.sleep(3)
            assert alice.sees(bob)
            assert alice.exchange.sessions[BOB].link.remote.host == "10.0.0.77"

    talk(check)


def test_a_peer_that_says_it_moves_all_the_time() -> None:
    """Others hear of it only now and then, however fast it tells."""

    async def check(_lab: Lab, alice: Talker, bob: Talker, carol: Talker) -> None:
        alice.hear_of(bob)
        alice.hear_of(carol)
        await trio.sleep(10)
        direct, passed = carol.heard[BOB], carol.heard[ALICE]
        for port in range(1, 121):
            bob.ways = {"addresses": (Address("10.0.0.2", port),)}
            await trio.sleep(1)
        assert carol.heard[BOB] - direct > 80
        assert 0 < carol.heard[ALICE] - passed < 2 + 120 / MOVE_SECONDS

    talk(check, 3)


def test_thirty_nodes_say_little() -> None:
    """When all meet at once, each hears about three messages from each other; then nothing, until
    one leaves: that each hears from each other once at most."""

    async def check(_lab: Lab, *talkers: Talker) -> None:
        for talker in talkers[1:]:
            talker.hear_of(talkers[0])
        await trio.sleep(10)
        assert all(len(talker.exchange.met()) == 29 for talker in talkers)
        heard = sum((talker.heard for talker in talkers), Counter())
        assert heard["messages"] < 3 * 30 * 29
        assert heard["records"] < 30 * 29 * 28
        await trio.sleep(30)
        assert sum((talker.heard for talker in talkers), Counter()) == heard
        talkers[-1].exchange._leaving = True
        talkers[-1].hang_up()
        await trio.sleep(10)
        assert sum(t.heard["messages"] for t in talkers) - heard["messages"] <= 29 * 28

    talk(check, 30)


def test_each_peer_is_told_of_so_many_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many sessions some are chosen at random."""
    monkeypatch.setattr(module, "LISTED_LIMIT", 5)

    async def check(_lab: Lab, *talkers: Talker) -> None:
        for talker in talkers:
            talker.ways = {"addresses": ()}
        for talker in talkers[1:]:
            talker.hear_of(talkers[0])
        await trio.sleep(60)
        told = [set(talker.gossip._members[ALICE].lists) for talker in talkers[1:]]
        assert all(len(lists) in (4, 5) for lists in told)
        assert len(set.union(*told)) > 8
        assert talkers[1].gossip.listed() in (5, 6)

    talk(check, 12)


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────


class Rogue:
    """A peer (number 3) in the hands of the test, in session with Alice."""

    def __init__(self, link: Any) -> None:
        self.link = link

    @classmethod
    async def meet(cls, lab: Lab, alice: Talker, *, greets: bool = True) -> Rogue:
        network = lab.network(identity(3), "10.0.0.3")
        rogue = cls(await network.dial(alice.address, "peer", ALICE))
        if greets:
            await rogue.say(Hello(RUN, 0))
            await trio.sleep(0.1)
        return rogue

    async def say(self, message: messages.Message) -> None:
        await self.link.send(messages.to_bytes(message))

    async def tell(self, *records: bytes, left: tuple[str, ...] = ()) -> None:
        """Say whom it sees; what Alice makes of it is done when this returns."""
        await self.say(Peers(records, left))
        await trio.sleep(0.01)

    async def farewell(self) -> str:
        """What Alice says last."""
        while True:
            message = messages.from_bytes(await self.link.receive_any())
            if isinstance(message, Bye):
                return message.reason
            if isinstance(message, Ping):
                await self.say(Pong(message.number))


def against(check: Any) -> None:
    """Alice, and the rogue that has met her."""

    async def main(lab: Lab, alice: Talker) -> None:
        await check(alice, await Rogue.meet(lab, alice))

    talk(main, 1)


def test_a_record_that_was_altered_ends_the_session() -> None:
    """Nothing of it is believed."""

    async def check(alice: Talker, rogue: Rogue) -> None:
        record = bytearray(sealed(4))
        record[-1] ^= 1
        await rogue.tell(bytes(record))
        assert "nobody signed" in await rogue.farewell()
        assert alice.rejects == [("signature", CAROL)]
        assert DAVE not in alice.peers.known

    against(check)


def test_a_record_of_another_swarm_ends_the_session() -> None:
    """Swarms don't find out about each other's peers."""

    async def check(alice: Talker, rogue: Rogue) -> None:
        await rogue.tell(sealed(4, swarm="other"))
        assert "another swarm" in await rogue.farewell()
        assert alice.rejects == [("swarm", CAROL)]
        assert DAVE not in alice.peers.known

    against(check)


def test_what_cannot_be_read_is_passed_over() -> None:
    """A newer version's record, or garbage, among others that count."""

    async def check(alice: Talker, rogue: Rogue) -> None:
        await rogue.tell(b"garbage", sealed(4))
        assert DAVE in alice.peers.known
        assert not alice.rejects

    against(check)


def test_our_own_record_is_no_news() -> None:
    """Nobody can tell us where we are."""

    async def check(alice: Talker, rogue: Rogue) -> None:
        await rogue.tell(sealed(1, addresses=(Address("10.6.6.6", 6000),)))
        assert list(alice.peers.known) == [CAROL]

    against(check)


def test_older_records_change_nothing() -> None:
    """A replayed record, of another or of its own, moves nobody."""

    async def check(alice: Talker, rogue: Rogue) -> None:
        old = (Address("10.6.6.6", 6000),)
        await rogue.tell(sealed(3, 2), sealed(4, 2))
        await rogue.tell(sealed(3, 1, addresses=old), sealed(4, 1, addresses=old))
        for number in (3, 4):
            listing = alice.peers._listings[identity(number).peer_id]
            assert listing.addresses == (Address(f"10.0.0.{number}", 6000),)
        mine = alice.gossip._members[CAROL].record
        assert mine is not None
        assert mine.record.seq == 2

    against(check)


def test_who_tells_of_too_many_is_not_heeded() -> None:
    """So many peers of one peer's making, and no more; those that it takes back make room."""

    async def check(alice: Talker, rogue: Rogue) -> None:
        made_up = range(10, 10 + LISTED_LIMIT + 10)
        for start in range(0, len(made_up), 25):
            await rogue.tell(*(sealed(n) for n in made_up[start : start + 25]))
        assert len(alice.peers.known) == 1 + LISTED_LIMIT
        await rogue.tell(left=tuple(identity(n).peer_id for n in made_up[:5]))
        await trio.sleep(FORGET_SECONDS + 3)
        await rogue.tell(*(sealed(n) for n in made_up[-5:]))
        assert len(alice.peers.known) == 1 + LISTED_LIMIT
        assert identity(made_up[-1]).peer_id in alice.peers.known

    against(check)


def test_what_a_peer_told_ends_with_its_session() -> None:
    """Whom only it has told of is forgotten a while later, and it itself, too."""

    async def check(alice: Talker, rogue: Rogue) -> None:
        await rogue.tell(sealed(3), sealed(4))
        await trio.sleep(60)
        assert alice.peers.known[DAVE].state == "connecting"
        await rogue.link.aclose()
        await trio.sleep(FORGET_SECONDS + 3)
        assert not alice.peers.known

    against(check)


def test_a_flood_of_tellings_ends_the_session() -> None:
    """No peer tells more than once a second for long."""

    async def check(alice: Talker, rogue: Rogue) -> None:
        for seq in range(1, TELLINGS_BURST + 2):
            await rogue.say(Peers((sealed(4, seq),), ()))
        assert "too many tellings" in await rogue.farewell()
        assert alice.rejects == [("flood", CAROL)]

    against(check)


def test_telling_before_hello_is_a_mistake() -> None:
    """Who hasn't said what it trains isn't listened to."""

    async def check(lab: Lab, alice: Talker) -> None:
        rogue = await Rogue.meet(lab, alice, greets=False)
        await rogue.tell(sealed(4))
        assert "before both sides" in await rogue.farewell()
        assert alice.rejects == [("protocol", CAROL)]

    talk(check, 1)


def test_a_session_that_takes_another_s_place() -> None:
    """The end of the old one ends nothing that was told in the new one."""

    async def check(lab: Lab, alice: Talker) -> None:
        first = await Rogue.meet(lab, alice)
        await first.tell(sealed(4))
        second = await Rogue.meet(lab, alice)
        await second.tell(sealed(5))
        await trio.sleep(FORGET_SECONDS + 3)
        listings = alice.peers._listings
        assert listings[identity(5).peer_id].sources == {member(CAROL)}
        assert not listings[DAVE].sources

    talk(check, 1)
