"""`p2pnode doctor`: what it looks at, over the lab network in virtual time."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from findings import DOOR, PUBLIC, SECOND, TRACKER, US, nat, out
from statuses import swarm_of
from trio.testing import MockClock

from lab import Lab, identity
from p2pnode.cli import doctor as cli
from p2pnode.cli.main import main
from p2pnode.node.config import load
from p2pnode.node.diagnosis import diagnose
from p2pnode.node.doctor import CONTACT_SECONDS, SECONDS, Doctor, Tools
from p2pnode.node.findings import DialledBack, Door, Findings, Knock, Mapping
from p2pnode.node.status import NodeStatus, TrackerStatus
from p2pnode.tracker.protocol import Announce, Welcome, parse_request, to_bytes
from p2pnode.tracker.registry import Registry
from p2pnode.tracker.server import TrackerServer
from p2pnode.tracker.verdict import DIALBACK_SECONDS, DialBack, Outcome, Verdict
from p2pnode.transport.address import Address
from p2pnode.transport.errors import StunError
from p2pnode.transport.link import Handler, Handlers, Link
from p2pnode.transport.nat.behaviour import Behaviour, MappingKind
from p2pnode.transport.peer_address import PeerAddress

pytestmark = pytest.mark.usefixtures("inline_threads")

NOTHING: Mapping = Mapping(why="no router")
Answer = Callable[[Sequence[Address], Address], Awaitable[Behaviour]]


def now() -> float:
    """Seconds since the beginning."""
    return trio.current_time()


async def until_closed(link: Link) -> None:
    """Do nothing."""
    while True:
        await link.receive()


async def boastful(link: Link) -> None:
    """A tracker that reaches everybody without trying."""
    while True:
        match parse_request(await link.receive()):
            case Announce(id):
                await link.send(to_bytes(Welcome(id, 30.0, link.remote)))
            case DialBack(id):
                await link.send(to_bytes(Verdict(id, "reachable")))


class Stage:
    """A network with trackers, in which doctor is at 2.2.2.2."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.lab, self.nursery = Lab(), nursery
        self.hosts: tuple[str, ...] = (US,)
        self.status: NodeStatus | None = None
        self.asked: list[tuple[Sequence[Address], Address]] = []

    async def tracker(self, address: Address = TRACKER, **offers: Any) -> None:
        server = TrackerServer(Registry(bytes(8)), wall=lambda: 1000.0 + now(), **offers)
        network = self.lab.network(identity(99), address.host)
        beside: Handlers = {"relay": until_closed} if offers.get("relay") else {}
        await self.nursery.start(partial(server.serve, network, address, beside=beside))

    async def peer(
        self, address: Address, service: Any = "peer", handler: Handler = until_closed
    ) -> None:
        network = self.lab.network(identity(98), address.host)
        await self.nursery.start(network.listen, address, {service: handler})

    async def examine(self, *trackers: Address, **given: Any) -> Findings:
        """What doctor finds with these trackers, settings and tools."""
        flags = {"home": "/nowhere", "tracker": [str(tracker) for tracker in trackers]}
        flags |= {name: given.pop(name) for name in ("peer", "public", "stun") if name in given}
        config, me = load(flags, {})[0], identity(1)
        tools = Tools(
            hosts=lambda: self.hosts,
            status=lambda: self.status,
            mapping=given.get("mapping", self.no_router),
            udp=given.get("udp", self.behave),
            tcp=given.get("tcp", self.behave),
            wall=lambda: 900.0 + now(),
        )
        return await Doctor(config, True, me, self.lab.network(me, US), tools).examine()

    async def no_router(self, _bound: Address) -> Mapping:
        return NOTHING

    async def behave(self, servers: Sequence[Address], local: Address) -> Behaviour:
        self.asked.append((servers, local))
        return nat(MappingKind.NO_NAT)


def staged(test: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a test in virtual time."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await test(Stage(nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_all_is_well() -> None:
    """A tracker that offers everything, and nothing between it and us."""

    async def test(stage: Stage) -> None:
        await stage.tracker(relay=True, stun=3478)
        found = await stage.examine(TRACKER, stun=["9.9.9.9"])
        (met,) = found.trackers
        assert (met.why, met.seen and met.seen.host) == ("", US)
        assert met.skew == pytest.approx(100.0)
        assert met.relay == PeerAddress(identity(99).peer_id, TRACKER)
        assert found.dialbacks == (out(Outcome.REACHABLE),)
        assert found.relays == (Knock(TRACKER, 0.0),)
        servers = (Address("9.9.9.9", 3478), Address("8.8.8.8", 3478))
        assert stage.asked == [(servers, Address("0.0.0.0", 0))] * 2
        assert found.servers == 2
        assert (found.udp, found.tcp) == (nat(MappingKind.NO_NAT),) * 2
        assert found.door == Door(Address(US, 6000), "free")
        assert diagnose(found).able

    staged(test)


def test_nothing_is_left_behind() -> None:
    """The door is shut again, and the tracker knows nobody."""

    async def test(stage: Stage) -> None:
        await stage.tracker()
        await stage.examine(TRACKER)
        assert Address(US, 6000) not in stage.lab.listeners
        await trio.sleep(1)
        assert not stage.lab.links

    staged(test)


def test_a_door_that_nobody_gets_through() -> None:
    """As behind a NAT: the tracker's dial-back times out, all the rest is told."""

    async def test(stage: Stage) -> None:
        await stage.tracker()
        with stage.lab.filtered(US):
            found = await stage.examine(TRACKER)
        assert found.dialbacks == (out(Outcome.TIMED_OUT),)
        assert DIALBACK_SECONDS <= now() < SECONDS

    staged(test)


def test_a_public_address_is_what_is_checked() -> None:
    """With --public, that one; here it is somebody else's."""

    async def test(stage: Stage) -> None:
        await stage.tracker()
        await stage.peer(Address("3.3.3.3", 6000))
        found = await stage.examine(TRACKER, public="3.3.3.3:6000")
        assert found.dialbacks == (
            DialledBack(
                Address("3.3.3.3", 6000), Outcome.UNREACHABLE, Outcome.UNREACHABLE.sentence
            ),
        )

    staged(test)


def test_an_address_that_means_nothing_outside() -> None:
    """Who listens on a private address only can't be dialled from outside, and that is said."""

    async def test(stage: Stage) -> None:
        await stage.tracker()
        found = await stage.examine(TRACKER, public="192.168.1.10:6000")
        why = "192.168.1.10:6000 means nothing to the tracker"
        assert found.dialbacks == (DialledBack(Address("192.168.1.10", 6000), None, why),)

    staged(test)


def test_a_tracker_that_only_says_so_proves_nothing() -> None:
    """It must have said our nonce at our door."""

    async def test(stage: Stage) -> None:
        await stage.peer(TRACKER, "tracker", boastful)
        found = await stage.examine(TRACKER)
        assert found.dialbacks == (out(None, "the tracker says reachable, and wasn't heard"),)

    staged(test)


def test_blackholes() -> None:
    """Nobody answers anything: it ends in time and says of each that it didn't."""

    async def never(*_: object) -> Any:
        await trio.sleep_forever()

    async def test(stage: Stage) -> None:
        with stage.lab.filtered(TRACKER.host), stage.lab.filtered(SECOND.host):
            found = await stage.examine(
                TRACKER,
                SECOND,
                peer=["8.8.8.8:6000"],
                stun=["9.9.9.9"],
                mapping=never,
                udp=never,
                tcp=never,
            )
        assert now() == SECONDS < 12
        assert {met.why for met in found.trackers} == {f"no connection in {CONTACT_SECONDS:.0f} s"}
        assert found.peers[0].seconds is None
        assert (found.udp, found.tcp, found.mapping) == (None, None, None)
        assert not diagnose(found).able

    staged(test)


def test_a_tracker_that_falls_silent() -> None:
    """It is connected and says nothing: that is told as well."""

    async def test(stage: Stage) -> None:
        await stage.peer(TRACKER, "tracker")
        found = await stage.examine(TRACKER)
        assert "no welcome in 4 s" in found.trackers[0].why
        assert now() < SECONDS

    staged(test)


def test_one_tracker_is_gone() -> None:
    """The others' offers count."""

    async def test(stage: Stage) -> None:
        await stage.tracker(SECOND, stun=3478)
        found = await stage.examine(TRACKER, SECOND)
        assert [met.why for met in found.trackers] == ["connection refused", ""]
        assert found.servers == 1
        assert found.reached is not None

    staged(test)


def test_members_are_knocked_at() -> None:
    """As a stranger, who goes at once."""

    async def test(stage: Stage) -> None:
        at = Address("5.5.5.5", 6000)
        await stage.peer(at)
        found = await stage.examine(peer=[str(at), "6.6.6.6:6000"])
        assert {knock.address: knock.why for knock in found.peers} == {
            at: "",
            Address("6.6.6.6", 6000): "connection refused",
        }
        assert diagnose(found).able

    staged(test)


def test_a_port_that_is_taken() -> None:
    """By a program that isn't this home's node: said, and nothing is dialled back."""

    async def test(stage: Stage) -> None:
        await stage.tracker()
        await stage.peer(Address(US, 6000))
        found = await stage.examine(TRACKER)
        assert found.door.state == "shut"
        assert "taken by another program" in found.door.why
        assert found.dialbacks == ()
        assert found.met

    staged(test)


def test_a_node_that_runs_is_asked() -> None:
    """Its port is its own: doctor neither listens nor lets anybody dial."""

    async def test(stage: Stage) -> None:
        await stage.tracker()
        at = TrackerStatus(str(SECOND), "connected")
        stage.status = replace(swarm_of(2), listening="0.0.0.0:7000", trackers=(at,))
        found = await stage.examine(TRACKER)
        assert [met.address for met in found.trackers] == [TRACKER, SECOND]
        assert found.door == Door(Address("0.0.0.0", 7000), "ours")
        assert found.dialbacks == ()
        assert isinstance(found.status, NodeStatus)
        stage.status = replace(swarm_of(2), listening="", trackers=())
        assert (await stage.examine()).door == Door(DOOR, "ours")

    staged(test)


def test_stun_that_fails() -> None:
    """A local port that can't be had costs that answer only; without IPv4 it is asked over IPv6."""

    async def fails(*_: object) -> Behaviour:
        raise StunError("no port")

    async def test(stage: Stage) -> None:
        stage.hosts = ("2001:db8::1",)
        found = await stage.examine(stun=["9.9.9.9"], udp=fails)
        assert found.udp is None
        assert found.tcp == nat(MappingKind.NO_NAT)
        assert stage.asked[0][1] == Address("::", 0)

    staged(test)


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Findings]:
    """What the next examination will find."""
    ahead = [PUBLIC]

    class Done:
        async def examine(self) -> Findings:
            return ahead[-1]

    monkeypatch.setattr(cli, "_examination", lambda *_: Done())
    return ahead


def test_the_exit_code(
    found: list[Findings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0: this node can take part; 1: it can't."""
    home = ("--home", str(tmp_path))
    assert main(["doctor", *home]) == 0
    assert "Others can connect to this node directly." in capsys.readouterr().out
    found.append(replace(PUBLIC, trackers=()))
    assert main(["doctor", *home, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["able"] is False
