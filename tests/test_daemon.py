"""The nursery that wires a node; tests/test_e2e.py runs whole nodes as processes."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from lab import identity
from p2pnode.node.config import load
from p2pnode.node.daemon import LEAVE_SECONDS, Node
from p2pnode.node.home import Home
from p2pnode.node.presence import Presence
from p2pnode.transport.address import Address


def test_stopping_does_not_wait_for_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that hangs (--listen with a name) doesn't hold up Ctrl-C."""

    async def hangs(*_: object, **_options: Any) -> None:
        await trio.sleep_forever()

    async def main() -> float:
        config, _ = load({"home": str(tmp_path), "listen": "name.example:6000"}, {})
        node = Node(config, identity(1), Home(tmp_path))
        monkeypatch.setattr(node.network, "listen", hangs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run, hangs)
            await trio.sleep(1)
            assert node.stop()
        return trio.current_time() - 1

    assert trio.run(main, clock=MockClock(autojump_threshold=0)) <= LEAVE_SECONDS


@pytest.mark.parametrize(
    "flags",
    [{"listen": "localhost:0"}, {"listen": "127.0.0.1:0", "public": "localhost:6000"}],
)
def test_a_node_with_a_name(tmp_path: Path, flags: dict[str, str]) -> None:
    """A name in --public or --listen is a way in like any other: the node lives with it."""

    async def main() -> None:
        config, _ = load({"home": str(tmp_path), "reach": "direct,relay", **flags}, {})
        node = Node(config, identity(1), Home(tmp_path))
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(node.network.listen, config.listen, {})
            await node.meeting.start(nursery)
            await nursery.start(node.meeting.run, bound)
            await trio.sleep(0.1)
            assert [claim.address.host for claim in node.meeting.presence.claims()] == ["localhost"]
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_node_that_cannot_look_at_its_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many files are open for that: it looks later, with --lan, too."""

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        flags = {"listen": "127.0.0.1:0", "reach": "direct", "lan": "true"}
        config, _ = load({"home": str(tmp_path), **flags}, {})
        node = Node(config, identity(1), Home(tmp_path))
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(node.network.listen, config.listen, {})
            await node.meeting.start(nursery)
            await nursery.start(node.meeting.run, bound)
            await trio.sleep(0.1)
            assert node.meeting.presence.hosts == ()
            nursery.cancel_scope.cancel()

    monkeypatch.setattr("ifaddr.get_adapters", none_left)
    trio.run(main)


@pytest.mark.parametrize(
    ("listen", "hosts", "warned"),
    [
        ("0.0.0.0:0", ("2001:db8::1",), True),
        ("[::]:0", ("2001:db8::1",), False),
        ("0.0.0.0:0", ("2001:db8::1", "192.168.0.7"), False),
        ("0.0.0.0:0", (), False),
    ],
)
def test_a_machine_with_ipv6_only(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listen: str,
    hosts: tuple[str, ...],
    warned: bool,
) -> None:
    """Who listens where nobody can come is told what to write."""
    monkeypatch.setattr(Presence, "hosts", hosts)

    async def main() -> str:
        config, _ = load({"home": str(tmp_path), "reach": "direct", "listen": listen}, {})
        node = Node(config, identity(1), Home(tmp_path))
        async with trio.open_nursery() as nursery:
            await node.meeting.start(nursery)
            await nursery.start(node.meeting.run, Address(config.listen.host, 6000))
            nursery.cancel_scope.cancel()
        return " ".join(event.text for event in node.board.events)

    assert ("give --listen [::]:6000" in trio.run(main)) == warned
