"""Part files: verified before they count, resumed from what is there, honest about a full disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3
from fellows import noise
from hypothesis import given
from hypothesis import strategies as st
from models import manifest

from p2pnode.transport.link import PIECE_LIMIT, Piece
from p2pnode.transport.manifest import CHUNK_LEAST
from p2pnode.transport.parts import Arrival, PartFile, digest_file

DATA = noise(1, 3.25)
MANIFEST = manifest(DATA)


def arrival(chunk: int, data: bytes | None = None) -> Arrival:
    """A whole chunk, or other bytes in its place."""
    start = chunk * CHUNK_LEAST
    body = DATA[start : start + CHUNK_LEAST] if data is None else data
    return Arrival(Piece(1, chunk, 0, memoryview(body)), start, True)


def test_chunks_in_any_order_make_the_file(tmp_path: Path) -> None:
    """Each chunk is verified and lies where it belongs."""
    part = PartFile(tmp_path / "part", MANIFEST)
    assert part.find(range(4)) == []
    assert part.write([arrival(chunk) for chunk in (3, 0, 2, 1)]) == [True] * 4
    part.close()
    assert (tmp_path / "part").read_bytes() == DATA


def test_the_file_is_for_the_owner_alone(tmp_path: Path) -> None:
    """Others can't read a model on its way."""
    PartFile(tmp_path / "part", MANIFEST).close()
    assert (tmp_path / "part").stat().st_mode & 0o777 == 0o600


def test_a_wrong_chunk_is_not_written(tmp_path: Path) -> None:
    """A chunk of one piece whose digest doesn't match never reaches the file."""
    part = PartFile(tmp_path / "part", MANIFEST)
    assert part.write([arrival(0, bytes(CHUNK_LEAST)), arrival(1)]) == [False, True]
    part.close()
    assert (tmp_path / "part").read_bytes()[:CHUNK_LEAST] == bytes(CHUNK_LEAST)
    again = PartFile(tmp_path / "part", MANIFEST)
    assert again.find(range(4)) == [1]
    again.close()


def test_what_is_whole_is_found_again(tmp_path: Path) -> None:
    """A later try digests what is there and counts on nothing else."""
    part = PartFile(tmp_path / "part", MANIFEST)
    part.write([arrival(chunk) for chunk in (0, 2, 3)])
    part.close()
    with (tmp_path / "part").open("r+b") as file:
        file.seek(2 * CHUNK_LEAST + 5)
        file.write(b"altered")
    again = PartFile(tmp_path / "part", MANIFEST)
    assert again.find(range(4)) == [0, 3]
    again.close()


def test_a_file_of_another_size_is_put_right(tmp_path: Path) -> None:
    """What an earlier run left under that name, longer or shorter, is made to fit."""
    for left in (DATA + b"more", DATA[:-1], b""):
        (tmp_path / "part").write_bytes(left)
        part = PartFile(tmp_path / "part", MANIFEST)
        assert (tmp_path / "part").stat().st_size == len(DATA)
        assert part.find(range(3, 4)) == ([3] if left.startswith(DATA) else [])
        part.close()


LARGE = noise(2, 32)  # one chunk of a model of 8 GiB (whose file has holes for the rest)
HUGE = manifest(
    b"", size=2**33, chunk_size=len(LARGE), digests=blake3(LARGE).digest() + bytes(32 * 4095)
)
FIRST = Arrival(Piece(1, 0, 0, LARGE[:PIECE_LIMIT]), 0, False)
LAST = Arrival(Piece(1, 0, PIECE_LIMIT, LARGE[PIECE_LIMIT:]), PIECE_LIMIT, True)


def test_chunks_of_several_pieces(tmp_path: Path) -> None:
    """A large chunk is judged when its last piece is there."""
    part = PartFile(tmp_path / "part", HUGE)
    assert part.write([FIRST]) == [None]
    assert part.write([LAST]) == [True]
    part.close()
    with (tmp_path / "part").open("rb") as file:
        assert file.read(len(LARGE)) == LARGE


def test_half_a_chunk_of_a_lost_source_begins_anew(tmp_path: Path) -> None:
    """The digest of a chunk never mixes the pieces of two sources."""
    part = PartFile(tmp_path / "part", HUGE)
    part.write([FIRST])
    part.restart([0])
    assert part.write([FIRST, LAST]) == [None, True]
    part.close()


def test_a_full_disk_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that the disk doesn't take are never counted as here."""
    part = PartFile(tmp_path / "part", MANIFEST)
    monkeypatch.setattr(os, "pwrite", lambda *_: 7)
    with pytest.raises(OSError, match="no space left"):
        part.write([arrival(0)])
    part.close()


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_opening_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A folder that is missing is an OSError, and no descriptor stays open."""
    before = descriptors()
    with pytest.raises(OSError, match="No such file"):
        PartFile(tmp_path / "missing" / "part", MANIFEST)
    (tmp_path / "part").write_bytes(b"x")
    (tmp_path / "part").chmod(0o400)
    if os.geteuid():
        with pytest.raises(OSError, match="denied"):
            PartFile(tmp_path / "part", MANIFEST)
    assert descriptors() == before


@given(st.integers(1, 3 * CHUNK_LEAST))
def test_digests_are_those_of_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    """What a sender digests is what a receiver checks, for any size."""
    path = tmp_path_factory.getbasetemp() / "digested"
    path.write_bytes(DATA[:size])
    assert digest_file(path, CHUNK_LEAST) == (size, manifest(DATA[:size]).digests)


def test_large_chunks_are_digested_in_steps(tmp_path: Path) -> None:
    """A chunk of several mebibytes is read a mebibyte at a time."""
    data = noise(3, 40)
    (tmp_path / "model").write_bytes(data)
    size, digests = digest_file(tmp_path / "model", 2 * PIECE_LIMIT)
    assert size == len(data)
    assert digests == b"".join(
        blake3(data[start : start + 2 * PIECE_LIMIT]).digest()
        for start in range(0, len(data), 2 * PIECE_LIMIT)
    )
