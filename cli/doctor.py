"""`p2pnode doctor`: why can't others reach me? One screen, or one JSON object."""

from __future__ import annotations

import json

import trio
from rich.console import Console
from rich.text import Text

from ..node.config import Config
from ..node.diagnosis import Diagnosis, diagnose
from ..node.doctor import Doctor
from ..node.home import Home
from ..node.instruments import instruments
from ..node.status import printable
from ..node.symptoms import Check
from ..transport.identity import Identity
from ..transport.network import TcpNetwork
from .lines import BAD, GOOD, LABEL, WARN, cut, flow, line, wrap

SIGNS = {"ok": ("✓", GOOD), "info": ("·", LABEL), "warn": ("!", WARN), "fail": ("✗", BAD)}
NAME = len("port mapping")
INDENT = 2 + 2 + NAME + 2
LEAST = 20
"""Cells for a detail, however narrow the terminal is."""


def doctor(config: Config, home: Home, *, as_json: bool) -> int:
    """Look, tell, and give the exit code: 0 where this node can take part."""
    with Console(stderr=True).status("looking at the network; this takes a few seconds"):
        found = diagnose(trio.run(_examination(config, home).examine))
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        console = Console()
        for each in screen(found, console.width):
            console.print(each)
    return 0 if found.able else 1


def _examination(config: Config, home: Home) -> Doctor:
    stranger = Identity.generate()
    network = TcpNetwork(stranger)
    return Doctor(config, home.key.exists(), stranger, network, instruments(home))


def screen(found: Diagnosis, width: int) -> list[Text]:
    """The checks, what they come to, and what to do next."""
    lines = [each for check in found.checks for each in _rows(check, width)]
    style = GOOD if found.able else BAD
    lines += [line(), *_words(found.summary, width, style), *_words(found.next, width)]
    return [cut(each, width) for each in lines]


def _words(text: str, width: int, style: str = "") -> list[Text]:
    """A paragraph, on as many lines as it needs."""
    words = [line((word, style)) for word in printable(text).split()]
    return [line("  ", each) for each in flow(words, width - 4, gap=1)]


def _rows(check: Check, width: int) -> list[Text]:
    """One check on as many lines as it needs; under it what to do, if it is in the way."""
    room = max(width - INDENT - 2, LEAST)
    sign, style = SIGNS[check.verdict]
    texts = wrap(check.detail, room)
    if check.advice and check.verdict in ("warn", "fail"):
        texts += wrap(f"→ {check.advice}", room, LABEL)
    head = line("  ", (sign, style), " ", (f"{check.name:{NAME}}", LABEL), "  ")
    return [line(head if i == 0 else " " * INDENT, text) for i, text in enumerate(texts)]
