"""Frozen dataclasses as JSON objects, read strictly: orders, reports and checkpoints.

Strategy: the annotations of a dataclass are its grammar. Reading walks value and annotation
together; a field that is missing, unknown or of another type is an error that names it. JSON
knows no NaN, so numbers are finite both ways.
"""

import json
import math
import os
from collections.abc import Hashable
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from ..transport.errors import TransportError

T = TypeVar("T")


def dumps(document: Any) -> str:
    """Return JSON on one line; paths are written as text. Raises ValueError for NaN."""
    return json.dumps(document, default=os.fspath, allow_nan=False)


def loads(text: str | bytes) -> Any:
    """Return the JSON document. Raises ValueError for anything else, NaN included."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} isn't a JSON number")


def to_document(value: Any) -> dict[str, Any]:
    """Return a dataclass as what `dumps` takes and `build` reads."""
    return asdict(value)


def build(kind: type[T], document: Any, where: str = "") -> T:
    """Make a value of this dataclass: every field right, none unknown, none without a value.

    Raises ValueError that names the field.
    """
    where = where or kind.__name__
    if not isinstance(document, dict):
        raise ValueError(f"{where} isn't an object")
    types = _types(cast(Hashable, kind))
    required = {field.name for field in fields(cast(Any, kind)) if field.default is MISSING}
    if wrong := (document.keys() - types.keys()) | (required - document.keys()):
        raise ValueError(f"{where} has a missing or unknown field {min(wrong)!r}")
    values = {name: _read(types[name], document[name], f"{where}.{name}") for name in document}
    try:
        return kind(**values)
    except TransportError as error:  # a Scores that isn't one
        raise ValueError(f"{where}: {error}") from None


@cache
def _types(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(cast(type, kind))


def _read(kind: Any, value: Any, where: str) -> Any:
    arguments = get_args(kind)
    if get_origin(kind) is UnionType:  # always "X | None" here
        return None if value is None else _read(arguments[0], value, where)
    if get_origin(kind) is tuple and isinstance(value, list):  # always "tuple[X, ...]" here
        return tuple(_read(arguments[0], item, f"{where}[{n}]") for n, item in enumerate(value))
    if get_origin(kind) is dict and isinstance(value, dict):  # always "dict[str, X]" here
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(kind):
        return build(cast(type, kind), value, where)
    if kind is Path and type(value) is str:
        return Path(value)
    if kind is float and type(value) is int:
        value = float(value)
    if (kind is not Any and kind is not type(value)) or value in (math.inf, -math.inf):
        raise ValueError(f"{where} has the wrong type or value ({type(value).__name__})")
    return value
