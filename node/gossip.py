"""I/O: peers tell each other whom they are connected with, so that a swarm finds its newcomers
while no tracker answers.

What travels are the signed records that trackers have, too. Each node tells only of those that it
has a session with now, in their own words; nobody passes on what a third one told, so a stale
record dies with the sessions that carried it. To peers.py a peer that tells is a source, as a
tracker is, but one that may only say whom it sees, and no longer than its own session lasts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Protocol

import trio

from ..tracker.errors import Reason, Refused
from ..tracker.record import PeerRecord, SignedRecord, open_record
from ..transport import admission, messages
from ..transport.messages import TOLD_LIMIT
from ..transport.session import Session
from .listings import member as source_of

# One message a session in this time: whatever happens in the swarm meanwhile goes into one.
TELL_SECONDS = 1.0
# Peers that one peer may tell of at a time: with so many neighbours of each node a swarm hangs
# together, and a hundred peers that make up others can't fill our table (peers.KNOWN_LIMIT) alone.
LISTED_LIMIT = 64
# How often a peer's new record is passed on: all hear of it from all, and it could move for ever.
MOVE_SECONDS = 5.0
# Records whose signature needs no second check: each comes from many peers. At most 4 MiB.
OPENED_LIMIT = 1000


class Ear(Protocol):
    """Who is told (peers.py)."""

    def joined(self, source: str, peer: str, record: PeerRecord) -> None:
        """This source sees a peer, whose newest record it has."""

    def lost(self, source: str, peer: str) -> None:
        """It doesn't see it any more."""


@dataclass
class Member:
    """A peer that we have a session with."""

    session: Session
    record: SignedRecord | None = None  # its own, as we pass it on
    newer: SignedRecord | None = None  # its own, as it told it last
    since: float = -math.inf  # when `record` was taken
    lists: set[str] = field(default_factory=set)  # whom it told us of
    told: dict[str, int] = field(default_factory=dict)  # whom we told it of: the records' numbers
    due: bool = True  # there may be something to tell

    @property
    def source(self) -> str:
        """Its name at peers.py."""
        return source_of(self.session.peer)


class Gossip:
    """Tells all peers that we are connected with of each other, and takes what they tell.

    `own()` gives a fresh signed record of this node.
    """

    def __init__(
        self,
        me: str,
        swarm: str,
        ear: Ear,
        *,
        own: Callable[[], bytes],
        clock: Callable[[], float],
        chance: random.Random,
    ) -> None:
        self._me, self._swarm, self._ear = me, swarm, ear
        self._fresh, self._clock, self._chance = own, clock, chance
        self._own: SignedRecord | None = None
        self._members: dict[str, Member] = {}
        self._opened: dict[bytes, SignedRecord] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell what has changed, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(TELL_SECONDS)
            if self._members:
                self._look()
            for member in self._members.values():
                if member.due:
                    self._tell(member)

    def listed(self) -> int:
        """How many other peers there should be, as others tell."""
        return max((len(member.lists) + 1 for member in self._members.values()), default=0)

    # -- what sessions report --------------------------------------------------------------------

    def met(self, session: Session) -> None:
        """A session with this peer is in use: tell it at once whom we know."""
        if (old := self._members.get(session.peer)) is not None:
            self.parted(old.session)
        member = self._members[session.peer] = Member(session)
        session.on_peers = partial(self._told_by, member)
        self._look()
        self._tell(member)

    def parted(self, session: Session) -> None:
        """It is over, and with it whatever this peer told."""
        member = self._members.get(session.peer)
        if member is None or member.session is not session:
            return
        del self._members[session.peer]
        for peer in (*member.lists, session.peer):
            self._ear.lost(member.source, peer)
        self._all_due()

    # -- telling -----------------------------------------------------------------------------------

    def _all_due(self) -> None:
        for member in self._members.values():
            member.due = True

    def _look(self) -> None:
        """Is there another way to us, or to one of them?"""
        own = open_record(self._fresh(), signer=self._me)
        if self._own is None or self._own.record.ways != own.record.ways:
            self._own = own
            self._all_due()
        for member in self._members.values():
            if member.newer is not None and self._clock() - member.since >= MOVE_SECONDS:
                self._move(member, member.newer)

    def _move(self, member: Member, record: SignedRecord) -> None:
        """From now on this is what we tell of it."""
        member.record, member.newer, member.since = record, None, self._clock()
        self._all_due()

    def _tell(self, member: Member) -> None:
        """What this peer doesn't know yet, as much as one message holds."""
        there = self._there(member)
        left = [peer for peer in member.told if peer not in there][:TOLD_LIMIT]
        for peer in left:
            del member.told[peer]
        records = list(islice(self._new(member, there), TOLD_LIMIT))
        member.told |= {told.peer: told.record.seq for told in records}
        member.due = len(left) == TOLD_LIMIT or len(records) == TOLD_LIMIT
        if records or left:
            member.session.say(messages.Peers(tuple(r.data for r in records), tuple(left)))

    def _there(self, to: Member) -> dict[str, SignedRecord]:
        """Ourselves, and whom we have a session with, but for this one."""
        others = [m.record for m in self._members.values() if m is not to and m.record is not None]
        own = [self._own] if self._own is not None else []
        return {signed.peer: signed for signed in own + others}

    def _new(self, to: Member, there: dict[str, SignedRecord]) -> Iterable[SignedRecord]:
        """What it wasn't told yet: newer records, and some of the peers that it doesn't see."""
        yield from (r for p, r in there.items() if to.told.get(p, math.inf) < r.record.seq)
        if self._me in there and self._me not in to.told:
            yield there[self._me]
        others = [p for p in there if p not in to.told and p not in to.lists and p != self._me]
        room = max(0, LISTED_LIMIT - len(to.told))
        for peer in self._chance.sample(others, min(room, len(others))):
            yield there[peer]

    # -- being told --------------------------------------------------------------------------------

    def _told_by(self, member: Member, message: messages.Peers) -> None:
        """Believe what is signed."""
        for data in message.records:
            signed = self._checked(member, data)
            if signed is not None:
                self._take(member, signed)
        for peer in member.lists.intersection(message.left):
            member.lists.discard(peer)
            self._ear.lost(member.source, peer)
            member.due = True  # we may see it still

    def _checked(self, member: Member, data: bytes) -> SignedRecord | None:
        """A record of our swarm; who passes on a wrong one hasn't looked at it, and we part."""
        try:
            signed = self._open(data)
        except Refused as error:
            if error.reason != Reason.MALFORMED:  # that may be a newer version's
                member.session.fail(admission.SIGNATURE, "a peer record that nobody signed")
            return None
        if signed.record.swarm != self._swarm:
            member.session.fail(admission.SWARM, "a peer record of another swarm")
            return None
        return signed

    def _take(self, member: Member, signed: SignedRecord) -> None:
        if signed.peer == member.session.peer:
            self._take_own(member, signed)
        elif signed.peer == self._me or len(member.lists | {signed.peer}) > LISTED_LIMIT:
            return
        else:
            member.lists.add(signed.peer)
        self._ear.joined(member.source, signed.peer, signed.record)

    def _take_own(self, member: Member, signed: SignedRecord) -> None:
        """What it says of itself goes on to others, no more often than MOVE_SECONDS."""
        last = member.newer or member.record
        if last is None:
            self._move(member, signed)
        elif signed.record.seq > last.record.seq and signed.record.ways != last.record.ways:
            member.newer = signed

    def _open(self, data: bytes) -> SignedRecord:
        """The record in these bytes; raises Refused."""
        if data not in self._opened:
            self._opened[data] = open_record(data)
            if len(self._opened) > OPENED_LIMIT:
                del self._opened[next(iter(self._opened))]
        return self._opened[data]
