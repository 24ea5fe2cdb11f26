"""The generated tables of docs/reference; `python tests/reference.py` writes them.

The tests compare them with the documents, so neither can change alone.
"""

import re
from pathlib import Path
from typing import Final

from p2pnode.node.options import OPTIONS, Option

REFERENCE: Final = Path(__file__).parent.parent / "docs" / "reference"
CONFIG: Final = REFERENCE / "config.md"
CLI: Final = REFERENCE / "cli.md"


def options() -> str:
    """The option table as Markdown, a table for each group."""
    groups = dict.fromkeys(option.group for option in OPTIONS)
    return "\n".join(map(_group, groups))


def _group(group: str) -> str:
    rows = [_row(option) for option in OPTIONS if option.group == group]
    head = "| key | value | default | meaning |\n|---|---|---|---|"
    return "\n".join([f"### {group}", "", head, *rows, ""])


def _row(option: Option) -> str:
    value = option.kind.metavar or "true or false"
    default = f"`{option.default}`" if option.default else "none"
    key = f"`{option.name}`" if option.in_file else f"`{option.flag}`, `{option.variable}` only"
    if option.name == "home":
        default = "the platform's data folder"
    return f"| {key} | {_cell(value)} | {default} | {_cell(option.help)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write(path: Path, table: str) -> None:
    """Put a table between the document's two marks."""
    marks = r"(<!-- made by tests/reference.py -->\n)(.*?)(<!-- end -->)"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        re.sub(marks, lambda m: f"{m[1]}\n{table}\n{m[3]}", text, flags=re.S), encoding="utf-8"
    )


if __name__ == "__main__":
    write(CONFIG, options())
