"""What a person can do wrong at the command line, as one tree.

CliError
├── UsageError     verbs, flags and values that don't exist or don't fit
├── NotRunning     a verb needs a running node
└── DemoFailed     the demo ran, and did not show what it should

A class's docstring is the sentence that a person reads; str() adds the specifics.
"""


class CliError(Exception):
    """The command failed."""

    def __str__(self) -> str:
        sentence = (type(self).__doc__ or type(self).__name__).partition("\n")[0].rstrip(".")
        detail = super().__str__()
        return f"{sentence}: {detail}" if detail else f"{sentence}."


class UsageError(CliError):
    """The command can't be run as it was typed."""


class DemoFailed(CliError):
    """The demo did not show what it should."""


class NotRunning(CliError):
    """No node is running."""
