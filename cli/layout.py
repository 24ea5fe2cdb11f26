"""Where the sections of a screen stand and how many rows each gets.

Strategy: sections come in order of importance. Each gets the rows it needs at least, until one
doesn't fit any more; then those get more in turn until all have what they want or nothing is
left. So the height is never exceeded and what matters most stays longest. Low screens separate
sections by a rule (one row each), high ones put them into boxes (two).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from .lines import LABEL, cut, line


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of the screen. `body(rows)` gives at most `rows` lines; `note` stands at the
    right end of the title's line; `step` is how many rows it takes when it is its turn.
    """

    title: str
    note: Text
    least: int
    want: int
    body: Callable[[int], list[Text]]
    step: int = 1


def fixed(title: str, note: Text, lines: Sequence[Text], least: int) -> Section:
    """A section whose first lines stay when room is short."""
    return Section(title, note, min(least, len(lines)), len(lines), lambda n: list(lines[:n]))


def newest(lines: Sequence[Text]) -> Callable[[int], list[Text]]:
    """A body of which the last lines stay when room is short."""
    return lambda rows: list(lines[-rows:]) if rows > 0 else []


@dataclass(frozen=True, slots=True)
class Frame:
    """How sections are drawn: a rule above each, or a box around it."""

    boxed: bool

    @property
    def rows(self) -> int:
        """Rows that a section takes beside its body."""
        return 2 if self.boxed else 1

    @property
    def indent(self) -> int:
        """Cells left of a body's line, and as many right of it."""
        return 2 if self.boxed else 1

    def inner(self, width: int) -> int:
        """Cells for a body's line."""
        return max(width - 2 * self.indent, 1)

    def draw(self, section: Section, rows: int, width: int) -> list[Text]:
        """The section in `rows` lines of body and its frame."""
        lines = section.body(rows)
        if not self.boxed:
            return [_rule(section, width, "──", "──"), *(line(" ", each) for each in lines)]
        side, inner = line(("│", LABEL)), self.inner(width)
        lines += [line()] * (rows - len(lines))
        boxed = [line(side, " ", cut(each, inner, pad=True), " ", side) for each in lines]
        bottom = line(("╰" + "─" * (width - 2) + "╯", LABEL))
        return [_rule(section, width, "╭─", "─╮"), *boxed, bottom]


def _rule(section: Section, width: int, left: str, right: str) -> Text:
    title = line((f" {section.title} ", "bold"))
    note = line(" ", section.note, " ") if section.note else line()
    room = width - len(left) - title.cell_len - note.cell_len - len(right)
    if room < 0:
        note, room = line(), max(room + note.cell_len, 0)
    return cut(line((left, LABEL), title, ("─" * room, LABEL), note, (right, LABEL)), width)


def column(
    sections: Sequence[Section], width: int, height: int, frame: Frame, *, fill: bool = False
) -> list[Text]:
    """The sections, one below the other, in at most (`fill`: in exactly) `height` lines."""
    rows = share([(s.least, s.want, s.step) for s in sections], height, frame.rows)
    if fill and rows[-1]:
        rows[-1] += height - sum(granted + frame.rows for granted in rows if granted)
    lines: list[Text] = []
    for section, granted in zip(sections, rows, strict=True):
        if granted:
            lines += frame.draw(section, granted, width)
    return lines


def share(needs: Sequence[tuple[int, int, int]], height: int, each: int) -> list[int]:
    """Rows for those who need (least, want, step), `each` more going to a frame; 0: left out."""
    rows = []
    for least, _, _ in needs:
        fits = least + each <= height and 0 not in rows
        rows.append(least if fits else 0)
        height -= least + each if fits else 0
    hungry = True
    while hungry and height > 0:
        hungry = False
        for i, (_, want, step) in enumerate(needs):
            more = min(step, want - rows[i], height) if rows[i] else 0
            rows[i] += more
            height -= more
            hungry = hungry or more > 0
    return rows


def beside(columns: Sequence[list[Text]], widths: Sequence[int]) -> list[Text]:
    """Columns of lines side by side, each padded to its width, one cell between."""
    lines = []
    for i in range(max(map(len, columns), default=0)):
        parts = [c[i] if i < len(c) else line() for c in columns]
        padded = [cut(part, width, pad=True) for part, width in zip(parts, widths, strict=True)]
        lines.append(line(*[x for part in padded for x in (part, " ")][:-1]))
    return lines
