"""A node's life as lines, and their writer that never makes anyone wait."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from p2pnode.cli.logs import WAITING, Log, Printer, write_news
from p2pnode.node.status import EVENTS_LIMIT, EpochStatus, Event, NodeStatus
from p2pnode.transport.manifest import Scores

STATUS = NodeStatus(
    version="0.1.0",
    peer="12D3KooWx",
    swarm="main",
    task="mnist",
    shard="0/3",
    public="",
    listening="",
    reachability="unknown",
    uptime=0.0,
)
EPOCH = EpochStatus(1, Scores(0.1, 0.9692), Scores(0.08, 0.97453), averaged=2, seconds=19.43)
NOON = 1_000_000_000.25


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are told in the local zone; the tests' one is UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def log(*, as_json: bool = False) -> Log:
    """A log whose clock stands still."""
    return Log(as_json=as_json, clock=lambda: NOON)


def test_lines_for_people() -> None:
    """Time, level, text: the node first, then epochs with before → after, then events."""
    status = replace(STATUS, events=(Event(NOON, "warning", "no tracker"),), history=(EPOCH,))
    assert list(log().news(status)) == [
        "2001-09-09 01:46:40 info    peer 12D3KooWx, swarm main, task mnist, shard 0/3",
        "2001-09-09 01:46:40 info    epoch 1: accuracy 96.92 % → 97.45 %, "
        "2 models averaged, 19.4 s",
        "2001-09-09 01:46:40 warning no tracker",
    ]


def test_lines_for_programs() -> None:
    """One JSON object a line, with figures beside the text."""
    status = replace(STATUS, history=(EPOCH,))
    node, epoch = map(json.loads, log(as_json=True).news(status))
    assert (node["kind"], node["at"], node["peer"]) == ("node", NOON, "12D3KooWx")
    assert epoch["kind"] == "epoch"
    assert epoch["after"] == {"loss": 0.08, "accuracy": 0.97453}
    assert (epoch["averaged"], epoch["seconds"]) == (2, 19.43)


def test_a_task_without_accuracy_shows_its_loss() -> None:
    """A regression has nothing else."""
    epoch = EpochStatus(3, Scores(0.5), Scores(0.25), averaged=1, seconds=1.0)
    lines = list(log().news(replace(STATUS, history=(epoch,))))
    assert lines[-1].endswith("epoch 3: loss 0.5000 → 0.2500, 1 model averaged, 1.0 s")


def test_only_news_is_told() -> None:
    """Each event and each epoch once, however often the node is looked at."""
    a, b = Event(1, "info", "a"), Event(2, "info", "b")
    told = log()
    assert len(list(told.news(replace(STATUS, events=(a,), history=(EPOCH,))))) == 3
    assert len(list(told.news(replace(STATUS, events=(a,), history=(EPOCH,))))) == 0
    assert len(list(told.news(replace(STATUS, events=(a, b), history=(EPOCH,))))) == 1


def test_the_same_event_again_is_news() -> None:
    """Two equal events are two lines."""
    a = Event(1, "info", "a")
    told = log()
    list(told.news(replace(STATUS, events=(a,))))
    assert len(list(told.news(replace(STATUS, events=(a, a))))) == 1


def test_old_events_that_fall_out_are_not_told_again() -> None:
    """The status keeps only the newest; the log goes on where it was."""
    events = tuple(Event(n, "info", str(n)) for n in range(EVENTS_LIMIT + 10))
    told = log()
    list(told.news(replace(STATUS, events=events[:EVENTS_LIMIT])))
    fresh = list(told.news(replace(STATUS, events=events[10:])))
    assert [line.split()[-1] for line in fresh] == [str(n) for n in range(50, 60)]


def test_lines_are_in_the_order_of_their_times() -> None:
    """What is known only since now is not dated after the events beside it."""
    status = replace(STATUS, events=(Event(NOON - 5, "info", "a"),), history=(EPOCH,))
    assert [line[:19] for line in log().news(status)] == ["2001-09-09 01:46:35"] * 3


def test_a_text_from_the_network_stays_on_its_line() -> None:
    """A line break or an escape in it can't fake a line or colour a terminal."""
    status = replace(STATUS, events=(Event(0, "info", "a\nb\x1b[31m"),))
    line = list(log().news(status))[-1]
    assert "\n" not in line
    assert "\x1b" not in line


def test_news_are_written_until_cancelled_and_then_once_more() -> None:
    """What happens in the last moment is not lost."""
    written: list[bytes] = []
    lines = iter([["one"], ["two"], ["three"], ["last"]])

    async def main() -> None:
        with trio.move_on_after(1.2):
            await write_news(lambda: next(lines), written.append)

    trio.run(main, clock=MockClock(autojump_threshold=0.05))
    assert b"".join(written) == b"one\ntwo\nthree\nlast\n"


def test_who_does_not_read_holds_up_nobody() -> None:
    """A blocked writer costs the oldest waiting lines, and half a second at the end."""
    blocked = threading.Event()
    written: list[bytes] = []

    def write(data: bytes) -> None:
        written.append(data)
        assert blocked.wait(10)

    async def main() -> None:
        printer = Printer(write)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(printer.run)
            printer.put("first")
            while not written:
                await trio.lowlevel.checkpoint()
            printer.put(*map(str, range(WAITING * 2)))
            nursery.cancel_scope.cancel()
        await printer.finish()

    trio.run(main)
    blocked.set()
    assert written[0] == b"first\n"


def test_a_full_disk_ends_nothing() -> None:
    """The line is lost and the next one is tried."""
    tried: list[bytes] = []

    def write(data: bytes) -> None:
        tried.append(data)
        raise OSError(28, "No space left on device")

    async def main() -> None:
        printer = Printer(write)
        for line in ("one", "two"):
            printer.put(line)
            await printer.finish()

    trio.run(main)
    assert tried == [b"one\n", b"two\n"]
