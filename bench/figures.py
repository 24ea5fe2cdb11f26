"""What every benchmark prints: a table with the targets beside the figures, and JSON, last.

A figure has a name (its key in the JSON), a line of the table, and perhaps a target. A missed
target is said in the table and in the JSON; the exit code stays 0, as a slow machine is no error.
"""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Report:
    """The figures of one benchmark, as they are found."""

    bench: str
    figures: dict[str, Any] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    _rows: list[Sequence[str]] = field(default_factory=list)

    def figure(
        self,
        name: str,
        label: str,
        value: float,
        unit: str = "",
        *,
        digits: int = 3,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Add a figure and, with a target, whether it is met."""
        self.figures[name] = round(value, 6)
        target, verdict = "", ""
        if at_most is not None or at_least is not None:
            good = value <= at_most if at_most is not None else value >= (at_least or 0)
            target = f"≤ {at_most:g}" if at_most is not None else f"≥ {at_least:g}"
            verdict = "ok" if good else "MISSED"
            if not good:
                self.missed.append(name)
        self._rows.append((label, f"{value:,.{digits}f}", unit, target, verdict))

    def show(self) -> None:
        """Print the table, then the JSON line."""
        print()
        print(table([("", "figure", "", "target", ""), *self._rows], left=(0, 2)))
        print(f"\n{machine()}")
        print(json.dumps({"bench": self.bench, **self.figures, "missed": self.missed}))


def table(rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows of texts as columns: names and units to the left, numbers to the right."""
    lines = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in lines
    )


def machine() -> str:
    """One line on what the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    load = os.getloadavg()[0]
    return (
        f"on {cpu}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()},"
        f" Python {platform.python_version()}; load average now {load:.2f}"
    )
