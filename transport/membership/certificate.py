"""CORE: who is a member, as everybody can check: owner → (invite →) member → its keys.

    certificate = [keys, member]            the owner made the peer a member
                | [keys, member, invite]    somebody with an invite did

Three signed envelopes. `invite` is the owner's word that whoever holds an invite key may make
members, until when, and when they stop being members. `member` is the word of the owner or of that
invite key that a peer is a member. `keys` is the member's own word which keys others seal to, so
that another holder of the same invite can't put keys in its name. Nobody needs to be online.

Deviations from the first design: the third envelope and its kind "member-keys"; an invite says
`ends` beside `expires`, as only the first can be enforced (who joins writes the time itself).
"""

from dataclasses import dataclass
from typing import Final

from .. import wire
from ..envelope import Kind, peek, seal
from ..errors import EnvelopeError, MembershipError, WireError
from ..identity import KEY_SIZE, Identity, peer_id
from ..manifest import SWARM_LIMIT
from ..wire import INTEGER, Fields
from .hpke import HYBRID_PUBLIC, X25519_SIZE, KemPublic

CERTIFICATE_LIMIT: Final = 2560
"""Bytes; with invite and hybrid keys there are 1.9 KB, and a peer's record has room for it."""

VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class InviteTerms:
    """What the owner says of an invite key: Unix seconds, 0 for never.

    Until `expires` peers may join with it; at `ends` those who did are members no more.
    """

    key: bytes
    expires: int = 0
    ends: int = 0


@dataclass(frozen=True, slots=True)
class Certificate:
    """A member, verified. `invite` is the invite's public key, None where the owner signed."""

    member: str
    invite: bytes | None
    kem: KemPublic
    created: int
    ends: int
    data: bytes

    def lasts(self, now: float) -> bool:
        """Whether the membership has not ended by itself."""
        return not self.ends or now < self.ends


def seal_invite(owner: Identity, swarm_id: str, terms: InviteTerms) -> bytes:
    """The owner's word for an invite key, as an envelope: always the same bytes for the same."""
    return seal(
        owner,
        Kind.INVITE,
        wire.encode(
            {
                "version": VERSION,
                "swarm": swarm_id,
                "key": terms.key,
                "expires": terms.expires,
                "ends": terms.ends,
            }
        ),
    )


def issue(
    issuer: Identity,
    invite: bytes | None,
    member: Identity,
    kem: KemPublic,
    swarm_id: str,
    now: float,
) -> bytes:
    """A certificate: the issuer (the owner, or the key of this invite) makes a peer a member."""
    word = {"version": VERSION, "swarm": swarm_id, "member": member.public_key, "created": int(now)}
    keys = {"version": VERSION, "swarm": swarm_id, "x25519": kem.x25519}
    if kem.hybrid is not None:
        keys["hybrid"] = kem.hybrid
    parts = [
        seal(member, Kind.MEMBER_KEYS, wire.encode(keys)),
        seal(issuer, Kind.MEMBER, wire.encode(word)),
    ]
    return wire.encode(parts if invite is None else [*parts, invite])


def open_certificate(data: bytes, owner: bytes, swarm_id: str, now: float) -> Certificate:
    """The member that this certificate makes, as of now. Raises MembershipError."""
    keys, member, *invites = _parts(data)
    terms = _terms(invites[0], owner, swarm_id) if invites else None
    word = _word(member, Kind.MEMBER, terms.key if terms else owner, swarm_id)
    try:
        public = word.bytes("member", KEY_SIZE, KEY_SIZE)
        created = word.integer("created")
        said = _word(keys, Kind.MEMBER_KEYS, public, swarm_id)
        kem = KemPublic(
            said.bytes("x25519", X25519_SIZE, X25519_SIZE),
            said.bytes("hybrid", HYBRID_PUBLIC, HYBRID_PUBLIC, default=None),
        )
    except WireError as error:
        raise MembershipError(str(error)) from None
    invite, ends = (terms.key, terms.ends) if terms else (None, 0)
    if terms and terms.expires and created > terms.expires:
        raise MembershipError("the peer joined after its invite had expired")
    found = Certificate(peer_id(public), invite, kem, created, ends, data)
    if not found.lasts(now):
        raise MembershipError("the peer's membership has ended: it needs a new invite")
    return found


def open_invite(data: bytes, owner: bytes, swarm_id: str) -> InviteTerms:
    """What an owner said of an invite key. Raises MembershipError."""
    return _terms(data, owner, swarm_id)


def _parts(data: bytes) -> list[bytes]:
    try:
        parts = wire.decode(data, limit=CERTIFICATE_LIMIT)
    except WireError as error:
        raise MembershipError(f"no certificate: {error}") from None
    match parts:
        case [bytes(keys), bytes(member)]:
            return [keys, member]
        case [bytes(keys), bytes(member), bytes(invite)]:
            return [keys, member, invite]
    raise MembershipError("a certificate has two or three envelopes")


def _terms(data: bytes, owner: bytes, swarm_id: str) -> InviteTerms:
    said = _word(data, Kind.INVITE, owner, swarm_id)
    try:
        return InviteTerms(
            said.bytes("key", KEY_SIZE, KEY_SIZE),
            said.integer("expires", 0, INTEGER),
            said.integer("ends", 0, INTEGER),
        )
    except WireError as error:
        raise MembershipError(str(error)) from None


def _word(data: bytes, kind: Kind, signer: bytes, swarm_id: str) -> Fields:
    """What one signer said of this swarm in an envelope of this kind. Raises MembershipError."""
    what = f"the certificate's {kind.decode()}"
    try:
        envelope = peek(data, limit=CERTIFICATE_LIMIT)
        if envelope.public_key != signer:
            raise MembershipError(f"{what} was signed by somebody else")
        payload = envelope.verify(kind).payload
        fields = Fields.parse(payload, what=kind.decode(), limit=CERTIFICATE_LIMIT)
        version, swarm = fields.integer("version"), fields.text("swarm", SWARM_LIMIT)
    except (EnvelopeError, WireError) as error:
        raise MembershipError(f"{what}: {error}") from None
    if version != VERSION or swarm != swarm_id:
        raise MembershipError(f"{what} is for another swarm")
    return fields
