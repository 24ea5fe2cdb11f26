"""A manifest cannot be built wrong, neither from bytes nor from arguments."""

import math
from dataclasses import replace
from typing import Any

import pytest
from golden import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.transport import wire
from p2pnode.transport.errors import ManifestError
from p2pnode.transport.manifest import (
    CHUNK,
    DIGESTS_LIMIT,
    EXPIRY,
    MANIFEST_LIMIT,
    PARENTS_LIMIT,
    SIZE_LIMIT,
    Manifest,
    Scores,
    chunk_size_for,
)

STEADY = settings(deadline=None, derandomize=True)
"""The same examples in every run, however busy the machine is."""

CREATED = 1_760_000_000.25

# 150,000 bytes in chunks of 64 KiB: two whole ones and 18,928 bytes.
FULL = Manifest(
    swarm="main",
    seq=7,
    epoch=3,
    age=2.5,
    created=CREATED,
    expires=CREATED + EXPIRY,
    schema=bytes(range(32)),
    size=150_000,
    chunk_size=65536,
    digests=b"\x11" * 32 + b"\x22" * 32 + b"\x33" * 32,
    samples=20_000,
    loss=0.125,
    before=Scores(0.25, 0.96875),
    after=Scores(0.2, 0.98),
    previous=b"\xaa" * 32,
    parents=(b"\xbb" * 32, b"\xcc" * 32),
)
BARE = replace(FULL, loss=None, before=None, after=Scores(1.5), previous=None, parents=())
FIELDS: dict[str, Any] = dict(wire.decode(FULL.to_bytes(), limit=MANIFEST_LIMIT))  # type: ignore[arg-type]


def test_golden_manifest() -> None:
    """The golden bytes are the manifest above, both ways."""
    assert FULL.to_bytes() == golden("manifest")
    assert Manifest.from_bytes(golden("manifest")) == FULL


def test_what_is_unknown_is_left_out() -> None:
    """Fields without a value are not written, and read back as None."""
    fields = wire.decode(BARE.to_bytes(), limit=MANIFEST_LIMIT)
    assert isinstance(fields, dict)
    assert set(FIELDS) - set(fields) == {"loss", "before", "previous"}
    assert fields["after"] == {"loss": 1.5}
    assert Manifest.from_bytes(BARE.to_bytes()) == BARE


def test_integers_are_written_as_floats() -> None:
    """Equal manifests are equal bytes, also when a float was given as an integer."""
    assert replace(FULL, age=2).to_bytes() == replace(FULL, age=2.0).to_bytes()


def test_chunks() -> None:
    """Count, lengths and digests of the chunks; the last is shorter; no other exists."""
    assert FULL.chunks == 3
    assert [FULL.chunk_length(i) for i in range(3)] == [65536, 65536, 18928]
    assert [FULL.digest(i)[0] for i in range(3)] == [0x11, 0x22, 0x33]
    assert len(FULL.digest(2)) == 32
    for index in (-1, 3):
        with pytest.raises(ManifestError, match="only 3"):
            FULL.chunk_length(index)
        with pytest.raises(ManifestError, match="only 3"):
            FULL.digest(index)
    exact = replace(FULL, size=131072, digests=bytes(64))
    assert [exact.chunk_length(i) for i in range(exact.chunks)] == [65536, 65536]


@pytest.mark.parametrize(
    ("size", "chunk"),
    [
        (1, CHUNK),
        (4_800_000, CHUNK),
        (7680 * CHUNK, CHUNK),
        (7680 * CHUNK + 1, 2 * CHUNK),
        (SIZE_LIMIT, 2**34),
    ],
)
def test_the_chunk_size_grows_with_the_model(size: int, chunk: int) -> None:
    """Chunks are 1 MiB up to 7.5 GiB, then double."""
    assert chunk_size_for(size) == chunk


@STEADY
@given(st.integers(1, SIZE_LIMIT))
def test_digests_always_fit(size: int) -> None:
    """Whatever the size, the digests stay within their limit and the chunk is a power of two."""
    chunk = chunk_size_for(size)
    assert math.ceil(size / chunk) * 32 <= DIGESTS_LIMIT
    assert chunk.bit_count() == 1
    assert chunk == CHUNK or math.ceil(size / (chunk // 2)) * 32 > DIGESTS_LIMIT


def test_the_largest_manifest_fits() -> None:
    """All digests, all parents and long names together stay under 256 KiB."""
    largest = replace(
        FULL,
        swarm="水" * 64,
        seq=wire.INTEGER,
        epoch=wire.INTEGER,
        size=7680 * CHUNK,
        chunk_size=CHUNK,
        digests=bytes(DIGESTS_LIMIT),
        parents=(b"\xdd" * 32,) * PARENTS_LIMIT,
    )
    assert len(largest.to_bytes()) < MANIFEST_LIMIT
    assert Manifest.from_bytes(largest.to_bytes()) == largest


# What a lie looks like: (field, value, words of the error). Each is tried as bytes from a
# peer and as arguments from our own code.
LIES: list[tuple[str, Any, str]] = [
    ("version", 2, "version"),
    ("swarm", "", "swarm"),
    ("swarm", "a" * 65, "swarm"),
    ("swarm", "a\x1b[2J", "swarm"),
    ("swarm", "a\nb", "swarm"),
    ("seq", -1, "seq"),
    ("seq", 2**63, "seq"),
    ("epoch", -1, "epoch"),
    ("samples", -1, "samples"),
    ("age", math.nan, "age"),
    ("age", math.inf, "age"),
    ("age", -0.5, "age"),
    ("created", math.nan, "created"),
    ("created", -1.0, "negative"),
    ("expires", math.inf, "expires"),
    ("expires", CREATED, "expires"),
    ("expires", 0.0, "expires"),
    ("schema", bytes(31), "schema"),
    ("schema", bytes(33), "schema"),
    ("encoding", "pickle", "encoding"),
    ("encoding", "", "encoding"),
    ("size", 0, "size"),
    ("size", -1, "size"),
    ("size", 2**46 + 1, "size"),
    ("size", 2**63, "size"),
    ("size", 65536 * 3 + 1, "digests"),
    ("size", 65536 * 2, "digests"),
    ("size", 1, "digests"),
    ("chunk_size", 0, "chunk_size"),
    ("chunk_size", -65536, "chunk_size"),
    ("chunk_size", 32768, "chunk_size"),
    ("chunk_size", 65537, "chunk_size"),
    ("chunk_size", 3 * 65536, "chunk_size"),
    ("chunk_size", 2 * CHUNK, "chunk_size"),
    ("chunk_size", 2**62, "chunk_size"),
    ("chunk_size", 131072, "digests"),
    ("digests", b"", "digests"),
    ("digests", bytes(64), "digests"),
    ("digests", bytes(95), "digests"),
    ("digests", bytes(128), "digests"),
    ("digests", bytes(DIGESTS_LIMIT + 32), "digests"),
    ("loss", math.nan, "loss"),
    ("loss", -math.inf, "loss"),
    ("previous", bytes(31), "previous"),
    ("parents", (bytes(31),), "parent"),
    ("parents", (bytes(32), b""), "parent"),
    ("parents", (bytes(32),) * 257, "parents"),
]


@pytest.mark.parametrize(("field", "value", "words"), LIES)
def test_lies_are_refused(field: str, value: Any, words: str) -> None:
    """A manifest that contradicts itself or a limit is refused and named."""
    with pytest.raises(ManifestError, match=words):
        replace(FULL, **{field: value})
    with pytest.raises(ManifestError, match=words):
        Manifest.from_bytes(wire.encode(FIELDS | {field: value}))


@pytest.mark.parametrize("field", sorted(set(FIELDS) - {"loss", "before", "after", "previous"}))
def test_what_must_be_there(field: str) -> None:
    """A missing field is named; parents may be missing and are none."""
    fields = {key: value for key, value in FIELDS.items() if key != field}
    if field == "parents":
        assert Manifest.from_bytes(wire.encode(fields)) == replace(FULL, parents=())
        return
    with pytest.raises(ManifestError, match=f"manifest.{field} is missing"):
        Manifest.from_bytes(wire.encode(fields))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_scores_are_finite(loss: float) -> None:
    """A diverged loss cannot be written; accuracy is a fraction."""
    with pytest.raises(ManifestError, match="loss"):
        Scores(loss)
    for accuracy in (-0.01, 1.01, 97.42, math.nan):
        with pytest.raises(ManifestError, match="accuracy"):
            Scores(1.0, accuracy)
        with pytest.raises(ManifestError, match="accuracy"):
            lie = FIELDS | {"after": {"loss": 1.0, "accuracy": accuracy}}
            Manifest.from_bytes(wire.encode(lie))
    with pytest.raises(ManifestError, match=r"manifest\.before\.loss"):
        Manifest.from_bytes(wire.encode(FIELDS | {"before": {"loss": loss}}))


def test_a_newer_peers_fields_are_ignored() -> None:
    """Unknown fields do no harm."""
    assert Manifest.from_bytes(wire.encode(FIELDS | {"zstd": {"level": 3}})) == FULL


def test_another_version_is_said_first() -> None:
    """A manifest of another version is refused for that, whatever else it holds."""
    with pytest.raises(ManifestError, match="version 9, this p2pnode reads version 1"):
        Manifest.from_bytes(wire.encode({"version": 9}))


def test_too_many_bytes() -> None:
    """More than 256 KiB are refused by size."""
    with pytest.raises(ManifestError, match="at most 262144"):
        Manifest.from_bytes(bytes(MANIFEST_LIMIT + 1))


NUMBERS = st.floats(0, 1e300)
DIGESTS = st.binary(min_size=32, max_size=32)
SCORES = st.none() | st.builds(Scores, NUMBERS, st.none() | st.floats(0, 1))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any manifest of a model of up to 1 MiB."""
    size = draw(st.integers(1, 2**20))
    chunk_size = 2 ** draw(st.integers(16, 20))
    created = draw(st.floats(0, 1e12))
    return Manifest(
        swarm=draw(st.text(min_size=1, max_size=64).filter(str.isprintable)),
        seq=draw(st.integers(0, wire.INTEGER)),
        epoch=draw(st.integers(0, wire.INTEGER)),
        age=draw(NUMBERS),
        created=created,
        expires=created + draw(st.floats(1, 1e12)),
        schema=draw(DIGESTS),
        size=size,
        chunk_size=chunk_size,
        digests=draw(DIGESTS) * math.ceil(size / chunk_size),
        samples=draw(st.integers(0, wire.INTEGER)),
        loss=draw(st.none() | NUMBERS),
        before=draw(SCORES),
        after=draw(SCORES),
        previous=draw(st.none() | DIGESTS),
        parents=tuple(draw(st.lists(DIGESTS, max_size=3))),
    )


@STEADY
@given(manifests())
def test_any_manifest_round_trips(manifest: Manifest) -> None:
    """Any manifest comes back as it was, and its chunks add up to its size."""
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert sum(map(manifest.chunk_length, range(manifest.chunks))) == manifest.size


def read_or_refuse(data: bytes) -> None:
    """The fuzz sentence: any bytes give a manifest that round-trips, or ManifestError."""
    try:
        manifest = Manifest.from_bytes(data)
    except ManifestError:
        return
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@STEADY
@given(st.binary(max_size=300))
def test_any_bytes_give_a_manifest_or_manifest_error(data: bytes) -> None:
    """Any bytes give a manifest or ManifestError."""
    read_or_refuse(data)


@STEADY
@given(
    st.dictionaries(
        st.sampled_from(sorted(FIELDS)),
        st.none()
        | st.integers(wire.INT_LOW, wire.INT_HIGH)
        | st.floats()
        | st.text(max_size=3)
        | st.binary(max_size=99)
        | st.lists(st.binary(max_size=33), max_size=2)
        | st.dictionaries(st.sampled_from(["loss", "accuracy"]), st.floats() | st.none()),
        max_size=3,
    )
)
def test_any_values_give_a_manifest_or_manifest_error(changes: dict[str, Any]) -> None:
    """So do a manifest's fields with any values in place of some."""
    read_or_refuse(wire.encode(FIELDS | changes))
