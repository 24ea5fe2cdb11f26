"""The tracker over the in-memory network: prompt, bounded, and never ended by what peers send."""

from __future__ import annotations

from functools import partial
from itertools import count

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from records import peer, sealed
from trackers import TRACKER, Asker, Stage, play
from trio.testing import MockClock

from lab import Lab, identity
from p2pnode.tracker import registry as registries
from p2pnode.tracker import server as module
from p2pnode.tracker.errors import Reason
from p2pnode.tracker.protocol import (
    WATCH_SECONDS,
    Announce,
    Bye,
    Events,
    Leave,
    Refusal,
    Watch,
    Welcome,
    parse_reply,
    to_bytes,
)
from p2pnode.tracker.record import open_record
from p2pnode.tracker.registry import TTL, Registry
from p2pnode.tracker.server import MISTAKES, TrackerServer
from p2pnode.tracker.sessions import BURST, RATE, SEND_SECONDS
from p2pnode.transport import wire
from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.link import CONTROL_LIMIT, Link


def test_an_announce_is_welcomed_with_the_address_seen() -> None:
    """The answer tells how long the record lives and where the link came from."""

    async def scene(stage: Stage) -> None:
        asker = await stage.peer(1, "10.9.9.9")
        reply = await asker.announce()
        assert isinstance(reply, Welcome)
        assert (reply.id, reply.ttl, reply.seen.host) == (1, TTL, "10.9.9.9")
        page = await asker.watch()
        assert (page.fresh, page.joined, page.left) == (True, (sealed(1),), ())

    play(scene)


def test_other_services_at_the_same_port() -> None:
    """A tracker that relays does so at its own address."""

    async def main() -> None:
        lab, served = Lab(), list[str]()

        async def relay(link: Link) -> None:
            served.append(link.peer)

        server = TrackerServer(Registry(bytes(8)), relay=True, stun=3478, wall=lambda: 1.5)
        async with trio.open_nursery() as nursery:
            network = lab.network(identity(200), TRACKER.host)
            serve = partial(server.serve, beside={"relay": relay})
            await nursery.start(serve, network, TRACKER)
            here = lab.network(identity(1), "10.0.1.1")
            await here.dial(TRACKER, "relay")
            await trio.testing.wait_all_tasks_blocked()
            assert served == [peer(1)]
            reply = await Asker(1, await here.dial(TRACKER, "tracker")).announce()
            assert isinstance(reply, Welcome)
            assert (reply.relay, reply.stun, reply.time) == (True, 3478, 1.5)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_join_and_a_leave_answer_the_watch_at_once() -> None:
    """A waiting watch hears of another peer in the moment it comes, and when it goes."""

    async def scene(stage: Stage) -> None:
        alice = await stage.member(1)
        cursor = (await alice.watch()).cursor
        await alice.link.send(to_bytes(Watch(90, cursor)))
        await trio.sleep(10)
        bob = await stage.member(2)
        news = parse_reply(await alice.link.receive())
        assert isinstance(news, Events)
        assert (news.id, news.joined, news.fresh) == (90, (sealed(2),), False)
        await alice.link.send(to_bytes(Watch(91, news.cursor)))
        await trio.sleep(10)
        assert await bob.ask(Leave) == Bye(2)
        news = parse_reply(await alice.link.receive())
        assert isinstance(news, Events)
        assert (news.joined, news.left) == ((), (peer(2),))
        assert trio.current_time() == 20

    play(scene)


def test_a_watch_without_news_is_answered_after_25_seconds() -> None:
    """So that the peer knows that the link lives; meanwhile announces are answered at once."""

    async def scene(stage: Stage) -> None:
        alice = await stage.member(1)
        cursor = (await alice.watch()).cursor
        start = trio.current_time()
        await alice.link.send(to_bytes(Watch(90, cursor)))
        assert isinstance(await alice.announce(seq=2), Welcome)
        assert trio.current_time() == start
        news = parse_reply(await alice.link.receive())
        assert isinstance(news, Events)
        assert not news.joined and not news.left and not news.fresh
        assert trio.current_time() == start + WATCH_SECONDS

    play(scene)


def test_silent_peers_expire_by_the_trackers_clock_only() -> None:
    """A peer that announces no more is gone after the TTL, not before, link or no link."""

    async def scene(stage: Stage) -> None:
        alice, bob = await stage.member(1), await stage.member(2)
        await bob.link.aclose()  # a lost link is no leave
        cursor = (await alice.watch()).cursor
        await trio.sleep(20)
        await alice.announce(seq=2)
        assert stage.server.status.peers == 2
        news = await alice.watch(cursor)
        assert news.left == (peer(2),)
        assert TTL <= trio.current_time() <= TTL + 1
        assert stage.server.status.peers == 1
        assert any("has not been heard of" in line for line in stage.lines)

    play(scene)


def test_each_refusal_is_told_and_counted() -> None:
    """Foreign key, replay, altered record, another swarm, watch before announce, two watches."""
    altered = sealed(1, 9)[:-1] + bytes([sealed(1, 9)[-1] ^ 1])

    async def scene(stage: Stage) -> None:
        early = await stage.peer(3)
        assert await early.ask(Watch) == Refusal(1, Reason.UNANNOUNCED)
        assert await early.ask(Leave) == Refusal(2, Reason.UNANNOUNCED)
        alice = await stage.member(1)
        foreign = Announce(50, sealed(2))
        assert await alice.ask(lambda _: foreign) == Refusal(50, Reason.FOREIGN_KEY)
        assert await alice.ask(lambda _: Announce(51, altered)) == Refusal(51, Reason.BAD_SIGNATURE)
        assert await alice.announce(seq=1) == Refusal(4, Reason.STALE)
        assert await alice.announce(seq=2, swarm="other") == Refusal(5, Reason.OTHER_SWARM)
        bob = await stage.member(2)
        cursor = (await bob.watch()).cursor
        await bob.link.send(to_bytes(Watch(60, cursor)))
        assert await bob.ask(lambda _: Watch(61, cursor)) == Refusal(61, Reason.BUSY)
        assert stage.rejects() == {
            "unannounced": 2, "foreign-key": 1, "bad-signature": 1, "stale": 1,
            "other-swarm": 1, "busy": 1,
        }  # fmt: skip
        assert stage.server.status.peers == 2

    play(scene)


def test_swarms_do_not_hear_of_each_other() -> None:
    """A join in another swarm neither wakes a watch nor stands on the list."""

    async def scene(stage: Stage) -> None:
        alice, bob = await stage.peer(1), await stage.peer(2)
        await alice.announce(swarm="red")
        cursor = (await alice.watch()).cursor
        await alice.link.send(to_bytes(Watch(90, cursor)))
        await bob.announce(swarm="blue")
        news = parse_reply(await alice.link.receive())
        assert isinstance(news, Events)
        assert (news.joined, trio.current_time()) == ((), WATCH_SECONDS)
        assert (await bob.watch()).joined == (sealed(2, swarm="blue"),)

    play(scene)


GARBAGE = [
    b"\xff",  # a byte that is not UTF-8 ended the prototype's tracker
    b"",
    b"\x00" * 5,
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xbf" * 100,
    b"\x9f" * 100_000,
    b"x" * CONTROL_LIMIT,
    wire.encode({"t": "announce", "id": 1}),
    wire.encode({"t": "announce", "id": 1, "envelope": b"\xd2\x84"}),
    wire.encode({"t": "welcome", "id": 1, "ttl": 30.0, "seen": "1.2.3.4:5"}),
    wire.encode([1, 2, 3]),
    wire.encode({"t": "watch", "id": 1, "cursor": b"x" * 33}),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_gets_an_error_and_the_link_lives_on(garbage: bytes) -> None:
    """One wrong message is told, counted and forgiven."""

    async def scene(stage: Stage) -> None:
        asker = await stage.peer(1)
        await asker.link.send(garbage)
        reply = parse_reply(await asker.link.receive())
        assert isinstance(reply, Refusal)
        assert reply.reason == Reason.MALFORMED
        assert isinstance(await asker.announce(), Welcome)
        assert stage.rejects() == {"malformed": 1}

    play(scene)


def test_a_few_mistakes_close_the_link_and_nothing_else() -> None:
    """The link that sends garbage is closed after the fifth; the others notice nothing."""

    async def scene(stage: Stage) -> None:
        good, bad = await stage.member(1), await stage.peer(2)
        for _ in range(MISTAKES + 1):
            await bad.link.send(b"\xff")
            assert isinstance(parse_reply(await bad.link.receive()), Refusal)
        with pytest.raises(LinkClosed):
            await bad.link.receive()
        assert isinstance(await good.announce(seq=2), Welcome)
        assert stage.rejects() == {"malformed": MISTAKES + 1}
        assert stage.server.status.links == 1
        assert any("closed after 5 mistakes" in line for line in stage.lines)

    play(scene)


async def flood(asker: Asker, messages: int) -> None:
    """Send announces as fast as the network takes them, and read all answers."""

    async def read() -> None:
        for _ in range(messages):
            assert isinstance(parse_reply(await asker.link.receive()), Welcome)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for n in range(messages):
            envelope = sealed(asker.number, n + 1)
            await asker.link.send(to_bytes(Announce(n + 1, envelope)))


def test_a_flood_is_slowed_down_and_nobody_else() -> None:
    """A thousand announces take their time; another peer is served at once meanwhile."""

    async def scene(stage: Stage) -> None:
        noisy, calm = await stage.peer(1), await stage.member(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, noisy, 1000)
            await trio.sleep(10)
            start = trio.current_time()
            assert isinstance(await calm.announce(seq=2), Welcome)
            assert trio.current_time() == start
        assert trio.current_time() == pytest.approx((1000 - BURST) / RATE)
        assert stage.server.status.requests == 1002

    play(scene)


def test_a_peer_that_does_not_read_is_dropped() -> None:
    """Its answers are not collected for it; the others are served."""

    async def scene(stage: Stage) -> None:
        deaf = await stage.peer(1)
        with pytest.raises(LinkClosed):
            for n in count(1):
                await deaf.link.send(to_bytes(Announce(n, sealed(1, n))))
        assert stage.server.status.links == 0
        assert isinstance(await (await stage.peer(2)).announce(), Welcome)
        assert trio.current_time() <= SEND_SECONDS + 10

    play(scene)


def test_a_link_that_asks_nothing_is_closed() -> None:
    """It would keep a place that others need."""

    async def scene(stage: Stage) -> None:
        asker = await stage.member(1)
        with pytest.raises(LinkClosed):
            await asker.link.receive()
        assert trio.current_time() == module.SILENCES * TTL
        assert stage.server.status.links == 0

    play(scene)


def test_links_are_bounded_in_all_and_for_each_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes when there is no room is told why, and let go; a free place is given again."""
    monkeypatch.setattr(module, "LINKS", 3)
    monkeypatch.setattr(module, "LINKS_PER_HOST", 2)

    async def scene(stage: Stage) -> None:
        first = await stage.peer(1, "10.0.1.1")
        await first.announce()
        await (await stage.peer(2, "10.0.1.1")).announce()
        third = await stage.peer(3, "10.0.1.1")
        assert parse_reply(await third.link.receive()) == Refusal(0, Reason.HOST_FULL)
        with pytest.raises(LinkClosed):
            await third.link.receive()
        await (await stage.peer(3, "10.0.1.2")).announce()
        fourth = await stage.peer(4, "10.0.1.3")
        assert parse_reply(await fourth.link.receive()) == Refusal(0, Reason.TRACKER_FULL)
        await first.link.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(await (await stage.peer(4, "10.0.1.3")).announce(), Welcome)
        assert stage.rejects() == {"host-full": 1, "tracker-full": 1}

    play(scene)


def test_no_room_is_nobodys_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer may try a full swarm again and again on one link."""
    monkeypatch.setattr(registries, "PEERS_PER_SWARM", 1)

    async def scene(stage: Stage) -> None:
        alice, bob = await stage.member(1), await stage.peer(2)
        for seq in range(1, 9):
            assert await bob.announce(seq) == Refusal(seq, Reason.SWARM_FULL)
        await alice.ask(Leave)
        assert isinstance(await bob.announce(9), Welcome)

    play(scene)


def test_a_long_list_comes_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each watch of the catching-up peer is answered at once, until it knows everyone."""
    monkeypatch.setattr(registries, "PAGE_BYTES", 1000)

    async def scene(stage: Stage) -> None:
        for number in range(1, 13):
            await stage.member(number)
        late = await stage.member(13)
        page, there = await late.watch(), set[str]()
        assert page.fresh
        while len(there) < 13:
            assert len(to_bytes(page)) < 1200
            there |= {open_record(data).peer for data in page.joined}
            page = await late.watch(page.cursor)
        assert there == {peer(n) for n in range(1, 14)}

    play(scene)


def test_the_log_has_a_line_for_each_change() -> None:
    """Joined, moved and left, with the number of peers; a sign of life says nothing."""

    async def scene(stage: Stage) -> None:
        asker = await stage.member(1)
        await asker.announce(2)
        await asker.announce(3, port=7000)
        await asker.ask(Leave)
        name = f"swarm main: …{peer(1)[-8:]}"
        assert stage.lines == [
            f"{name} joined: 1.2.3.4:6000 (peers: 1)",
            f"{name} moved: 1.2.3.4:7000 (peers: 1)",
            f"{name} left (peers: 0)",
        ]

    play(scene)


MESSAGES = st.binary(max_size=60) | st.one_of(
    st.builds(Announce, st.integers(1, 9), st.binary(min_size=1, max_size=60)),
    st.builds(Announce, st.integers(1, 9), st.integers(1, 3).map(lambda seq: sealed(1, seq))),
    st.builds(Watch, st.integers(1, 9), st.binary(max_size=32)),
    st.builds(Leave, st.integers(1, 9)),
).map(to_bytes)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(MESSAGES, max_size=12))
def test_any_messages_leave_the_tracker_serving(messages: list[bytes]) -> None:
    """The fuzz sentence: whatever one peer sends, the next one is served."""

    async def scene(stage: Stage) -> None:
        asker = await stage.peer(1)
        try:
            for message in messages:
                await asker.link.send(message)
                with trio.move_on_after(1):
                    parse_reply(await asker.link.receive())
        except LinkClosed:
            pass
        good = await stage.peer(2)
        assert isinstance(await good.announce(), Welcome)
        assert sealed(2) in (await good.watch()).joined

    play(scene)
