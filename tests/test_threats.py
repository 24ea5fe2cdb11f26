"""docs/threats.md says which test shows each defence: those tests exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "threats.md"


def test_every_defence_is_shown() -> None:
    """Each row of a table names at least one test, and each name is a test's."""
    sources = "".join(path.read_text() for path in TESTS.glob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)", sources))
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    defences = [row for row in rows if not row.startswith("| threat |")]
    assert len(defences) > 10
    for row in defences:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named, row
        assert named <= there, row
