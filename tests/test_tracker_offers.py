"""What a tracker offers beside its list, and calls through it, as a client sees them."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel
from players import TRACKER, Player, Stage, play, welcome
from records import peer

from lab import identity
from p2pnode.tracker.errors import Reason, Refused
from p2pnode.tracker.follower import WATCH_PAUSE
from p2pnode.tracker.protocol import CALLS, Call, Events, Refusal, Request, Watch, to_bytes
from p2pnode.tracker.state import BACKOFF_MOST
from p2pnode.transport.address import Address
from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.peer_address import PeerAddress


def test_what_the_tracker_offers() -> None:
    """Its relay and its STUN port, at the host that was dialled; nothing, where it offers none."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker(relay=True, stun=3478):
            alice = stage.player(1)
            await trio.sleep(1)
            state = alice.client.state
            assert state.relay == PeerAddress(peer(200), TRACKER)
            assert state.stun == Address(TRACKER.host, 3478)
        async with stage.tracker():
            await trio.sleep(BACKOFF_MOST)
            assert (alice.client.state.relay, alice.client.state.stun) == (None, None)

    play(scene)


@pytest.mark.parametrize("ahead", [0.0, 3600.0, -7.5])
def test_how_far_the_tracker_s_clock_is_ahead(ahead: float) -> None:
    """Half the round trip is taken off, so a long way is no wrong clock."""

    async def scene(stage: Stage) -> None:
        alice = Player(1, stage.lab.network(identity(1)), ahead=-ahead)
        async with stage.tracker():
            with stage.lab.slow(2.0):
                stage.nursery.start_soon(alice.run)
                await trio.sleep(3.9)
                assert alice.client.state.skew is None
                await trio.sleep(1)
                assert alice.client.state.skew == pytest.approx(ahead)

    play(scene)


def test_an_older_tracker_tells_no_time() -> None:
    """Then nothing is known of the clocks, and nothing is offered."""

    async def scene(stage: Stage) -> None:
        async with stage.liar(lambda q: None if isinstance(q, Watch) else welcome(q)):
            alice = stage.player(1)
            await trio.sleep(1)
            state = alice.client.state
            assert (state.status, state.skew, state.relay) == ("connected", None, None)

    play(scene)


def test_a_call_arrives_as_it_was_sent() -> None:
    """At once, with the next two of a punch behind it: nobody waits for the pause of a watch."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice, bob = stage.player(1), stage.player(2)
            assert not alice.client.knows(peer(2))
            await trio.sleep(1)
            assert alice.client.knows(peer(2))
            for envelope in (b"call", b"answer", b"go"):
                await alice.client.call(peer(2), envelope)
                await trio.testing.wait_all_tasks_blocked()
            assert bob.calls == [(1.0, b"call"), (1.0, b"answer"), (1.0, b"go")]
            with pytest.raises(Refused) as caught:
                await alice.client.call(peer(3), b"nobody")
            assert caught.value.reason == Reason.ABSENT

    play(scene)


def test_without_a_contact_there_are_no_calls() -> None:
    """Before the welcome, and after the tracker is gone."""

    async def scene(stage: Stage) -> None:
        alice, bob = stage.player(1), stage.player(2)
        async with stage.tracker():
            with pytest.raises(LinkClosed):
                await alice.client.call(peer(2), b"early")
            await trio.sleep(1)
            await alice.client.call(peer(2), b"now")
        with pytest.raises(LinkClosed):
            await alice.client.call(peer(2), b"late")
        assert not alice.client.knows(peer(2))
        assert [call for _, call in bob.calls] == [b"now"]

    play(scene)


def test_a_tracker_that_always_has_calls_keeps_nobody_busy() -> None:
    """After eight answers with calls they come four times a second, as other news do."""

    def answer(question: Request) -> bytes:
        news = Events(question.id, b"now", False, (), (), (b"again",) * CALLS)
        return to_bytes(news) if isinstance(question, Watch) else welcome(question)

    async def scene(stage: Stage) -> None:
        async with stage.liar(answer) as questions:
            alice = stage.player(1)
            await trio.lowlevel.checkpoint()
            await trio.sleep(100.1)
            assert sum(isinstance(q, Watch) for q in questions) <= 8 + 1 + 100 / WATCH_PAUSE
            assert sum(at < WATCH_PAUSE for at, _ in alice.calls) == (1 + 8) * CALLS

    play(scene)


def test_an_older_tracker_is_asked_once_to_call() -> None:
    """It says malformed, which counts against us; on its next contact it may be a newer one."""

    def answer(question: Request) -> bytes | None:
        if isinstance(question, Call):
            return to_bytes(Refusal(question.id, "malformed"))
        return None if isinstance(question, Watch) else welcome(question)

    async def scene(stage: Stage) -> None:
        async with stage.liar(answer) as questions:
            alice = stage.player(1)
            await trio.sleep(1)
            for _ in range(3):
                with pytest.raises(Refused, match="can't be read"):
                    await alice.client.call(peer(2), b"hello")
            assert sum(isinstance(q, Call) for q in questions) == 1
            for link in list(stage.lab.links):
                link.close()
            await trio.sleep(1)
            with pytest.raises(Refused):
                await alice.client.call(peer(2), b"hello")
            assert sum(isinstance(q, Call) for q in questions) == 2

    play(scene)


def test_a_move_dials_anew_where_it_must() -> None:
    """A contact from an address that is gone ends at once, another goes on; a wait is over."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice = stage.player(1)
            await trio.sleep(1)
            (link,) = [link for link in stage.lab.links if link.dialled]
            alice.client.moved({"192.168.0.7"})
            await trio.sleep(0.01)
            assert link in stage.lab.links
            alice.client.moved({"192.168.0.7", link.local.host})
            assert alice.client.state.seen is None
            await trio.sleep(0.01)
            assert link not in stage.lab.links
            assert alice.status() == "connected"
            assert any("addresses have changed" in line for line in alice.lines)
        await trio.sleep(300)
        async with stage.tracker():
            alice.client.moved(set())
            await trio.sleep(0.01)
            assert alice.status() == "connected"

    play(scene)


def test_another_network_is_tried_at_once_while_dialling() -> None:
    """The old network's silence isn't waited for."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            with stage.lab.filtered(TRACKER.host):
                alice = stage.player(1)
                await trio.sleep(3)
            assert alice.status() == "connecting"
            alice.client.moved({"10.0.1.1"})
            await trio.sleep(0.01)
            assert alice.status() == "connected"

    play(scene)
