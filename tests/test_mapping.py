"""The port mapping's life: found, renewed, made anew, refused, ended; in virtual time."""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from p2pnode.transport.address import Address
from p2pnode.transport.errors import MappingError, MappingRefused
from p2pnode.transport.nat.gateway import Gateway
from p2pnode.transport.nat.mapping import (
    CHECK_SECONDS,
    LEASE_SECONDS,
    LEAVE_SECONDS,
    PROBE_SECONDS,
    REFUSED_SECONDS,
    RETRY_SECONDS,
    Mapped,
    Probe,
    all_routers,
    probe,
)
from p2pnode.transport.nat.outlook import needless, summary
from p2pnode.transport.nat.pcp import NONCE
from p2pnode.transport.nat.reach import Claim, Confidence
from p2pnode.transport.nat.routers import NO_ANSWER, NO_OUTER, Heard, Lease, PcpRouter

HOME = Gateway("192.168.1.1", "192.168.1.10")
OUTER = "203.0.113.7"
EVERYWHERE = Address("0.0.0.0", 6000)
ASKING = 2.5


@dataclass
class FakeRouter:
    """A router with one protocol, that may be slow, silent, unwilling or forgetful."""

    protocol: str = "PCP"
    host: str = OUTER
    slow: float = 0.0
    silent: bool = False
    refusal: MappingError | None = None
    tells: bool = False  # its outer address when it is asked
    port: int = 0  # what it grants instead of what is wished
    lifetime: float = LEASE_SECONDS
    booted: float = -1000.0
    boot: str = ""
    clock: bool = True
    mapped: dict[int, int] = field(default_factory=dict)  # outer port → ours
    calls: list[tuple[float, str]] = field(default_factory=list)

    async def ask(self) -> Heard:
        await self._called("ask")
        epoch = trio.current_time() - self.booted if self.clock else None
        return Heard(self.host if self.tells else None, epoch, self.boot)

    async def map(self, inner: int, outer: int, lifetime: int) -> Lease:
        port = self.port or outer
        if not self.refusal:
            self.mapped[port] = inner  # also where the answer gets lost
        await self._called("map")
        if self.refusal:
            raise self.refusal
        return Lease(self.host, port, min(lifetime, self.lifetime))

    async def unmap(self, inner: int, outer: int) -> None:
        self.mapped = {o: i for o, i in self.mapped.items() if i != inner}
        await self._called("unmap")

    async def _called(self, name: str) -> None:
        self.calls.append((trio.current_time(), name))
        await trio.sleep(ASKING if self.silent else self.slow)
        if self.silent:
            raise MappingError(NO_ANSWER)

    def restart(self) -> None:
        self.booted, self.mapped = trio.current_time(), {}

    def count(self, name: str) -> int:
        return sum(call == name for _, call in self.calls)


def virtual(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in virtual time."""

    def run() -> None:
        trio.run(test, clock=MockClock(autojump_threshold=0))

    run.__doc__, run.__name__ = test.__doc__, test.__name__
    return run


@asynccontextmanager
async def mapping(
    *routers: FakeRouter,
    bound: Address | None = EVERYWHERE,
    find: Callable[[], Gateway | None] = lambda: HOME,
) -> AsyncIterator[Mapped]:
    """A running mapping through these routers, after its first look."""

    def speak(_: Gateway) -> Sequence[FakeRouter]:
        return routers

    mapped = Mapped(find=find, routers=speak, chance=random.Random(1))
    if bound:
        mapped.bound(bound)
    async with trio.open_nursery() as nursery:
        await nursery.start(mapped.run)
        await trio.sleep(10)
        yield mapped
        nursery.cancel_scope.cancel()


def claim(mapped: Mapped) -> Address | None:
    """The address that is claimed now."""
    claims = mapped.claims(trio.current_time())
    return claims[0].address if claims else None


@virtual
async def test_a_mapping_is_claimed_and_ended() -> None:
    """Until the lease ends, as sure as what a user says; nothing is left in the router."""
    router = FakeRouter(port=7001)
    async with mapping(router) as mapped:
        until = LEASE_SECONDS + 0.0
        expected = Claim(Address(OUTER, 7001), Confidence.GIVEN, until)
        assert mapped.claims(trio.current_time()) == (expected,)
        assert mapped.claims(until) == ()
        assert mapped.detail == f"{OUTER}:7001, by PCP"
        assert router.mapped == {7001: 6000}
    assert router.mapped == {}
    assert mapped.claims(trio.current_time()) == ()


def test_the_nonce_is_the_same_in_each_life() -> None:
    """A killed node can renew its mapping; without a secret each life has a nonce of its own."""

    def nonce(secret: bytes) -> bytes:
        router = Mapped(secret=secret)._speak(HOME)[0]
        assert isinstance(router, PcpRouter)
        return router._nonce

    assert nonce(b"mine") == nonce(b"mine")
    assert len({nonce(b"mine"), nonce(b"yours"), nonce(b""), nonce(b"")}) == 4


@virtual
async def test_started_comes_at_once() -> None:
    """Also where no router answers; and nothing is asked before we listen."""
    router = FakeRouter(silent=True)
    mapped = Mapped(find=lambda: HOME, routers=lambda _: [router])
    async with trio.open_nursery() as nursery:
        before = trio.current_time()
        await nursery.start(mapped.run)
        assert trio.current_time() == before
        await trio.sleep(1000)
        assert router.calls == []
        mapped.bound(EVERYWHERE)
        await trio.sleep(10)
        assert router.calls
        nursery.cancel_scope.cancel()


@virtual
async def test_it_is_renewed_at_half_of_the_lease() -> None:
    """Before it runs out, so that there is always a claim, and with the port that peers know."""
    router = FakeRouter(port=7001)
    async with mapping(router) as mapped:
        router.port = 0
        for _ in range(300):
            await trio.sleep(60)
            assert claim(mapped) == Address(OUTER, 7001)
    maps = [at for at, call in router.calls if call == "map"]
    assert len(maps) > 7
    gaps = [later - earlier for earlier, later in itertools.pairwise(maps)]
    assert all(LEASE_SECONDS / 2 <= gap <= LEASE_SECONDS * 5 / 8 + 1 for gap in gaps)
    assert len(set(gaps)) > 1  # not all nodes of a house at once


@virtual
async def test_it_is_renewed_where_it_was_made() -> None:
    """Also where another protocol would be faster: there would be two mappings otherwise."""
    pcp, upnp = FakeRouter("PCP", silent=True), FakeRouter("UPnP", slow=1.0)
    async with mapping(pcp, upnp) as mapped:
        pcp.silent = False
        await trio.sleep(LEASE_SECONDS)
        assert mapped.detail.endswith("by UPnP")
        assert pcp.count("map") == 0
        upnp.silent = True
        await trio.sleep(LEASE_SECONDS)
        assert mapped.detail.endswith("by PCP")


@virtual
async def test_short_leases_are_renewed_in_time() -> None:
    """A router may give less than is asked for."""
    router = FakeRouter(lifetime=20)
    async with mapping(router) as mapped:
        for _ in range(100):
            await trio.sleep(1)
            assert claim(mapped)
    assert 100 / 12.5 <= router.count("map") <= 100 / 10 + 2


@virtual
async def test_the_first_that_answers_maps() -> None:
    """Nobody waits for those that don't, and only one is told to map."""
    pcp, pmp, upnp = (
        FakeRouter("PCP", silent=True),
        FakeRouter("NAT-PMP", slow=1.0),
        FakeRouter("UPnP", slow=0.5),
    )
    async with mapping(pcp, pmp, upnp) as mapped:
        assert mapped.detail == f"{OUTER}:6000, by UPnP"
        assert [r.count("map") for r in (pcp, pmp, upnp)] == [0, 0, 1]
        assert mapped._held is not None
        assert mapped._held.until == 0.5 + 0.2 + 0.5 + LEASE_SECONDS


@virtual
async def test_pcp_goes_before_nat_pmp() -> None:
    """Routers that speak several protocols answer in each at about the same time."""
    pcp, pmp, upnp = FakeRouter("PCP", slow=0.05), FakeRouter("NAT-PMP"), FakeRouter("UPnP")
    async with mapping(pcp, pmp, upnp) as mapped:
        assert mapped.detail.endswith("by PCP")
        assert pmp.count("map") == upnp.count("map") == 0


@virtual
async def test_the_next_is_told_where_the_first_refuses() -> None:
    """A router may have one protocol switched off."""
    pcp = FakeRouter("PCP", refusal=MappingRefused("not authorized"))
    async with mapping(pcp, FakeRouter("NAT-PMP")) as mapped:
        assert mapped.detail.endswith("by NAT-PMP")


@virtual
async def test_who_refuses_is_asked_rarely() -> None:
    """And people are told."""
    router = FakeRouter(refusal=MappingRefused("not authorized"))
    async with mapping(router, FakeRouter("UPnP", silent=True)) as mapped:
        assert mapped.detail == "the router refuses PCP: not authorized"
        assert claim(mapped) is None
        await trio.sleep(REFUSED_SECONDS - 20)
        assert router.count("map") == 1
        router.refusal = None
        await trio.sleep(30)
        assert claim(mapped)


@virtual
async def test_without_such_a_router_it_is_asked_again() -> None:
    """Every few minutes, and at once when the network changes."""
    router = FakeRouter(silent=True)
    async with mapping(router) as mapped:
        assert mapped.detail == "the router answers none of PCP"
        await trio.sleep(RETRY_SECONDS * 2)
        assert router.count("ask") == 3
        router.silent = False
        mapped.changed()
        await trio.sleep(1)
        assert claim(mapped)


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("host", ["100.64.3.2", "10.0.0.2", "192.168.0.2"])
def test_another_nat_in_front_gives_no_claim(host: str, tells: bool) -> None:
    """The mapping would be of no use: it isn't made, or ended at once; people are told."""

    async def main() -> None:
        router = FakeRouter(host=host, tells=tells)
        async with mapping(router) as mapped:
            assert claim(mapped) is None
            assert router.mapped == {}
            assert router.count("map") == (not tells)
            text = f"the router's own outer address is {host}: another NAT is in front of it"
            assert mapped.detail == text

    trio.run(main, clock=MockClock(autojump_threshold=0))


@virtual
async def test_a_router_without_connection_is_asked_again() -> None:
    """It has no outer address yet."""
    router = FakeRouter(host="0.0.0.0", tells=True)
    async with mapping(router) as mapped:
        assert mapped.detail == NO_OUTER
        router.host = OUTER
        await trio.sleep(RETRY_SECONDS)
        assert claim(mapped)


@virtual
async def test_a_mapping_of_nothing_is_none() -> None:
    """Neither for no time."""
    router = FakeRouter(lifetime=0)
    async with mapping(router) as mapped:
        assert claim(mapped) is None
        assert router.mapped == {}


@virtual
async def test_a_restarted_router_is_told_again() -> None:
    """Its clock shows that it has forgotten us; the port stays."""
    router = FakeRouter(port=7001)
    async with mapping(router) as mapped:
        router.port = 0
        router.restart()
        await trio.sleep(CHECK_SECONDS + 1)
        assert router.mapped == {7001: 6000}
        assert claim(mapped) == Address(OUTER, 7001)


@virtual
async def test_a_router_without_a_clock_may_tell_its_boot() -> None:
    """UPnP's BOOTID does the same."""
    router = FakeRouter("UPnP", clock=False, boot="1")
    async with mapping(router):
        router.restart()
        router.boot = "2"
        await trio.sleep(CHECK_SECONDS + 1)
        assert router.mapped == {6000: 6000}


@virtual
async def test_another_outer_address_is_claimed() -> None:
    """The provider gave the router another one."""
    router = FakeRouter(tells=True)
    async with mapping(router) as mapped:
        router.host = "203.0.113.99"
        await trio.sleep(CHECK_SECONDS + 1)
        assert claim(mapped) == Address("203.0.113.99", 6000)


@virtual
async def test_looking_makes_nothing() -> None:
    """Between renewals the router is only asked."""
    router = FakeRouter()
    async with mapping(router):
        await trio.sleep(LEASE_SECONDS / 2 - 20)
        assert router.count("map") == 1
        assert router.count("ask") > 20


@virtual
async def test_a_router_that_falls_silent() -> None:
    """The claim lasts as long as the lease; it is asked until it answers, and told again."""
    router = FakeRouter()
    async with mapping(router) as mapped:
        router.silent = True
        await trio.sleep(LEASE_SECONDS - 20)
        assert claim(mapped)
        await trio.sleep(CHECK_SECONDS * 2)
        assert claim(mapped) is None
        assert mapped.detail == "the router answers none of PCP"
        router.silent = False
        await trio.sleep(CHECK_SECONDS + 5)
        assert claim(mapped)


@virtual
async def test_a_change_while_the_router_is_asked_is_not_lost() -> None:
    """It is mapped anew right after."""
    router = FakeRouter(slow=2)
    async with mapping(router) as mapped:
        await trio.sleep(CHECK_SECONDS - 5)
        before = router.count("map")
        assert router.calls[-1][1] == "ask"  # going on
        mapped.changed()
        await trio.sleep(10)
        assert router.count("map") == before + 1


@virtual
async def test_another_network_is_another_router() -> None:
    """The mapping at the old one is ended if it can be reached, and a new one made."""
    old, new = FakeRouter(), FakeRouter(host="203.0.113.8")
    where = [HOME]
    away = Gateway("10.1.0.1", "10.1.0.20")
    mapped = Mapped(find=lambda: where[0], routers=lambda g: [old if g == HOME else new])
    mapped.bound(EVERYWHERE)
    async with trio.open_nursery() as nursery:
        await nursery.start(mapped.run)
        await trio.sleep(1)
        where[0] = away
        mapped.changed()
        await trio.sleep(1)
        assert claim(mapped) == Address("203.0.113.8", 6000)
        assert old.mapped == {}
        nursery.cancel_scope.cancel()
    assert new.mapped == {}


@virtual
async def test_leaving_takes_bounded_time() -> None:
    """Also where the router has gone: then the lease ends by itself."""
    router = FakeRouter()
    async with mapping(router):
        router.silent = True
        left = trio.current_time()
    assert trio.current_time() == left + LEAVE_SECONDS


@virtual
async def test_what_was_asked_for_is_ended_though_unanswered() -> None:
    """Cancelled while the router is told to map: it may have done so."""
    router = FakeRouter(slow=1.0)
    mapped = Mapped(find=lambda: HOME, routers=lambda _: [router])
    mapped.bound(EVERYWHERE)
    with trio.move_on_after(1.5):
        await mapped.run()
    assert [call for _, call in router.calls] == ["ask", "map", "unmap"]
    assert router.mapped == {}


@virtual
async def test_no_router_hangs_nothing() -> None:
    """A machine without a default route: told, and looked for again."""
    found: list[Gateway | None] = [None]
    router = FakeRouter()
    async with mapping(router, find=lambda: found[0]) as mapped:
        assert mapped.detail == "this machine has no router to ask (no default gateway)"
        found[0] = HOME
        mapped.changed()
        await trio.sleep(1)
        assert claim(mapped)
    assert router.mapped == {}


@virtual
async def test_a_route_that_comes_later_than_the_address() -> None:
    """Nobody tells of it, and it is found within a minute."""
    found: list[Gateway | None] = [None]
    async with mapping(FakeRouter(), find=lambda: found[0]) as mapped:
        found[0] = HOME
        await trio.sleep(CHECK_SECONDS)
        assert claim(mapped)


@pytest.mark.parametrize(
    ("bound", "gateway", "says"),
    [
        (None, HOME, "not asked for yet"),
        (EVERYWHERE, None, "no default gateway"),
        (EVERYWHERE, Gateway("203.0.113.1", "203.0.113.5"), "own address is 203.0.113.5"),
        (Address("127.0.0.1", 6000), HOME, "we listen on 127.0.0.1"),
        (Address("2001:db8::5", 6000), HOME, "we listen on 2001:db8::5"),
        (EVERYWHERE, HOME, ""),
        (Address("::", 6000), HOME, ""),
        (Address("192.168.1.10", 6000), HOME, ""),
        (EVERYWHERE, Gateway("100.64.0.1", "100.64.0.7"), ""),
    ],
)
def test_when_there_is_nothing_to_map(
    bound: Address | None, gateway: Gateway | None, says: str
) -> None:
    """A machine with a public address needs none; what listens elsewhere can't be forwarded to."""
    why = needless(bound, gateway)
    assert says in why
    assert bool(says) == bool(why)


def test_the_most_telling_trouble_is_told() -> None:
    """What is known of the router, a refusal, a slip, and silence last."""
    silent, slip = MappingError(NO_ANSWER), MappingError("not spoken there")
    refused, known = MappingRefused("not authorized"), MappingError(NO_OUTER)
    assert summary({"PCP": silent, "UPnP": silent}) == "the router answers none of PCP, UPnP"
    assert summary({"PCP": silent, "UPnP": slip}) == "UPnP: not spoken there"
    told = summary({"PCP": slip, "NAT-PMP": refused, "UPnP": silent})
    assert told == "the router refuses NAT-PMP: not authorized"
    assert summary({"PCP": refused, "UPnP": known}) == NO_OUTER


@virtual
async def test_probing_makes_nothing() -> None:
    """All three side by side, in three seconds."""
    routers = [
        FakeRouter("PCP"),
        FakeRouter("NAT-PMP", tells=True),
        FakeRouter("UPnP", slow=60),
        FakeRouter("fourth", silent=True),
    ]
    assert await probe(HOME, routers) == (
        Probe("PCP", "answers"),
        Probe("NAT-PMP", "answers", OUTER),
        Probe("UPnP", NO_ANSWER),
        Probe("fourth", NO_ANSWER),
    )
    assert trio.current_time() == PROBE_SECONDS <= 3
    assert not any(router.count("map") for router in routers)


@pytest.mark.parametrize("protocol", ["PCP", "NAT-PMP", "UPnP"])
def test_no_descriptor_is_left(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with too many open files hears of it in each protocol, and goes on."""

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(trio.socket, "socket", none_left)
    routers = all_routers(Gateway("127.0.0.1", "127.0.0.1"), bytes(NONCE))
    (router,) = (router for router in routers if router.protocol == protocol)
    with pytest.raises(MappingError, match="Too many open files"):
        trio.run(router.ask)
