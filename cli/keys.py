"""Where the passphrase of a key comes from, and the key itself.

Strategy: a passphrase is never a flag, as others can read the flags of a process. It comes from a
file, from the variable P2PNODE_PASSPHRASE, or from a question in the terminal, in this order.
"""

import getpass
import os
import sys
from pathlib import Path
from typing import Final

from ..transport.identity import Identity
from .errors import UsageError

VARIABLE: Final = "P2PNODE_PASSPHRASE"

PASSPHRASE_LIMIT: Final = 1024
"""Bytes; OpenSSL takes no longer ones. A longer file is some other file."""


def load(path: Path, passphrase_file: Path | None) -> Identity:
    """The identity in a key file; asks for its passphrase where nothing else gives it."""
    passphrase = given(passphrase_file)
    if passphrase is None and _is_encrypted(path) and sys.stdin.isatty():
        passphrase = getpass.getpass(f"Passphrase of {path}: ").encode()
    return Identity.load(path, passphrase)


def load_or_make(path: Path, passphrase_file: Path | None) -> Identity:
    """The same, but a key that isn't there is made."""
    if not path.exists():
        Identity.generate().save(path, given(passphrase_file))
    return load(path, passphrase_file)


def given(passphrase_file: Path | None) -> bytes | None:
    """The passphrase from the file or the variable; None if there is neither."""
    if passphrase_file is not None:
        return _read(passphrase_file)
    text = os.environ.get(VARIABLE)
    return text.encode(errors="surrogateescape") if text else None


def ask_new() -> bytes:
    """A new passphrase, asked for twice."""
    if not sys.stdin.isatty():
        raise UsageError("--ask-passphrase needs a terminal: use --passphrase-file")
    first = getpass.getpass("New passphrase: ")
    if first != getpass.getpass("The same again: "):
        raise UsageError("the two passphrases differ: try again")
    return first.encode()


def _read(path: Path) -> bytes:
    """The file's first line; editors put a line end after it that is not meant."""
    try:
        with path.open("rb") as file:
            text = file.read(PASSPHRASE_LIMIT + 2).removesuffix(b"\n").removesuffix(b"\r")
    except OSError as error:
        raise UsageError(f"cannot read the passphrase file {path}: {error.strerror}") from None
    if not 0 < len(text) <= PASSPHRASE_LIMIT or b"\n" in text:
        raise UsageError(f"{path} must hold one line of at most {PASSPHRASE_LIMIT} bytes")
    return text


def _is_encrypted(path: Path) -> bool:
    """Whether it is worth asking; every other question about the file is Identity's."""
    try:
        return path.is_file() and b"ENCRYPTED" in path.read_bytes()[:64]
    except OSError:
        return False
