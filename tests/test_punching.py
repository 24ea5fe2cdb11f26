"""Where the listening port is seen: asked, held for a while, asked again; quiet when not needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

from p2pnode.transport.address import Address
from p2pnode.transport.errors import StunError
from p2pnode.transport.nat.punching import (
    ASK_SECONDS,
    CLAIM_SECONDS,
    HOLD_SECONDS,
    LOOK_SECONDS,
    PAUSE_SECONDS,
    Punched,
)
from p2pnode.transport.nat.reach import Claim, Confidence

LOCAL = Address("0.0.0.0", 6000)
ONE, TWO = Address("192.0.2.1", 3478), Address("192.0.2.2", 3478)
HOME, NEXT = Address("198.51.100.7", 6000), Address("203.0.113.9", 6000)
MOVED = Address("198.51.100.7", 41000)


@dataclass(frozen=True)
class Told:
    """A server's answer."""

    mapped: Address


@dataclass
class Sky:
    """STUN servers and what they say; `silent` ones never answer, those without an answer fail."""

    answers: dict[Address, Address] = field(default_factory=lambda: {ONE: HOME})
    silent: set[Address] = field(default_factory=set)
    servers: tuple[Address, ...] = (ONE,)
    needed: bool = True
    symmetric: bool = False  # another port each time
    asked: list[tuple[float, Address]] = field(default_factory=list)
    open: int = 0

    @asynccontextmanager
    async def ask(self, server: Address, local: Address) -> AsyncIterator[Told]:
        assert local == LOCAL
        self.asked.append((trio.current_time(), server))
        self.open += 1
        try:
            await trio.sleep(0.1)
            if server in self.silent:
                await trio.sleep_forever()
            if server not in self.answers:
                raise StunError(f"{server}: connection refused")
            port = 40000 + len(self.asked)
            yield Told(Address(HOME.host, port) if self.symmetric else self.answers[server])
        finally:
            self.open -= 1

    def times(self) -> list[float]:
        """When somebody was asked."""
        return [round(time, 3) for time, _ in self.asked]


def living(check: Callable[[Sky, Punched], Awaitable[None]], sky: Sky | None = None) -> None:
    """Run `check(sky, way)` beside the way in, in virtual time from 0."""

    async def main() -> None:
        world = sky or Sky()
        way = Punched(
            lambda: world.servers,
            needed=lambda: world.needed,
            clock=trio.current_time,
            ask=world.ask,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(way.run)
            assert trio.current_time() == 0
            way.bound(LOCAL)
            await check(world, way)
            nursery.cancel_scope.cancel()
        assert world.open == 0

    trio.run(main, clock=MockClock(autojump_threshold=0))


def claimed(way: Punched) -> tuple[Claim, ...]:
    """Its claims now."""
    return way.claims(trio.current_time())


def test_what_a_server_sees_is_claimed_as_a_guess() -> None:
    """It is what a full-cone NAT lets everybody in at; for others it may be of no use."""

    async def check(_: Sky, way: Punched) -> None:
        await trio.sleep(1)
        (claim,) = claimed(way)
        assert (claim.address, claim.confidence, claim.relay) == (HOME, Confidence.GUESSED, "")
        assert claim.until == 0.1 + CLAIM_SECONDS

    living(check)


def test_another_port_than_inside_is_claimed_once_it_has_stayed_the_same() -> None:
    """A call names it at once; others dial it when a minute has shown that it is no passing one."""

    async def check(_: Sky, way: Punched) -> None:
        await trio.sleep(1)
        assert await way.sight() == MOVED
        assert not claimed(way)
        await trio.sleep(LOOK_SECONDS + HOLD_SECONDS)
        assert claimed(way)[0].address == MOVED

    living(check, Sky({ONE: MOVED}))


def test_a_symmetric_nat_s_port_is_never_claimed() -> None:
    """It is another one at each look: whoever dials it does so in vain."""

    async def check(sky: Sky, way: Punched) -> None:
        for _ in range(100):
            await trio.sleep(LOOK_SECONDS / 10)
            assert not claimed(way)
            assert HOME.host in way.detail
        assert len(sky.asked) == 9

    living(check, Sky(symmetric=True))


def test_it_is_asked_again_every_minute() -> None:
    """The connection is held for ten seconds, so that an attempt finds the mapping awake."""

    async def check(sky: Sky, way: Punched) -> None:
        await trio.sleep(1 + HOLD_SECONDS - 2)
        assert sky.open == 1
        await trio.sleep(3)
        assert sky.open == 0
        sky.answers[ONE] = NEXT
        await trio.sleep(LOOK_SECONDS)
        first, second = sky.times()
        assert second - first == HOLD_SECONDS + LOOK_SECONDS + 0.1
        assert claimed(way)[0].address == NEXT

    living(check)


def test_a_claim_outlives_one_failure_and_not_two() -> None:
    """A server that restarts is no reason to take a claim back; one that has gone is."""

    async def check(sky: Sky, way: Punched) -> None:
        await trio.sleep(1)
        sky.answers.clear()
        await trio.sleep(CLAIM_SECONDS - 2)
        assert len(sky.asked) > 1
        assert claimed(way)
        await trio.sleep(3)
        assert not claimed(way)

    living(check)


def test_while_others_reach_us_nobody_is_asked() -> None:
    """Who is reachable costs no server anything; when that changes it is looked soon."""

    async def check(sky: Sky, way: Punched) -> None:
        await trio.sleep(300)
        assert not sky.asked
        sky.needed = True
        await trio.sleep(PAUSE_SECONDS + 1)
        assert claimed(way)

    living(check, Sky(needed=False))


def test_a_call_gets_to_know_at_once() -> None:
    """Also while nobody is asked otherwise; two that want to know ask once."""

    async def check(sky: Sky, way: Punched) -> None:
        await trio.sleep(1)
        seen: list[Address | None] = []

        async def look() -> None:
            seen.append(await way.sight())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            nursery.start_soon(look)
        assert seen == [HOME, HOME]
        assert trio.current_time() < 1.2
        assert await way.sight() == HOME
        assert len(sky.asked) == 1

    living(check, Sky(needed=False))


def test_what_is_known_is_told_at_once_and_looked_at_again() -> None:
    """So an attempt doesn't wait, and its mapping is awake."""

    async def check(sky: Sky, way: Punched) -> None:
        await trio.sleep(HOLD_SECONDS + 20)
        began = trio.current_time()
        assert await way.sight() == HOME
        assert trio.current_time() == began
        await trio.sleep(1)
        assert sky.open == 1
        assert len(sky.asked) == 2

    living(check)


def test_the_next_server_is_asked_where_one_fails_or_hangs() -> None:
    """After at most two seconds."""

    async def check(_: Sky, way: Punched) -> None:
        await trio.sleep(ASK_SECONDS + 1)
        assert claimed(way)[0].address == NEXT

    for silent in (set[Address](), {ONE}):
        living(check, Sky({TWO: NEXT}, silent, (ONE, TWO)))


def test_without_a_server_there_is_nothing_to_wait_for() -> None:
    """No tracker offers STUN: nobody knows, at once."""

    async def check(_: Sky, way: Punched) -> None:
        assert await way.sight() is None
        assert trio.current_time() == 0
        await trio.sleep(100)
        assert not claimed(way)

    living(check, Sky(servers=()))


def test_a_server_that_turns_up_is_asked_soon() -> None:
    """A node starts, and its trackers are connected a moment later."""

    async def check(sky: Sky, way: Punched) -> None:
        await trio.sleep(3)
        sky.servers = (ONE,)
        await trio.sleep(PAUSE_SECONDS + 0.2)
        assert claimed(way)

    living(check, Sky(servers=()))


def test_servers_that_never_answer_hold_up_a_call_for_two_seconds() -> None:
    """The call goes out without that address."""

    async def check(_: Sky, way: Punched) -> None:
        assert await way.sight() is None
        assert trio.current_time() == ASK_SECONDS

    living(check, Sky(silent={ONE}))


def test_a_changed_network_is_looked_at_now() -> None:
    """What was claimed is another network's, and is gone at once."""

    async def check(sky: Sky, way: Punched) -> None:
        for pause in (1, HOLD_SECONDS + 5):  # while the connection is held, and later
            await trio.sleep(pause)
            sky.answers[ONE] = NEXT if claimed(way)[0].address == HOME else HOME
            way.changed()
            assert not claimed(way)
            await trio.sleep(1)
            assert claimed(way)[0].address == sky.answers[ONE]

    living(check)


def test_who_listens_on_both_versions_of_ip_asks_about_ipv4() -> None:
    """That is where the NATs are."""

    async def check(sky: Sky, way: Punched) -> None:
        way.bound(Address("::", LOCAL.port))
        await trio.sleep(1)
        assert claimed(way)[0].address == HOME

    living(check)


def test_people_are_told() -> None:
    """Where the port is seen; nothing as long as nobody has said so."""

    async def check(_: Sky, way: Punched) -> None:
        assert way.detail == ""
        await trio.sleep(1)
        assert str(HOME) in way.detail

    living(check)


def test_before_it_is_known_where_we_listen_nothing_happens() -> None:
    """Starting up, or where listening failed."""

    async def main() -> None:
        sky = Sky()
        way = Punched(
            lambda: sky.servers, needed=lambda: True, clock=trio.current_time, ask=sky.ask
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(way.run)
            await trio.sleep(100)
            assert not sky.asked
            assert way.local is None
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
