"""A few bytes for one member alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.transport.errors import MembershipError
from p2pnode.transport.membership.hpke import (
    OVERHEAD_HYBRID,
    OVERHEAD_X25519,
    KemPrivate,
    KemPublic,
    hybrid_works,
    open_with,
    seal_to,
)

ALICE, BOB = KemPrivate.generate(), KemPrivate.generate()


def sealed(public: KemPublic, **how: bool) -> bytes:
    """A secret for the owner of these keys."""
    return seal_to(public, b"secret", swarm="~ours", purpose=b"generation", **how)


def opened(private: KemPrivate, data: bytes) -> bytes:
    """What the owner of these keys reads."""
    return open_with(private, data, swarm="~ours", purpose=b"generation")


def test_the_member_opens_it() -> None:
    """With the hybrid where this build has it, else with X25519."""
    data = sealed(ALICE.public)
    assert opened(ALICE, data) == b"secret"
    assert len(data) == 6 + (OVERHEAD_HYBRID if hybrid_works() else OVERHEAD_X25519)
    with pytest.raises(MembershipError, match="not sealed to this member"):
        opened(BOB, data)


def test_a_member_without_the_hybrid() -> None:
    """Who has X25519 alone is sealed to with that, and so is everybody where space is short."""
    old = KemPrivate(ALICE.x25519)
    assert opened(old, sealed(KemPublic(ALICE.public.x25519))) == b"secret"
    small = sealed(ALICE.public, hybrid=False)
    assert len(small) == 6 + OVERHEAD_X25519
    assert opened(old, small) == b"secret"


def test_this_build_without_the_hybrid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build without ML-KEM seals with X25519, announces no hybrid key, and opens no hybrid."""
    from p2pnode.transport.membership import hpke

    public, data = ALICE.public, sealed(ALICE.public)
    monkeypatch.setattr(hpke, "hybrid_works", lambda: False)
    assert ALICE.public.hybrid is None
    assert KemPrivate.generate().hybrid is None
    assert len(sealed(public)) == 6 + OVERHEAD_X25519
    with pytest.raises(MembershipError, match="doesn't have"):
        opened(ALICE, data)


@pytest.mark.parametrize("hybrid", [True, False])
def test_it_opens_in_one_place_only(hybrid: bool) -> None:
    """Another swarm, purpose or belonging opens nothing."""
    data = seal_to(
        ALICE.public, b"x", swarm="~ours", purpose=b"model", bound=b"salt", hybrid=hybrid
    )
    assert open_with(ALICE, data, swarm="~ours", purpose=b"model", bound=b"salt") == b"x"
    for swarm, purpose, bound in (
        ("~other", b"model", b"salt"),
        ("~ours", b"other", b"salt"),
        ("~ours", b"model", b"other"),
    ):
        with pytest.raises(MembershipError):
            open_with(ALICE, data, swarm=swarm, purpose=purpose, bound=bound)


def test_keys_that_are_none() -> None:
    """Keys of another length are refused, and so are points that anybody could open."""
    with pytest.raises(MembershipError, match="32 bytes"):
        KemPublic(b"short")
    with pytest.raises(MembershipError, match="1216 bytes"):
        KemPublic(b"x" * 32, b"short")
    with pytest.raises(MembershipError, match="nothing can be sealed"):
        sealed(KemPublic(bytes(32)))


@given(st.sampled_from([b"", b"\1", b"\2", b"\3"]), st.binary(max_size=1300))
def test_any_bytes(mark: bytes, data: bytes) -> None:
    """Any bytes are no message to this member."""
    with pytest.raises(MembershipError):
        opened(ALICE, mark + data)
