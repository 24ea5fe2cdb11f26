"""What a person can do wrong at the command line, as one tree.

    CliError
    ├── UsageError     verbs or flags that don't exist or don't fit together
    └── DemoFailed     the demo ran, and did not show what it should
"""


class CliError(Exception):
    """The command can't be run as it was typed."""


class UsageError(CliError):
    """The command line is wrong."""


class DemoFailed(CliError):
    """The demo did not show what it should."""
