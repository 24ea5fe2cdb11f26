"""I/O: the daemon's hold on its training process.

The worker is a fresh interpreter (spawned, never forked: torch starts threads). Orders go down its
stdin, reports come up its stdout, what it prints for people comes up its stderr and becomes log
lines. It lives exactly as long as `run`: cancelled means killed and waited for. A crash (out of
memory, a bug in a task) costs the epoch: it is started again and goes on from its checkpoint, a few
times; a user's mistake is not tried again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import trio

from .errors import TaskError, WorkerCrashed, WorkerProtocolError
from .orders import LINE_LIMIT, Epoch, Failed, Finished, Order, Report, Setup, parse_report, to_line

COMMAND = (sys.executable, "-m", "p2pnode.node.worker")
# glibc gives large blocks back to the kernel at once and asks for them again in the next batch: the
# page faults take more time than testing the model (measured: 2.6 × the CPU seconds). With these
# thresholds it keeps them. Other C libraries don't read them; the user's own values win.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(2 << 30)}
# Crashes in a row that are forgiven: out of memory may pass, a broken task won't.
RESTARTS = 3
# A worker that lived so long and finished an epoch has earned its forgiveness anew.
HEALTHY_SECONDS = 600.0
RESTART_PAUSE = 1.0
# The last words kept for the error message, and the longest line of them.
LAST_WORDS, LINE_SHOWN = 20, 500
# Orders that wait for the worker: it reads them as they come, so a full queue means that it hangs.
ORDERS_LIMIT = 16
# What an ended worker wrote is read to its end, unless a stray child of it holds the pipe open.
DRAIN_SECONDS = 1.0


class Owner(Protocol):
    """What the trainer tells the daemon; neither waits."""

    def reported(self, report: Report) -> None:
        """The worker reports."""

    def printed(self, line: str) -> None:
        """The worker, torch or the user's task printed a line."""

    def crashed(self, detail: str) -> None:
        """The worker ended by itself and is started again."""


class Trainer:
    """Starts, feeds and ends the worker process."""

    def __init__(
        self,
        setup: Setup,
        owner: Owner,
        *,
        clock: Callable[[], float],
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._setup, self._owner = setup, owner
        self._clock, self._command = clock, command
        self._orders: trio.MemorySendChannel[Order] | None = None
        self._words: deque[str] = deque(maxlen=LAST_WORDS)
        self._got_on = False  # the present worker has finished an epoch
        self._finished = False
        self._failure: str | None = None

    def order(self, order: Order) -> None:
        """Give an order; one that comes while no worker runs is dropped (Ready asks anew)."""
        if self._orders is not None:
            try:
                self._orders.send_nowait(order)
            except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                self._owner.printed("the worker doesn't take orders")

    async def run(self) -> None:
        """Until training is finished. Raises TaskError (the user's) or WorkerCrashed."""
        left = RESTARTS
        while True:
            began = self._clock()
            code = await self._live()
            if self._failure is not None:
                # The worker sends whole sentences; a TaskError begins with its own.
                raise TaskError(self._failure.removeprefix(f"{TaskError()}: "))
            if self._finished:
                return
            healthy = self._got_on and self._clock() - began > HEALTHY_SECONDS
            left = RESTARTS if healthy else left - 1
            detail = f"{_ending(code)}; {self._words[-1] if self._words else 'no last words'}"
            if left < 0:
                raise WorkerCrashed(f"{RESTARTS + 1} times in a row; {detail}")
            self._owner.crashed(detail)
            await trio.sleep(RESTART_PAUSE)

    async def _live(self) -> int:
        """One life of the worker: its exit code. Cancelled: it is killed."""
        process = await trio.lowlevel.open_process(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Ctrl-C in the terminal is ours to deal with; and its children end with it.
            env=MALLOC | os.environ,
            start_new_session=True,
        )
        self._orders, receive = trio.open_memory_channel[Order](ORDERS_LIMIT)
        self._words.clear()
        self._got_on = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, process, receive)
                code = await self._hear(process)
                nursery.cancel_scope.cancel()
        finally:
            self._orders = None
            await _end(process)
        return code

    async def _write(self, process: trio.Process, orders: trio.MemoryReceiveChannel[Order]) -> None:
        assert process.stdin is not None
        try:
            await process.stdin.send_all(to_line(self._setup))
            async for order in orders:
                await process.stdin.send_all(to_line(order))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it ended; its exit code tells

    async def _hear(self, process: trio.Process) -> int:
        """Take what it says until it has ended: its exit code."""
        assert process.stdout is not None
        assert process.stderr is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_each_line, process.stdout, self._take)
            nursery.start_soon(_each_line, process.stderr, self._print)
            code = await process.wait()
            _kill(process)  # its children would hold the pipes open
            nursery.cancel_scope.deadline = trio.current_time() + DRAIN_SECONDS
        return code

    def _take(self, line: bytes) -> None:
        """A line of the worker's stdout: a report."""
        try:
            report = parse_report(line)
        except WorkerProtocolError as error:
            self._owner.printed(str(error))
            return
        if isinstance(report, Failed):
            self._failure = report.text
        else:
            self._got_on = self._got_on or isinstance(report, Epoch)
            self._finished = self._finished or isinstance(report, Finished)
            self._owner.reported(report)

    def _print(self, line: bytes) -> None:
        """A line of the worker's stderr: for people."""
        text = line.decode(errors="replace").rstrip()[:LINE_SHOWN]
        if text:
            self._words.append(text)
            self._owner.printed(text)


async def _each_line(stream: trio.abc.ReceiveStream, take: Callable[[bytes], None]) -> None:
    """Give each line of the stream; one that is too long is cut into several."""
    rest = b""
    while data := await stream.receive_some():
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > LINE_LIMIT:
            lines, rest = [*lines, rest], b""
        for line in lines:
            take(line)
    if rest:
        take(rest)


def _kill(process: trio.Process) -> None:
    """Kill the worker and what it has started, such as data loaders."""
    with suppress(ProcessLookupError, PermissionError):  # none of them is left
        os.killpg(process.pid, signal.SIGKILL)


async def _end(process: trio.Process) -> None:
    """Cancel means gone: kill, then wait, shielded."""
    with trio.CancelScope(shield=True):
        if process.returncode is None:
            _kill(process)
            await process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                await pipe.aclose()


def _ending(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"it ended with code {code}"
