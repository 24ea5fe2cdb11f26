"""Processes that live no longer than a block: `async with processes() as start`.

Strategy: each is a session of its own, so that Ctrl-C in the terminal is for the parent alone,
which ends them in its own way; and whatever ends the block, it waits until they are gone.
"""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Final, TypeAlias

import trio

GRACE: Final = 5.0
"""Seconds until a process that was told to stop is killed; a node promises 2."""

P2PNODE: Final = (sys.executable, "-P", "-m", "p2pnode.cli.main")
"""This very p2pnode; -P: whatever lies in the working directory is not imported."""

Start: TypeAlias = Callable[[Path, Sequence[str]], Awaitable[trio.Process]]


@asynccontextmanager
async def processes(command: Sequence[str] = P2PNODE) -> AsyncIterator[Start]:
    """Gives what starts `command` with arguments, its output in a file; ends all at the end."""
    running: list[trio.Process] = []

    async def start(log: Path, arguments: Sequence[str]) -> trio.Process:
        with log.open("wb") as output:
            process = await trio.lowlevel.open_process(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the demo's alone; it ends them in order
                env=_environment(),
            )
        running.append(process)
        return process

    try:
        yield start
    finally:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for process in running:
                    nursery.start_soon(end, process)


def _environment() -> dict[str, str]:
    """Ours, without settings: the demo shows the same to everyone."""
    return {k: v for k, v in os.environ.items() if not k.startswith("P2PNODE_")}


async def end(process: trio.Process, grace: float = GRACE) -> None:
    """Ask a process to stop; one that doesn't is killed with all of its group."""
    process.terminate()
    with trio.move_on_after(grace):
        await process.wait()
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, SIGKILL)
    await process.wait()
