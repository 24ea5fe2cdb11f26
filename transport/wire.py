"""Strict, deterministic CBOR; the only user of cbor2.

Strategy: there is exactly one encoding of a value (RFC 8949 section 4.2), and only
that one is accepted. `decode` refuses by size first, lets cbor2 parse with every
optional feature switched off and every tag refused, walks the result to see that it
holds plain types only, and compares the bytes with their re-encoding. The last step
catches trailing bytes, non-minimal heads, unsorted keys and long floats at once.

Values are None, bool, int (-2**64 .. 2**64-1), float, str, bytes, lists, and maps
whose keys are text. `Fields` reads such a map with types and bounds checked.
"""

import math
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final, Self, TypeAlias, TypeVar

import cbor2

from .errors import WireError

Value: TypeAlias = "bool | int | float | str | bytes | list[Value] | dict[str, Value] | None"

DEPTH: Final = 8
"""Containers inside one another: our deepest message nests 4; 8 leaves room and no stack."""

INT_LOW: Final = -(2**64)
INT_HIGH: Final = 2**64 - 1
"""What fits a CBOR head; larger integers would need a tag."""

INTEGER: Final = 2**63 - 1
"""Our own integers are at most this, so that a signed 64-bit integer holds them everywhere."""


def encode(value: object) -> bytes:
    """The one deterministic encoding of a value; tuples are written as lists.

    Raises WireError for types, integers, text or depths that the wire does not carry.
    """
    _check(value, 0)
    try:
        return cbor2.dumps(value, canonical=True)
    except (cbor2.CBOREncodeError, UnicodeEncodeError) as error:
        raise WireError(f"cannot encode: {error}") from error


def decode(data: bytes, *, limit: int) -> Value:
    """The value of these bytes, at most `limit` of them.

    Raises WireError for anything but the deterministic encoding of one plain value.
    """
    if len(data) > limit:
        raise WireError(f"{len(data)} bytes, at most {limit} are allowed")
    value: Value = _loads(data)
    if encode(value) != data:
        raise WireError("not in deterministic encoding, or followed by more bytes")
    return value


def encode_tagged(tag: int, value: object) -> bytes:
    """Like `encode`, inside one outer tag."""
    return _tag_head(tag) + encode(value)


def decode_tagged(data: bytes, tag: int, *, limit: int) -> Value:
    """Like `decode`, for bytes that must open with this one tag."""
    head = _tag_head(tag)
    if not data.startswith(head):
        raise WireError(f"does not open with CBOR tag {tag}")
    return decode(data[len(head) :], limit=limit - len(head))


def _tag_head(tag: int) -> bytes:
    return cbor2.dumps(cbor2.CBORTag(tag, 0), canonical=True)[:-1]


class _EveryTag(dict[int, Any]):
    """A table in which cbor2 finds, for every tag there is, that it is refused.

    Without it cbor2 would build cyclic lists, regular expressions and MIME messages.
    """

    def __getitem__(self, tag: int) -> Any:
        def refuse(*_: object) -> None:
            raise ValueError(f"CBOR tag {tag} is not allowed")

        return refuse


_EVERY_TAG: Final = _EveryTag()


def _loads(data: bytes) -> Any:
    try:
        return cbor2.loads(
            data,
            semantic_decoders=_EVERY_TAG,
            max_depth=DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
    except cbor2.CBORDecodeError as error:
        raise WireError(str(error)) from error


def _check(value: object, depth: int) -> None:
    """Exact types only: a subclass could encode as something else than it compares."""
    kind = type(value)
    if kind is int:
        if not INT_LOW <= value <= INT_HIGH:  # type: ignore[operator]
            raise WireError("an integer does not fit 64 bits")
    elif kind is dict:
        _check_map(value, depth + 1)  # type: ignore[arg-type]
    elif kind is list or kind is tuple:
        _check_depth(depth + 1)
        for item in value:  # type: ignore[attr-defined]
            _check(item, depth + 1)
    elif kind not in _SCALARS:
        raise WireError(f"a {kind.__name__} has no place on the wire")


_SCALARS: Final = frozenset({type(None), bool, float, str, bytes})


def _check_map(value: dict[object, object], depth: int) -> None:
    _check_depth(depth)
    for key, item in value.items():
        if type(key) is not str:
            raise WireError(f"a map key is a {type(key).__name__}, not text")
        _check(item, depth)


def _check_depth(depth: int) -> None:
    if depth > DEPTH:
        raise WireError(f"nested deeper than {DEPTH}")


class _Required(Enum):
    REQUIRED = "required"


REQUIRED: Final = _Required.REQUIRED
D = TypeVar("D")


class Fields:
    """A decoded map, read by key with type and bounds checked.

    Each reader raises WireError that names `what.key`. With `default=` a key that is
    missing or null gives the default. Unknown keys are ignored: the signed bytes are
    kept as they came, so a newer peer's extra fields do no harm.
    """

    __slots__ = ("_map", "_what")

    def __init__(self, value: Value, what: str) -> None:
        if not isinstance(value, dict):
            raise WireError(f"{what} is not a map")
        self._map = value
        self._what = what

    @classmethod
    def parse(cls, data: bytes, *, what: str, limit: int) -> Self:
        """Decode the bytes and read the map they hold."""
        return cls(decode(data, limit=limit), what)

    def __iter__(self) -> Iterator[str]:
        return iter(self._map)

    def integer(
        self, key: str, low: int = 0, high: int = INTEGER, *, default: D | _Required = REQUIRED
    ) -> int | D:
        """An integer from `low` to `high`, both included."""
        value = self._get(key)
        if type(value) is int and low <= value <= high:
            return value
        return self._instead(key, value, default, f"an integer from {low} to {high}")

    def number(self, key: str, *, default: D | _Required = REQUIRED) -> float | D:
        """A finite number, as a float."""
        value = self._get(key)
        if type(value) in (int, float) and math.isfinite(value):  # type: ignore[arg-type]
            return float(value)  # type: ignore[arg-type]
        return self._instead(key, value, default, "a finite number")

    def boolean(self, key: str, *, default: D | _Required = REQUIRED) -> bool | D:
        """True or false."""
        value = self._get(key)
        if type(value) is bool:
            return value
        return self._instead(key, value, default, "true or false")

    def text(self, key: str, most: int, *, default: D | _Required = REQUIRED) -> str | D:
        """One line of at most `most` characters, printable: a terminal may show it as it is."""
        value = self._get(key)
        if type(value) is str and len(value) <= most and value.isprintable():
            return value
        return self._instead(key, value, default, f"printable text of at most {most} characters")

    def bytes(
        self, key: str, least: int, most: int, *, default: D | _Required = REQUIRED
    ) -> "bytes | D":
        """A byte string of `least` to `most` bytes."""
        value = self._get(key)
        if type(value) is bytes and least <= len(value) <= most:
            return value
        return self._instead(key, value, default, f"{least} to {most} bytes")

    def list(self, key: str, most: int, *, default: D | _Required = REQUIRED) -> "list[Value] | D":
        """A list of at most `most` items, the items not yet checked; see `items`."""
        value = self._get(key)
        if type(value) is list and len(value) <= most:
            return value
        return self._instead(key, value, default, f"a list of at most {most} items")

    def items(self, key: str, most: int) -> "Fields":
        """A list as Fields with the keys "0", "1", …, empty when the key is missing.

        So `[items.text(i, 64) for i in items]` reads and checks a list of texts.
        """
        values = self.list(key, most, default=())
        return Fields({str(i): value for i, value in enumerate(values)}, f"{self._what}.{key}")

    def map(self, key: str, *, default: D | _Required = REQUIRED) -> "Fields | D":
        """A map, as Fields."""
        value = self._get(key)
        if type(value) is dict:
            return Fields(value, f"{self._what}.{key}")
        return self._instead(key, value, default, "a map")

    def _get(self, key: str) -> Value:
        return self._map.get(key)

    def _instead(self, key: str, value: Value, default: D | _Required, wanted: str) -> D:
        """The default where there is no value, the error where there is a wrong one."""
        if value is None and not isinstance(default, _Required):
            return default
        problem = "is missing" if key not in self._map else "is wrong"
        raise WireError(f"{self._what}.{key} {problem}: must be {wanted}")
