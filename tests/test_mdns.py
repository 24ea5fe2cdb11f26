"""The real multicast DNS, between two nodes of this machine on its loopback interface."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest

from p2pnode.node import mdns as module
from p2pnode.node.lan_service import Service
from p2pnode.node.mdns import TYPE, Zeroconf

pytestmark = pytest.mark.e2e

HERE = ("127.0.0.1",)
# Announcing takes a second and a half; two busy cores may take ten times as long.
PATIENCE = 20.0
ABOUT = {"txtvers": "1", "peer": "a peer ID", "swarm": "0123456789abcdef"}
SERVICE = Service("test-mdns", 6000, ("192.168.1.2", "2001:db8::1"), ABOUT)
NAME = f"{SERVICE.name}.{TYPE}"


def start() -> Zeroconf:
    """One node's; skip where there is no multicast at all."""
    try:
        return Zeroconf(HERE)
    except OSError as error:
        pytest.skip(f"no multicast here: {error}")


@pytest.fixture
def node() -> Iterator[Zeroconf]:
    """One node's, closed afterwards."""
    made = start()
    yield made
    made.close()


@pytest.fixture
def news(node: Zeroconf) -> queue.Queue[tuple[str, bool]]:
    """What that node is told of services."""
    told: queue.Queue[tuple[str, bool]] = queue.Queue()
    node.browse(lambda name, there: told.put((name, there)))
    return told


def wait_for(news: queue.Queue[tuple[str, bool]], name: str, *, there: bool) -> None:
    """Wait until that is told."""
    while news.get(timeout=PATIENCE) != (name, there):
        pass


def test_a_service_comes_and_goes(node: Zeroconf, news: queue.Queue[tuple[str, bool]]) -> None:
    """It is told of, says where it is, and says goodbye; the same name twice gets a number."""
    other, third = start(), start()
    try:
        other.register(SERVICE)
        wait_for(news, NAME, there=True)
        found = node.resolve(NAME)
        assert found is not None
        assert (found.name, found.port) == (NAME, 6000)
        assert (set(found.hosts), found.about) == (set(SERVICE.hosts), ABOUT)
        third.register(SERVICE)
        wait_for(news, f"{SERVICE.name}-2.{TYPE}", there=True)
        other.close()
        wait_for(news, NAME, there=False)
    finally:
        other.close()
        third.close()


def test_who_is_not_there(node: Zeroconf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that nobody has, that are none, and questions after the end have no answer."""
    monkeypatch.setattr(module, "RESOLVE_SECONDS", 0.1)
    assert node.resolve(f"nobody.{TYPE}") is None
    assert node.resolve("no name") is None
    node.close()
    assert node.resolve(f"nobody.{TYPE}") is None
