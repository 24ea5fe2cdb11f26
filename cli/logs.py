"""A node's life as lines, for where there is no terminal.

Strategy: a Log is shown one NodeStatus after the other and tells what is new in each: the node
itself first, then events and finished epochs. A line is text for people, or one JSON object for
programs (`--log-json`); docs/reference/cli.md shows both. A Printer writes them.
"""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import trio

from ..node.status import EpochStatus, Event, NodeStatus, printable
from ..transport.manifest import Scores

LEVEL_WIDTH: Final = len("warning")

STDOUT: Final = 1

WAITING: Final = 1000
"""Lines kept for a reader that stands still: minutes of a busy node, and under a megabyte."""

LOOK: Final = 0.5
"""Seconds between two looks for news: soon enough for people, and cheap."""

LEAVE: Final = 0.5
"""Seconds for the last lines: a node must be gone in 2."""


class Log:
    """Turns what happens into lines; `clock` gives Unix seconds for what carries no time itself."""

    def __init__(self, *, as_json: bool = False, clock: Callable[[], float] = time.time) -> None:
        self._format = _json if as_json else _text
        self._clock = clock
        self._started = False
        self._events: Sequence[Event] = ()
        self._epoch = 0

    def line(self, text: str, level: str = "info") -> str:
        """A line of the caller's own."""
        return self._format(self._clock(), level, "event", text, {})

    def news(self, status: NodeStatus) -> Iterator[str]:
        """Lines for what is new since the last status.

        An epoch carries no time. It comes first, as what it made happen is among the events.
        """
        fresh = list(_fresh(status.events, self._events))
        at = min([self._clock(), *(event.at for event in fresh)])
        if not self._started:
            self._started = True
            yield self._format(at, "info", "node", *_node(status))
        for epoch in status.history:
            if epoch.epoch > self._epoch:
                self._epoch = epoch.epoch
                yield self._format(at, "info", "epoch", *_epoch(epoch))
        for event in fresh:
            yield self._format(event.at, event.level, "event", event.text, {})
        self._events = status.events


class Printer:
    """Writes lines from a thread of its own, so that who reads them slowly stops nobody.

    `write` takes bytes and may block. A line that can't be written (a full disk, a closed pipe,
    WAITING lines in front of it) is lost: a log must not end a node.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._lines: deque[str] = deque(maxlen=WAITING)
        self._ready = trio.Event()
        self._turn = threading.Lock()  # an abandoned write comes before the next one

    def put(self, *lines: str) -> None:
        """Have the lines written soon."""
        if lines:
            self._lines.extend(lines)
            self._ready.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._ready.wait()
            await self._flush()

    async def finish(self) -> None:
        """Write what is left, cancelled or not, if that goes within LEAVE seconds."""
        with trio.move_on_after(LEAVE, shield=True):
            await self._flush()

    async def _flush(self) -> None:
        self._ready = trio.Event()
        data = "".join(f"{line}\n" for line in self._lines).encode(errors="replace")
        self._lines.clear()
        await trio.to_thread.run_sync(self._write_all, data, abandon_on_cancel=True)

    def _write_all(self, data: bytes) -> None:
        with self._turn, suppress(OSError):
            self._write(data)


async def write_news(news: Callable[[], Iterable[str]], write: Callable[[bytes], object]) -> None:
    """Write what `news` gives, again and again until cancelled, and what it gives then."""
    printer = Printer(write)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(printer.run)
            while True:
                printer.put(*news())
                await trio.sleep(LOOK)
    finally:
        printer.put(*news())
        await printer.finish()


def to_stdout(data: bytes) -> None:
    """Write all of it, past Python's buffer: a thread that hangs in there would block the exit."""
    while data:
        data = data[os.write(STDOUT, data) :]


def _fresh(now: Sequence[Event], before: Sequence[Event]) -> Iterator[Event]:
    """The events of `now` that come after those of `before`: old ones fall out at the front."""
    overlap = min(len(now), len(before))
    while overlap and tuple(now[:overlap]) != tuple(before[len(before) - overlap :]):
        overlap -= 1
    yield from now[overlap:]


def _text(at: float, level: str, _kind: str, text: str, _fields: dict[str, Any]) -> str:
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    return f"{clock} {level:<{LEVEL_WIDTH}} {printable(text)}"


def _json(at: float, level: str, kind: str, text: str, fields: dict[str, Any]) -> str:
    entry = {"at": round(at, 3), "level": level, "kind": kind, "text": printable(text)}
    return json.dumps(entry | fields, ensure_ascii=False)


def _node(s: NodeStatus) -> tuple[str, dict[str, Any]]:
    text = f"peer {s.peer}, swarm {s.swarm}, task {s.task}, shard {s.shard}"
    fields = {"peer": s.peer, "swarm": s.swarm, "task": s.task, "shard": s.shard}
    return text, fields | {"version": s.version}


def _epoch(e: EpochStatus) -> tuple[str, dict[str, Any]]:
    """An epoch's line, such as "epoch 3: accuracy 97.60 → 98.43 %, 2 models averaged, 6.3 s"."""
    models = f"{e.averaged} model{'' if e.averaged == 1 else 's'} averaged"
    text = f"epoch {e.epoch}: {change(e.before, e.after)}, {models}, {e.seconds:.1f} s"
    scores = {"before": _scores(e.before), "after": _scores(e.after)}
    return text, {"epoch": e.epoch, **scores, "averaged": e.averaged, "seconds": e.seconds}


def change(before: Scores, after: Scores) -> str:
    """Two tests beside each other: by accuracy where the task has one, else by loss."""
    if before.accuracy is None or after.accuracy is None:
        return f"loss {before.loss:.4f} → {after.loss:.4f}"
    return f"accuracy {before.accuracy:.2%} → {after.accuracy:.2%}".replace("%", " %")


def _scores(scores: Scores) -> dict[str, float | None]:
    return {"loss": scores.loss, "accuracy": scores.accuracy}
