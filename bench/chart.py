"""A chart as SVG: panels side by side, each with lines on two logarithmic axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 300, 200, 56, 30, 44, 18
COLOURS = ("#3465a4", "#cc5500", "#4e9a06")


@dataclass(frozen=True)
class Line:
    """A name and its points (x, y), all above 0."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    x: str
    lines: Sequence[Line]


def chart(panels: Sequence[Panel]) -> str:
    """The whole picture."""
    width, height = len(panels) * (LEFT + WIDTH + GAP), TOP + HEIGHT + BOTTOM
    drawn = "\n".join(
        f'<g transform="translate({x},{TOP})">{_panel(panel)}</g>'
        for x, panel in zip(range(LEFT, width, LEFT + WIDTH + GAP), panels, strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="sans-serif" font-size="11">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n{drawn}\n</svg>\n'
    )


def _panel(panel: Panel) -> str:
    xs, ys = (
        _decades(v) for v in zip(*(p for line in panel.lines for p in line.points), strict=True)
    )
    parts = [f'<text x="0" y="-12" font-weight="bold">{escape(panel.title)}</text>']
    for power in range(xs[0], xs[1] + 1):
        at = _place(10.0**power, xs, WIDTH)
        parts.append(_rule(at, 0, at, HEIGHT))
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT + 15}" text-anchor="middle">{10.0**power:g}</text>'
        )
    for power in range(ys[0], ys[1] + 1):
        at = HEIGHT - _place(10.0**power, ys, HEIGHT)
        parts.append(_rule(0, at, WIDTH, at))
        parts.append(f'<text x="-5" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT + 34}" text-anchor="middle">{escape(panel.x)}</text>'
    )
    for number, line in enumerate(panel.lines):
        parts.append(_line(line, xs, ys, COLOURS[number], 14 + 14 * number))
    return "\n".join(parts)


def _line(line: Line, xs: tuple[int, int], ys: tuple[int, int], colour: str, label: int) -> str:
    at = [(_place(x, xs, WIDTH), HEIGHT - _place(y, ys, HEIGHT)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in at)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>{dots}'
        f'<text x="8" y="{label}" fill="{colour}">{escape(line.name)}</text>'
    )


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around these values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _place(value: float, decades: tuple[int, int], length: float) -> float:
    return length * (math.log10(value) - decades[0]) / (decades[1] - decades[0])
