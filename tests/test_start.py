"""How a newcomer starts: with the swarm's models where there are some, and never held up.

The swarm, the exchange and the mailbox are fakes that change at given times; the time is virtual.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from models import manifest, offered
from trio.testing import MockClock

from p2pnode.node.start import (
    CONTACT_SECONDS,
    ENOUGH,
    GATHER_RATE,
    GATHER_SECONDS,
    STALL_SECONDS,
    Start,
)
from p2pnode.transport.messages import Hello, Run, Want
from p2pnode.transport.outgoing import Held

SOON = 0.2
"""Looks every 50 ms: what "at once" takes at most."""


@dataclass
class Peer:
    """A session as far as the start sees it."""

    peer: str
    epoch: int
    said: list[object] = field(default_factory=list)

    @property
    def hello(self) -> Hello:
        return Hello(Run("main", "mnist", bytes(32), 1, ()), self.epoch)

    def say(self, message: object) -> None:
        self.said.append(message)


@dataclass
class Coming:
    """A download: its bytes so far."""

    bytes_here: int = 0
    size: int = 5_000_000

    @property
    def download(self) -> Coming:
        return self

    @property
    def offered(self) -> Coming:
        return self

    @property
    def manifest(self) -> Coming:
        return self


@dataclass
class Scene:
    """Everything that the start looks at."""

    settled_at: float = 0.0
    list_size: int = 0
    peers: list[Peer] = field(default_factory=list)
    relays: dict[str, object] = field(default_factory=dict)
    incoming: dict[bytes, Coming] = field(default_factory=dict)
    filed: dict[str, Held] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    # -- Swarm -----------------------------------------------------------------------------------

    def settled(self) -> bool:
        return trio.current_time() >= self.settled_at

    def listed(self) -> int:
        return self.list_size if self.settled() else 0

    # -- Exchange --------------------------------------------------------------------------------

    def met(self) -> list[Peer]:
        return list(self.peers)

    def want(self) -> None:
        for peer in self.peers:
            peer.say(Want())

    # -- Mailbox ---------------------------------------------------------------------------------

    def models(self) -> list[Held]:
        return list(self.filed.values())

    # -- what happens ----------------------------------------------------------------------------

    def start(self, mode: str = "auto") -> Start:
        fake: Any = self
        return Start(mode, fake, fake, fake, trio.current_time)

    def file(self, peer: str, epoch: int = 1) -> None:
        """A model of this peer is in the mailbox."""
        described = manifest(b"x", epoch=epoch)
        envelope = offered(2, 1).envelope
        self.filed[peer] = Held(envelope.data, envelope.id, peer, described, _NOWHERE)

    def log(self, _level: str, text: str) -> None:
        self.lines.append(text)


_NOWHERE: Any = None


def begins(
    scene: Scene,
    mode: str = "auto",
    story: Callable[[Scene, Start], Awaitable[None]] | None = None,
) -> float:
    """When the first epoch begins while the story goes on; the mailbox is used, but for "never"."""

    async def main() -> float:
        start = scene.start(mode)
        async with trio.open_nursery() as nursery:
            if story is not None:
                nursery.start_soon(story, scene, start)
            zero = trio.current_time()
            assert await start.wait(scene.log) == (mode != "never")
            nursery.cancel_scope.cancel()
        return trio.current_time() - zero

    return trio.run(main, clock=MockClock(autojump_threshold=0))


# ── nobody to wait for ───────────────────────────────────────────────────────────────────────


def test_alone_it_begins_at_once() -> None:
    """No tracker, an unreachable one, or one that lists nobody: nothing is waited for."""
    assert begins(Scene()) <= SOON


def test_a_tracker_that_hangs() -> None:
    """It is given a few seconds."""
    assert begins(Scene(settled_at=1e9)) == pytest.approx(CONTACT_SECONDS, abs=SOON)


def test_a_tracker_that_answers_late() -> None:
    """As soon as it has told that nobody is there, the epoch begins."""
    assert begins(Scene(settled_at=2.0)) == pytest.approx(2.0, abs=SOON)


def test_listed_peers_that_are_not_there() -> None:
    """Peers that died without leaving are waited for as long as a slow tracker."""
    assert begins(Scene(list_size=9)) == pytest.approx(CONTACT_SECONDS, abs=SOON)


def test_peers_that_are_new_themselves() -> None:
    """A swarm that starts together has no models to wait for."""
    scene = Scene(list_size=2, peers=[Peer("a", 0), Peer("b", 0)])
    assert begins(scene) <= SOON


def test_never_begins_at_once() -> None:
    """--bootstrap never asks for nothing."""
    scene = Scene(settled_at=1e9, peers=[Peer("a", 5)])
    assert begins(scene, "never") == 0
    assert not scene.peers[0].said


# ── models to start from ─────────────────────────────────────────────────────────────────────


def test_models_come_in_before_the_first_epoch() -> None:
    """Peers that hold models are asked for them, and their models are there when it begins."""

    async def story(scene: Scene, start: Start) -> None:
        await trio.sleep(1)
        for n in range(9):  # slow: a piece each five seconds
            scene.incoming[b"a"] = Coming(n)
            await trio.sleep(5)
        scene.incoming.clear()
        scene.file("a", 3)
        start.filed()

    scene = Scene(list_size=1, peers=[Peer("a", 3)])
    assert begins(scene, story=story) == pytest.approx(46, abs=SOON)
    assert scene.peers[0].said == [Want()]


def test_a_peer_that_is_met_meanwhile_is_asked_too() -> None:
    """Its models are waited for like the others'."""

    async def story(scene: Scene, start: Start) -> None:
        await trio.sleep(2)
        late: Any = Peer("a", 3)
        scene.peers.append(late)
        start.met(late)
        await trio.sleep(2)
        assert late.said == [Want()]
        scene.file("a", 3)

    assert begins(Scene(list_size=1), story=story) == pytest.approx(4, abs=SOON)


def test_enough_models() -> None:
    """With a few models the epoch begins, however many peers there are."""

    async def story(scene: Scene, start: Start) -> None:
        for n in range(ENOUGH):
            await trio.sleep(1)
            scene.file(f"p{n}", 3)
            start.filed()

    scene = Scene(list_size=20, peers=[Peer(f"p{n}", 3) for n in range(20)])
    assert begins(scene, story=story) == pytest.approx(ENOUGH, abs=SOON)


def test_what_is_here_already_is_not_waited_for() -> None:
    """A node that was started again has the others' newest models: it goes on at once."""
    scene = Scene(list_size=1, peers=[Peer("a", 3)])
    scene.file("a", 3)
    assert begins(scene) <= SOON


def test_an_older_model_is_not_the_peer_s_newest() -> None:
    """What an earlier run left doesn't keep a node from waiting for what the peer has now."""

    async def story(scene: Scene, start: Start) -> None:
        await trio.sleep(3)
        scene.file("a", 7)

    scene = Scene(list_size=1, peers=[Peer("a", 7)])
    scene.file("a", 3)
    assert begins(scene, story=story) == pytest.approx(3, abs=SOON)


# ── peers that don't deliver ─────────────────────────────────────────────────────────────────


def test_a_peer_that_stalls() -> None:
    """One that says it has a model and sends nothing holds the start for a quarter of a minute."""
    scene = Scene(list_size=1, peers=[Peer("a", 3)])
    assert begins(scene) == pytest.approx(STALL_SECONDS, abs=SOON)


def test_models_that_come_through_a_relay() -> None:
    """Peers that can't be met may still have their models on the way."""

    async def story(scene: Scene, start: Start) -> None:
        scene.relays["r"] = object()
        scene.incoming[b"a"] = Coming(500)
        await trio.sleep(8)
        scene.incoming.clear()
        scene.file("a", 3)

    assert begins(Scene(list_size=1), story=story) == pytest.approx(8, abs=SOON)


def test_a_peer_that_stalls_half_way() -> None:
    """The time counts from the last byte; with what is here it begins."""

    async def story(scene: Scene, start: Start) -> None:
        scene.file("b", 3)
        await trio.sleep(10)
        scene.incoming[b"a"] = Coming(500)

    scene = Scene(list_size=2, peers=[Peer("a", 3), Peer("b", 3)])
    assert begins(scene, story=story) == pytest.approx(10 + STALL_SECONDS, abs=SOON)


@pytest.mark.parametrize(
    ("size", "seconds"),
    [(5_000_000, GATHER_SECONDS), (5_000_000_000, ENOUGH * 5_000_000_000 / GATHER_RATE)],
)
def test_a_peer_that_trickles(size: int, seconds: float) -> None:
    """A byte now and then doesn't hold the start for ever; models of gigabytes get their time."""

    async def story(scene: Scene, _start: Start) -> None:
        coming = scene.incoming[b"a"] = Coming(size=size)
        while True:
            await trio.sleep(STALL_SECONDS - 1)
            coming.bytes_here += 1

    scene = Scene(list_size=1, peers=[Peer("a", 3)])
    assert begins(scene, story=story) == pytest.approx(seconds, abs=SOON)


def test_a_peer_that_goes() -> None:
    """Whoever is gone isn't waited for."""

    async def story(scene: Scene, _start: Start) -> None:
        await trio.sleep(4)
        scene.peers.clear()

    scene = Scene(list_size=1, peers=[Peer("a", 3)])
    assert begins(scene, story=story) == pytest.approx(4, abs=SOON)


# ── require ──────────────────────────────────────────────────────────────────────────────────


def test_require_waits_for_a_model() -> None:
    """--bootstrap require waits as long as it takes, and says so."""

    async def story(scene: Scene, start: Start) -> None:
        await trio.sleep(150)
        assert "waiting for a model" in scene.lines[0]
        scene.peers.append(Peer("a", 1))
        await trio.sleep(150)
        scene.file("a", 1)
        start.filed()

    assert begins(Scene(), "require", story) == pytest.approx(300, abs=SOON)


def test_after_the_start_nobody_is_asked() -> None:
    """A peer that comes later offers what it makes; all its models aren't asked for."""

    async def main() -> None:
        start, late = Scene().start(), Peer("a", 3)
        await start.wait(lambda _level, _text: None)
        session: Any = late
        start.met(session)
        assert not late.said

    trio.run(main, clock=MockClock(autojump_threshold=0))
