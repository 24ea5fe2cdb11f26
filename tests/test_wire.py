"""Strict deterministic CBOR: one encoding in, one encoding out, everything else refused."""

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.transport import wire
from p2pnode.transport.errors import WireError
from p2pnode.transport.wire import Fields

STEADY = settings(deadline=None, derandomize=True)
"""The same examples in every run, however busy the machine is."""

LIMIT = 4096

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(wire.INT_LOW, wire.INT_HIGH)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=40)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=30), inner, max_size=4)
    ),
    max_leaves=12,
)

# RFC 8949 appendix A, those that are deterministic and use our types.
RFC_8949 = [
    (0, "00"),
    (23, "17"),
    (24, "1818"),
    (1000, "1903e8"),
    (1000000000000, "1b000000e8d4a51000"),
    (18446744073709551615, "1bffffffffffffffff"),
    (-18446744073709551616, "3bffffffffffffffff"),
    (-1, "20"),
    (-1000, "3903e7"),
    (0.0, "f90000"),
    (-0.0, "f98000"),
    (1.1, "fb3ff199999999999a"),
    (1.5, "f93e00"),
    (100000.0, "fa47c35000"),
    (5.960464477539063e-8, "f90001"),
    (math.inf, "f97c00"),
    (False, "f4"),
    (None, "f6"),
    (b"\x01\x02\x03\x04", "4401020304"),
    ("IETF", "6449455446"),
    ("水", "63e6b0b4"),
    ([1, [2, 3], [4, 5]], "8301820203820405"),
    ({"a": 1, "b": [2, 3]}, "a26161016162820203"),
]

HOSTILE = {
    "nothing": "",
    "trailing byte": "0000",
    "two values": "a0a0",
    "duplicate key": "a2616101616102",
    "unsorted keys": "a2616201616102",
    "longer key first": "a262616101616202",
    "integer in two bytes": "1800",
    "integer in nine bytes": "1b0000000000000001",
    "negative in two bytes": "3800",
    "length in two bytes": "780161",
    "list length in two bytes": "980100",
    "map length in two bytes": "b801616100",
    "float in four bytes": "fa3fc00000",
    "float in eight bytes": "fb3ff8000000000000",
    "NaN with a payload": "f97e01",
    "NaN in eight bytes": "fb7ff8000000000000",
    "endless list": "9f00ff",
    "endless map": "bf616100ff",
    "endless bytes": "5f4100ff",
    "endless text": "7f6161ff",
    "lone break": "ff",
    "reserved length": "1c",
    "undefined": "f7",
    "simple value": "f0",
    "simple value in two bytes": "f820",
    "text that is not UTF-8": "61ff",
    "text with a surrogate": "63eda080",
    "integer key": "a10000",
    "bytes key": "a1410000",
    "list key": "a18000",
    "float key": "a1f93e0000",
    "cut integer": "19ff",
    "cut text": "6261",
    "cut list": "8200",
    "cut map": "a16161",
    "date tag": "c074323031332d30332d32315432303a30343a30305a",
    "epoch tag": "c11a514b67b0",
    "bignum": "c249010000000000000000",
    "small bignum": "c24101",
    "decimal 1E+1000000000": "c4821a3b9aca0001",
    "bigfloat": "c5821b7fffffffffffffff01",
    "rational": "d81e820103",
    "rational with zero": "d81e820100",
    "regular expression": "d8236628612b292b24",
    "MIME message": "d82461 41",
    "UUID": "d8255000000000000000000000000000000000",
    "set": "d90102816161",
    "IP address": "d9010444c00a0a01",
    "shared list": "d81c8100",
    "list that contains itself": "d81c81d81d00",
    "map that contains itself": "d81ca16161d81d00",
    "string reference": "d901008261 61d81900",
    "self-described": "d9d9f700",
    "unknown tag": "d9ffff00",
    "largest tag": "dbffffffffffffffff00",
    "tag inside": "8181c100",
    "tag as key": "a1c1006161",
    "COSE tag": "d280",
    "1000 lists deep": "81" * 1000 + "00",
    "1000 maps deep": "a16161" * 1000 + "00",
    "1000 tags deep": "c1" * 1000 + "00",
    "nine lists deep": "81" * 9 + "00",
    "bytes of 2**63": "5b7fffffffffffffff",
    "bytes of 2**64-1": "5bffffffffffffffff",
    "bytes of 4 GiB": "5b0000000100000000",
    "text of 2**63": "7b7fffffffffffffff",
    "text of 4 GiB": "7a ffffffff",
    "list of 2**63": "9b7fffffffffffffff",
    "list of 2**64-1": "9bffffffffffffffff",
    "list of 4 billion": "9affffffff",
    "map of 2**63": "bb7fffffffffffffff",
    "map of 4 billion": "baffffffff",
    "nested lists of 4 billion": "9affffffff" * 8,
}


@pytest.mark.parametrize(("value", "hexed"), RFC_8949)
def test_rfc_8949_examples(value: Any, hexed: str) -> None:
    """The examples of RFC 8949 appendix A encode and decode to the byte."""
    data = bytes.fromhex(hexed)
    assert wire.encode(value) == data
    assert repr(wire.decode(data, limit=LIMIT)) == repr(value)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused(name: str) -> None:
    """Each hostile input gives WireError and takes no memory to speak of."""
    data = bytes.fromhex(HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            wire.decode(data, limit=LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 256 * 1024
    finally:
        tracemalloc.stop()


def test_size_comes_first() -> None:
    """Bytes over the limit are refused before anything is parsed."""
    assert wire.decode(wire.encode(b"a" * 98), limit=100) == b"a" * 98
    with pytest.raises(WireError, match="101 bytes, at most 100"):
        wire.decode(b"\xff" * 101, limit=100)


def test_eight_levels_and_no_more() -> None:
    """Eight containers inside one another pass both ways, nine pass neither."""
    eight: list[Any] = [[[[[[[[]]]]]]]]
    assert wire.decode(wire.encode(eight), limit=LIMIT) == eight
    for nine in ([eight], {"a": eight}):
        with pytest.raises(WireError, match="nested"):
            wire.encode(nine)


def test_keys_are_sorted_by_their_encoding() -> None:
    """Maps are written in the order of RFC 8949 section 4.2.1, whatever order they had."""
    assert wire.encode({"aa": 1, "b": 2, "a": 3}).hex() == "a3616103616202" + "62616101"


def test_tuples_are_lists() -> None:
    """A tuple is written as a list."""
    assert wire.encode((1, (2,))) == wire.encode([1, [2]])


def cyclic() -> list[Any]:
    """A list that contains itself."""
    value: list[Any] = []
    value.append(value)
    return value


NOT_PLAIN = [
    2**64,
    -(2**64) - 1,
    {1: 2},
    {b"a": 1},
    {"a": {1, 2}},
    bytearray(b"a"),
    1j,
    object(),
    cyclic(),
    "\ud800",
    {"\ud800": 1},
]


@pytest.mark.parametrize("value", NOT_PLAIN, ids=lambda value: type(value).__name__)
def test_only_plain_values_are_encoded(value: object) -> None:
    """What the wire does not carry is refused with WireError."""
    with pytest.raises(WireError):
        wire.encode(value)


def test_one_expected_tag() -> None:
    """decode_tagged takes the one tag it was asked for, once, and counts it in the limit."""
    data = wire.encode_tagged(18, [1])
    assert data.hex() == "d28101"
    assert wire.decode_tagged(data, 18, limit=3) == [1]
    assert wire.decode_tagged(wire.encode_tagged(55799, "a"), 55799, limit=9) == "a"
    for bad in (b"", b"\xd2", data[1:], b"\xd2" + data, b"\xd8\x12" + data[1:], b"\xd1" + data[1:]):
        with pytest.raises(WireError):
            wire.decode_tagged(bad, 18, limit=LIMIT)
    with pytest.raises(WireError, match="at most"):
        wire.decode_tagged(data, 18, limit=2)


@STEADY
@given(VALUES)
def test_values_survive_the_wire(value: Any) -> None:
    """Any plain value comes back as it was, type and sign of zero included."""
    again = wire.decode(wire.encode(value), limit=10**6)
    assert again == value
    assert wire.encode(again) == wire.encode(value)


def read_or_refuse(data: bytes) -> None:
    """The fuzz sentence: any bytes give WireError, or a value whose only encoding they are."""
    try:
        value = wire.decode(data, limit=LIMIT)
    except WireError:
        return
    assert wire.encode(value) == data


@STEADY
@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_wire_error(data: bytes) -> None:
    """Any bytes give a value or WireError."""
    read_or_refuse(data)


@STEADY
@given(VALUES, st.data())
def test_any_change_gives_a_value_or_wire_error(value: Any, data: st.DataObject) -> None:
    """So do the bytes of a message after one change anywhere."""
    changed = bytearray(wire.encode(value))
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(bytes(changed))


FIELDS = Fields(
    {
        "int": 5,
        "neg": -5,
        "float": 1.5,
        "inf": math.inf,
        "true": True,
        "text": "abc",
        "escape": "\x1b[2J",
        "bytes": b"abc",
        "list": ["a", "b"],
        "map": {"inner": {"n": 1}},
        "null": None,
    },
    "thing",
)


def test_fields_give_typed_values() -> None:
    """Each reader gives its type; integers are numbers too."""
    assert FIELDS.integer("int") == 5
    assert FIELDS.integer("neg", -5) == -5
    assert FIELDS.number("float") == 1.5
    assert repr(FIELDS.number("int")) == "5.0"
    assert FIELDS.boolean("true") is True
    assert FIELDS.text("text", 3) == "abc"
    assert FIELDS.bytes("bytes", 3, 3) == b"abc"
    assert FIELDS.list("list", 2) == ["a", "b"]
    assert FIELDS.map("map").map("inner").integer("n") == 1
    items = FIELDS.items("list", 2)
    assert [items.text(i, 1) for i in items] == ["a", "b"]


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda f: f.integer("missing"), "thing.missing is missing: must be an integer"),
        (lambda f: f.integer("null"), "thing.null is wrong"),
        (lambda f: f.integer("neg"), "thing.neg is wrong: must be an integer from 0 to"),
        (lambda f: f.integer("int", 0, 4), "thing.int is wrong: must be an integer from 0 to 4"),
        (lambda f: f.integer("true"), "thing.true"),
        (lambda f: f.integer("float"), "thing.float"),
        (lambda f: f.number("inf"), "thing.inf is wrong: must be a finite number"),
        (lambda f: f.number("true"), "thing.true"),
        (lambda f: f.boolean("int"), "thing.int is wrong: must be true or false"),
        (lambda f: f.text("text", 2), "thing.text is wrong: must be printable text of at most 2"),
        (lambda f: f.text("escape", 9), "thing.escape"),
        (lambda f: f.text("bytes", 9), "thing.bytes"),
        (lambda f: f.bytes("bytes", 4, 9), "thing.bytes is wrong: must be 4 to 9 bytes"),
        (lambda f: f.bytes("bytes", 0, 2), "thing.bytes"),
        (lambda f: f.bytes("text", 0, 9), "thing.text"),
        (lambda f: f.list("list", 1), "thing.list is wrong: must be a list of at most 1"),
        (lambda f: f.items("list", 1), "thing.list"),
        (lambda f: f.items("list", 2).integer("1"), "thing.list.1 is wrong"),
        (lambda f: f.map("list"), "thing.list is wrong: must be a map"),
        (lambda f: f.map("map").map("inner").text("n", 9), "thing.map.inner.n is wrong"),
        (lambda f: f.integer("text", default=1), "thing.text is wrong"),
        (lambda f: Fields([], "thing"), "thing is not a map"),
        (lambda f: Fields.parse(b"\x80", what="it", limit=9), "it is not a map"),
        (lambda f: Fields.parse(b"\xa0", what="it", limit=0), "at most 0"),
    ],
)
def test_fields_name_what_is_wrong(read: Callable[[Fields], object], words: str) -> None:
    """A wrong field gives WireError that names it and says what it must be."""
    with pytest.raises(WireError) as caught:
        read(FIELDS)
    assert words in str(caught.value)


def test_fields_have_defaults() -> None:
    """A missing key and null give the default; without a list there are no items."""
    for key in ("missing", "null"):
        assert FIELDS.integer(key, default=None) is None
        assert FIELDS.number(key, default=0.5) == 0.5
        assert FIELDS.boolean(key, default=False) is False
        assert FIELDS.text(key, 3, default="") == ""
        assert FIELDS.bytes(key, 0, 3, default=None) is None
        assert FIELDS.list(key, 3, default=[]) == []
        assert FIELDS.map(key, default=None) is None
        assert list(FIELDS.items(key, 3)) == []


def test_unknown_fields_are_ignored() -> None:
    """A newer peer's extra fields do no harm."""
    fields = Fields.parse(wire.encode({"a": 1, "new": [2]}), what="it", limit=99)
    assert fields.integer("a") == 1
