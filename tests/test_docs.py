"""The documents: links lead somewhere, programs compile, commands parse, file names exist."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.cli.main import MISTAKE
from p2pnode.cli.parser import parser

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A table's cell that names files: `wire.py`, `learner.py`.
FILE = re.compile(r"`([a-z_]+\.py)`")


def name(page: Path) -> str:
    """A page as the tests show it."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link of a page is a file or folder of this repository."""
    targets = [t for t in LINK.findall(page.read_text()) if "://" not in t]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_programs_compile(page: Path) -> None:
    """Each Python block of a page is a program without slips."""
    for language, text in BLOCK.findall(page.read_text()):
        if language == "python" and "…" not in text:  # that stands for what the reader knows
            compile(text, str(page), "exec")


def commands(page: Path) -> Iterator[list[str]]:
    """The `p2pnode …` commands of a page's shell blocks, without prompt and comment."""
    for language, text in BLOCK.findall(page.read_text()):
        if language in ("bash", "console"):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words[:1] == ["p2pnode"]:
                    yield words[1:]


def test_commands_parse() -> None:
    """Each p2pnode command in a page is one that the command line takes."""
    found = [words for page in PAGES for words in commands(page)]
    assert len(found) > 10
    for words in found:
        parser().parse_args([word.strip("[]") for word in words])


def test_services_can_be_started() -> None:
    """Each systemd unit in a page starts a p2pnode command, and not again after a mistake."""
    text = (ROOT / "docs" / "howto" / "run-as-a-service.md").read_text()
    units = [unit for language, unit in BLOCK.findall(text) if language == "ini"]
    started = [parser().parse_args(_started(unit)).verb for unit in units]
    assert started == ["run", "tracker"]


def _started(unit: str) -> list[str]:
    found = configparser.ConfigParser()
    found.read_string(unit)
    assert found["Service"]["RestartPreventExitStatus"] == str(MISTAKE)
    return shlex.split(found["Service"]["ExecStart"])[1:]


def test_the_architecture_names_files_that_exist() -> None:
    """Every file in the tables of docs/architecture.md is in one of the folders, and none is left
    out of them."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(FILE.findall(text))
    folders = (
        "transport",
        "transport/membership",
        "transport/nat",
        "tracker",
        "node",
        "cli",
        "tests",
    )
    floors = [ROOT / folder for folder in folders]
    there = {path.name for folder in floors for path in folder.glob("*.py")}
    assert named <= there
    production = {
        path.name
        for folder in floors[:-2]
        for path in folder.glob("*.py")
        if path.name not in ("__init__.py", "errors.py")
    }
    assert production <= named


def test_the_readmes_task_is_a_task() -> None:
    """The task in the README has a model, data that fit it, and a loss."""
    import torch

    from p2pnode.node.learner import Learner
    from p2pnode.node.shard import Shard
    from p2pnode.node.task import Place

    blocks = dict(BLOCK.findall((ROOT / "README.md").read_text()))
    space: dict[str, object] = {}
    code = compile(blocks["python"], "README.md", "exec")
    eval(code, space)  # a module's code gives None; what it defines is in `space`
    task = space["Slope"]()  # type: ignore[operator]
    place = Place(Shard(0, 2), Path())
    learner = Learner(task, place, device="cpu", seed=1, lr=1.0, batch=64, test=1000)
    before = learner.test().loss
    learner.train(1, lambda *_: None)
    assert learner.test().loss < before
    assert isinstance(task.model(), torch.nn.Module)
