"""Processes of a benchmark: each has a pipe to the one that measures."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def start(role: Any, *arguments: Any) -> Connection:
    """Run `role(pipe, *arguments)` in a fresh process: our end of the pipe."""
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.Process(target=role, args=(theirs, *arguments), daemon=True).start()
    theirs.close()
    return ours


def made(folder: Path) -> Path:
    """The folder, made."""
    folder.mkdir()
    return folder
