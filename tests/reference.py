"""The generated tables of docs/reference; `python tests/reference.py` writes them.

The tests compare them with the documents, so neither can change alone.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from p2pnode.cli.parser import parser
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


def verbs() -> str:
    """The verbs and their flags as Markdown, a table for each verb."""
    return "\n".join(_verbs(parser()))


def _verbs(verb: argparse.ArgumentParser) -> Iterator[str]:
    for action in verb._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _verbs(each)
            return
    yield f"### {verb.prog}\n\n{verb.description}\n"
    flags = [a for a in verb._actions if not isinstance(a, argparse._HelpAction)]
    if flags:
        yield "| flag | meaning |\n|---|---|"
        yield from (f"| {_flag(a)} | {_cell(a.help or '')} |" for a in flags)
        yield ""


def _flag(action: argparse.Action) -> str:
    value = f" {action.metavar}" if isinstance(action.metavar, str) and action.metavar else ""
    value = f" [{action.metavar}]" if action.nargs == "?" else value
    return ", ".join(f"`{name}{_cell(value)}`" for name in action.option_strings)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write(path: Path, table: str) -> None:
    """Put a table between the document's two marks."""
    marks = r"(<!-- made by tests/reference.py -->\n)(.*?)(<!-- end -->)"
    text = path.read_text(encoding="utf-8")
    fresh = re.sub(marks, lambda m: f"{m[1]}\n{table}\n{m[3]}", text, flags=re.S)
    path.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    write(CONFIG, options())
    write(CLI, verbs())
