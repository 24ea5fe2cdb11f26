"""The live screens: what stands in them at which size, and that they leave the terminal clean."""

import io
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions, RenderableType
from rich.text import Text
from statuses import ME, NOW, neighbour, statuses, swarm_of, with_training
from trio.testing import MockClock

from p2pnode.cli.layout import share
from p2pnode.cli.lines import (
    clock,
    duration,
    figure,
    line,
    middle,
    milliseconds,
    rate,
    size,
    sparkline,
    wrap,
)
from p2pnode.cli.tui import LEAVE, REDRAW, drawable, live, render, render_demo, summary
from p2pnode.node.status import Event, NodeStatus, TrackerStatus

SIZES = [(80, 24), (200, 60)]


def shown(picture: RenderableType, width: int, height: int) -> list[str]:
    """The lines of a screen, without colours."""
    file = io.StringIO()
    Console(file=file, width=width, height=height, color_system=None).print(picture, end="")
    return file.getvalue().removesuffix("\n").split("\n")


def screen(status: NodeStatus, width: int = 80, height: int = 24) -> str:
    """A node's screen, checked to fit."""
    lines = shown(render(status, width=width, height=height), width, height)
    _check_fits(lines, width, height)
    return "\n".join(lines)


def _check_fits(lines: Sequence[str], width: int, height: int) -> None:
    assert len(lines) <= height
    assert all(cell_len(each) <= width for each in lines)
    assert "".join(lines).isprintable()


# --- sizes --------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(statuses(st.text(max_size=80)), st.integers(1, 220), st.integers(1, 70))
def test_no_status_ever_overflows_any_screen(status: NodeStatus, width: int, height: int) -> None:
    """However hostile the texts and absurd the numbers, lines and columns stay within bounds."""
    _check_fits(shown(render(status, width=width, height=height), width, height), width, height)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=20), st.none() | statuses()), max_size=4),
    st.text(max_size=99),
    st.integers(1, 220),
    st.integers(1, 70),
)
def test_no_demo_ever_overflows_any_screen(
    nodes: list[tuple[str, NodeStatus | None]], tracker: str, width: int, height: int
) -> None:
    """The same holds for the demo, for any number of nodes."""
    picture = render_demo(nodes, tracker, width=width, height=height)
    _check_fits(shown(picture, width, height), width, height)


@pytest.mark.parametrize("peers", [0, 3, 50])
def test_an_ordinary_node_fits_every_shape_of_terminal(peers: int) -> None:
    """From a slit to a wall."""
    status = swarm_of(peers, epochs=peers)
    for width in (1, 20, 39, 60, 79, 80, 100, 139, 140, 170, 200):
        for height in (1, 2, 3, 5, 8, 13, 20, 24, 33, 34, 50, 60):
            screen(status, width, height)


def test_rows_go_to_the_important_first() -> None:
    """Each gets its least, in order; when one doesn't fit, those after it are left out."""
    assert share([(2, 4, 1), (1, 9, 1), (2, 9, 2)], 24, 1) == [4, 8, 9]
    assert share([(2, 4, 1), (1, 9, 1), (2, 9, 2)], 10, 1) == [3, 2, 2]
    assert share([(2, 4, 1), (5, 9, 1), (1, 9, 2)], 8, 1) == [4, 0, 0]
    assert share([(2, 4, 1)], 2, 1) == [0]


# --- a node -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_node_shows_all_its_parts(width: int, height: int) -> None:
    """Header, training, accuracy, peers, mailbox, transfers, rejects and events are there."""
    text = screen(swarm_of(3), width, height)
    for part in (
        "p2pnode 0.1.0",
        "swarm main",
        "task mnist",
        "shard 0/3",
        "up 1:02:33",
        ME,
        "198.51.100.7:6000, reached by 3 peers",
        "listening 0.0.0.0:6000",
        "tracker ● 203.0.113.1:5555 connected, 3 peers",
        "epoch 5 of 14",
        "54 %  507/938",
        "3,120 samples/s",
        "ends in 7:05",
        "loss 0.0712",
        "1,199,882 parameters, cpu, 1 thread",
        "Accuracy before → after averaging",
        "98.75 → 99.25 %  +0.50  2 models",
        "▁▆▇█",
        "…TPeer000  direct 203.0.113.0:6000",
        "12 ms",
        "3 connected",
        "mailbox 3 of 64, 14.4 MB, 1 waiting",
        "refused 3 bad signature   1 replayed",
        "66 %",
        "1.2 MB/s",
        "! event number 7",
    ):
        assert part in text, part


def test_a_wide_screen_has_two_columns_and_a_low_one_has_not() -> None:
    """At 200 cells the peers stand beside the training, at 80 below it."""
    assert re.search(r"Training .* Peers", screen(swarm_of(3), 200, 60))
    assert not re.search(r"Training .* Peers", screen(swarm_of(3), 80, 24))


def test_the_wide_peers_table_has_every_column() -> None:
    """Path, RTT, epoch, lag, weight, bytes and rates both ways, silence."""
    text = screen(replace(swarm_of(1), peers=(replace(neighbour(1), rate_out=5e5),)), 200, 60)
    row = (
        "● …TPeer001|direct 203.0.113.1:6000|12 ms|4|1.2|0.33|14.4 MB|1.2 MB/s|9.6 MB|500 kB/s|2 s"
    )
    assert re.search(" +".join(map(re.escape, row.split("|"))), text)
    assert re.search(r"peer +path +rtt +epoch +behind +weight +in +out +silent", text)


def test_fifty_peers_end_in_a_count_of_the_rest() -> None:
    """Those that don't fit are counted; shown and counted make 50."""
    text = screen(swarm_of(50))
    more = re.search(r"and (\d+) more", text)
    assert more
    assert int(more[1]) + text.count("● …TPeer") == 50
    assert "50 connected" in text


def test_connected_peers_stay_when_room_is_short() -> None:
    """Lost ones come last, and are counted in the title."""
    lost = tuple(replace(neighbour(i), state="lost") for i in range(20))
    text = screen(replace(swarm_of(0), peers=(*lost, neighbour(42))))
    assert "● …TPeer042" in text
    assert "1 connected, 20 lost" in text


def test_no_peers_and_no_epochs_say_so() -> None:
    """An empty table is a sentence, not a hole."""
    text = screen(replace(swarm_of(0, epochs=0), events=(), transfers=(), rejects=()))
    assert "none yet: they appear as they join" in text
    assert "no epoch is over yet" in text
    assert "nothing yet" in text
    assert "refused none" in text


def test_a_task_without_accuracy_shows_its_loss() -> None:
    """Less loss is better, and the sign says which way it went."""
    text = screen(swarm_of(1, accuracy=False))
    assert "Loss before → after averaging" in text
    assert "0.0325 → 0.0225  −0.0100  2 models" in text


def test_an_epoch_without_models_says_alone() -> None:
    """Nothing was averaged in: that is told, not shown as a gain of zero models."""
    status = swarm_of(1, epochs=1)
    assert "alone" in screen(replace(status, history=(replace(status.history[0], averaged=0),)))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_long_names_and_addresses_fit_whole_where_it_matters(width: int, height: int) -> None:
    """A 64-character swarm, IPv6 addresses and a path as task, two trackers."""
    status = replace(
        swarm_of(3),
        swarm="s" * 64,
        task="/home/someone/projects/tasks/segmentation_task.py:task",
        public="[2001:db8:85a3:1234:5678:8a2e:370:7334]:60000",
        trackers=(
            TrackerStatus("tracker.example.org:5555", "unreachable", "connection refused"),
            TrackerStatus("[2001:db8::1]:5555", "connecting"),
        ),
        peers=(replace(neighbour(0), path="direct [2001:db8:85a3::8a2e:370:abcd]:6000"),),
    )
    text = screen(status, width, height)
    for part in ("s" * 64, status.task, status.public, ME, "370:abcd]:6000", "epoch 5 of 14"):
        assert part in text, part
    assert "✗ tracker.example.org:5555 unreachable: connection refused" in text
    assert "○ [2001:db8::1]:5555 connecting" in text


def test_many_trackers_leave_room_for_the_rest() -> None:
    """Trackers that don't fit are counted."""
    many = tuple(TrackerStatus(f"t{i}.example:5555", "connecting") for i in range(40))
    text = screen(replace(swarm_of(3), trackers=many))
    assert re.search(r"and \d+ more", text)
    assert "Peers" in text


def test_a_failed_node_says_why_in_whole() -> None:
    """The reason is wrapped, not cut, for it says what to do."""
    detail = "the task cifar.py:task can't be loaded: no such file; give --task module:attribute"
    text = screen(with_training(swarm_of(1), state="failed", detail=detail))
    assert "✗ failed" in text
    assert detail in " ".join(text.split())


def test_a_finished_node_has_a_full_bar() -> None:
    """Finished is finished, whatever the last progress said."""
    text = screen(with_training(swarm_of(1), state="finished", epoch=14, eta=None, batch=900))
    assert "✓ finished" in text
    assert "100 %  938/938" in text
    assert "ends in" not in text


def test_endless_training_tells_when_the_epoch_ends() -> None:
    """With --epochs 0 there is no last epoch."""
    text = screen(with_training(swarm_of(1), epochs=0))
    assert "epoch 5  ━" in text
    assert "epoch ends in 7:05" in text


def test_a_node_that_has_just_started_promises_nothing() -> None:
    """Before the first report there is a state and nothing else."""
    status = with_training(
        swarm_of(0, epochs=0),
        state="loading",
        epoch=0,
        batch=0,
        batches=0,
        samples_per_second=0.0,
        eta=None,
        loss=None,
        device="",
        parameters=0,
    )
    assert "loading     14 epochs to go" in screen(status)
    assert "samples/s" not in screen(status)


def test_no_public_address_is_said() -> None:
    """Not an empty place."""
    assert "address no public address, unknown" in screen(replace(swarm_of(0), public=""))


def test_texts_from_the_network_are_only_text() -> None:
    """No markup, no escape sequence, no line break comes through."""
    evil = Event(NOW, "error", "[bold]\x1b[2J\nand so on")
    text = screen(replace(swarm_of(1), events=(evil,)))
    assert "[bold]�[2J�and so on" in text


def test_without_colour_all_is_still_said() -> None:
    """NO_COLOR leaves no colour, and the same words and signs as with it."""
    status = replace(
        swarm_of(3), peers=(neighbour(0), replace(neighbour(1), state="lost", path="lost"))
    )
    plain, coloured = _coloured(status, NO_COLOR="1"), _coloured(status)
    assert not re.search(r"\x1b\[[\d;]*\b3\dm", plain)
    assert re.search(r"\x1b\[[\d;]*\b3\dm", coloured)
    assert Text.from_ansi(plain).plain == Text.from_ansi(coloured).plain
    assert "✗ …TPeer001" in Text.from_ansi(plain).plain


def _coloured(status: NodeStatus, **environment: str) -> str:
    file = io.StringIO()
    environment |= {"TERM": "xterm-256color"}
    console = Console(file=file, width=80, height=24, force_terminal=True, _environ=environment)
    console.print(render(status, width=80, height=24))
    return file.getvalue()


# --- the demo -----------------------------------------------------------------------------------

NODES: list[tuple[str, NodeStatus | None]] = [
    ("node 0", swarm_of(2)),
    ("node 1", with_training(swarm_of(2), state="averaging")),
    ("node 2", None),
]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_demo_shows_every_node_and_all_events(width: int, height: int) -> None:
    """Progress, accuracy, models averaged and peers of each, whether it told or not."""
    lines = shown(
        render_demo(NODES, "tracker 127.0.0.1:5555, 3 peers", width=width, height=height),
        width,
        height,
    )
    _check_fits(lines, width, height)
    text = "\n".join(lines)
    for part in (
        "p2pnode demo   tracker 127.0.0.1:5555, 3 peers",
        "node 0 …DkPrM3v1, shard 0/3",
        "2 connected",
        "training    epoch 5 of 14",
        "averaging   epoch 5 of 14",
        "98.75 → 99.25 %  +0.50  2 models",
        "starting …",
        "! node 0  event number 7",
        "! node 1  event number 7",
    ):
        assert part in text, part
    assert bool(re.search("node 0.*node 1.*node 2", text)) == (width == 200)


def test_the_demo_merges_events_by_time() -> None:
    """The story is told in order, whoever tells it."""
    first, second = swarm_of(1), swarm_of(1)
    first = replace(first, events=(Event(NOW, "info", "one"), Event(NOW + 9, "info", "three")))
    second = replace(second, events=(Event(NOW + 5, "info", "two"),))
    picture = render_demo([("a", first), ("b", second)], "", width=80, height=40)
    assert re.search(r"a  one\b.*b  two\b.*a  three", "\n".join(shown(picture, 80, 40)), re.DOTALL)


def test_the_summary_has_a_row_for_each_epoch_and_the_bytes_of_each_node() -> None:
    """Peer × epoch in 80 columns; a node that never finished an epoch has its row too."""
    idle = swarm_of(0, epochs=0)
    lines = shown(summary([("node 0", swarm_of(2, epochs=3)), ("node 1", idle)]), 80, 50)
    text = "\n".join(lines)
    assert all(cell_len(each) <= 80 for each in lines)
    assert re.search(r"node 0 +1 +96.50 → 97.00 % +\+0.50 +2 +28.8 MB +19.2 MB", text)
    assert re.search(r"\n +3 +98.50 → 99.00 % +\+0.50 +2", text)
    assert re.search(r"node 1 +– +– +– +– +0 B +0 B", text)


# --- live ---------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """What a terminal would get; clear `hold` for a Ctrl-S, set `gone` for a hang-up."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = threading.Event()
        self.hold.set()
        self.gone = False

    def write(self, text: str) -> int:
        self.hold.wait(10)
        if self.gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


def console_of(terminal: Terminal) -> Console:
    """A console of 80×24 on it."""
    return Console(
        file=terminal, width=80, height=24, force_terminal=True, _environ={"TERM": "xterm"}
    )


class Draws:
    """Draws a numbered screen, and remembers when and in which size."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, width: int, height: int) -> RenderableType:
        self.times.append(trio.current_time())
        self.sizes.append((width, height))
        return Text(f"screen {len(self.times)}")

    async def reach(self, count: int, clock: MockClock) -> None:
        """Let time pass, a redraw at a time, until so many screens are drawn."""
        while len(self.times) < count:
            clock.jump(REDRAW)
            await trio.lowlevel.checkpoint()


def test_live_redraws_at_most_four_times_a_second_and_leaves_the_terminal_clean() -> None:
    """In by the alternate screen with the cursor hidden, out by the main one with it shown."""
    clock, terminal, draws = MockClock(), Terminal(), Draws()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(live, draws, console=console_of(terminal)))
            await draws.reach(4, clock)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)
    assert all(b - a >= REDRAW for a, b in pairwise(draws.times))
    written = terminal.getvalue()
    assert written.startswith("\x1b[?1049h\x1b[H\x1b[?25l")
    assert "screen 3" in written
    assert written.endswith("\x1b[?25h\x1b[?1049l")


def test_live_follows_a_resize() -> None:
    """The next screen is drawn for the size that the terminal has then."""
    clock, terminal, draws = MockClock(), Terminal(), Draws()
    console = console_of(terminal)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(live, draws, console=console))
            await draws.reach(1, clock)
            console.size = ConsoleDimensions(60, 18)
            await draws.reach(3, clock)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)
    assert draws.sizes[0] == (80, 24)
    assert draws.sizes[-1] == (60, 18)


def test_ctrl_c_leaves_the_terminal_clean() -> None:
    """Also when the interrupt hits the drawing itself."""
    terminal = Terminal()

    def interrupted(width: int, height: int) -> RenderableType:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trio.run(partial(live, interrupted, console=console_of(terminal)), clock=MockClock())
    assert terminal.getvalue().endswith("\x1b[?25h\x1b[?1049l")


def test_a_terminal_that_stands_still_does_not_hold_up_the_node() -> None:
    """While a write hangs, other tasks go on, and a stop takes LEAVE at most."""
    clock, terminal, draws = MockClock(), Terminal(), Draws()
    screen = trio.CancelScope()

    async def show() -> None:
        with screen:
            await live(draws, console=console_of(terminal))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show)
            await draws.reach(2, clock)
            terminal.hold.clear()
            for _ in range(100):
                clock.jump(REDRAW)
                await trio.lowlevel.checkpoint()
            screen.cancel()
            await trio.testing.wait_all_tasks_blocked()
            clock.jump(LEAVE)

    trio.run(main, clock=clock)
    assert not terminal.hold.is_set()
    terminal.hold.set()


def test_a_closed_terminal_ends_the_screen_not_the_node() -> None:
    """`live` returns when a write fails; nothing is raised."""
    terminal = Terminal()

    def draw(width: int, height: int) -> RenderableType:
        terminal.gone = True
        return Text("never seen")

    trio.run(partial(live, draw, console=console_of(terminal)), clock=MockClock())


def test_an_error_of_the_source_is_not_taken_for_a_closed_terminal() -> None:
    """It comes out of `live`, with the terminal clean."""
    terminal = Terminal()

    def draw(width: int, height: int) -> RenderableType:
        raise ConnectionResetError("the node has stopped")

    with pytest.raises(ConnectionResetError):
        trio.run(partial(live, draw, console=console_of(terminal)), clock=MockClock())
    assert terminal.getvalue().endswith("\x1b[?25h\x1b[?1049l")


def test_a_terminal_without_utf8_gets_question_marks() -> None:
    """A sign that it can't show never stops the node."""
    clock, draws = MockClock(), Draws()
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    environment = {"TERM": "xterm"}
    console = Console(file=file, width=80, height=24, force_terminal=True, _environ=environment)

    def draw(width: int, height: int) -> RenderableType:
        draws(width, height)
        return render(swarm_of(1), width=width, height=height)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(live, draw, console=console))
            await draws.reach(3, clock)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)
    file.flush()
    buffer = file.buffer
    assert isinstance(buffer, io.BytesIO)
    assert b"before ? after averaging" in buffer.getvalue()


# --- figures ------------------------------------------------------------------------------------


def test_figures_are_short_and_have_units() -> None:
    """Each stays within its column, from nothing to absurd."""
    assert [duration(s) for s in (0, 59.9, 60, 3600, 4e5, -1)] == [
        "0 s", "59 s", "1:00", "1:00:00", "4 d", "0 s",
    ]  # fmt: skip
    assert [size(n) for n in (0, 999, 1000, 99_949, 99_950, 999_499, 999_500, 5e18)] == [
        "0 B", "999 B", "1.0 kB", "99.9 kB", "100 kB", "999 kB", "1.0 MB", "5.0 EB",
    ]  # fmt: skip
    assert [milliseconds(s) for s in (0.0004, 0.0099, 0.01, 0.9994, 1.5, None)] == [
        "0.4 ms", "9.9 ms", "10 ms", "999 ms", "1.5 s", "–",
    ]  # fmt: skip
    assert [figure(x, 2) for x in (1.234, -0.5, 5e9, None)] == ["1.23", "−0.50", "5.00e+09", "–"]
    assert [rate(x) for x in (0, 0.5, 2e6)] == ["", "", "2.0 MB/s"]
    assert clock(1e300) == "--:--:--"


def test_figures_that_are_not_finite_are_unknown() -> None:
    """A diverged loss is shown as it is, a time that isn't one as a dash."""
    assert figure(float("nan"), 4) == "nan"
    assert (duration(float("inf")), size(float("nan")), milliseconds(float("inf"))) == ("–",) * 3
    assert "loss nan" in screen(with_training(swarm_of(1), loss=float("nan")))


def test_a_sparkline_spans_lowest_to_highest() -> None:
    """Also for one value, for equal ones, for the largest floats and for none at all."""
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([0.5]) == "▄"
    assert sparkline([-1.7e308, float("nan"), 1.7e308]) == "▁ █"
    assert sparkline([]) == ""


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(1, 90))
def test_wrapped_text_keeps_its_words_and_its_width(text: str, width: int) -> None:
    """Lines are as wide as they may be; what fits is whole."""
    lines = wrap(text, width)
    assert all(each.cell_len <= width for each in lines)
    if cell_len(line(text).plain) <= width:
        assert "".join(each.plain for each in lines).split() == line(text).plain.split()


def test_a_long_address_loses_its_middle() -> None:
    """The ends tell most; what isn't ASCII is left to be cut at the end."""
    assert middle("direct [2001:db8::1]:6000", 15).plain == "direct …1]:6000"
    assert middle("direct 1.2.3.4:6000", 30).plain == "direct 1.2.3.4:6000"


@pytest.mark.parametrize(
    ("terminal", "kind", "can"),
    [(True, "xterm", True), (True, "dumb", False), (False, "xterm", False)],
)
def test_only_a_terminal_that_moves_its_cursor_gets_a_screen(
    terminal: bool, kind: str, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dumb one, as in an editor, gets lines; a screen would stay empty there."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", kind)
    assert drawable() is can


# --- what it needs ------------------------------------------------------------------------------


def test_the_screens_need_neither_torch_nor_pynng() -> None:
    """`p2pnode status` must start at once, and on a machine that only looks."""
    code = "import sys, p2pnode.cli.tui; print({'torch', 'pynng'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
