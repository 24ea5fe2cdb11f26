"""Lines of text of an exact width: what the screens are built from.

Strategy: a screen is a list of one-line rich Texts. `line` is the only way to make one, so a
text from the network can neither break a line, nor move the cursor, nor be read as markup. Tables
give up whole columns, the least important first, rather than squeeze all of them. Widths are
counted in terminal cells. Meaning is never in the colour alone.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.text import Text

from ..node.status import printable

UNKNOWN: Final = "–"
LABEL: Final = "dim"
GOOD: Final = "green"
WARN: Final = "yellow"
BAD: Final = "bold red"
NAME: Final = "cyan"

Part = str | tuple[str, str] | Text
"""Text, text with a rich style, or a line."""


def line(*parts: Part) -> Text:
    """One line of these parts, safe whatever they hold."""
    text = Text(no_wrap=True, overflow="crop")
    for part in parts:
        if isinstance(part, Text):
            text.append_text(part)
        elif isinstance(part, tuple):
            text.append(printable(part[0]), part[1])
        else:
            text.append(printable(part))
    return text


def item(label: str, value: Part) -> Text:
    """A value after its label."""
    return line((f"{label} ", LABEL), value)


def light(state: str) -> tuple[str, str]:
    """A sign and a style for the state of a connection."""
    return _LIGHTS.get(state, ("·", ""))


_LIGHTS: Final = {
    "connected": ("●", GOOD),
    "relayed": ("◐", GOOD),
    "connecting": ("○", WARN),
    "unreachable": ("✗", BAD),
    "lost": ("✗", BAD),
}


def cut(text: Text, width: int, *, pad: bool = False) -> Text:
    """The line in at most (`pad`: in exactly) `width` cells; "…" stands for what was cut."""
    if text.cell_len <= width and not pad:
        return text
    text = text.copy()
    text.truncate(max(width, 0), overflow="ellipsis", pad=pad)
    return text


def middle(text: str, width: int) -> Text:
    """The text with "…" for its middle where it is too long: the ends of addresses tell most."""
    if len(text) <= width or not text.isascii() or width < 3:
        return line(text)
    tail = width // 2
    return line(text[: width - tail - 1], "…", text[-tail:])


def flow(items: Sequence[Text], width: int, gap: int = 3) -> list[Text]:
    """The items beside one another, `gap` cells between, on as many lines as they need."""
    lines: list[Text] = []
    for each in items:
        if lines and lines[-1].cell_len + gap + each.cell_len <= width:
            lines[-1] = line(lines[-1], " " * gap, each)
        else:
            lines.append(each)
    return [cut(each, width) for each in lines]


def wrap(text: str, width: int, style: str = "") -> list[Text]:
    """The words of a sentence on as many lines as they need, at most WRAP."""
    lines = flow([line((word, style)) for word in printable(text).split()], width, gap=1)
    return lines[:WRAP]


WRAP: Final = 3
"""Lines of one sentence: a longer one is no sentence for a screen."""


def first(lines: Sequence[Text], rows: int) -> list[Text]:
    """The first lines that fit, the last of them saying how many don't."""
    if len(lines) <= rows:
        return list(lines)
    shown = max(rows - 1, 0)
    return [*lines[:shown], line((f"and {len(lines) - shown} more", LABEL))][:rows]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. The one with the highest `drop` goes first when the width is short;
    those with 0 stay. Where they are still too wide, the `flexible` one is cut.
    """

    head: str
    cells: Sequence[Text]
    right: bool = False
    drop: int = 0
    flexible: bool = False
    least: int = 0

    @property
    def width(self) -> int:
        """Cells of its widest line, at least `least`: so changing figures don't shift the rest."""
        return max([self.least, cell_len(self.head), *(cell.cell_len for cell in self.cells)])


FLEXIBLE_LEAST: Final = 26
"""Cells below which other columns go before a flexible one is cut: "direct 203.0.113.123:60000"."""


def table(columns: Sequence[Column], width: int, *, head: bool = True) -> list[Text]:
    """One line for each row (and the heads), columns two spaces apart."""
    columns = list(columns)
    while _least(columns) > width and any(column.drop for column in columns):
        columns.remove(max(columns, key=lambda column: column.drop))
    over = sum(column.width + 2 for column in columns) - 2 - width
    widths = [c.width - (max(over, 0) if c.flexible else 0) for c in columns]
    rows = [[line((c.head, LABEL)) for c in columns]] if head else []
    rows += [list(row) for row in zip(*(c.cells for c in columns), strict=True)]
    return [cut(_row(row, columns, widths), width) for row in rows]


def _least(columns: Sequence[Column]) -> int:
    least = [min(c.width, FLEXIBLE_LEAST) if c.flexible else c.width for c in columns]
    return sum(least) + 2 * (len(least) - 1)


def _row(cells: Sequence[Text], columns: Sequence[Column], widths: Sequence[int]) -> Text:
    parts: list[Part] = []
    for cell, column, width in zip(cells, columns, widths, strict=True):
        if cell.cell_len > width:
            cell = cut(middle(cell.plain, width), width)
        space = " " * (width - cell.cell_len)
        parts += [space, cell, "  "] if column.right else [cell, space, "  "]
    return line(*parts[:-1])


def bar(share: float, width: int, style: str = GOOD) -> Text:
    """A progress bar; the heavy part is done."""
    width = max(width, 0)
    done = round(min(max(share, 0.0), 1.0) * width)
    return line(("━" * done, style), ("─" * (width - done), LABEL))


def sparkline(values: Sequence[float]) -> str:
    """One block a value, the lowest to the highest; values that aren't finite are blank."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    return "".join(_block(value, low, high) for value in values)


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return " "
    # Halves, so that the span of the largest numbers stays finite.
    span = high / 2 - low / 2
    return "▁▂▃▄▅▆▇█"[round(7 * ((value / 2 - low / 2) / span)) if span > 0 else 3]


def duration(seconds: float) -> str:
    """ "42 s", "7:05", "1:02:33", "12 d"."""
    if not math.isfinite(seconds):
        return UNKNOWN
    whole = int(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    if whole < 100 * 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 86400} d"


def size(amount: float) -> str:
    """Bytes as "512 B", "4.8 MB", "120 GB": decimal units."""
    if not math.isfinite(amount):
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if amount < 999.5:
            return f"{amount:.{int(unit != 'B' and amount < 99.95)}f} {unit}"
        amount /= 1000
    return f"{amount:.1f} EB"


def rate(amount: float) -> str:
    """Bytes a second, empty when nothing moves."""
    return f"{size(amount)}/s" if amount >= 1 else ""


def milliseconds(seconds: float | None) -> str:
    """A round trip: "0.4 ms", "12 ms", "1.5 s"."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.{int(seconds < 0.00995)}f} ms"


def figure(value: float | None, digits: int) -> str:
    """A number with so many decimals; very large ones in scientific notation."""
    if value is None:
        return UNKNOWN
    text = f"{value:,.{digits}f}" if abs(value) < 1e6 else f"{value:.2e}"
    return text.replace("-", "−")


def count(amount: int, noun: str) -> str:
    """ "1 peer", "2 peers"."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def clock(at: float) -> str:
    """Unix seconds as the local time of day."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return "--:--:--"
