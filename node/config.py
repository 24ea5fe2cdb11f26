"""The settings of a node: four sources, one frozen value.

Strategy: a flag wins over an environment variable, which wins over p2pnode.toml, which wins over
the default. Every source hands over text with the name of the place it came from; the option's
kind (kinds.py) reads the text; what it refuses becomes a ConfigError with that name.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from ..transport.address import Address
from .errors import ConfigError
from .home import CONFIG_NAME, default_home
from .kinds import clip
from .options import OPTIONS, TRACKERS_LIMIT, Option

FILE_LIMIT: Final = 1 << 20
"""Bytes of p2pnode.toml; ours has 3 KB, so more is some other file."""

Flags: TypeAlias = Mapping[str, str | Sequence[str] | bool | None]
"""What was typed, by option name; None for what was not."""

_TOML_NAMES: Final = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
}


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a node, one field for each option of options.OPTIONS."""

    home: Path
    passphrase_file: Path | None
    swarm: str
    tracker: tuple[Address, ...]
    peer: tuple[Address, ...]
    lan: bool
    public: Address | None
    listen: Address
    reach: tuple[str, ...]
    stun: tuple[Address, ...]
    relay: bool
    relay_space: int
    up: int
    down: int
    max_peers: int
    fan_out: int
    task: str
    shard: str
    epochs: int
    batch_size: int
    test_batch_size: int
    lr: float
    seed: int
    device: str
    threads: int
    data_dir: Path | None
    bootstrap: str
    encoding: str
    mailbox_models: int
    staleness: float
    linger: float
    stay: bool
    tui: bool
    log_json: bool


@dataclass(frozen=True, slots=True)
class Setting:
    """One option's value and where it came from, such as "--epochs" or "default"."""

    option: Option
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class _Given:
    """Texts given for one option, where, and the folder in which relative paths start."""

    texts: tuple[str, ...]
    source: str
    base: Path


_Source: TypeAlias = Mapping[str, _Given]


def load(flags: Flags, environ: Mapping[str, str]) -> tuple[Config, tuple[Setting, ...]]:
    """Gather the settings from flags, environment and the home's p2pnode.toml.

    Returns them, and for `p2pnode config` where each one came from. Raises ConfigError that
    names the option, its source and what to write.
    """
    home, *others = OPTIONS
    here = Path.cwd()
    typed, variables, defaults = _typed(flags, here), _variables(environ, here), _defaults(here)
    found = [_setting(home, (typed, variables, defaults))]
    sources = (typed, variables, _file(found[0].value / CONFIG_NAME), defaults)
    found += (_setting(option, sources) for option in others)
    settings = _listen_at_public_port({setting.option.name: setting for setting in found})
    config = Config(**{name: setting.value for name, setting in settings.items()})
    return config, tuple(settings.values())


def home_of(flags: Flags, environ: Mapping[str, str]) -> Path:
    """The home folder alone, for verbs that must work whatever p2pnode.toml holds."""
    here = Path.cwd()
    sources = (_typed(flags, here), _variables(environ, here), _defaults(here))
    return Path(_setting(OPTIONS[0], sources).value)


def _typed(flags: Flags, here: Path) -> _Source:
    return {
        option.name: _Given(_texts(value), option.flag, here)
        for option in OPTIONS
        if (value := flags.get(option.name)) is not None
    }


def _variables(environ: Mapping[str, str], here: Path) -> _Source:
    """Those that are set and not empty: `P2PNODE_X= p2pnode run` means not set."""
    return {
        option.name: _Given(tuple(text.split()) if option.many else (text,), option.variable, here)
        for option in OPTIONS
        if (text := environ.get(option.variable, "").strip())
    }


def _defaults(here: Path) -> _Source:
    texts = {option.name: option.default for option in OPTIONS} | {"home": str(default_home())}
    return {name: _Given((text,), "default", here) for name, text in texts.items() if text}


def _setting(option: Option, sources: Sequence[_Source]) -> Setting:
    given = next((source[option.name] for source in sources if option.name in source), None)
    if given is None:
        return Setting(option, () if option.many else None, "default")
    values = tuple(_read(option, text, given) for text in given.texts)
    if len(values) > TRACKERS_LIMIT:
        raise ConfigError(f"{given.source}: {len(values)} are too many; give {TRACKERS_LIMIT}")
    return Setting(option, values if option.many else values[0], given.source)


def _read(option: Option, text: str, given: _Given) -> Any:
    try:
        return option.kind.read(text, given.base)
    except ValueError as error:
        raise ConfigError(f"{given.source}: {error}") from None


def _listen_at_public_port(settings: dict[str, Setting]) -> dict[str, Setting]:
    """With --public alone, listen on its port on all interfaces of its family."""
    public, listen = settings["public"], settings["listen"]
    if public.value is None or listen.source != "default":
        return settings
    wildcard = "::" if ":" in public.value.host else "0.0.0.0"
    address = Address(wildcard, public.value.port)
    return settings | {"listen": Setting(listen.option, address, public.source)}


def _file(path: Path) -> _Source:
    """The file's keys; a home without the file has none."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > FILE_LIMIT:
        raise ConfigError(f"{path}: has more than {FILE_LIMIT} bytes")
    return dict(_keys(path, data))


def _keys(path: Path, data: bytes) -> Iterator[tuple[str, _Given]]:
    try:
        text = data.decode()
        table = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise ConfigError(f"{_at(path, error)}: {error}") from None
    for key, value in table.items():
        source = f"{path}:{_line(text, key)}: {key}"
        option = _known(key, source)
        values = value if option.many and isinstance(value, list) else [value]
        yield key, _Given(tuple(_as_text(option, v, source) for v in values), source, path.parent)


def _at(path: Path, error: ValueError) -> str:
    """PATH:LINE where tomllib says the line, as all its syntax errors do."""
    line = re.search(r"at line ([0-9]+)", str(error))
    return f"{path}:{line[1]}" if line else str(path)


def _line(text: str, key: str) -> int:
    """The line of a key or table: tomllib keeps none, so look for it."""
    name = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[.=\]]""")
    lines = text.split("\n")
    return next((n for n, line in enumerate(lines, 1) if name.match(line)), 1)


def _known(key: str, source: str) -> Option:
    options = {option.name: option for option in OPTIONS if option.in_file}
    if key in options:
        return options[key]
    near = difflib.get_close_matches(key.replace("-", "_"), options, n=1)
    hint = f"did you mean {near[0]}?" if near else "p2pnode config lists the keys"
    raise ConfigError(f"{source}: there is no such key; {hint}")


def _as_text(option: Option, value: object, source: str) -> str:
    """A TOML value as the text that a flag would have, if it has the right type."""
    if type(value) not in option.kind.toml:  # not isinstance: true is no number
        names = " or ".join(_TOML_NAMES[kind] for kind in option.kind.toml[-1:])
        raise ConfigError(f"{source}: write {names}, not {clip(str(value))}")
    return show(value)


def _texts(value: str | Sequence[str] | bool) -> tuple[str, ...]:
    return (show(value),) if isinstance(value, (str, bool)) else tuple(value)


def show(value: object) -> str:
    """A value as a person would write it in a flag; empty for none."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case tuple():
            return " ".join(map(show, value))
        case _:
            return str(value)


def as_json(value: object) -> object:
    """A value for `p2pnode config --json`."""
    match value:
        case tuple():
            return [as_json(item) for item in value]
        case Path() | Address():
            return str(value)
        case _:
            return value


def template() -> str:
    """The text of a new p2pnode.toml: every key, explained, at its default, commented out."""
    lines = [
        "# Settings of this p2pnode. To change one, remove its # and write your value.",
        "# Flags and P2PNODE_ variables win over this file; `p2pnode config` shows what holds.",
    ]
    group = ""
    for option in OPTIONS:
        if not option.in_file:
            continue
        if option.group != group:
            group = option.group
            lines += ["", f"## {group}"]
        lines += ["", f"# {option.help}", f"#{option.name} = {_toml(option)}"]
    return "\n".join(lines) + "\n"


def _toml(option: Option) -> str:
    """The option's default, or its example, as TOML."""
    text = option.default or option.example
    value = f'"{text}"' if str in option.kind.toml else text
    return f"[{value}]" if option.many else value
