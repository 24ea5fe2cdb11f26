"""Who is a member: certificates that the owner, or somebody with an invite, made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.transport import wire
from p2pnode.transport.errors import MembershipError
from p2pnode.transport.identity import Identity
from p2pnode.transport.membership.certificate import (
    CERTIFICATE_LIMIT,
    InviteTerms,
    issue,
    open_certificate,
    seal_invite,
)
from p2pnode.transport.membership.hpke import KemPrivate
from p2pnode.transport.membership.secrets import SwarmSecrets

OWNER, INVITE, ALICE, MALLORY = (Identity.from_seed(bytes([n]) * 32) for n in range(1, 5))
SWARM = SwarmSecrets("ours", OWNER.public_key, b"r" * 32, ((1, b"g" * 32),)).id
KEYS = KemPrivate.generate()
NOW = 1_800_000_000.0


def invited(member: Identity = ALICE, expires: int = 0, ends: int = 0, at: float = NOW) -> bytes:
    """A certificate made with an invite on these terms."""
    invite = seal_invite(OWNER, SWARM, InviteTerms(INVITE.public_key, expires, ends))
    return issue(INVITE, invite, member, KEYS.public, SWARM, at)


def refuse(data: bytes, why: str = ".", swarm: str = SWARM, now: float = NOW) -> None:
    """The certificate is refused, for this reason."""
    with pytest.raises(MembershipError, match=why):
        open_certificate(data, OWNER.public_key, swarm, now)


def test_the_owner_makes_a_member() -> None:
    """What the owner signed names the member and the keys that others seal to."""
    data = issue(OWNER, None, ALICE, KEYS.public, SWARM, NOW)
    found = open_certificate(data, OWNER.public_key, SWARM, NOW)
    assert (found.member, found.invite, found.kem) == (ALICE.peer_id, None, KEYS.public)
    assert found.data == data


def test_an_invite_makes_a_member() -> None:
    """Who has an invite joins without the owner, and the certificate says with which invite."""
    data = invited()
    found = open_certificate(data, OWNER.public_key, SWARM, NOW)
    assert (found.member, found.invite) == (ALICE.peer_id, INVITE.public_key)
    assert len(data) <= CERTIFICATE_LIMIT


def test_an_invite_of_somebody_else_makes_nobody_a_member() -> None:
    """An invite that the owner did not sign, or signed for another key, is worth nothing."""
    terms = InviteTerms(INVITE.public_key)
    foreign = seal_invite(MALLORY, SWARM, terms)
    refuse(issue(INVITE, foreign, ALICE, KEYS.public, SWARM, NOW), "signed by somebody else")
    good = seal_invite(OWNER, SWARM, terms)
    refuse(issue(MALLORY, good, ALICE, KEYS.public, SWARM, NOW), "signed by somebody else")
    refuse(issue(MALLORY, None, ALICE, KEYS.public, SWARM, NOW), "signed by somebody else")


def test_nobody_puts_keys_in_another_s_name() -> None:
    """With the same invite Mallory can't make a certificate of Alice that has Mallory's keys."""
    alice, mallory = (
        wire.decode(invited(who), limit=CERTIFICATE_LIMIT) for who in (ALICE, MALLORY)
    )
    assert isinstance(alice, list)
    assert isinstance(mallory, list)
    refuse(wire.encode([mallory[0], *alice[1:]]), "signed by somebody else")


def test_another_swarm_s_certificate() -> None:
    """A certificate holds in one swarm, also where the owner has several."""
    refuse(invited(), "another swarm", swarm="~other")


def test_times() -> None:
    """Nobody joins after an invite expired, and a membership ends when the owner said."""
    open_certificate(invited(expires=int(NOW)), OWNER.public_key, SWARM, NOW + 1e6)
    refuse(invited(expires=int(NOW) - 1), "expired")
    open_certificate(invited(ends=int(NOW) + 1), OWNER.public_key, SWARM, NOW)
    refuse(invited(ends=int(NOW)), "ended")


def test_every_changed_byte_is_noticed() -> None:
    """Whatever byte of a certificate changes, it makes nobody a member."""
    data = invited()
    for at in range(0, len(data), 7):
        refuse(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@given(st.binary(max_size=200) | st.lists(st.binary(max_size=90), max_size=4).map(wire.encode))
def test_any_bytes(data: bytes) -> None:
    """Any bytes give a certificate or MembershipError."""
    refuse(data)
