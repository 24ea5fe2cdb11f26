"""transport/sealed.py: the header, the keys and the segments of sealed files."""

from __future__ import annotations

import contextlib

import pytest
from golden import golden
from hypothesis import given
from hypothesis import strategies as st
from sealing import SECRETS

from p2pnode.transport import sealed, wire
from p2pnode.transport.errors import SealedError, TransportError
from p2pnode.transport.sealed import (
    COMMITMENT,
    HEADER_LIMIT,
    MAGIC,
    PREFIX,
    SALT,
    SEGMENT,
    TAG,
    WRAP_LIMIT,
    Cipher,
    Header,
    header_length,
    plain_size,
    sealed_size,
    segments,
)

HEADER = Header(1, bytes(SALT))
KEY = bytes([9]) * 32


def seal(plain: bytes, number: int = 0, *, last: bool = True, key: bytes = KEY) -> bytes:
    """One segment."""
    out = bytearray(len(plain) + TAG)
    Cipher(HEADER, key).seal(number, last, memoryview(plain), memoryview(out))
    return bytes(out)


def open_one(data: bytes, number: int = 0, *, last: bool = True, header: Header = HEADER) -> bytes:
    """What is in a segment."""
    out = bytearray(len(data) - TAG)
    Cipher(header, KEY).open(number, last, memoryview(data), memoryview(out))
    return bytes(out)


def unwrap(header: Header) -> bytes:
    """The key of a file for all members of the tests' swarm."""
    return SECRETS.key(header.generation, header.salt, b"model")


def test_golden_file() -> None:
    """The bytes in docs/protocol/sealed.md open to what stands there."""
    data = golden("sealed-model")
    length = header_length(data[:PREFIX])
    header = Header.from_bytes(data[PREFIX : PREFIX + length])
    start = PREFIX + length + COMMITMENT
    assert header == Header(2, bytes(range(SALT)))
    cipher = Cipher.opening(header, data[start - COMMITMENT : start], unwrap)
    out = bytearray(plain_size(len(data) - start))
    cipher.open(0, True, memoryview(data[start:]), memoryview(out))
    assert out == b"a model of a private swarm"


def test_a_segment_opens_only_in_its_place() -> None:
    """Its number, whether it is the last, its file's header and each of its bits are bound."""
    data = seal(b"weights", 3, last=False)
    assert open_one(data, 3, last=False) == b"weights"
    with pytest.raises(SealedError, match="segment 4 is altered, misplaced"):
        open_one(data, 4, last=False)
    with pytest.raises(SealedError, match=r"segment 3 \(the last\)"):
        open_one(data, 3, last=True)
    with pytest.raises(SealedError):
        open_one(data, 3, last=False, header=Header(2, bytes(SALT)))
    with pytest.raises(SealedError):
        open_one(data, 3, last=False, header=Header(1, bytes([1]) * SALT))
    for place in range(len(data)):
        altered = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(SealedError):
            open_one(altered, 3, last=False)


def test_a_wrong_key_is_noticed_before_any_segment() -> None:
    """The commitment belongs to one key: no file opens under two."""
    commitment = Cipher(HEADER, KEY).start[-COMMITMENT:]
    Cipher.opening(HEADER, commitment, lambda _: KEY)
    with pytest.raises(SealedError, match="sealed with another key"):
        Cipher.opening(HEADER, commitment, lambda _: bytes(32))


def test_a_generation_that_is_not_here() -> None:
    """Who has no secret of that generation reads in one line that it is the generation."""
    with pytest.raises(TransportError, match="number 7; the newest here is 2"):
        Cipher.opening(Header(7, bytes(SALT)), bytes(COMMITMENT), unwrap)


@pytest.mark.parametrize("plain", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 5 * SEGMENT])
def test_sizes(plain: int) -> None:
    """The size of what is in a file follows from the file's; an empty one has one segment."""
    whole = plain + TAG * segments(plain)
    assert plain_size(whole) == plain
    assert sealed_size(plain, 10) == PREFIX + 10 + COMMITMENT + whole


@pytest.mark.parametrize("size", [0, TAG - 1, SEGMENT + TAG + 1, SEGMENT + 2 * TAG])
def test_sizes_that_no_file_has(size: int) -> None:
    """A last segment without content, or of less than a tag, is a file that was cut off."""
    with pytest.raises(SealedError, match="cut off"):
        plain_size(size)


@given(st.binary() | st.binary().map(lambda rest: MAGIC + rest))
def test_any_bytes_are_a_prefix_or_an_error(data: bytes) -> None:
    """Fuzz: any bytes give a length within the limit or SealedError."""
    with contextlib.suppress(SealedError):
        assert 1 <= header_length(data) <= HEADER_LIMIT


headers = st.dictionaries(
    st.sampled_from(["generation", "salt", "wraps"]),
    st.integers(-1, 2**63)
    | st.binary(min_size=SALT, max_size=SALT)
    | st.lists(st.binary(max_size=3)),
)


@given(st.binary() | headers.map(wire.encode))
def test_any_bytes_are_a_header_or_an_error(data: bytes) -> None:
    """Fuzz: any bytes give a header that encodes to itself, or SealedError."""
    try:
        header = Header.from_bytes(data)
    except SealedError:
        return
    assert Header.from_bytes(header.to_bytes()) == header


def test_a_header_says_one_thing() -> None:
    """Either a generation or wraps, and no more of them than a manifest names recipients."""
    for generation, wraps in [(0, ()), (1, (b"w",)), (0, (bytes(WRAP_LIMIT + 1),))]:
        with pytest.raises(SealedError):
            Header(generation, bytes(SALT), wraps)
    with pytest.raises(SealedError):
        Header(0, bytes(SALT), (b"w",) * 65)
    most = Header(0, bytes(SALT), (bytes(WRAP_LIMIT),) * 64)
    assert Header.from_bytes(most.to_bytes()) == most
    assert len(most.to_bytes()) <= HEADER_LIMIT


def test_salts_are_fresh() -> None:
    """Two files never share a key, so nonces may count from 0."""
    assert Header.of(1).salt != Header.of(1).salt
    assert sealed.recipients_key(KEY, bytes(32)) != sealed.recipients_key(KEY, bytes([1]) * 32)
