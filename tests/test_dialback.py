"""Dial-backs: what a tracker finds out for a peer, and that they are of no use against others.

A tracker at a public host, peers at others, over the in-memory network and in virtual time; the
last tests are over real TCP.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from lab import Lab, identity
from p2pnode.tracker.dialback import DialBacks, resolve
from p2pnode.tracker.errors import Reason, Refused
from p2pnode.tracker.protocol import Announce, Refusal, Reply, Welcome, parse_reply, to_bytes
from p2pnode.tracker.record import PeerRecord
from p2pnode.tracker.registry import Registry
from p2pnode.tracker.server import MISTAKES, TrackerServer
from p2pnode.tracker.verdict import DIALBACK_SECONDS, PAYMENT, DialBack, Outcome, Verdict
from p2pnode.transport.address import Address
from p2pnode.transport.envelope import Kind, seal
from p2pnode.transport.link import Link
from p2pnode.transport.network import TcpNetwork

TRACKER = Address("8.8.8.8", 5555)
HOME, OTHER = "2.2.2.2", "9.9.9.9"
DOOR = Address(HOME, 6000)
NONCE = bytes(range(32))
ALICE, BOB = identity(1).peer_id, identity(2).peer_id


@dataclass
class Peer:
    """One that listens, reads a nonce on each link and closes it."""

    nonces: list[tuple[str, bytes]] = field(default_factory=list)
    remotes: list[Address] = field(default_factory=list)

    async def handler(self, link: Link) -> None:
        self.remotes.append(link.remote)
        self.nonces.append((link.peer, await link.receive()))


@dataclass
class Stage:
    """A network, and a tracker's dial-backs."""

    lab: Lab
    nursery: trio.Nursery
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        network = self.lab.network(identity(200), TRACKER.host)
        self.dialbacks = DialBacks(network, trio.current_time, self._resolve)

    async def _resolve(self, address: Address) -> str | None:
        await trio.lowlevel.checkpoint()
        return self.names.get(address.host)

    async def peer(self, number: int, door: Address = DOOR) -> Peer:
        peer = Peer()
        network = self.lab.network(identity(number), door.host)
        await self.nursery.start(network.listen, door, {"peer": peer.handler})
        return peer

    async def check(
        self, door: Address = DOOR, *, seen: str = HOME, paid: bool = False, peer: str = ALICE
    ) -> Outcome:
        payment = bytes(PAYMENT) if paid else b""
        return await self.dialbacks.check(peer, seen, DialBack(1, door, NONCE, payment))

    async def refusal(
        self, door: Address = DOOR, *, seen: str = HOME, paid: bool = False, peer: str = ALICE
    ) -> str:
        with pytest.raises(Refused) as caught:
            await self.check(door, seen=seen, paid=paid, peer=peer)
        return caught.value.reason


def play(scene: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a scene; time passes only where everyone waits."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await scene(Stage(Lab(), nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


# ── what is found out ────────────────────────────────────────────────────────────────────────


def test_a_peer_that_can_be_reached() -> None:
    """It gets its nonce from the tracker, on a link of another port than the tracker's own."""

    async def scene(stage: Stage) -> None:
        alice = await stage.peer(1)
        assert await stage.check() == Outcome.REACHABLE
        assert alice.nonces == [(identity(200).peer_id, NONCE)]
        assert alice.remotes[0].host == TRACKER.host
        assert alice.remotes[0].port != TRACKER.port
        assert not stage.lab.links

    play(scene)


def test_nobody_listens() -> None:
    """The connection is refused, and that is said at once."""

    async def scene(stage: Stage) -> None:
        assert await stage.check() == Outcome.REFUSED
        assert trio.current_time() == 0

    play(scene)


def test_a_firewall_that_drops() -> None:
    """No answer in time; and one that never takes the nonce is no better."""

    async def scene(stage: Stage) -> None:
        with stage.lab.filtered(HOME):
            assert await stage.check() == Outcome.TIMED_OUT
        assert trio.current_time() == DIALBACK_SECONDS

        async def hang(_link: Link) -> None:
            await trio.sleep_forever()

        network = stage.lab.network(identity(1), HOME)
        await stage.nursery.start(network.listen, DOOR, {"peer": hang})
        assert await stage.check() == Outcome.TIMED_OUT
        assert trio.current_time() == 2 * DIALBACK_SECONDS

    play(scene)


def test_another_peer_answers() -> None:
    """A neighbour behind the same router isn't this peer, and hears no nonce."""

    async def scene(stage: Stage) -> None:
        bob = await stage.peer(2)
        assert await stage.check() == Outcome.FOREIGN
        assert bob.nonces == []

    play(scene)


def test_a_peer_on_the_tracker_s_own_network() -> None:
    """On a LAN, or on one machine, it works as everywhere, for the host that is seen."""

    async def scene(stage: Stage) -> None:
        door = Address("192.168.0.7", 6000)
        await stage.peer(1, door)
        assert await stage.check(door, seen="192.168.0.7") == Outcome.REACHABLE

    play(scene)


def test_a_name() -> None:
    """It is looked up by the tracker, paid for, and judged by what it stands for."""

    async def scene(stage: Stage) -> None:
        await stage.peer(1)
        await stage.peer(1, Address(OTHER, 6000))
        door = Address("name.example", 6000)
        for stage.names["name.example"] in (HOME, OTHER):
            assert await stage.check(door, paid=True) == Outcome.REACHABLE
        assert await stage.refusal(door) == Reason.UNPAID

    play(scene)


def test_names_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address of a name; none for a name that nobody knows."""

    async def known(name: str, *_: object, **__: object) -> object:
        if name != "name.example":
            raise OSError("unknown")
        return [(2, 1, 6, "", ("::ffff:2.2.2.2", 6000)), (2, 1, 6, "", ("9.9.9.9", 6000))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", known)
    assert trio.run(resolve, Address("name.example", 6000)) == HOME
    assert trio.run(resolve, Address("nobody.example", 6000)) is None


# ── what it can't be used for ────────────────────────────────────────────────────────────────


def test_nothing_is_dialled_before_it_is_paid() -> None:
    """Another host costs 32 KiB first: more than its dial puts on that host."""

    async def scene(stage: Stage) -> None:
        door = Address(OTHER, 6000)
        alice = await stage.peer(1, door)
        assert await stage.refusal(door) == Reason.UNPAID
        assert stage.lab.dials == []
        assert await stage.check(door, paid=True) == Outcome.REACHABLE
        assert len(alice.nonces) == 1

    play(scene)


def test_no_scan_of_another_host() -> None:
    """Closed, filtered, foreign: the same word after the same time, so it tells of no port."""

    async def scene(stage: Stage) -> None:
        await stage.peer(2, Address(OTHER, 22))
        for port in (21, 22, 23):
            before = trio.current_time()
            block = stage.lab.filtered(OTHER) if port == 23 else contextlib.nullcontext()
            with block:
                outcome = await stage.check(Address(OTHER, port), paid=True)
            assert outcome == Outcome.UNREACHABLE
            assert trio.current_time() == before + DIALBACK_SECONDS

    play(scene)


def test_no_way_into_the_tracker_s_network() -> None:
    """Not by address, not by a name that stands for one, not from a neighbour in that network."""

    async def scene(stage: Stage) -> None:
        inside = Address("192.168.0.1", 80)
        await stage.peer(1, inside)
        for seen in (HOME, "192.168.0.7"):
            assert await stage.refusal(inside, seen=seen, paid=True) == Reason.PRIVATE_ADDRESS
        stage.names["router.example"] = "192.168.0.1"
        for name in ("router.example", "nobody.example"):  # no telling which names are inside
            assert await stage.refusal(Address(name, 80), paid=True) == Reason.NO_ROUTE
        assert stage.lab.dials == []

    play(scene)


def test_a_victim_is_dialled_seldom() -> None:
    """A hundred peers of as many hosts, by many names for one host: a handful of dials."""

    async def scene(stage: Stage) -> None:
        reasons = []

        async def ask(number: int) -> None:
            stage.names[f"n{number}.example"] = OTHER
            door = Address(f"n{number}.example", number)
            try:
                await stage.check(door, seen=f"9.8.7.{number}", paid=True, peer=str(number))
            except Refused as error:
                reasons.append(error.reason)

        async with trio.open_nursery() as nursery:
            for number in range(1, 101):
                nursery.start_soon(ask, number)
        assert len(stage.lab.dials) == 4
        assert reasons == [Reason.TOO_OFTEN] * 96

    play(scene)


def test_one_at_a_time() -> None:
    """A peer waits for its answer, whichever of its links it asks on; others don't."""

    async def scene(stage: Stage) -> None:
        with stage.lab.filtered(HOME):
            stage.nursery.start_soon(stage.check)
            await trio.sleep(1)
            assert await stage.refusal() == Reason.TOO_OFTEN
        await stage.peer(2)
        assert await stage.check(peer=BOB) == Outcome.REACHABLE
        await trio.sleep(DIALBACK_SECONDS)
        assert await stage.check() == Outcome.FOREIGN

    play(scene)


# ── as a tracker answers it ──────────────────────────────────────────────────────────────────


@dataclass
class Asker:
    """A peer's raw link to the tracker."""

    link: Link
    number: int = 1
    ids: count[int] = field(default_factory=lambda: count(1))

    async def announce(self, *doors: Address) -> Reply:
        id = next(self.ids)
        record = PeerRecord(swarm="main", seq=id, addresses=doors, created=0.0)
        envelope = seal(identity(self.number), Kind.PEER_RECORD, record.to_bytes())
        return await self._ask(Announce(id, envelope))

    async def dial_back(self, door: Address = DOOR, payment: bytes = b"") -> Reply:
        return await self._ask(DialBack(next(self.ids), door, NONCE, payment))

    async def _ask(self, request: Announce | DialBack) -> Reply:
        await self.link.send(to_bytes(request))
        return parse_reply(await self.link.receive())


@asynccontextmanager
async def tracker(stage: Stage) -> AsyncIterator[Asker]:
    """A tracker, and Alice's link to it from HOME."""
    server = TrackerServer(Registry(bytes(8)))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, stage.lab.network(identity(200), TRACKER.host), TRACKER)
        yield Asker(await stage.lab.network(identity(1), HOME).dial(TRACKER, "tracker"))
        nursery.cancel_scope.cancel()


def test_the_tracker_s_answers() -> None:
    """Only who has announced may ask, only for what it has announced; then the verdict comes."""

    async def scene(stage: Stage) -> None:
        async with tracker(stage) as alice:
            assert await alice.dial_back() == Refusal(1, "unannounced")
            assert isinstance(await alice.announce(DOOR), Welcome)
            assert await alice.dial_back(Address(HOME, 22)) == Refusal(3, "not-announced")
            assert await alice.dial_back() == Verdict(4, "refused")
            await stage.peer(1)
            assert await alice.dial_back() == Verdict(5, "reachable")

    play(scene)


def test_another_host_over_the_link() -> None:
    """The payment travels in the question; without it the address is not dialled."""

    async def scene(stage: Stage) -> None:
        door = Address(OTHER, 6000)
        await stage.peer(1, door)
        async with tracker(stage) as alice:
            await alice.announce(door)
            dials = len(stage.lab.dials)
            assert await alice.dial_back(door) == Refusal(2, "unpaid")
            assert len(stage.lab.dials) == dials
            assert await alice.dial_back(door, bytes(PAYMENT)) == Verdict(3, "reachable")

    play(scene)


def test_announces_go_on_meanwhile() -> None:
    """A dial-back that waits holds up nothing, and ends with its link."""

    async def scene(stage: Stage) -> None:
        async with tracker(stage) as alice:
            await alice.announce(DOOR)
            with stage.lab.filtered(HOME):
                await alice.link.send(to_bytes(DialBack(90, DOOR, NONCE)))
                await trio.sleep(1)
                assert isinstance(await alice.announce(DOOR), Welcome)
                assert trio.current_time() == 1
                await alice.link.aclose()
                await trio.lowlevel.checkpoint()

    play(scene)


def test_asking_too_often_is_no_mistake() -> None:
    """It is refused and counted, and the link goes on, so that trackers may be strict."""

    async def scene(stage: Stage) -> None:
        async with tracker(stage) as alice:
            await alice.announce(DOOR)
            answers = [await alice.dial_back() for _ in range(60)]
            served = sum(isinstance(answer, Verdict) for answer in answers)
            assert served <= 12
            assert len(answers) - served > MISTAKES
            reasons = {answer.reason for answer in answers if isinstance(answer, Refusal)}
            assert reasons == {"too-often"}
            assert isinstance(await alice.announce(DOOR), Welcome)

    play(scene)


# ── over real TCP ────────────────────────────────────────────────────────────────────────────


def test_real_sockets() -> None:
    """A real tracker reaches a real peer, from another port than its own; then the door shuts."""

    async def main() -> None:
        alice, network = Peer(), TcpNetwork(identity(1))
        server, here = TrackerServer(Registry(bytes(8))), Address("127.0.0.1", 0)
        async with trio.open_nursery() as nursery:
            where = await nursery.start(server.serve, TcpNetwork(identity(200)), here)
            asker = Asker(await network.dial(where, "tracker"))
            async with trio.open_nursery() as listening:
                door = await listening.start(network.listen, here, {"peer": alice.handler})
                await asker.announce(door)
                assert await asker.dial_back(door) == Verdict(2, "reachable")
                listening.cancel_scope.cancel()
            assert alice.nonces == [(identity(200).peer_id, NONCE)]
            assert alice.remotes[0].port != where.port
            assert await asker.dial_back(door) == Verdict(3, "refused")
            await asker.link.aclose()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_something_else_at_a_real_port() -> None:
    """A program that doesn't speak p2pnode, or a tracker, is something foreign."""

    async def main() -> None:
        dialbacks = DialBacks(TcpNetwork(identity(200)), trio.current_time)

        async def web(stream: trio.SocketStream) -> None:
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, web, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            request = DialBack(1, Address("127.0.0.1", port), NONCE)
            assert await dialbacks.check(ALICE, "127.0.0.1", request) == Outcome.FOREIGN
            nursery.cancel_scope.cancel()

    trio.run(main)
