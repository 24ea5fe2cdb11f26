"""The verbs of `p2pnode`: what was typed becomes a call, what went wrong becomes one line.

Strategy: `parser` makes the flags from the option table. Each verb imports what it needs when it
runs, so that `--help`, `id`, `config` and `status` never wait for torch. `main` is the only place
where an error becomes a line and an exit code: 0 done, 1 failed while running, 2 a mistake that
the user can mend, 130 interrupted before it could end well.
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import Final

from ..node.errors import ConfigError, HomeError, NodeError, ShardError, TaskError, leaves
from ..node.status import printable
from ..tracker.errors import TrackerError
from ..transport.errors import AddressError, IdentityError, ListenError, ShelfError, TransportError
from .errors import CliError, UsageError
from .parser import parse
from .verbs import VERBS

OK, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130

OURS: Final = (NodeError, TrackerError, TransportError, CliError, OSError)
"""Errors with a sentence for people; any other is a bug and shows its traceback."""

MISTAKES: Final = (
    ConfigError,
    HomeError,
    ShardError,
    TaskError,
    AddressError,
    IdentityError,
    ListenError,
    ShelfError,
    UsageError,
)
"""Those that the user can mend before starting again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    _show_any_text()
    try:
        args = parse(argv)
        code = VERBS[args.verb](args)
        sys.stdout.flush()
    except BrokenPipeError:  # `p2pnode config | head -1`: nobody reads on, so nobody is told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (KeyboardInterrupt, BaseExceptionGroup, *OURS) as error:
        return _explain(error)
    return code


def _show_any_text() -> None:
    """Where the terminal isn't UTF-8, a sign it lacks becomes "?" rather than an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _explain(error: BaseException) -> int:
    """Say in one line what went wrong, and return the exit code; raises what is a bug."""
    causes = list(leaves(error))
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        return INTERRUPTED
    if not all(isinstance(cause, OURS) for cause in causes):
        raise error
    print(f"p2pnode: {printable(_sentence(causes[0]))}", file=sys.stderr)
    return MISTAKE if isinstance(causes[0], MISTAKES) else FAILED


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
