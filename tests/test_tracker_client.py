"""A peer's contact with a tracker: prompt, patient, and never ended by what the tracker does."""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from players import SEEN, TRACKER, Player, Stage, came, gone, play, welcome
from records import peer, sealed

from lab import identity
from p2pnode.tracker.client import DIAL_SECONDS
from p2pnode.tracker.contact import REPLY_SECONDS
from p2pnode.tracker.follower import GRACE, WATCH_PAUSE
from p2pnode.tracker.protocol import (
    WATCH_SECONDS,
    Bye,
    Events,
    Leave,
    Refusal,
    Request,
    Watch,
    to_bytes,
)
from p2pnode.tracker.registry import TTL, Registry
from p2pnode.tracker.server import TrackerServer
from p2pnode.tracker.state import BACKOFF_MOST, Backoff
from p2pnode.transport.address import Address
from p2pnode.transport.link import Link
from p2pnode.transport.network import TcpNetwork


def test_peers_hear_of_each_other_as_it_happens() -> None:
    """Joins, moves and leaves arrive within the pause between two watches."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice = stage.player(1)
            await trio.sleep(1)
            bob = stage.player(2)
            await trio.sleep(WATCH_PAUSE + 0.01)
            assert (alice.news(), bob.news()) == ([came(2)], [came(1)])
            await trio.sleep(1)
            bob.port = 7000
            bob.client.refresh()
            await trio.sleep(0.01)
            assert (alice.news(), bob.news()) == ([came(2, 7000)], [])
            await trio.sleep(1)
            await bob.client.leave()
            await trio.sleep(0.01)
            assert bob.ended.is_set()
            assert (alice.news(), bob.news()) == ([gone(2)], [])

    play(scene)


def test_the_state_of_a_contact() -> None:
    """Connected, with the address seen and the number of others."""

    async def scene(stage: Stage) -> None:
        alice = Player(1, stage.lab.network(identity(1)))
        assert (alice.status(), alice.client.state.seen) == ("connecting", None)
        async with stage.tracker():
            stage.nursery.start_soon(alice.run)
            stage.player(2)
            await trio.sleep(1)
            state = alice.client.state
            assert (state.address, state.status, state.peers) == (TRACKER, "connected", 1)
            assert state.seen is not None
            assert state.detail == f"connected, seen as {state.seen}"
            assert state.rejects == ()
            assert alice.lines == [f"tracker {TRACKER}: {state.detail}"]

    play(scene)


def test_announces_come_three_times_a_ttl() -> None:
    """So two of them may be lost; nobody hears of them."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice, bob = stage.player(1), stage.player(2)
            await trio.sleep(10 * TTL + 1)
            assert (alice.seq, bob.seq) == (31, 31)
            assert (alice.news(), bob.news()) == ([came(2)], [came(1)])

    play(scene)


def test_a_refresh_during_an_announce_is_not_lost() -> None:
    """It announces once more, with a record made after the call."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker() as server:
            alice = stage.player(1)
            await trio.sleep(1)
            with stage.lab.slow(0.5):
                alice.client.refresh()
                await trio.sleep(0.7)
                alice.client.refresh()
                await trio.sleep(3)
            assert alice.seq == 3
            assert server.status.rejects == ()

    play(scene)


def test_a_peer_that_vanishes_is_gone_after_the_ttl() -> None:
    """The tracker's clock decides; the peer that stays is told."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice, bob = stage.player(1), stage.player(2)
            await trio.sleep(1)
            bob.scope.cancel()
            await trio.sleep(TTL - 5)
            assert alice.news() == [came(2)]
            await trio.sleep(6)
            assert alice.news() == [gone(2)]

    play(scene)


def test_a_tracker_that_comes_later_is_found() -> None:
    """Until then the state says what is wrong and when the next try is; the log says it once."""

    async def scene(stage: Stage) -> None:
        alice = stage.player(1)
        await trio.sleep(120)
        state = alice.client.state
        assert state.status == "unreachable"
        assert state.detail.startswith("unreachable, next try in ")
        assert state.detail.endswith(" s: connection refused")
        assert len(alice.lines) == 1
        async with stage.tracker():
            await trio.sleep(BACKOFF_MOST)
            assert alice.status() == "connected"
            assert len(alice.lines) == 2

    play(scene)


def test_a_tracker_that_dies_and_comes_back_anew() -> None:
    """Nobody has left for it; the peers announce again, and later joins are heard of."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice, bob = stage.player(1), stage.player(2)
            await trio.sleep(5)
        assert (alice.news(), bob.news()) == ([came(2)], [came(1)])
        await trio.sleep(600)
        assert (alice.news(), alice.client.state.peers) == ([], 1)
        async with stage.tracker() as server:
            await trio.sleep(BACKOFF_MOST)
            assert server.status.peers == 2
            stage.player(3)
            await trio.sleep(5 * GRACE)
            assert (alice.news(), bob.news()) == ([came(3)], [came(3)])

    play(scene)


def test_who_does_not_come_back_to_a_new_tracker_has_left() -> None:
    """After the time that everyone needs to dial it again, and only then."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice, bob = stage.player(1), stage.player(2)
            await trio.sleep(5)
        bob.scope.cancel()
        async with stage.tracker():
            await trio.sleep(GRACE)
            assert alice.news() == [came(2)]
            await trio.sleep(WATCH_SECONDS + 1)
            assert alice.news() == [gone(2)]

    play(scene)


def test_a_leave_during_a_short_break_is_heard_of() -> None:
    """The tracker is still the same, so the cursor goes on where it was."""

    async def scene(stage: Stage) -> None:
        registry = Registry(b"the same")
        async with stage.tracker(registry):
            alice, bob = stage.player(1), stage.player(2)
            await trio.sleep(5)
            assert alice.news() == [came(2)]
            with stage.lab.cut("10.0.1.1"):
                await bob.client.leave()
                await trio.sleep(2)
                assert alice.news() == []
            await trio.sleep(3)
            assert alice.news() == [gone(2)]

    play(scene)


def test_a_tracker_that_falls_silent_is_left_and_found_again() -> None:
    """No answer in ten seconds ends the link, although nothing closed it."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice = stage.player(1)
            await trio.sleep(1)
            with stage.lab.silent(TRACKER.host):
                await trio.sleep(TTL / 3 + REPLY_SECONDS)
                assert alice.status() == "unreachable"
                assert (
                    "the tracker does not answer: no welcome in 10 s" in alice.client.state.detail
                )
            await trio.sleep(BACKOFF_MOST + REPLY_SECONDS)
            assert alice.status() == "connected"

    play(scene)


@dataclass
class Broken:
    """A network on which dialling hangs, or fails in a way that the system tells."""

    error: OSError | None = None

    async def punch(self, *_args: object) -> Link:
        return await self.dial()

    async def dial(self, *_args: object) -> Link:
        if self.error is not None:
            raise self.error
        await trio.sleep_forever()
        raise AssertionError

    async def listen(self, *_args: object, task_status: object) -> None: ...


def test_dialling_is_bounded_and_its_errors_are_told() -> None:
    """A dial that hangs ends after ten seconds; an error of the system is one line."""

    async def scene(stage: Stage) -> None:
        for network, text in (
            (Broken(), ": no connection in 10 s"),
            (Broken(OSError(24, "Too many open files")), "too many open files"),
        ):
            alice = Player(1, network)
            stage.nursery.start_soon(alice.run)
            await trio.sleep(DIAL_SECONDS + 0.1)
            assert alice.status() == "unreachable"
            assert alice.client.state.detail.lower().endswith(text)
            alice.scope.cancel()

    play(scene)


def test_another_service_at_the_address_is_named() -> None:
    """The address of a peer instead of a tracker's is told as such."""

    async def handler(_link: Link) -> None:
        """Nobody comes so far."""

    async def scene(stage: Stage) -> None:
        network = stage.lab.network(identity(200), TRACKER.host)
        await stage.nursery.start(network.listen, TRACKER, {"peer": handler})
        alice = stage.player(1)
        await trio.sleep(1)
        assert alice.client.state.detail.endswith(": the other end is a peer, not a tracker")

    play(scene)


def test_a_refusal_is_told_and_tried_again() -> None:
    """A tracker's no is its reason in plain words, and the next try comes later and later."""

    async def scene(stage: Stage) -> None:
        async with stage.liar(lambda q: to_bytes(Refusal(q.id, "swarm-full"))) as questions:
            alice = stage.player(1)
            await trio.sleep(300)
            assert alice.status() == "unreachable"
            text = ": the tracker refused: the swarm has no room for another peer"
            assert alice.client.state.detail.endswith(text)
            assert 20 <= len(questions) <= 45

    play(scene)


def test_leaving_is_bounded_by_the_caller() -> None:
    """Without a contact it is immediate, with a mute tracker it takes what the caller gives."""

    async def scene(stage: Stage) -> None:
        alone = stage.player(1)
        await trio.sleep(5)
        await alone.client.leave()
        await alone.ended.wait()
        async with stage.tracker() as server:
            alice = stage.player(2)
            await trio.sleep(1)
            start = trio.current_time()
            with stage.lab.silent(TRACKER.host), trio.move_on_after(1):
                await alice.client.leave()
            assert trio.current_time() == start + 1
            await alice.ended.wait()
            assert trio.current_time() == start + 1
            assert server.status.peers == 0

    play(scene)


def test_leaving_before_running_ends_the_run_at_once() -> None:
    """A node that is stopped while it starts does not hang here."""

    async def scene(stage: Stage) -> None:
        alice = Player(1, stage.lab.network(identity(1)))
        await alice.client.leave()
        await alice.run()

    play(scene)


def test_a_lying_tracker_invents_nobody() -> None:
    """Altered, foreign, replayed and garbage records are skipped; the right one is taken."""
    altered = sealed(3)[:-1] + bytes([sealed(3)[-1] ^ 1])
    lies = (b"\xff", altered, sealed(4, swarm="other"), sealed(1, 99), sealed(2, 5), sealed(2, 4))

    def answer(question: Request) -> bytes | None:
        if not isinstance(question, Watch):
            return welcome(question)
        if question.cursor == b"":
            return to_bytes(Events(question.id, b"1", True, lies, (peer(7),)))
        return None

    async def scene(stage: Stage) -> None:
        async with stage.liar(answer):
            alice = stage.player(1)
            await trio.sleep(1)
            assert alice.news() == [came(2)]
            assert alice.client.state.seen == SEEN
            assert dict(alice.client.state.rejects) == {
                "bad-signature": 1, "malformed": 1, "other-swarm": 1, "stale": 1,
            }  # fmt: skip

    play(scene)


def test_a_tracker_full_of_news_does_not_keep_a_peer_busy() -> None:
    """There are at most four watches a second, however fast they are answered."""

    def answer(question: Request) -> bytes:
        if isinstance(question, Watch):
            return to_bytes(Events(question.id, b"", True, (sealed(2),), ()))
        return welcome(question)

    async def scene(stage: Stage) -> None:
        async with stage.liar(answer) as questions:
            stage.player(1)
            await trio.sleep(100)
            assert sum(isinstance(q, Watch) for q in questions) <= 1 + 100 / WATCH_PAUSE

    play(scene)


def by_id(answer: Callable[[int], bytes], question: Request) -> bytes:
    """An answer that only looks at the id."""
    return answer(question.id)


def test_answers_that_do_not_fit_end_the_link_only() -> None:
    """Wrong type, wrong id, garbage: told in one line, and tried again."""
    answers: list[tuple[Callable[[int], bytes], str]] = [
        (lambda id: b"\xff", "this is not a tracker message: "),
        (lambda id: to_bytes(Bye(id)), "a bye where a welcome was due"),
        (lambda id: to_bytes(Bye(id + 1)), "a bye that answers no question"),
        (lambda id: to_bytes(Refusal(0, "tracker-full")), "no room for another peer"),
        (lambda id: to_bytes(Refusal(id, "new-reason")), "the tracker refused: new-reason"),
    ]

    async def scene(stage: Stage) -> None:
        for answer, text in answers:
            async with stage.liar(partial(by_id, answer)):
                alice = stage.player(1)
                await trio.sleep(1)
                assert alice.status() == "unreachable"
                assert text in alice.client.state.detail
                assert alice.client.state.detail.isprintable()
                alice.scope.cancel()

    play(scene)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.binary(max_size=80), max_size=6))
def test_a_client_survives_any_answers(answers: list[bytes]) -> None:
    """The fuzz sentence: whatever bytes a tracker sends, the client says so and goes on."""

    async def scene(stage: Stage) -> None:
        rest = list(answers)

        def answer(question: Request) -> bytes | None:
            if rest:
                return rest.pop()
            return None if isinstance(question, Watch) else welcome(question)

        async with stage.liar(answer):
            alice = stage.player(1)
            await trio.sleep(100)
            assert not alice.ended.is_set()
            assert alice.client.state.seen == SEEN

    play(scene)


def test_a_callers_own_error_is_not_swallowed() -> None:
    """What the node's callbacks raise is our own mistake and comes out."""

    def broken() -> bytes:
        raise KeyError("ours")

    async def scene(stage: Stage) -> None:
        alice = Player(1, stage.lab.network(identity(1)))
        async with stage.tracker():
            with pytest.raises(ExceptionGroup) as caught:
                await alice.client.run(broken, alice.joined, alice.left)
            assert caught.group_contains(KeyError)

    play(scene)


def test_the_backoff_doubles_and_is_jittered() -> None:
    """Half to all of 0.5, 1, 2, 4, 8, 15, 15 seconds; a success begins anew; no two peers alike."""
    backoff = Backoff(random.Random(1))
    for most in (0.5, 1, 2, 4, 8, 15, 15, 15):
        assert most / 2 <= backoff.wait() <= most
    backoff.reset()
    assert backoff.wait() <= 0.5
    waits = Counter(Backoff(random.Random(seed)).wait() for seed in range(50))
    assert len(waits) == 50


def test_over_tcp_and_nng() -> None:
    """The same over real sockets: two peers meet, one leaves, garbage changes nothing."""

    async def until(condition: Callable[[], bool]) -> None:
        while not condition():
            await trio.sleep(0.01)

    async def main() -> None:
        server = TrackerServer(Registry(secrets.token_bytes(8)))
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                anywhere = Address("127.0.0.1", 0)
                network = TcpNetwork(identity(200))
                where = await nursery.start(server.serve, network, anywhere)
                stranger = await trio.open_tcp_stream(where.host, where.port)
                await stranger.send_all(b"\xff\x00\x80 garbage" * 99)
                known = await TcpNetwork(identity(3)).dial(where, "tracker")
                await known.send(b"\xff")
                await known.receive()
                alice = Player(1, TcpNetwork(identity(1)), where)
                bob = Player(2, TcpNetwork(identity(2)), where)
                nursery.start_soon(alice.run)
                nursery.start_soon(bob.run)
                await until(lambda: alice.heard == [came(2)] and bob.heard == [came(1)])
                assert alice.status() == "connected"
                await bob.client.leave()
                await until(lambda: alice.heard == [came(2), gone(2)])
                assert server.status.rejects == (("malformed", 1),)
                await stranger.aclose()
                await known.aclose()
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_last_answer_still_arrives_over_tcp_and_nng(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is refused learns why, although the tracker closes the link."""
    monkeypatch.setattr("p2pnode.tracker.server.LINKS", 0)

    async def main() -> None:
        server = TrackerServer(Registry(secrets.token_bytes(8)))
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                network = TcpNetwork(identity(200))
                where = await nursery.start(server.serve, network, Address("127.0.0.1", 0))
                alice = Player(1, TcpNetwork(identity(1)), where)
                nursery.start_soon(alice.run)
                while alice.status() == "connecting":
                    await trio.sleep(0.01)
                assert "the tracker has no room" in alice.client.state.detail
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_lost_link_ends_open_questions() -> None:
    """Nobody waits for an answer that can't come any more."""

    async def scene(stage: Stage) -> None:
        async with stage.liar(lambda q: None if isinstance(q, Leave) else welcome(q)):
            alice = stage.player(1)
            await trio.sleep(1)
            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(alice.client.leave)
                await trio.sleep(0.5)
                for link in list(stage.lab.links):
                    link.close()
            assert trio.current_time() == start + 0.5

    play(scene)


def test_links_are_closed_behind() -> None:
    """No link stays open after a failed contact or a leave."""

    async def scene(stage: Stage) -> None:
        async with stage.tracker():
            alice = stage.player(1)
            await trio.sleep(1)
            assert len(stage.lab.links) == 2
            await alice.client.leave()
            await alice.ended.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert not stage.lab.links
        async with stage.liar(lambda q: b"\xff"):
            stage.player(2)
            await trio.sleep(0.01)
            assert not stage.lab.links

    play(scene)
