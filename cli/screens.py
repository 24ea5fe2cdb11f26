"""Where a node's status goes: to the live screen, to log lines, or once to the terminal."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeAlias

import trio
from rich.console import Console, RenderableType

from ..node.config import Config
from ..node.status import NodeStatus
from ..transport.identity import short
from .logs import Log, Printer, to_stdout, write_news
from .tui import drawable, live, render, summary

PAGE: Final = 200
"""Lines where no terminal has a height: enough for everything that a node tells."""

Source: TypeAlias = Callable[[], NodeStatus]
View: TypeAlias = Callable[[Source], Awaitable[None]]


def view(config: Config) -> View:
    """The live screen where one can be drawn, else log lines; each runs until cancelled."""
    if config.tui and not config.log_json and drawable():
        return show_and_sum_up
    return partial(log_lines, Log(as_json=config.log_json), to_stdout)


async def show(source: Source) -> None:
    """Show a node on the live screen until cancelled."""

    def draw(width: int, height: int) -> RenderableType:
        return render(source(), width=width, height=height)

    await live(draw, console=Console())


async def show_and_sum_up(source: Source) -> None:
    """The same, and then leave what was learned where the screen was."""
    try:
        await show(source)
    finally:
        printer = Printer(to_stdout)
        printer.put(*summed_up(source()))
        await printer.finish()


def summed_up(status: NodeStatus) -> Sequence[str]:
    """The table of a node's epochs, as wide as the terminal; nothing before the first one."""
    if not status.history:
        return ()
    console = Console()
    with console.capture() as captured:
        console.print(summary([(short(status.peer), status)]))
    return captured.get().splitlines()


async def log_lines(log: Log, write: Callable[[bytes], object], source: Source) -> None:
    """Write what is new in a node's status until cancelled, and then what is still new."""
    await write_news(lambda: log.news(source()), write)


def follow(source: Source) -> None:
    """Show a running node until Ctrl-C, or until it stops and `source` raises ControlError."""
    with suppress(KeyboardInterrupt):
        trio.run(show, source)


def print_once(status: NodeStatus) -> None:
    """Print one screen and no more."""
    console = Console()
    height = console.height - 1 if console.is_terminal else PAGE
    console.print(render(status, width=console.width, height=height))
