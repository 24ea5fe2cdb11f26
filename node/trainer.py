"""I/O: the daemon's hold on its training process.

The worker is a fresh interpreter (spawned, never forked: torch starts threads). Orders go down its
stdin, reports come up its stdout, what it prints for people comes up its stderr and becomes log
lines. It lives exactly as long as `run`: cancelled means killed and waited for. A crash (out of
memory, a bug in a task) costs the epoch: it is started again and goes on from its checkpoint, a few
times; a user's mistake is not tried again.
"""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

import trio

from ..transport.errors import TransportError
from .errors import TaskError, WorkerCrashed, WorkerProtocolError
from .orders import LINE_LIMIT, Failed, Finished, Order, Report, Setup, parse_report, to_line

COMMAND = (sys.executable, "-m", "p2pnode.node.worker")
# Crashes in a row that are forgiven: out of memory may pass, a broken task won't.
RESTARTS = 3
# A worker that lived so long has earned its forgiveness anew.
HEALTHY_SECONDS = 600.0
RESTART_PAUSE = 1.0
# The last words kept for the error message, and the longest line of them.
LAST_WORDS, LINE_SHOWN = 20, 500


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
        self._process: trio.Process | None = None
        self._orders: trio.MemorySendChannel[Order] | None = None
        self._words: deque[str] = deque(maxlen=LAST_WORDS)
        self._finished = False

    @property
    def pid(self) -> int | None:
        """The worker's process ID while it runs."""
        return self._process.pid if self._process else None

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
            if self._finished:
                return
            left = RESTARTS if self._clock() - began > HEALTHY_SECONDS else left - 1
            detail = f"{_ending(code)}; {self._words[-1] if self._words else 'no last words'}"
            if left < 0:
                raise WorkerCrashed(f"{RESTARTS + 1} times in a row; {detail}")
            self._owner.crashed(detail)
            await trio.sleep(RESTART_PAUSE)

    async def _live(self) -> int:
        """One life of the worker: its exit code. Cancelled: it is killed."""
        self._process = await trio.lowlevel.open_process(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is ours to deal with
        )
        send, receive = trio.open_memory_channel[Order](16)
        self._orders = send
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, self._process, receive)
                nursery.start_soon(self._listen_stderr, self._process)
                await self._listen(self._process)
                code = await self._process.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._orders = None
            await _end(self._process)
            self._process = None
        return code

    async def _write(self, process: trio.Process, orders: trio.MemoryReceiveChannel[Order]) -> None:
        assert process.stdin is not None
        try:
            await process.stdin.send_all(to_line(self._setup))
            async for order in orders:
                await process.stdin.send_all(to_line(order))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it ended; its exit code tells

    async def _listen(self, process: trio.Process) -> None:
        assert process.stdout is not None
        async with aclosing(_lines(process.stdout)) as lines:
            async for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            report = parse_report(line)
        except (WorkerProtocolError, TransportError) as error:
            self._owner.printed(str(error))
            return
        if isinstance(report, Failed):
            raise TaskError(report.text)
        self._finished = self._finished or isinstance(report, Finished)
        self._owner.reported(report)

    async def _listen_stderr(self, process: trio.Process) -> None:
        assert process.stderr is not None
        async with aclosing(_lines(process.stderr)) as lines:
            async for line in lines:
                text = line.decode(errors="replace").rstrip()[:LINE_SHOWN]
                if text:
                    self._words.append(text)
                    self._owner.printed(text)


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncGenerator[bytes, None]:
    """The stream's lines; one that is too long is cut into several."""
    rest = b""
    while data := await stream.receive_some():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > LINE_LIMIT:
            yield rest
            rest = b""
    if rest:
        yield rest


async def _end(process: trio.Process) -> None:
    """Cancel means gone: kill, then wait, shielded."""
    with trio.CancelScope(shield=True):
        if process.returncode is None:
            process.kill()
            await process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                await pipe.aclose()


def _ending(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"it ended with code {code}"
