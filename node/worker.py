"""The worker process: `python -m p2pnode.node.worker`, started and ended by the daemon.

Strategy: this module is the shell around a Session. Orders come as lines on stdin, reports go as
lines to stdout; both pipes are moved aside first, so what a task prints goes to stderr and what it
reads is empty. A thread reads the orders: when stdin ends, the daemon is gone, and so is the
worker, at once, whatever it was doing (its files appear whole or not at all). Ctrl-C is the
daemon's business. torch is imported only after that thread runs, trio and pynng never.

Exit codes: 0 finished, 1 a crash (a traceback on stderr), 2 the user's mistake (Failed was sent).
"""

import os
import queue
import signal
import sys
import threading
import traceback
from typing import BinaryIO, Final, NoReturn

from .errors import NodeError, WorkerProtocolError
from .orders import (
    FAILED_LIMIT,
    LINE_LIMIT,
    Begin,
    Failed,
    Order,
    Report,
    Secrets,
    Setup,
    State,
    Threads,
    parse_order,
    to_line,
)

CRASHED: Final = 1
MISTAKE: Final = 2


class Pipes:
    """The two pipes to the daemon; what a Session needs of it."""

    def __init__(self, orders: BinaryIO, reports: int) -> None:
        self._orders, self._reports = orders, reports
        self._begin: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._threads = 0
        self._secrets: Secrets | None = None

    def setup(self) -> Setup:
        """Read the first order, then go on reading in a thread. Raises WorkerProtocolError."""
        order = self._next()
        if not isinstance(order, Setup):
            raise WorkerProtocolError("the first order must be Setup")
        self._secrets = order.secrets
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        return order

    def begin(self) -> bool:
        """Wait for Begin; return whether to bootstrap."""
        return self._begin.get()

    def threads(self) -> int:
        """Return how many threads were ordered last; 0 before any order."""
        return self._threads

    def secrets(self) -> Secrets | None:
        """Return the newest secrets of a private swarm; None in an open one."""
        return self._secrets

    def report(self, report: Report) -> None:
        """Tell the daemon; end with it if it is gone."""
        line = memoryview(to_line(report))
        try:
            while line:
                line = line[os.write(self._reports, line) :]
        except OSError:
            os._exit(CRASHED)

    def _listen(self) -> None:
        """Take orders until the daemon is gone."""
        try:
            while True:
                match self._next():
                    case Begin(bootstrap):
                        self._begin.put(bootstrap)
                    case Threads(threads):
                        self._threads = threads
                    case Secrets() as secrets:
                        self._secrets = secrets
        except WorkerProtocolError as error:
            print(error, file=sys.stderr, flush=True)
        finally:
            os._exit(CRASHED)  # not sys.exit: only this thread would end

    def _next(self) -> Order:
        line = self._orders.readline(LINE_LIMIT + 1)
        if not line:
            os._exit(CRASHED)
        return parse_order(line)


def take_pipes() -> Pipes:
    """Move stdin and stdout aside: from now on they are /dev/null and stderr."""
    orders, reports = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a text file
    return Pipes(os.fdopen(orders, "rb"), reports)


def main() -> NoReturn:
    """Train as ordered, then exit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipes = take_pipes()
    try:
        setup = pipes.setup()
        pipes.report(State("loading"))
        from .session import Session  # torch takes seconds to import; the thread must run by then

        Session(setup, pipes).run()
    except NodeError as error:
        if error.__cause__ is not None:  # in the user's own code: show where
            traceback.print_exception(error.__cause__)
        text = " ".join(str(error).encode(errors="replace").decode().split())
        pipes.report(Failed(text[:FAILED_LIMIT]))
        _exit(MISTAKE)
    except BaseException:
        traceback.print_exc()
        _exit(CRASHED)
    _exit(0)


def _exit(code: int) -> NoReturn:
    """End at once: torch's and the task's threads must not hold the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
