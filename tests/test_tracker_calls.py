"""Calls through a tracker: prompt, between members only, and no way to flood a peer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
from records import peer
from trackers import Asker, Stage, play

from lab import identity
from p2pnode.tracker.calls import ALL, CALLEE, CALLER, HOST, PAIR, Budget
from p2pnode.tracker.errors import Reason, Refused
from p2pnode.tracker.protocol import (
    CALL_LIMIT,
    CALLS,
    WATCH_SECONDS,
    Bye,
    Called,
    Events,
    Leave,
    Refusal,
    Watch,
    Welcome,
    parse_reply,
    to_bytes,
)
from p2pnode.tracker.registry import TTL
from p2pnode.transport.errors import LinkClosed

# ── the budget ───────────────────────────────────────────────────────────────────────────────


def passed(calls: Iterator[tuple[str, str, str]], budget: Budget, now: float = 0.0) -> int:
    """How many of some calls (caller, host, callee) are handed on."""
    count = 0
    for caller, host, callee in calls:
        try:
            budget.call(caller, host, callee, now)
            count += 1
        except Refused as error:
            assert error.reason == Reason.TOO_OFTEN
    return count


def flood(
    *, callers: int = 1, hosts: int = 1, callees: int = 1, times: int = 1
) -> Iterator[tuple[str, str, str]]:
    """Every caller of every host calls every callee, again and again."""
    for _ in range(times):
        for host in range(hosts):
            for caller in range(callers):
                for callee in range(callees):
                    yield f"{host}.{caller}", f"host {host}", f"callee {callee}"


@pytest.mark.parametrize(
    ("limit", "calls"),
    [
        (CALLER, lambda: flood(callees=1000)),
        (HOST, lambda: flood(callers=200, callees=20)),
        (PAIR, lambda: flood(callers=200)),
        (CALLEE, lambda: flood(hosts=50, times=10)),
        (ALL, lambda: flood(hosts=50, callees=20)),
    ],
    ids=["caller", "host", "pair", "callee", "all"],
)
def test_each_side_has_its_limit(limit: tuple[float, int], calls: object) -> None:
    """One peer, one host, one host to one peer, one callee, and all: a burst, then the rate."""
    assert callable(calls)
    rate, burst = limit
    budget = Budget()
    assert passed(calls(), budget) == burst
    assert passed(calls(), budget, 5.0) == 5 * rate


def test_a_peer_that_starts_among_fifty_says_all_in_half_a_minute() -> None:
    """It calls 25 peers twice and answers 25 once; nobody else is kept waiting by that."""
    budget, now = Budget(), 0.0
    due = [f"peer {n}" for n in range(25) for _ in range(2)] + [f"peer {n}" for n in range(25, 50)]
    while due:
        if passed(iter([("newcomer", "its host", due[0])]), budget, now):
            due.pop(0)
        else:
            now += 0.5
    assert now < 30


def test_one_host_leaves_others_their_part_of_a_callee() -> None:
    """A victim stays within reach of the other hosts, whatever one host sends it."""
    budget = Budget()
    for second in range(60):
        passed(flood(callers=100), budget, float(second))
        assert passed(iter([("friend", "another host", "callee 0")]), budget, float(second)) == 1


def test_what_is_refused_is_not_counted() -> None:
    """A caller over its own limit takes nothing from the others' part of the callee's."""
    budget = Budget()
    passed(flood(times=1000), budget)
    others = ((f"peer {n}", f"host {n + 1}", "callee 0") for n in range(100))
    assert passed(others, budget) == CALLEE[1] - CALLER[1]


SECONDS = TTL - 5
"""How long a flood lasts: nobody has to announce again meanwhile."""


# ── over the network ─────────────────────────────────────────────────────────────────────────


async def watching(asker: Asker) -> None:
    """Open a watch that has nothing to tell yet."""
    cursor = (await asker.watch()).cursor
    await asker.link.send(to_bytes(Watch(next(asker.ids), cursor)))
    await trio.testing.wait_all_tasks_blocked()


async def events(asker: Asker) -> Events:
    """The answer to the open watch."""
    reply = parse_reply(await asker.link.receive())
    assert isinstance(reply, Events)
    return reply


def test_a_call_answers_the_open_watch_at_once() -> None:
    """The callee gets the envelope as it was sent, and no time passes."""

    async def scene(stage: Stage) -> None:
        alice, bob = await stage.member(1), await stage.member(2)
        await watching(bob)
        envelope = bytes(range(256)) * (CALL_LIMIT // 256)
        assert await alice.call(peer(2), envelope) == Called(2)
        told = await events(bob)
        assert (told.calls, told.joined, told.left, told.fresh) == ((envelope,), (), (), False)
        assert trio.current_time() == 0

    play(scene)


def test_a_call_waits_for_the_next_watch() -> None:
    """It comes with other news, once."""

    async def scene(stage: Stage) -> None:
        alice, bob = await stage.member(1), await stage.member(2)
        await alice.call(peer(2), b"one")
        await alice.call(peer(2), b"two")
        told = await bob.watch()
        assert (told.calls, len(told.joined)) == ((b"one", b"two"), 2)
        await bob.link.send(to_bytes(Watch(90, told.cursor)))
        assert (await events(bob)).calls == ()
        assert trio.current_time() == WATCH_SECONDS

    play(scene)


def test_eight_wait_and_the_oldest_go() -> None:
    """A peer that doesn't watch costs the tracker 8 KiB at most."""

    async def scene(stage: Stage) -> None:
        alice, bob = await stage.member(1), await stage.member(2)
        for n in range(CALLS + 3):
            assert isinstance(await alice.call(peer(2), bytes([n])), Called)
        assert (await bob.watch()).calls == tuple(bytes([n]) for n in range(3, CALLS + 3))

    play(scene)


def test_who_is_absent_is_told_so() -> None:
    """Unknown, in another swarm, gone, expired, oneself: no mistake, however often."""

    async def scene(stage: Stage) -> None:
        alice = await stage.member(1)
        await stage.member(2, swarm="other")
        await stage.peer(3)  # connected, and in no swarm
        left = await stage.member(4)
        assert isinstance(await left.ask(Leave), Bye)
        lost = await stage.member(5)
        await lost.link.aclose()
        for number in (1, 2, 3, 4, 5, 6):
            reply = await alice.call(peer(number))
            assert isinstance(reply, Refusal) and reply.reason == Reason.ABSENT
        assert stage.rejects() == {Reason.ABSENT: 6}

    play(scene)


def test_only_members_call() -> None:
    """Before the announce, after leaving, and when the record is over: announce first."""

    async def scene(stage: Stage) -> None:
        bob, alice = await stage.member(2), await stage.peer(1)
        assert await alice.call(peer(2)) == Refusal(1, Reason.UNANNOUNCED)
        await alice.announce()
        await alice.ask(Leave)
        assert await alice.call(peer(2)) == Refusal(4, Reason.UNANNOUNCED)
        await alice.announce(2)
        await trio.sleep(TTL - 1)
        await bob.announce(2)
        await trio.sleep(2)
        assert await alice.call(peer(2)) == Refusal(6, Reason.UNANNOUNCED)
        assert (await bob.watch()).calls == ()

    play(scene)


def test_of_several_links_the_newest_is_called() -> None:
    """A peer that has moved is reached, and its old link isn't waited for."""

    async def scene(stage: Stage) -> None:
        alice, old = await stage.member(1), await stage.member(2)
        network = stage.lab.network(identity(2), "10.9.9.9")
        new = Asker(2, await network.dial(stage.address, "tracker"))
        assert isinstance(await new.announce(2), Welcome)
        await alice.call(peer(2))
        assert (await old.watch()).calls == ()
        assert (await new.watch()).calls == (b"hello",)
        await new.link.aclose()
        await trio.testing.wait_all_tasks_blocked()
        await alice.call(peer(2), b"again")
        await trio.sleep(1)
        assert (await old.watch()).calls == (b"again",)

    play(scene)


def test_a_flood_of_calls_reaches_nobody() -> None:
    """Twenty peers of one host call one victim without a pause: it hears what one host may say."""

    async def attack(asker: Asker) -> None:
        while True:
            await asker.call(peer(99), bytes(CALL_LIMIT))

    async def scene(stage: Stage) -> None:
        victim = await stage.member(99)
        attackers = [await stage.member(number, "6.6.6.6") for number in range(1, 21)]
        heard, cursor = 0, (await victim.watch()).cursor
        async with trio.open_nursery() as nursery:
            for attacker in attackers:
                nursery.start_soon(attack, attacker)
            with trio.move_on_after(SECONDS):
                while True:
                    told = await victim.watch(cursor)
                    heard, cursor = heard + len(told.calls), told.cursor
            nursery.cancel_scope.cancel()
        assert PAIR[1] < heard <= PAIR[1] + SECONDS * PAIR[0]
        assert set(stage.rejects()) == {Reason.TOO_OFTEN}

    play(scene)


def test_a_call_to_a_peer_that_does_not_read_ends_that_peers_link_only() -> None:
    """The caller is answered at once; nothing of the callee's holds it up."""

    async def scene(stage: Stage) -> None:
        alice, deaf = await stage.member(1), await stage.member(2)
        with pytest.raises(trio.TooSlowError), trio.fail_after(1):
            while True:  # its watches are answered until nothing fits any more
                await deaf.link.send(to_bytes(Watch(next(deaf.ids))))
        start = trio.current_time()
        assert isinstance(await alice.call(peer(2)), Called)
        assert trio.current_time() == start
        await trio.sleep(60)
        with pytest.raises(LinkClosed):
            while True:
                await deaf.link.receive()

    play(scene)
