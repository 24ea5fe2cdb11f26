"""What a person can do wrong at the command line.

CliError
└── UsageError     flags or verbs that don't exist or don't fit together
"""


class CliError(Exception):
    """The command can't be run as it was typed."""


class UsageError(CliError):
    """The command line is wrong."""
