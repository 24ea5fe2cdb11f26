"""The live screens: `render` draws a node, `render_demo` several, `live` shows them.

Strategy: rendering is pure (a status and a size in, lines out), so every size can be tested and
any source can be shown: the own node, another one through its control socket, the demo's three.
What is in a section is told by panels.py, where it stands by layout.py. `live` writes from a
thread: a terminal that stands still (Ctrl-S, a dead ssh) must not hold up the node.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from io import TextIOWrapper
from typing import Final

import trio
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..node.status import Event, NodeStatus
from ..transport.identity import short
from . import network, panels
from .layout import Frame, Section, beside, column, fixed
from .lines import UNKNOWN, cut, first, line, size

REDRAW: Final = 0.25
"""Seconds between two redraws: fluent to the eye, and next to nothing of a core."""

LEAVE: Final = 0.5
"""Seconds that the terminal gets to take the last bytes: a node must be gone in 2."""

WIDE: Final = 140
"""Cells for two columns: a readable peers table beside a line of training."""

HIGH: Final = 34
"""Lines from which boxes cost nobody a row that matters."""

NODE: Final = 44
"""Cells that a node of the demo needs to stand beside another."""

HEADER: Final = 10
"""Lines of a header at most, so that many trackers leave room for the rest."""

Draw = Callable[[int, int], RenderableType]
"""Draws a screen of (width, height) cells."""


def render(status: NodeStatus, *, width: int, height: int) -> RenderableType:
    """The screen of one node: at most `height` lines of at most `width` cells.

    Colours are the console's matter: rich leaves them out where NO_COLOR is set.
    """
    frame = Frame(boxed=height >= HIGH)
    top = _top(panels.header(status, frame.inner(width)), height, frame)
    rows = height - len(top)
    if width < WIDE:
        inner = frame.inner(width)
        own, others = _work(status, inner), _network(status, inner)
        sections = [*own[:2], others[0], own[2], others[1]]
        return _screen([*top, *column(sections, width, rows, frame)], width, height)
    left = width * 2 // 5
    right = width - left - 1
    columns = [
        column(_work(status, frame.inner(left)), left, rows, frame),
        column(_network(status, frame.inner(right)), right, rows, frame),
    ]
    return _screen([*top, *beside(columns, [left, right])], width, height)


def _top(lines: list[Text], height: int, frame: Frame) -> list[Text]:
    most = min(HEADER, max(height // 3, 1))
    return [line(" " * frame.indent, each) for each in first(lines, most)]


def _work(status: NodeStatus, width: int) -> list[Section]:
    return [
        panels.training(status.training, width),
        panels.accuracy(status.history, width),
        network.models(status, width),
    ]


def _network(status: NodeStatus, width: int) -> list[Section]:
    events = [("", event) for event in status.events]
    return [network.peers(status.peers, width), network.events(events, width)]


def _screen(lines: Sequence[Text], width: int, height: int) -> RenderableType:
    return Group(*(cut(each, width) for each in lines[:height]))


# --- the demo ---------------------------------------------------------------------------------


def render_demo(
    statuses: Sequence[tuple[str, NodeStatus | None]],
    tracker_line: str,
    *,
    width: int,
    height: int,
) -> RenderableType:
    """Several named nodes on one screen: beside one another where it is wide, else stacked.

    None stands for a node that hasn't told its status yet.
    """
    frame = Frame(boxed=height >= HIGH)
    top = _top([line(("p2pnode demo   ", "bold"), tracker_line)], height, frame)
    rows = height - len(top)
    across = max(len(statuses), 1)
    cells = (width + 1) // across - 1
    news = network.events(_merged(statuses), frame.inner(width))
    if cells < NODE:
        nodes = [_node(name, status, frame.inner(width)) for name, status in statuses]
        return _screen([*top, *column([*nodes, news], width, rows, frame)], width, height)
    nodes = [_node(name, status, frame.inner(cells)) for name, status in statuses]
    tall = min(max([node.want for node in nodes], default=0) + frame.rows, rows)
    row = beside([column([n], cells, tall, frame, fill=True) for n in nodes], [cells] * len(nodes))
    rest = column([news], width, rows - tall, frame)
    return _screen([*top, *row, *rest], width, height)


def _merged(statuses: Sequence[tuple[str, NodeStatus | None]]) -> list[tuple[str, Event]]:
    told = [(name, event) for name, status in statuses if status for event in status.events]
    return sorted(told, key=lambda pair: pair[1].at)


def _node(name: str, status: NodeStatus | None, width: int) -> Section:
    if status is None:
        return fixed(name, line(), [line("starting …")], 1)
    title = f"{name} {short(status.peer)}, shard {status.shard}"
    return panels.node(title, status, width)


def summary(statuses: Sequence[tuple[str, NodeStatus]]) -> Table:
    """Peer × epoch: before → after averaging, models averaged; bytes of each peer in all."""
    table = Table(
        title="Before → after averaging", title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    table.add_column("node", style="cyan", no_wrap=True)
    for head in ("epoch", "before → after", "gain", "averaged", "received", "sent"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, status in statuses:
        _summarise(table, name, status)
    return table


def _summarise(table: Table, name: str, status: NodeStatus) -> None:
    received = size(status.relay_in + sum(peer.bytes_in for peer in status.peers))
    sent = size(status.relay_out + sum(peer.bytes_out for peer in status.peers))
    once = [line(name), line(received), line(sent)]
    for epoch in status.history:
        who, into, out = once
        cells = (f"{epoch.epoch}", panels.change(epoch), panels.gain(epoch), f"{epoch.averaged}")
        table.add_row(who, *cells, into, out)
        once = [line(), line(), line()]
    if not status.history:
        table.add_row(line(name), UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, received, sent)
    table.add_section()


# --- live -------------------------------------------------------------------------------------


def drawable() -> bool:
    """Whether stdout is a terminal that can be drawn on; TERM=dumb, as in an editor, can't."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


async def live(draw: Draw, *, console: Console) -> None:
    """Show what `draw` draws, in a screen of its own, until cancelled or the terminal is gone.

    `draw` is called in the trio thread, at most four times a second, with the size that the
    terminal has then. However this ends, the terminal is as it was before.
    """
    if isinstance(console.file, TextIOWrapper):
        # A terminal that isn't UTF-8 shows "?" for some signs instead of stopping the node.
        console.file.reconfigure(errors="replace")
    screen = Live(
        console=console,
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    try:
        await _write(screen.start)
        while await _write(partial(screen.update, draw(*console.size), refresh=True)):
            await trio.sleep(REDRAW)
    finally:
        with trio.move_on_after(LEAVE, shield=True):
            await _write(partial(_leave, screen))


def _leave(screen: Live) -> None:
    screen.console.clear()  # else tmux leaves rows of it behind after a resize
    screen.stop()


async def _write(work: Callable[[], None]) -> bool:
    """Let a thread write; False when the terminal was closed: the node goes on without it."""
    try:
        await trio.to_thread.run_sync(work, abandon_on_cancel=True)
    except OSError:
        return False
    return True
