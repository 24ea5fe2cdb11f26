"""The control socket: a running node tells its status, to this user alone, and nobody holds it up.

The asking side blocks, so it runs in threads here; all time is real and none is waited for.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from statuses import swarm_of

from p2pnode.node import control
from p2pnode.node.control import Control, serve
from p2pnode.node.errors import ControlError, StatusError
from p2pnode.node.status import STATUS_LIMIT, NodeStatus

PATIENCE = 20.0
STATUS = swarm_of(50)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the socket is."""
    return tmp_path / "control.sock"


class Node:
    """The answering side: each answer has a new uptime, so that two can be told apart."""

    def __init__(self, most: NodeStatus = STATUS) -> None:
        self.asked, self._most = 0, most

    def status(self) -> NodeStatus:
        self.asked += 1
        return replace(self._most, uptime=float(self.asked))


def while_it_runs(
    path: Path, check: Callable[[], Awaitable[None]], node: Node | None = None
) -> None:
    """Run the check beside a serving node, then end the node."""

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, path, (node or Node()).status)
                await check()
                nursery.cancel_scope.cancel()

    trio.run(main)


def ask(path: Path) -> NodeStatus:
    """One question."""
    with Control(path) as node:
        return node.status()


def test_both_ends_agree(path: Path) -> None:
    """A status arrives as it was; the next question on the same connection gets the next one."""

    def check() -> None:
        with Control(path) as node:
            assert node.status() == replace(STATUS, uptime=1.0)
            assert node.status() == replace(STATUS, uptime=2.0)

    while_it_runs(path, partial(trio.to_thread.run_sync, check))


def test_several_clients_at_once(path: Path) -> None:
    """Each of ten connections that are open together gets its own answers."""
    together = threading.Barrier(10)
    found: list[float] = []

    def client() -> None:
        with Control(path) as node:
            together.wait()
            for _ in range(3):
                found.append(node.status().uptime)

    async def check() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(trio.to_thread.run_sync, client)

    while_it_runs(path, check)
    assert sorted(found) == [float(n) for n in range(1, 31)]


def test_a_client_that_does_not_read(path: Path) -> None:
    """It gets one answer at a time, so it costs one status of memory and delays nobody."""
    node = Node(swarm_of(2000))  # more than a socket's buffer takes

    async def check() -> None:
        with socket.socket(socket.AF_UNIX) as idle:
            idle.connect(os.fspath(path))
            idle.sendall(b"?" * 1000)
            for _ in range(3):
                await trio.to_thread.run_sync(ask, path)

    while_it_runs(path, check, node)
    assert node.asked <= 3 + 3


def test_a_client_that_goes_in_the_middle(path: Path) -> None:
    """A closed terminal is no event for the node."""

    async def check() -> None:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as hasty:
                hasty.connect(os.fspath(path))
                hasty.sendall(b"?")
        assert (await trio.to_thread.run_sync(ask, path)).peer == STATUS.peer

    while_it_runs(path, check, Node(swarm_of(2000)))


def test_only_this_user_may_ask(path: Path) -> None:
    """The socket's mode is 0600."""

    async def check() -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    while_it_runs(path, check)


def test_the_socket_is_gone_afterwards(path: Path) -> None:
    """A node that ended leaves no file, and asking it is one clear line."""
    while_it_runs(path, trio.lowlevel.checkpoint)
    assert not path.exists()
    with pytest.raises(ControlError, match="start a node with p2pnode run") as caught:
        Control(path)
    assert "\n" not in str(caught.value)


def test_the_socket_of_a_killed_node(path: Path) -> None:
    """A file that nobody listens on is like none for the asking, and replaced by the next node."""
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(os.fspath(path))
    with pytest.raises(ControlError, match="Connection refused"):
        Control(path)

    async def check() -> None:
        assert (await trio.to_thread.run_sync(ask, path)).uptime == 1.0

    while_it_runs(path, check)


def test_a_node_that_stops_between_two_questions(path: Path) -> None:
    """The next question says that it stopped."""
    open_clients: list[Control] = []

    def client() -> None:
        open_clients.append(Control(path))
        open_clients[0].status()

    while_it_runs(path, partial(trio.to_thread.run_sync, client))
    with open_clients[0] as node, pytest.raises(ControlError, match="the node stopped"):
        node.status()


def test_a_node_that_hangs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`p2pnode status` doesn't wait for ever."""
    monkeypatch.setattr(control, "ANSWER_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(os.fspath(path))
        hanging.listen()
        with Control(path) as node, pytest.raises(ControlError, match="no answer"):
            node.status()


def answered(data: bytes) -> NodeStatus:
    """What the asking side makes of these bytes."""
    here, there = socket.socketpair()
    node = object.__new__(Control)
    node._socket = here
    with there, node:
        there.sendall(data)
        there.shutdown(socket.SHUT_WR)
        return node.status()


def test_an_answer_that_is_too_long() -> None:
    """A length beyond every status is refused before anything is read."""
    with pytest.raises(ControlError, match="a status of"):
        answered(struct.pack(">I", STATUS_LIMIT + 1))


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda d: struct.pack(">I", 9) + d))
def test_any_bytes_as_an_answer(data: bytes) -> None:
    """Any bytes give a status or the documented errors."""
    with pytest.raises((ControlError, StatusError)):
        answered(data)
