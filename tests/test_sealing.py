"""node/sealing.py: sealed files, written at any place and read from any place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import filled, fresh
from sealing import KEYRING, OLD, OTHERS, SECRETS, content, open_file, seal_file

from p2pnode.node import encoding, weights
from p2pnode.node.encoding import Decoder
from p2pnode.node.errors import WeightsError
from p2pnode.node.sealing import KEPT, SealedTarget
from p2pnode.transport.manifest import ENCODINGS
from p2pnode.transport.sealed import COMMITMENT, PREFIX, SEGMENT, TAG, Header

PLAIN = bytes(range(256)) * 1000  # four segments, the last not full
STEP = SEGMENT + TAG


def start_of(data: bytes) -> int:
    """Where the segments begin."""
    return PREFIX + int.from_bytes(data[8:PREFIX]) + COMMITMENT


@pytest.mark.parametrize("size", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, len(PLAIN)])
def test_what_was_written_is_read(tmp_path: Path, size: int) -> None:
    """Any size, also nothing and whole segments."""
    seal_file(tmp_path / "m", PLAIN[:size])
    assert content(tmp_path / "m") == PLAIN[:size]


def test_nothing_of_the_model_shows(tmp_path: Path) -> None:
    """Equal segments and equal files look unlike each other."""
    zeros = bytes(4 * SEGMENT)
    one, two = seal_file(tmp_path / "one", zeros), seal_file(tmp_path / "two", zeros)
    begin = start_of(one)
    parts = {data[begin + n * STEP :][:SEGMENT] for data in (one, two) for n in range(4)}
    assert len(parts) == 8


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(PLAIN) + 9), st.integers(0, 3 * SEGMENT)), max_size=8))
def test_any_part_is_read(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int]]
) -> None:
    """In any order, over the ends of segments and past the end of the file."""
    path = tmp_path_factory.mktemp("sealed") / "m"
    seal_file(path, PLAIN)
    file = open_file(path)
    for place, count in parts:
        data = bytearray(count)
        got = file.read(memoryview(data), place)
        assert data[:got] == PLAIN[place : place + count]
    file.close()


@settings(max_examples=50, deadline=None)
@given(
    st.permutations(range(7)),
    st.lists(st.integers(1, len(PLAIN) - 1), min_size=6, max_size=6, unique=True),
)
def test_any_order_of_writing(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cuts: list[int]
) -> None:
    """Each byte once, from any place on, gives the same file."""
    path = tmp_path_factory.mktemp("sealed") / "m"
    edges = [0, *sorted(cuts), len(PLAIN)]
    header = Header.of(2)
    with SealedTarget(path, header, SECRETS.key(2, header.salt, b"model")) as file:
        for number in order:
            file.seek(edges[number])
            file.write(PLAIN[edges[number] : edges[number + 1]])
            assert file.tell() == edges[number + 1]
    assert content(path) == PLAIN


def _target(path: Path) -> SealedTarget:
    return SealedTarget(path, Header.of(2), bytes(32))


def test_nothing_is_sealed_twice(tmp_path: Path) -> None:
    """Two seals under one nonce would give the model away, so it is an error in our own code."""
    file = _target(tmp_path / "m")
    file.write(PLAIN)
    file.seek(0)
    with pytest.raises(ValueError, match="written twice"):
        file.write(PLAIN[:SEGMENT])
    file.seek(len(PLAIN) - 9)
    file.write(bytes(9))
    with pytest.raises(ValueError, match="never written, or twice"):
        file.__exit__()


def test_holes_are_noticed(tmp_path: Path) -> None:
    """A file with a part that was never written isn't one."""
    file = _target(tmp_path / "m")
    file.seek(3 * SEGMENT)
    file.write(b"x")
    file.seek(0)
    file.write(b"x")
    with pytest.raises(ValueError, match="never written"):
        file.__exit__()


# ── files that aren't what they were ─────────────────────────────────────────────────────────

Damage = Callable[[bytes, bytes, int], bytes]

DAMAGES: dict[str, tuple[Damage, str]] = {
    "cut off in a segment": (lambda d, _o, _s: d[:-1], r"\(the last\) is altered"),
    "cut off at a segment's end": (
        lambda d, _o, s: d[: s + 2 * STEP],
        r"segment 1 \(the last\) is altered",
    ),
    "without segments": (lambda d, _o, s: d[:s], "cut off"),
    "cut off in the header": (lambda d, _o, _s: d[:20], "cut off"),
    "a header that says nothing": (
        lambda d, _o, s: d[:PREFIX] + bytes(s - PREFIX) + d[s:],
        "its header isn't one",
    ),
    "longer": (lambda d, _o, _s: d + bytes(STEP), r"\(the last\) is altered"),
    "two segments in the other order": (
        lambda d, _o, s: d[:s] + d[s + STEP :][:STEP] + d[s:][:STEP] + d[s + 2 * STEP :],
        "segment 0 is altered, misplaced or of another file",
    ),
    "a segment of another file": (
        lambda d, other, s: d[:s] + other[s:][:STEP] + d[s + STEP :],
        "segment 0 is altered, misplaced or of another file",
    ),
    "a header of another file": (lambda d, other, s: other[:s] + d[s:], "is altered"),
    "another commitment": (
        lambda d, _o, s: d[: s - COMMITMENT] + bytes(COMMITMENT) + d[s:],
        "sealed with another key, or its header was altered",
    ),
    "not sealed": (lambda _d, _o, _s: PLAIN, "doesn't begin as one"),
    "empty": (lambda _d, _o, _s: b"", "doesn't begin as one"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_files(tmp_path: Path, what: str) -> None:
    """Each is one line that says what is wrong, and no byte of it is used."""
    damage, message = DAMAGES[what]
    data, other = seal_file(tmp_path / "m", PLAIN), seal_file(tmp_path / "other", PLAIN)
    (tmp_path / "m").write_bytes(damage(data, other, start_of(data)))
    with pytest.raises(WeightsError, match=message) as caught:
        content(tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("The model file can't be used: m: ")


def test_wrong_secrets(tmp_path: Path) -> None:
    """An older generation, and the secrets of another swarm."""
    seal_file(tmp_path / "m", PLAIN)
    with pytest.raises(WeightsError, match="number 2; the newest here is 1"):
        open_file(tmp_path / "m", OLD)
    with pytest.raises(WeightsError, match="sealed with another key"):
        open_file(tmp_path / "m", OTHERS)


def test_a_reader_keeps_few_segments(tmp_path: Path) -> None:
    """However much is read, in pieces of any size."""
    seal_file(tmp_path / "m", PLAIN * 4)
    file = open_file(tmp_path / "m")
    buffer = bytearray(1000)
    for place in range(0, len(PLAIN) * 4, 1000):
        file.read(memoryview(buffer), place)
        assert len(file._kept) <= KEPT
    file.close()


# ── models ───────────────────────────────────────────────────────────────────────────────────


def _large() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {
        "a.bias": torch.randn(33),
        "a.weight": torch.randn(700, 701),
        "b.weight": torch.randn(300, 1000).to(torch.bfloat16),
        "count": torch.tensor(7),
        "tied": torch.zeros(0),
    }


@pytest.mark.parametrize("name", ENCODINGS)
def test_models_of_each_encoding(tmp_path: Path, name: str) -> None:
    """A sealed model is read block by block as the plain one is, bit for bit."""
    state = _large()
    encoding.save(tmp_path / "plain", state, name, seed=1)
    size = encoding.save(tmp_path / "sealed", state, name, 1, KEYRING.create)
    assert size == (tmp_path / "sealed").stat().st_size
    assert content(tmp_path / "sealed") == (tmp_path / "plain").read_bytes()
    opening = lambda path: KEYRING.open("author", (), path)  # noqa: E731
    one, two = torch.empty(2, 1 << 20, dtype=torch.uint8)
    with Decoder(tmp_path / "plain", name) as a, Decoder(tmp_path / "sealed", name, opening) as b:
        assert a.schema() == b.schema() == weights.schema(state)
        for entry in a.entries:
            for number in range(a.blocks(entry)):
                assert torch.equal(a.block(entry, number, one), b.block(entry, number, two))


def test_a_model_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """An error while it is written is that error, and the file isn't there."""
    state = fresh() | {"odd": torch.eye(2).to_sparse()}
    with pytest.raises(WeightsError, match="sparse"):
        encoding.save(tmp_path / "m", state, "raw", 1, KEYRING.create)
    assert list(tmp_path.iterdir()) == []
    encoding.save(tmp_path / "m", filled(1.0), "raw", 1, KEYRING.create)
