"""How each sort of option is written: text in, value out.

Strategy: flags, variables and TOML all hand over text and the folder in which relative paths
start; a `Kind` reads it or raises ValueError that says what is wrong, without saying where.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..transport.address import Address
from ..transport.errors import AddressError
from .errors import ShardError
from .shard import Shard

SWARM_NAME_LIMIT: Final = 64
"""Characters; also the limit in a manifest."""

_SWARM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICE: Final = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")
_UNITS: Final = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BITS: Final = {"kbit": 125, "Mbit": 125 * 10**3, "Gbit": 125 * 10**6}
_WORDS: Final = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How one sort of value is written: its name in help, its type in TOML, its reader.

    `read(text, base)` gives the value; relative paths start at `base`. Raises ValueError.
    """

    metavar: str
    toml: tuple[type, ...]
    read: Callable[[str, Path], Any]


def integer(low: int, high: int) -> Kind:
    """A whole number from low to high."""

    def read(text: str, _: Path) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise ValueError(f"{clip(text)} is not a whole number from {low} to {high}")
        return int(text)

    return Kind("N", (int,), read)


def number(low: float, high: float) -> Kind:
    """A finite number from low to high."""

    def read(text: str, _: Path) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"{clip(text)} is not a number from {low:g} to {high:g}")
        return value

    return Kind("X", (int, float), read)


class Size(int):
    """A number of bytes that is shown as "10GB"."""

    def __str__(self) -> str:
        units = [unit for unit, amount in _UNITS.items() if self and not self % amount]
        unit = max(units, key=_UNITS.__getitem__, default="")
        return f"{int(self) // _UNITS[unit]}{unit}" if unit else repr(int(self))


def size(low: int, high: int) -> Kind:
    """Bytes, such as 500MB or 10GB, from low to high."""

    def read(text: str, _: Path) -> Size:
        match = re.fullmatch(r"([0-9]{1,20}) ?([kMGT]?B)?", text)
        value = Size(int(match[1]) * _UNITS.get(match[2], 1)) if match else Size(-1)
        if not low <= value <= high:
            ends = f"{Size(low)} to {Size(high)}"
            raise ValueError(f"{clip(text)} is not a size such as 10GB, from {ends}")
        return value

    return Kind("SIZE", (int, str), read)


class Rate(int):
    """Bytes a second, shown in the unit that needs the smallest number; 0 is no limit."""

    def __str__(self) -> str:
        units = _UNITS | _BITS
        fitting = [unit for unit, amount in units.items() if self and not self % amount]
        unit = max(fitting, key=units.__getitem__, default="")
        return f"{int(self) // units[unit]}{unit}/s" if unit else "none"


def rate(low: int, high: int) -> Kind:
    """Bytes or bits a second, such as 5MB/s or 20Mbit/s, from low to high; none is no limit."""
    units = _UNITS | _BITS

    def read(text: str, _: Path) -> Rate:
        if text in {"none", "0"}:
            return Rate(0)
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?([kMG]?B|[kMG]bit)/s", text)
        value = Rate(float(match[1]) * units[match[2]]) if match else Rate(-1)
        if not low <= value <= high:
            ends = f"from {Rate(low)} to {Rate(high)}, or none"
            raise ValueError(f"{clip(text)} is not a rate such as 5MB/s or 20Mbit/s, {ends}")
        return value

    return Kind("RATE", (str,), read)


def words(*known: str) -> Kind:
    """Some of a few words, with commas between; each once, in the order in which they are known."""

    def read(text: str, _: Path) -> tuple[str, ...]:
        given = set(text.replace(",", " ").split())
        if not given or given - set(known):
            raise ValueError(f"{clip(text)} is not one or more of {', '.join(known)}")
        return tuple(word for word in known if word in given)

    return Kind("WORD,…", (str,), read)


def choice(*words: str) -> Kind:
    """One of a few words."""

    def read(text: str, _: Path) -> str:
        if text not in words:
            raise ValueError(f"{clip(text)} is not one of {', '.join(words)}")
        return text

    return Kind("|".join(words), (str,), read)


def address(default_port: int, any_port: bool = False) -> Kind:
    """HOST:PORT, the port may be left out; port 0 only where any free one will do."""

    def read(text: str, _: Path) -> Address:
        try:
            value = Address.parse(text, default_port)
        except AddressError as error:
            raise ValueError(str(error.args[0])) from None
        if value.port == 0 and not any_port:
            raise ValueError(f"{clip(text)} has port 0, and nobody can dial that")
        return value

    return Kind("HOST:PORT", (str,), read)


def _boolean(text: str, _: Path) -> bool:
    try:
        return _WORDS[text.lower()]
    except KeyError:
        raise ValueError(f"{clip(text)} is neither true nor false") from None


def _swarm(text: str, _: Path) -> str:
    if len(text) > SWARM_NAME_LIMIT or not _SWARM.fullmatch(text):
        raise ValueError(
            f"{clip(text)} is not a name of up to {SWARM_NAME_LIMIT} letters, digits, dots, "
            "underscores and hyphens that starts with a letter or a digit"
        )
    return text


def _shard(text: str, _: Path) -> str:
    try:
        return str(Shard.parse(text))
    except ShardError as error:
        raise ValueError(str(error.args[0])) from None


def _device(text: str, _: Path) -> str:
    if not _DEVICE.fullmatch(text):
        raise ValueError(f"{clip(text)} is not auto, cpu, cuda, cuda:N or mps")
    return text


def _task(text: str, base: Path) -> str:
    """`mnist`, `module:attribute`, or `path/to/file.py:attribute` with its path made absolute."""
    place, colon, attribute = text.rpartition(":")
    if text == "mnist":
        return text
    if not colon or not place or not attribute.isidentifier():
        raise ValueError(
            f"{clip(text)} is not a task: "
            "write mnist, module:attribute or path/to/file.py:attribute"
        )
    return f"{_path(place, base)}:{attribute}" if place.endswith(".py") else text


def _path(text: str, base: Path) -> Path:
    if not text or "\0" in text:
        raise ValueError(f"{clip(text)} is not a path")
    try:
        return Path.absolute(base / Path(text).expanduser())
    except RuntimeError:  # "~nobody" names no user
        raise ValueError(f"{clip(text)} is not a path: there is no such user") from None


def clip(text: str) -> str:
    """A person's text as it can stand in an error: quoted, on one line, not endless."""
    return repr(text if len(text) <= 80 else text[:79] + "…")


BOOLEAN: Final = Kind("", (bool,), _boolean)
SWARM: Final = Kind("NAME", (str,), _swarm)
SHARD: Final = Kind("I/N", (str,), _shard)
DEVICE: Final = Kind("auto|cpu|cuda[:N]|mps", (str,), _device)
TASK: Final = Kind("TASK", (str,), _task)
PATH: Final = Kind("PATH", (str,), _path)
