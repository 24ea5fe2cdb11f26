"""What is offered is checked, cheapest first, and nothing is fetched before all of it holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import NOW, SCHEMA, manifest, sealed

from lab import identity
from p2pnode.transport import admission, wire
from p2pnode.transport import identity as ids
from p2pnode.transport.admission import CLOCK_SKEW, Offered, Refusal, admit, identify
from p2pnode.transport.envelope import ENVELOPE_LIMIT, Kind, peek, seal
from p2pnode.transport.identity import Identity
from p2pnode.transport.manifest import EXPIRY
from p2pnode.transport.messages import Run

ALICE = identity(1)
RUN = Run("main", "mnist", SCHEMA, 1000, ())
DATA = b"model bytes" * 1000
MOST = 1 << 20
SEQ = 7


def offer(**fields: Any) -> bytes:
    """An envelope of Alice's."""
    return sealed(1, manifest(DATA, **{"seq": SEQ} | fields))


def judge(data: bytes, *, newest: int = SEQ - 1, most: int = MOST, now: float = NOW) -> Any:
    """Admit it, when `newest` is what we have of its author."""
    return admit(data, RUN, most, lambda _: newest, now)


def refused(data: bytes, **how: Any) -> str:
    """Why it isn't admitted."""
    with pytest.raises(Refusal) as caught:
        judge(data, **how)
    assert caught.value.detail
    return caught.value.reason


def test_a_good_offer_is_admitted() -> None:
    """What is admitted has its envelope verified and its manifest read."""
    admitted = judge(offer())
    assert isinstance(admitted, Offered)
    assert admitted.envelope.data == offer()
    assert admitted.envelope.peer_id == ALICE.peer_id
    assert admitted.manifest == manifest(DATA, seq=SEQ)


def test_what_is_here_already_is_no_refusal() -> None:
    """The same number again isn't fetched, and isn't a mistake."""
    assert judge(offer(), newest=SEQ) is None


def test_whoever_made_it_is_asked_for() -> None:
    """The number is compared with those of the author, not of who offers."""
    asked: list[str] = []

    def newest(peer: str) -> int:
        asked.append(peer)
        return -1

    admit(offer(), RUN, MOST, newest, NOW)
    assert asked == [ALICE.peer_id]


@pytest.mark.parametrize("data", [b"", b"garbage", bytes(ENVELOPE_LIMIT + 1), offer()[:-1]])
def test_garbage(data: bytes) -> None:
    """What isn't an envelope."""
    assert refused(data) == admission.GARBAGE


def test_lying_manifests() -> None:
    """What contradicts itself, or says a size that a model of this run can't have."""
    lie = wire.decode(manifest(DATA).to_bytes(), limit=1 << 20)
    assert isinstance(lie, dict)
    for fields in (
        {"size": 10 * len(DATA)},
        {"digests": bytes(64)},
        {"chunk_size": 1},
        {"seq": -1},
    ):
        assert refused(seal(ALICE, Kind.MANIFEST, wire.encode(lie | fields))) == admission.MANIFEST
    assert refused(offer(), most=len(DATA) - 1) == admission.MANIFEST
    assert judge(offer(), most=len(DATA))


def test_other_swarms_and_models() -> None:
    """Another swarm's model, and one of other tensors."""
    assert refused(offer(swarm="other")) == admission.SWARM
    assert refused(offer(schema=bytes([1]) * 32)) == admission.SCHEMA


def test_older_ones() -> None:
    """A number below the last, whatever else is right."""
    assert refused(offer(), newest=SEQ + 1) == admission.STALE


def test_expired_ones() -> None:
    """Judged by our clock, with room for clocks that are wrong by minutes."""
    assert judge(offer(), now=NOW + EXPIRY + CLOCK_SKEW)
    assert refused(offer(), now=NOW + EXPIRY + CLOCK_SKEW + 1) == admission.EXPIRED
    assert judge(offer(), now=NOW - CLOCK_SKEW)
    assert refused(offer(), now=NOW - CLOCK_SKEW - 1) == admission.EXPIRED
    assert refused(offer(expires=NOW + EXPIRY + 1)) == admission.EXPIRED


def test_wrong_signatures() -> None:
    """A flipped bit in the signature, another's name on it, and one made for another kind."""
    flipped = bytearray(offer())
    flipped[-1] ^= 1
    assert refused(bytes(flipped)) == admission.SIGNATURE
    as_bob = offer().replace(ALICE.public_key, identity(2).public_key)
    assert refused(as_bob) == admission.SIGNATURE
    record = seal(ALICE, Kind.PEER_RECORD, manifest(DATA, seq=SEQ).to_bytes())
    assert refused(record) == admission.SIGNATURE


def test_the_dearest_check_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature is only checked when everything else is right; reasons come in the order of
    docs/protocol/messages.md."""
    checked: list[bytes] = []

    def never(key: bytes, *_: bytes) -> bool:
        checked.append(key)
        return False

    monkeypatch.setattr(ids, "verify", never)
    wrong = {
        "expires": NOW + EXPIRY + 1,
        "seq": SEQ - 2,
        "schema": bytes([1]) * 32,
        "swarm": "other",
    }
    reasons = [admission.EXPIRED, admission.STALE, admission.SCHEMA, admission.SWARM]
    fields: dict[str, Any] = {}
    for (name, value), reason in zip(wrong.items(), reasons, strict=True):
        fields[name] = value
        assert refused(offer(**fields)) == reason
    assert checked == []
    assert refused(offer()) == admission.SIGNATURE
    assert checked == [ALICE.public_key]


def test_any_bytes_have_a_name() -> None:
    """A refusal can name what it refuses, envelope or not."""
    assert identify(offer()) == peek(offer()).id
    assert len(identify(b"")) == 32


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    """Any bytes give a value or a Refusal."""
    assert refused(data) == admission.GARBAGE


SIGNER = Identity.from_seed(bytes(32))


@given(st.binary(max_size=300))
def test_any_signed_bytes_are_refused(payload: bytes) -> None:
    """A valid signature makes no manifest."""
    assert refused(seal(SIGNER, Kind.MANIFEST, payload)) == admission.MANIFEST


@given(st.data())
def test_any_damage_is_refused(data: st.DataObject) -> None:
    """Whatever is changed in an envelope, it isn't admitted."""
    damaged = bytearray(offer())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    if damaged != offer():
        refused(bytes(damaged), newest=-1)


@given(st.integers(0, 2**63 - 1), st.integers(-1, 2**63 - 1), st.floats(0, 2**40))
def test_only_newer_models_of_today(seq: int, newest: int, now: float) -> None:
    """For any numbers and clocks: admitted means newer, and made and not expired by our clock."""
    try:
        admitted = judge(sealed(1, replace(manifest(DATA), seq=seq)), newest=newest, now=now)
    except Refusal as refusal:
        assert refusal.reason in (admission.STALE, admission.EXPIRED)
        return
    if admitted is None:
        assert seq == newest
    else:
        assert seq > newest
        assert NOW - CLOCK_SKEW <= now <= NOW + EXPIRY + CLOCK_SKEW
