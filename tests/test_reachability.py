"""Whether a node knows that it can be reached: real trackers' dial-backs, over the lab network."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from lab import Lab, LabNetwork, identity
from p2pnode.node.config import load
from p2pnode.node.presence import Presence, Ways
from p2pnode.node.reachability import (
    CHECK_SECONDS,
    HOLD_SECONDS,
    RETRY_SECONDS,
    Finding,
    Reachability,
)
from p2pnode.tracker.protocol import (
    WATCH_SECONDS,
    Announce,
    Events,
    Leave,
    Refusal,
    Watch,
    Welcome,
    parse_request,
    to_bytes,
)
from p2pnode.tracker.registry import Registry
from p2pnode.tracker.server import TrackerServer
from p2pnode.tracker.verdict import DialBack, Outcome, Verdict
from p2pnode.transport.address import Address
from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.link import Link
from p2pnode.transport.nat.direct import Direct
from p2pnode.transport.nat.hosts import Machine
from p2pnode.transport.nat.reach import Claim, Confidence

TRACKER, SECOND = Address("8.8.8.8", 5555), Address("8.8.4.4", 5555)
HOME, OTHER = "2.2.2.2", "9.9.9.9"
BY = f"(checked by tracker {TRACKER})"
FOUND = f"reachable from outside {BY}"
LOST = f"not reachable at {HOME}:6000: timed out; others can't dial it"
CAME = "nobody came in yet"
SOON = 10.0  # the first check is done by then


class Nobody:
    """A table of peers that isn't looked at here."""

    def joined(self, *_: object) -> None:
        """Somebody came."""

    def left(self, *_: object) -> None:
        """Somebody went."""


class Node:
    """A presence that listens at its door, as the daemon has it."""

    def __init__(self, network: LabNetwork, *trackers: Address, public: str = "") -> None:
        flags: dict[str, Any] = {"home": "/nowhere", "tracker": [str(t) for t in trackers]}
        if public:
            flags["public"] = public
        self.lines: list[str] = []
        self.sessions: list[str] = []
        self.network = network
        self.inside = "192.168.0.7"
        config = load(flags, {})[0]
        self.direct = Direct(config.public)
        self.presence = Presence(
            config,
            network.identity,
            network,
            Ways(self.direct, [self.direct]),
            machine=lambda: Machine(frozenset({self.inside}), (self.inside,)),
            clock=trio.current_time,
            wall=lambda: 1_800_000_000.0 + trio.current_time(),
            chance=random.Random(1),
            log=lambda level, line: self.lines.append(f"{level}: {line}"),
        )

    async def welcome(self, link: Link) -> None:
        if not await self.presence.dialled_back(link):
            self.sessions.append(link.peer)

    async def run(self, door: Address, nursery: trio.Nursery) -> None:
        peers: Any = Nobody()
        await nursery.start(self.network.listen, door, {"peer": self.welcome})
        await nursery.start(self.presence.run, Address("0.0.0.0", door.port), peers)

    @property
    def text(self) -> str:
        return self.presence.reachability(CAME)

    def sure(self) -> dict[str, Confidence]:
        return {str(claim.address): claim.confidence for claim in self.presence.claims()}

    def said(self) -> list[str]:
        return [line for line in self.lines if "reach" in line and "tracker 8" not in line[:20]]


class Stage:
    """A network with trackers, and one node at HOME behind which there is a LAN."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.lab, self.nursery = Lab(), nursery

    @asynccontextmanager
    async def tracker(self, address: Address = TRACKER) -> AsyncIterator[None]:
        server = TrackerServer(Registry(bytes(8)))
        async with trio.open_nursery() as nursery:
            network = self.lab.network(identity(99), address.host)
            await nursery.start(server.serve, network, address)
            yield
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def other_tracker(
        self, answer: Callable[[DialBack], Refusal | Verdict | None]
    ) -> AsyncIterator[list[DialBack]]:
        """One that answers dial-backs as it likes: those that it was asked for."""
        asked: list[DialBack] = []

        async def nothing_new(link: Link, id: int) -> None:
            await trio.sleep(WATCH_SECONDS)
            with contextlib.suppress(LinkClosed):
                await link.send(to_bytes(Events(id, b"", False, (), ())))

        async def handler(link: Link) -> None:
            while True:
                request = parse_request(await link.receive())
                match request:
                    case Announce():
                        await link.send(to_bytes(Welcome(request.id, 30.0, link.remote)))
                    case DialBack():
                        asked.append(request)
                        reply = answer(request)
                        if reply is not None:
                            await link.send(to_bytes(reply))
                    case Watch():
                        nursery.start_soon(nothing_new, link, request.id)
                    case Leave():
                        pass

        network = self.lab.network(identity(98), TRACKER.host)
        async with trio.open_nursery() as nursery:
            await nursery.start(network.listen, TRACKER, {"tracker": handler})
            yield asked
            nursery.cancel_scope.cancel()

    async def node(self, *trackers: Address, public: str = "", host: str = HOME) -> Node:
        node = Node(self.lab.network(identity(1), host), *(trackers or (TRACKER,)), public=public)
        await node.run(Address(host, 6000), self.nursery)
        return node


def play(scene: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a scene in virtual time."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await scene(Stage(nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_node_that_can_be_reached() -> None:
    """It is told within seconds, the way is proved, and the log says so once."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            node = await stage.node()
            assert node.text == CAME
            await trio.sleep(SOON)
            assert node.text == FOUND
            assert node.sure()[f"{HOME}:6000"] == Confidence.PROVED
            assert node.sure()["192.168.0.7:6000"] == Confidence.GUESSED  # can't be looked at
            assert str(node.presence.addresses()[0]) == f"{HOME}:6000"
            await trio.sleep(3 * CHECK_SECONDS)
            assert node.said() == [f"info: {FOUND}"]
            assert node.sessions == []

    play(scene)


def test_a_node_behind_a_nat() -> None:
    """What others would find is told, with what it means; the address stays a guess."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            with stage.lab.filtered(HOME):
                node = await stage.node()
                await trio.sleep(SOON)
                assert node.text == LOST
                assert node.said() == [f"warning: {LOST}"]
                assert node.sure()[f"{HOME}:6000"] == Confidence.GUESSED
            await trio.sleep(CHECK_SECONDS)  # the port has been forwarded meanwhile
            assert node.text == FOUND
            assert node.said() == [f"warning: {LOST}", f"info: {FOUND}"]
            with stage.lab.filtered(HOME):
                await trio.sleep(CHECK_SECONDS + SOON)
                assert node.text == LOST
                assert node.sure()[f"{HOME}:6000"] == Confidence.GUESSED

    play(scene)


def test_a_wrong_public_address() -> None:
    """--public with a port that leads elsewhere is found out, though the user says so."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            node = await stage.node(public=f"{HOME}:7000")
            await trio.sleep(SOON)
            assert "not reachable at 2.2.2.2:7000: connection refused" in node.text
            assert node.sure() == {f"{HOME}:7000": Confidence.GUESSED}

    play(scene)


def test_an_address_of_another_host_is_paid_for() -> None:
    """A second line into the house is checked, too, for 32 KiB."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            node = await stage.node(public=f"{OTHER}:6000")
            door = Address(OTHER, 6000)
            network = stage.lab.network(identity(1), OTHER)
            await stage.nursery.start(network.listen, door, {"peer": node.welcome})
            await trio.sleep(SOON)
            assert node.text == FOUND

    play(scene)


def test_a_node_on_the_lan_of_its_tracker() -> None:
    """It is reachable there; that says nothing about the world outside."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker(Address("192.168.0.1", 5555)):
            node = await stage.node(Address("192.168.0.1", 5555), host="192.168.0.7")
            await trio.sleep(SOON)
            at = "reachable at 192.168.0.7:6000"
            assert node.text == f"{at} (checked by tracker 192.168.0.1:5555)"
            with stage.lab.filtered("192.168.0.7"):
                await trio.sleep(CHECK_SECONDS + SOON)
                assert node.text == f"not {at}: timed out; others can't dial it"

    play(scene)


def test_a_new_address_is_checked_at_once() -> None:
    """Not only at the next round."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            node = await stage.node()
            await trio.sleep(SOON)
            dials = len(stage.lab.dials)
            node.inside = OTHER  # behind another router, which forwards nothing
            await trio.sleep(2 * SOON)
            assert ("8.8.8.8", Address(OTHER, 6000)) in stage.lab.dials[dials:]
            assert node.text == FOUND  # at the other address, still

    play(scene)


def test_two_trackers() -> None:
    """One that comes through is proof enough, whatever the other has in its way."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker(), stage.tracker(SECOND):
            node = await stage.node(SECOND, TRACKER)
            await trio.sleep(SOON)
            assert node.sure()[f"{HOME}:6000"] == Confidence.PROVED
            with stage.lab.cut(SECOND.host):
                await trio.sleep(2 * HOLD_SECONDS)
                assert node.text == FOUND

    play(scene)


def test_a_finding_ends() -> None:
    """With the tracker gone, what it found holds for a while and not for ever."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            node = await stage.node()
            await trio.sleep(SOON)
        await trio.sleep(CHECK_SECONDS)
        assert node.text == FOUND
        await trio.sleep(HOLD_SECONDS)
        assert node.text == CAME
        assert node.sure()[f"{HOME}:6000"] == Confidence.GUESSED

    play(scene)


def test_an_older_tracker() -> None:
    """It can't read the question: not checked, and not asked again on that connection."""

    async def scene(stage: Stage) -> None:
        async with stage.other_tracker(lambda r: Refusal(r.id, "malformed")) as asked:
            node = await stage.node()
            await trio.sleep(SOON)
            assert node.text == f"{CAME}, not checked (the tracker is an older one)"
            await trio.sleep(10 * CHECK_SECONDS)
            assert len(asked) == 1
            assert node.presence.answering() == {str(TRACKER)}
            assert node.said() == ["info: reachability, not checked (the tracker is an older one)"]

    play(scene)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda r: Refusal(r.id, "too-often"), "asked for too much of this"),
        (lambda r: Refusal(r.id, "something-new"), "something-new"),
        (lambda r: Verdict(r.id, "something-new"), "the tracker says something-new"),
        (lambda r: None, "no verdict in 15 s"),
    ],
)
def test_an_answer_that_says_nothing(
    answer: Callable[[DialBack], Refusal | Verdict | None], why: str
) -> None:
    """Not checked, and why; it is asked again after a minute, and the contact goes on."""

    async def scene(stage: Stage) -> None:
        async with stage.other_tracker(answer) as asked:
            node = await stage.node()
            await trio.sleep(SOON + 15)
            assert node.text.startswith(f"{CAME}, not checked (")
            assert why in node.text
            before = len(asked)
            await trio.sleep(RETRY_SECONDS + 15 + SOON)
            assert before < len(asked) <= before + 2
            assert node.presence.answering() == {str(TRACKER)}

    play(scene)


def test_a_tracker_that_lies() -> None:
    """Who says "reachable" without having come with the nonce proves nothing."""

    async def scene(stage: Stage) -> None:
        async with stage.other_tracker(lambda r: Verdict(r.id, "reachable")):
            node = await stage.node()
            await trio.sleep(SOON)
            assert node.text == f"{CAME}, not checked (the tracker says that it came, and did not)"
            assert Confidence.PROVED not in node.sure().values()

    play(scene)


def test_links_that_are_no_dial_back() -> None:
    """Peers come in as ever, also while a check is under way; a wrong nonce proves nothing."""

    async def scene(stage: Stage) -> None:
        async with stage.other_tracker(lambda r: None):
            node = await stage.node()
            door = Address(HOME, 6000)
            await trio.sleep(SOON)
            bob = await stage.lab.network(identity(2), OTHER).dial(door, "peer")
            tracker = await stage.lab.network(identity(98), TRACKER.host).dial(door, "peer")
            await tracker.send(bytes(32))
            await trio.sleep(1)
            assert node.sessions == [identity(2).peer_id]
            assert Confidence.PROVED not in node.sure().values()
            await bob.aclose()

    play(scene)


ONE, TWO = Address("1.1.1.1", 6000), Address("2.2.2.2", 6000)


def _found(address: Address, outcome: Outcome | None, until: float, by: Address) -> Finding:
    return Finding(by, address, outcome, "", until)


def test_findings_judge_the_claims_of_every_way() -> None:
    """A success proves an address for its time, failures make it a guess, one success outweighs."""
    now = 0.0
    looking = Reachability(
        lambda: (ONE,),
        clock=lambda: now,
        chance=random.Random(1),
        log=lambda level, line: None,
        news=lambda: None,
    )
    claim = Claim(ONE, Confidence.GIVEN, 100.0)
    for finding, told in (
        (None, Confidence.GIVEN),
        (_found(ONE, None, 10.0, TRACKER), Confidence.GIVEN),
        (_found(ONE, Outcome.TIMED_OUT, 10.0, TRACKER), Confidence.GUESSED),
        (_found(TWO, Outcome.REACHABLE, 90.0, SECOND), Confidence.GUESSED),
        (_found(ONE, Outcome.REACHABLE, 20.0, SECOND), Confidence.PROVED),
    ):
        if finding is not None:
            looking._learn(finding)
        assert looking.judged(claim).confidence == told
    assert looking.judged(claim).until == 20.0
    now = 15.0
    assert looking.judged(claim).confidence == Confidence.PROVED
    now = 20.0
    assert looking.judged(claim) == claim
    looking._learn(_found(ONE, Outcome.REFUSED, 99.0, TRACKER))
    looking.changed()
    assert looking.judged(claim) == claim
