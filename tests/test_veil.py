"""transport/veil.py: what strangers see of a private swarm's manifests, and what members read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from golden import golden
from hypothesis import given
from hypothesis import strategies as st
from models import manifest
from sealing import OLD, OTHERS, SECRETS

from p2pnode.transport.errors import SealedError, TransportError, UnknownGeneration
from p2pnode.transport.manifest import (
    DIGEST,
    DIGESTS_LIMIT,
    MANIFEST_LIMIT,
    PARENTS_LIMIT,
    RECIPIENTS_LIMIT,
    Manifest,
    Scores,
    chunk_size_for,
)
from p2pnode.transport.veil import plain, unveil, veil

TRUE = manifest(
    b"ciphertext" * 20_000,
    swarm=SECRETS.id,
    seq=7,
    epoch=3,
    age=2.5,
    samples=20_000,
    schema=bytes(range(32)),
    encoding="int8",
    loss=0.125,
    before=Scores(0.25, 0.96875),
    after=Scores(0.2),
    previous=bytes([8]) * 32,
    parents=(bytes([9]) * 32,),
    recipients=("12D3KooWalice",),
)


def test_members_read_what_was_veiled() -> None:
    """The true manifest comes back, also after it travelled as bytes."""
    assert unveil(veil(TRUE, SECRETS), SECRETS) == TRUE
    assert unveil(Manifest.from_bytes(veil(TRUE, SECRETS).to_bytes()), SECRETS) == TRUE


def test_golden_manifest() -> None:
    """The bytes in docs/protocol/sealed.md open to what stands there."""
    outer = Manifest.from_bytes(golden("manifest-sealed"))
    true = unveil(outer, SECRETS)
    assert (true.epoch, true.age, true.samples, true.loss) == (3, 2.5, 20000, 0.125)
    assert true.schema == bytes(range(32))
    assert (outer.swarm, outer.epoch, outer.samples) == (SECRETS.id, 0, 0)


def test_strangers_see_sizes_and_times_only() -> None:
    """No score, no lineage, no schema, no recipient; what a relay needs is as it is."""
    outer = veil(TRUE, SECRETS)
    neutral: dict[str, Any] = {"epoch": 0, "age": 0.0, "samples": 0, "loss": None, "before": None}
    neutral |= {"after": None, "previous": None, "parents": (), "recipients": ()}
    neutral |= {"schema": SECRETS.blind(TRUE.schema)}
    assert outer == replace(TRUE, **neutral, sealed=outer.sealed)
    data = outer.to_bytes()
    for secret in (TRUE.schema, TRUE.previous, *TRUE.parents, b"12D3KooWalice"):
        assert secret not in data  # type: ignore[operator]
    assert plain(outer) is outer


def test_each_veil_is_another() -> None:
    """The same values sealed twice have nothing in common."""
    one, two = veil(TRUE, SECRETS).sealed, veil(TRUE, SECRETS).sealed
    assert one is not None and two is not None
    assert one[4:] != two[4:]


def test_values_of_one_model_are_not_those_of_another() -> None:
    """What is sealed belongs to these digests and this swarm."""
    outer = veil(TRUE, SECRETS)
    other = bytes([1]) * DIGEST + outer.digests[DIGEST:]
    for moved in (replace(outer, digests=other), replace(outer, swarm="~other")):
        with pytest.raises(SealedError, match="altered, or is of another model or swarm"):
            unveil(moved, SECRETS)


def test_each_altered_byte_is_noticed() -> None:
    """Generation, salt, values and tag."""
    outer = veil(TRUE, SECRETS)
    assert outer.sealed is not None
    for place in range(len(outer.sealed)):
        data = bytearray(outer.sealed)
        data[place] ^= 1
        with pytest.raises(TransportError):
            unveil(replace(outer, sealed=bytes(data)), SECRETS)


def test_a_schema_that_relays_are_told_otherwise() -> None:
    """Who tells relays one schema and members another is refused."""
    outer = replace(veil(TRUE, SECRETS), schema=bytes(32))
    with pytest.raises(SealedError, match="one schema to members and another to relays"):
        unveil(outer, SECRETS)


def test_who_was_removed_reads_no_newer_manifest() -> None:
    """After a rotation the old secrets say which generation is missing."""
    with pytest.raises(UnknownGeneration, match="number 2; the newest here is 1"):
        unveil(veil(TRUE, SECRETS), OLD)
    assert unveil(veil(TRUE, OLD), SECRETS) == TRUE  # what was sealed before is still read


def test_other_swarms_and_open_manifests() -> None:
    """Other secrets open nothing, and an open manifest is none of a private swarm."""
    with pytest.raises(SealedError):
        unveil(veil(TRUE, SECRETS), OTHERS)
    with pytest.raises(SealedError, match="isn't sealed"):
        unveil(TRUE, SECRETS)


def test_the_largest_manifest_fits() -> None:
    """All digests, parents and recipients there may be, and a relay's room beside the digests."""
    size = DIGESTS_LIMIT // DIGEST * 2**20
    largest = replace(
        TRUE,
        size=size,
        chunk_size=chunk_size_for(size),
        digests=bytes(DIGESTS_LIMIT),
        parents=(bytes(32),) * PARENTS_LIMIT,
        recipients=("1" * 52,) * RECIPIENTS_LIMIT,
    )
    data = veil(largest, SECRETS).to_bytes()
    assert len(data) <= MANIFEST_LIMIT
    assert unveil(Manifest.from_bytes(data), SECRETS) == largest


def test_open_manifests_have_no_new_bytes() -> None:
    """A manifest without recipients and seal is encoded as it always was."""
    assert b"sealed" not in manifest(b"x").to_bytes()
    assert b"recipients" not in manifest(b"x").to_bytes()


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_values_or_an_error(data: bytes) -> None:
    """Fuzz: any sealed field gives the documented errors."""
    with pytest.raises(TransportError):
        unveil(replace(TRUE, recipients=(), sealed=data), SECRETS)
