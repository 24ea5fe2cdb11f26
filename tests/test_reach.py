"""What holds for each way in, and for one that only stands in for it: the `Reach` contract.

Each way gets a world of its own, in virtual time, that can be shown from outside: what is in the
router, who is connected. In a dead world nobody ever answers.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio
from fellows import virtual
from relay_users import Client, Line, Relay
from ways import StandIn

from lab import Lab, identity
from p2pnode.node.options import OPTIONS
from p2pnode.transport.address import Address
from p2pnode.transport.nat.direct import Direct
from p2pnode.transport.nat.gateway import Gateway
from p2pnode.transport.nat.mapping import Mapped
from p2pnode.transport.nat.punching import Punched
from p2pnode.transport.nat.reach import (
    ADDRESSES_LIMIT,
    RELAYS_LIMIT,
    Claim,
    Confidence,
    Reach,
    announced,
    relayed,
    valid,
)
from p2pnode.transport.nat.routers import Heard, Lease
from p2pnode.transport.peer_address import PeerAddress

BOUND = Address("0.0.0.0", 6000)
DOOR = Address("192.0.2.7", 6000)
# By then each way has found what there is to find.
SETTLED = 30.0


@dataclass
class World:
    """A way in, not running yet, and all around it."""

    way: Reach
    begin: Callable[[], None]  # what the node tells it before it runs
    outside: Callable[[], object]  # what it has made outside of this process; nothing: falsy
    claimed: tuple[str, ...]  # where it leads, once it has settled: addresses, or relays


async def direct(alive: bool, _folder: Path, _nursery: trio.Nursery) -> World:
    """Nobody is asked for anything; a tracker's word comes in."""
    way = Direct(None)

    def begin() -> None:
        way.bound(BOUND)
        way.saw("tracker", DOOR.host)

    return World(way, begin, lambda: None, (str(DOOR),))


@dataclass
class Router:
    """A home router that maps a port, or never answers."""

    alive: bool
    protocol: str = "PCP"
    mapped: set[int] = field(default_factory=set)

    async def ask(self) -> Heard:
        await self._answer()
        return Heard()

    async def map(self, inner: int, outer: int, lifetime: int) -> Lease:
        self.mapped.add(outer)
        await self._answer()
        return Lease(DOOR.host, outer, lifetime)

    async def unmap(self, inner: int, outer: int) -> None:
        self.mapped.discard(outer)
        await self._answer()

    async def _answer(self) -> None:
        await trio.sleep(0.01 if self.alive else math.inf)


async def mapping(alive: bool, _folder: Path, _nursery: trio.Nursery) -> World:
    """A router at home."""
    router = Router(alive)
    way = Mapped(
        find=lambda: Gateway("192.168.1.1", "192.168.1.10"),
        routers=lambda gateway: (router,),
        lease=60,
        chance=random.Random(1),
    )
    return World(way, partial(way.bound, BOUND), lambda: router.mapped, (str(DOOR),))


@dataclass(frozen=True)
class Seen:
    """What a STUN server says."""

    mapped: Address = DOOR


async def punching(alive: bool, _folder: Path, _nursery: trio.Nursery) -> World:
    """A STUN server."""
    connected: set[Address] = set()

    @asynccontextmanager
    async def ask(server: Address, local: Address) -> AsyncIterator[Seen]:
        connected.add(local)
        try:
            await trio.sleep(0.01 if alive else math.inf)
            yield Seen()
        finally:
            connected.discard(local)

    servers = [Address("198.51.100.1", 3478)]
    way = Punched(lambda: servers, needed=lambda: True, clock=trio.current_time, ask=ask)
    return World(way, partial(way.bound, BOUND), lambda: connected, (str(DOOR),))


async def relay(alive: bool, folder: Path, nursery: trio.Nursery) -> World:
    """A tracker offers two relays; at one of them, too, lie the models of a peer."""
    lab = Lab()
    network = lab.network(identity(1))
    client = Client(1, network, folder, nursery)
    client.prepare(Line(network))
    client.agree()
    near, far = Relay(lab, 2), Relay(lab, 3)
    client.line.far[far.host] = 1.0
    for each in (near, far):
        await nursery.start(each.run)
    if not alive:
        lab.filtered_hosts |= {near.host, far.host}

    def begin() -> None:
        client.relays.offered("tracker", (near.place, far.place))
        client.relays.follow("somebody", (far.place,))

    return World(client.relays, begin, lambda: lab.links, (str(near.place),))


async def stand_in(alive: bool, _folder: Path, _nursery: trio.Nursery) -> World:
    """What tests of others use."""
    way = StandIn(DOOR if alive else None)
    return World(way, lambda: None, lambda: None, (str(DOOR),))


Make = Callable[[bool, Path, trio.Nursery], Awaitable[World]]
Scene = Callable[[World, trio.Nursery], Awaitable[None]]
Play = Callable[..., None]
WAYS: dict[str, Make] = {
    "direct": direct,
    "mapping": mapping,
    "punching": punching,
    "relay": relay,
    "stand-in": stand_in,
}


@pytest.fixture(params=WAYS)
def play(request: pytest.FixtureRequest, tmp_path: Path, inline_threads: None) -> Play:
    """Runs a scene with each way; the scene's nursery ends with it."""
    make = WAYS[request.param]

    async def whole(scene: Scene, alive: bool) -> None:
        async with trio.open_nursery() as around:
            world = await make(alive, tmp_path, around)
            async with trio.open_nursery() as nursery:
                await scene(world, nursery)
                nursery.cancel_scope.cancel()
            await trio.sleep(1)  # the others hear of it
            assert not world.outside()
            around.cancel_scope.cancel()

    return lambda scene, alive=True: virtual(whole, scene, alive)


def where(way: Reach) -> tuple[str, ...]:
    """Where it leads now: the addresses, and the relays."""
    now = trio.current_time()
    return tuple(map(str, (*announced(valid([way], now)), *relayed(valid([way], now)))))


async def start(world: World, nursery: trio.Nursery) -> None:
    """Begin as a node does."""
    world.begin()
    await nursery.start(world.way.run)


def test_its_name(play: Play) -> None:
    """Is the word with which it is switched on and off."""

    async def scene(world: World, _nursery: trio.Nursery) -> None:
        [option] = [option for option in OPTIONS if option.name == "reach"]
        assert world.way.name in [*str(option.default).split(","), "stand-in"]

    play(scene)


def test_it_finds_what_there_is(play: Play) -> None:
    """After a while it claims where it leads, and says so in one line."""

    async def scene(world: World, nursery: trio.Nursery) -> None:
        await start(world, nursery)
        await trio.sleep(SETTLED)
        assert where(world.way) == world.claimed
        assert "\n" not in world.way.detail

    play(scene)


@pytest.mark.parametrize("alive", [True, False])
def test_it_starts_at_once(play: Play, alive: bool) -> None:
    """Whether anybody answers or not: a node doesn't wait for the network."""

    async def scene(world: World, nursery: trio.Nursery) -> None:
        began = trio.current_time()
        await start(world, nursery)
        assert trio.current_time() == began

    play(scene, alive)


def test_without_anybody_it_claims_nothing_sure(play: Play) -> None:
    """Where nobody answers, no relay and no router's address is claimed, and it never ends."""

    async def scene(world: World, nursery: trio.Nursery) -> None:
        await start(world, nursery)
        for _ in range(20):
            await trio.sleep(SETTLED)
            claims = world.way.claims(trio.current_time())
            assert {claim.confidence for claim in claims} <= {Confidence.GUESSED}
            assert not any(claim.relay for claim in claims)

    play(scene, alive=False)


def test_switched_off(play: Play) -> None:
    """A way that isn't run claims nothing, touches nothing and has nothing to say."""

    async def scene(world: World, _nursery: trio.Nursery) -> None:
        world.way.changed()
        await trio.sleep(SETTLED)
        assert where(world.way) == ()
        assert not world.outside()

    play(scene)


def test_claims_are_only_looked_at(play: Play) -> None:
    """Asking changes nothing, whatever time is asked for."""

    async def scene(world: World, nursery: trio.Nursery) -> None:
        await start(world, nursery)
        await trio.sleep(SETTLED)
        now = trio.current_time()
        before = world.way.claims(now)
        for then in (now + 1e6, 0.0, math.inf, now):
            assert world.way.claims(then) == world.way.claims(then)
        assert world.way.claims(now) == before

    play(scene)


def test_claims_are_few_and_well_formed(play: Play) -> None:
    """An address that can be dialled, a relay that can be named, as few as a record takes."""

    async def scene(world: World, nursery: trio.Nursery) -> None:
        await start(world, nursery)
        for _ in range(10):
            await trio.sleep(SETTLED / 3)
            claims = world.way.claims(trio.current_time())
            assert len(claims) <= ADDRESSES_LIMIT
            assert sum(bool(claim.relay) for claim in claims) <= RELAYS_LIMIT
            for claim in claims:
                assert Address.parse(str(claim.address)) == claim.address
                assert claim.address.port
                if claim.relay:
                    place = PeerAddress(claim.relay, claim.address)
                    assert PeerAddress.parse(str(place)) == place

    play(scene)


def test_nothing_is_claimed_after_its_time(play: Play) -> None:
    """Each claim is gone when its time is over, unless it was renewed."""

    async def scene(world: World, nursery: trio.Nursery) -> None:
        await start(world, nursery)
        await trio.sleep(SETTLED)
        for claim in world.way.claims(trio.current_time()):
            if claim.until < math.inf:
                assert claim not in world.way.claims(claim.until)
        for _ in range(10):
            await trio.sleep(SETTLED)
            now = trio.current_time()
            assert all(claim.until > now for claim in world.way.claims(now))

    play(scene)


@pytest.mark.parametrize("alive", [True, False])
def test_a_changed_network_never_disturbs(play: Play, alive: bool) -> None:
    """It may be told so at any moment, as often as one likes, before, while and after it runs."""

    async def scene(world: World, nursery: trio.Nursery) -> None:
        world.way.changed()
        async with trio.open_nursery() as running:
            await start(world, running)
            for wait in (0.0, 0.005, 0.5, 5.0, 60.0):
                for _ in range(100):
                    began = trio.current_time()
                    world.way.changed()
                    assert trio.current_time() == began
                await trio.sleep(wait)
            running.cancel_scope.cancel()
        world.way.changed()

    play(scene, alive)


def test_it_comes_back_after_a_change(play: Play) -> None:
    """Told that the network has changed, it looks again and claims what it finds."""

    async def scene(world: World, nursery: trio.Nursery) -> None:
        await start(world, nursery)
        for _ in range(3):
            await trio.sleep(SETTLED)
            world.way.changed()
        await trio.sleep(SETTLED)
        assert where(world.way) == world.claimed

    play(scene)


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("after", [0.0, 0.005, 0.015, 0.7, 1.0, 4.0, SETTLED, 500.0])
def test_it_leaves_nothing_behind(play: Play, alive: bool, after: float) -> None:
    """Cancelled at any moment it is gone within a second, and what it made with it."""

    async def scene(world: World, nursery: trio.Nursery) -> None:
        async with trio.open_nursery() as running:
            await start(world, running)
            await trio.sleep(after)
            began = trio.current_time()
            running.cancel_scope.cancel()
        assert trio.current_time() - began < 0.8
        kept = world.way.claims(trio.current_time())
        assert world.way.name == "direct" or not kept  # that door is open as long as we listen

    play(scene, alive)


def test_it_may_run_again(play: Play) -> None:
    """A second run finds what the first did."""

    async def scene(world: World, nursery: trio.Nursery) -> None:
        for _ in range(2):
            async with trio.open_nursery() as running:
                await start(world, running)
                await trio.sleep(SETTLED)
                assert where(world.way) == world.claimed
                running.cancel_scope.cancel()

    play(scene)


# ── all together ─────────────────────────────────────────────────────────────────────────────


def test_the_surest_claims_go_first() -> None:
    """Whichever way makes them; of equals the order of the ways counts; each address once."""
    doors = [Address("192.0.2.1", port) for port in range(1, 5)]
    ways: list[Reach] = [
        Direct(doors[0]),
        _claiming(Claim(doors[1], Confidence.GUESSED), Claim(doors[2], Confidence.PROVED)),
        _claiming(Claim(doors[3], Confidence.GIVEN), Claim(doors[1], Confidence.GIVEN)),
    ]
    assert announced(valid(ways, 0.0)) == (doors[2], doors[0], doors[3], doors[1])


def test_relays_are_no_doors_of_ours() -> None:
    """They are told apart, the surest first, two at most; what is over isn't told."""
    peers = [identity(number).peer_id for number in (1, 2, 3)]
    claims = [Claim(DOOR, Confidence(n + 1), relay=peer) for n, peer in enumerate(peers)]
    past = Claim(DOOR, Confidence.PROVED, until=5.0, relay=identity(4).peer_id)
    way = _claiming(past, *claims)
    assert announced(valid([way], 5.0)) == ()
    assert relayed(valid([way], 5.0)) == (PeerAddress(peers[2], DOOR), PeerAddress(peers[1], DOOR))


def test_a_record_takes_so_many_addresses() -> None:
    """Of more the surest are announced."""
    claims = [Claim(Address("192.0.2.1", port), Confidence.GUESSED) for port in range(1, 20)]
    sure = Claim(DOOR, Confidence.PROVED)
    told = announced(valid([_claiming(*claims, sure)], 0.0))
    assert told == (DOOR, *(claim.address for claim in claims[: ADDRESSES_LIMIT - 1]))


def _claiming(*claims: Claim) -> StandIn:
    """A way that claims this, and nothing else."""
    return StandIn(_claims=claims)
