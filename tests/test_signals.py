"""node/signals.py: what ends a process."""

import signal
from collections.abc import Iterator

import pytest

from p2pnode.node.signals import ending


@pytest.fixture(params=[signal.SIG_DFL, signal.SIG_IGN])
def hang_up(request: pytest.FixtureRequest) -> Iterator[signal.Handlers]:
    """What is done with a hang-up, for a while."""
    before = signal.signal(signal.SIGHUP, request.param)
    yield request.param
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_ends_it_unless_under_nohup(hang_up: signal.Handlers) -> None:
    """`nohup p2pnode tracker serve &` outlives the login; Ctrl-C and SIGTERM always count."""
    assert {signal.SIGINT, signal.SIGTERM} <= set(ending())
    assert (signal.SIGHUP in ending()) is (hang_up is signal.SIG_DFL)
