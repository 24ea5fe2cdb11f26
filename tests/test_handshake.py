"""Two strangers become two known peers, or neither learns more than that it failed."""

from __future__ import annotations

import contextlib

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from golden import golden
from hypothesis import given
from hypothesis import strategies as st

from lab import identity
from p2pnode.transport import handshake
from p2pnode.transport.errors import HandshakeError
from p2pnode.transport.handshake import (
    HELLO_SIZE,
    MAGIC_SIZE,
    PROOF_SIZE,
    REPLY_SIZE,
    Acceptor,
    Dialler,
    Sealer,
    Session,
    is_punch,
    magic,
    yields,
)
from p2pnode.transport.identity import Identity

ALICE, BOB, EVE = identity(1), identity(2), identity(3)
# The ephemeral keys of the golden handshake.
ALICES, BOBS = bytes(range(32)), bytes(range(32, 64))


def both(
    expect: str | None = None, alice: Identity = ALICE, bob: Identity = BOB
) -> tuple[Session, Session]:
    """A whole handshake: the dialler's session and the acceptor's."""
    dialler, acceptor = Dialler(alice, "peer", expect), Acceptor(bob, ["peer"])
    proof, here = dialler.finish(acceptor.reply(dialler.hello()))
    return here, acceptor.finish(proof)


def test_each_learns_who_the_other_is() -> None:
    """Both sides have proved their peer IDs, and each sealer opens with the other's."""
    here, there = both(BOB.peer_id)
    assert (here.peer, there.peer) == (BOB.peer_id, ALICE.peer_id)
    for sender, receiver in ((here.sender, there.receiver), (there.sender, here.receiver)):
        for message in (b"one", b"", b"two"):
            assert receiver.open(sender.seal(message)) == message


def test_golden_handshake() -> None:
    """With the ephemeral keys 00…1f and 20…3f each message has the golden bytes."""
    dialler, acceptor = Dialler(ALICE, "peer", None, ALICES), Acceptor(BOB, ["peer"], BOBS)
    assert dialler.hello() == golden("handshake-hello")
    assert acceptor.reply(dialler.hello()) == golden("handshake-reply")
    proof, here = dialler.finish(golden("handshake-reply"))
    assert proof == golden("handshake-proof")
    there = acceptor.finish(golden("handshake-proof"))
    sealed = here.sender.seal(b"ping")
    assert sealed == golden("handshake-first-message")
    assert there.receiver.open(sealed) == b"ping"


def test_the_sizes_are_fixed() -> None:
    """No byte of what follows is read as part of the handshake."""
    assert len(golden("handshake-hello")) == HELLO_SIZE
    assert len(golden("handshake-reply")) == REPLY_SIZE
    assert len(golden("handshake-proof")) == PROOF_SIZE


def test_every_handshake_has_keys_of_its_own() -> None:
    """What was sealed in one session opens in no other."""
    (here, _), (_, there) = both(), both()
    with pytest.raises(HandshakeError):
        there.receiver.open(here.sender.seal(b"message"))


def test_identities_are_hidden_from_onlookers() -> None:
    """Neither public key stands in the bytes that cross the network."""
    seen = golden("handshake-hello") + golden("handshake-reply") + golden("handshake-proof")
    assert ALICE.public_key not in seen
    assert BOB.public_key not in seen


def test_the_wrong_peer_is_told_by_name() -> None:
    """Who answers in another's place is not accepted, and learns nothing of who dialled."""
    dialler, acceptor = Dialler(ALICE, "peer", EVE.peer_id), Acceptor(BOB, ["peer"])
    with pytest.raises(HandshakeError, match=f"{BOB.peer_id} answered, not {EVE.peer_id}"):
        dialler.finish(acceptor.reply(dialler.hello()))


# ── somebody in between ──────────────────────────────────────────────────────────────────────


def test_a_relay_that_answers_with_its_own_key_is_seen() -> None:
    """Eve can't hold two handshakes and pass on the proofs: they are bound to the transcript."""
    alice, eve_in = Dialler(ALICE, "peer", BOB.peer_id), Acceptor(EVE, ["peer"])
    eve_out, bob = Dialler(EVE, "peer", None), Acceptor(BOB, ["peer"])
    eve_in.reply(alice.hello())
    reply = bob.reply(eve_out.hello())
    with pytest.raises(HandshakeError, match="altered"):
        alice.finish(reply)


def test_a_proof_signed_by_another_key_is_refused() -> None:
    """Eve knows the session key of her own handshake, but can't sign as Bob."""

    class Liar(Acceptor):
        def _prove(self, role: bytes, bound: bytes, sealer: Sealer) -> bytes:
            return sealer.seal(BOB.public_key + EVE.sign(role + bound), bound)

    dialler = Dialler(ALICE, "peer", BOB.peer_id)
    with pytest.raises(HandshakeError, match="signature is wrong"):
        dialler.finish(Liar(EVE, "peer", None).reply(dialler.hello()))


def test_a_proof_can_t_be_sent_back() -> None:
    """Each side signs its own role: a reflected proof proves nothing."""
    dialler, acceptor = Dialler(ALICE, "peer", None), Acceptor(BOB, ["peer"])
    reply = acceptor.reply(dialler.hello())
    dialler.finish(reply)
    with pytest.raises(HandshakeError):
        acceptor.finish(reply[HELLO_SIZE:])


def test_a_replayed_proof_is_refused() -> None:
    """What proved Alice yesterday proves nothing today."""
    dialler, yesterday = Dialler(ALICE, "peer", None, ALICES), Acceptor(BOB, ["peer"], BOBS)
    proof, _ = dialler.finish(yesterday.reply(dialler.hello()))
    today = Acceptor(BOB, ["peer"])
    today.reply(dialler.hello())
    with pytest.raises(HandshakeError):
        today.finish(proof)


@pytest.mark.parametrize("at", range(0, REPLY_SIZE))
def test_any_altered_byte_of_the_reply_is_seen(at: int) -> None:
    """One flipped bit anywhere, and the dialler refuses."""
    dialler, acceptor = Dialler(ALICE, "peer", None, ALICES), Acceptor(BOB, ["peer"], BOBS)
    reply = bytearray(acceptor.reply(dialler.hello()))
    # The top bit of an X25519 key has no meaning (RFC 7748), but the transcript holds it.
    reply[at] ^= 0x80
    with pytest.raises(HandshakeError):
        dialler.finish(bytes(reply))


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31)])
def test_keys_that_give_no_secret_are_refused(key: bytes) -> None:
    """X25519 keys of small order, with which everybody knows the shared secret."""
    with pytest.raises(HandshakeError, match="unusable X25519 key"):
        Acceptor(BOB, ["peer"]).reply(magic("peer") + key)


# The points of small order, as libsodium lists them.
SMALL = [
    *(y.to_bytes(32, "little") for y in (0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18)),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
]


@pytest.mark.parametrize("key", [*SMALL, *(k[:-1] + bytes([k[-1] | 0x80]) for k in SMALL)])
def test_identities_for_which_anybody_can_sign_are_refused(key: bytes) -> None:
    """With an Ed25519 key of small order one signature fits (nearly) every message."""
    anybodys = b"\x01" + bytes(31) + bytes(32)
    for number in range(64):
        proof = Sealer(bytes(32)).seal(key + anybodys, b"bound")
        with pytest.raises(HandshakeError, match="signature is wrong"):
            handshake._check(proof, bytes([number]), b"bound", Sealer(bytes(32)))


# ── the other service ────────────────────────────────────────────────────────────────────────


def test_another_service_is_named() -> None:
    """A peer that reaches a tracker is told so, by either side."""
    acceptor, dialler = Acceptor(BOB, ["tracker"]), Dialler(ALICE, "peer", None)
    with pytest.raises(HandshakeError, match="the other end is a peer, not a tracker"):
        acceptor.reply(dialler.hello())
    with pytest.raises(HandshakeError, match="the other end is a tracker, not a peer"):
        dialler.check_magic(acceptor.refusal())


def test_one_port_with_several_services() -> None:
    """The dialler says which it wants, and gets that one; another is named."""
    acceptor = Acceptor(BOB, ["peer", "relay"])
    dialler = Dialler(ALICE, "relay", None)
    proof, _ = dialler.finish(acceptor.reply(dialler.hello()))
    assert acceptor.finish(proof).peer == ALICE.peer_id
    assert acceptor.service == "relay"
    with pytest.raises(HandshakeError, match="is a tracker, not a peer or a relay"):
        Acceptor(BOB, ["peer", "relay"]).reply(Dialler(ALICE, "tracker", None).hello())


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 400 Bad Requ",
        b"p2pnode/2 peer\n\n\n\n\n\n",
        b"p2pnode/1 \x1b[2J\x07\n\n\n\n\n",
        b"",
    ],
)
def test_other_protocols_are_not_shown(first: bytes) -> None:
    """What isn't ours may hold anything, so it is neither shown nor counted under its own name."""
    with pytest.raises(HandshakeError) as caught:
        Dialler(ALICE, "peer", None).check_magic(first[:MAGIC_SIZE])
    assert str(caught.value).endswith("the other end does not speak p2pnode/1")


# ── sealed messages ──────────────────────────────────────────────────────────────────────────


def test_messages_open_once_and_in_order() -> None:
    """One that is repeated, left out, swapped or altered doesn't open."""
    here, _ = both()
    one, two = here.sender.seal(b"one"), here.sender.seal(b"two")
    for wrong in (two, one[:-1], one[:3], b"", one + b"x", bytes([one[0] ^ 1]) + one[1:]):
        _, there = both()
        with pytest.raises(HandshakeError, match="altered, replayed or reordered"):
            there.receiver.open(wrong)


def test_sealing_is_aes_gcm_with_a_counter() -> None:
    """Any AES-256-GCM opens what was sealed: the nonce is the number of the message."""
    sealer, key = Sealer(bytes(32)), AESGCM(bytes(32))
    for number in range(3):
        sealed = sealer.seal(b"message", b"bound")
        assert key.decrypt(number.to_bytes(12, "big"), sealed, b"bound") == b"message"
        with pytest.raises(InvalidTag):
            key.decrypt(number.to_bytes(12, "big"), sealed, b"")


# ── through a punched hole ───────────────────────────────────────────────────────────────────


def test_golden_punched_handshake() -> None:
    """Bob, the lower of the two, stays the dialler; each message has the golden bytes."""
    bob = Dialler(BOB, "peer", ALICE.peer_id, BOBS, punching=True)
    alice = Acceptor(ALICE, ["peer"], ALICES, expect=BOB.peer_id)
    assert bob.hello() == golden("punch-hello")
    assert alice.reply(bob.hello()) == golden("punch-reply")
    proof, here = bob.finish(golden("punch-reply"))
    assert proof == golden("punch-proof")
    there = alice.finish(golden("punch-proof"))
    assert (here.peer, there.peer, alice.punched) == (ALICE.peer_id, BOB.peer_id, True)
    assert there.receiver.open(here.sender.seal(b"ping")) == b"ping"


def test_a_hello_that_crosses_is_never_taken_for_a_reply() -> None:
    """They differ in the first 20 bytes, so either side knows which of the two it has got."""
    hello, reply = golden("punch-hello"), golden("punch-reply")
    assert (is_punch(hello), is_punch(reply)) == (True, False)
    assert not any(is_punch(magic(service)) for service in ("peer", "tracker", "relay"))
    with pytest.raises(HandshakeError, match="does not speak"):
        Dialler(ALICE, "peer", BOB.peer_id, punching=True).finish(hello.ljust(REPLY_SIZE))


def test_exactly_one_of_two_yields() -> None:
    """Whoever the two are, they agree on who stays the dialler."""
    for one in range(1, 9):
        for other in range(one + 1, 9):
            ids = identity(one).peer_id, identity(other).peer_id
            assert yields(*ids) != yields(*reversed(ids))


def test_a_listener_takes_a_punched_hello_for_the_peer_service() -> None:
    """And knows that it was one; what offers no peers refuses it by name."""
    dialler, acceptor = (
        Dialler(ALICE, "peer", None, punching=True),
        Acceptor(BOB, ["relay", "peer"]),
    )
    proof, _ = dialler.finish(acceptor.reply(dialler.hello()))
    assert acceptor.finish(proof).peer == ALICE.peer_id
    assert (acceptor.service, acceptor.punched) == ("peer", True)
    with pytest.raises(HandshakeError, match="is a peer, not a tracker"):
        Acceptor(BOB, ["tracker"]).reply(dialler.hello())


def test_the_kind_of_hello_is_bound() -> None:
    """Who turns a punched hello into a plain one on the way, or back, is found out."""
    for punching in (True, False):
        dialler, acceptor = Dialler(ALICE, "peer", None, punching=punching), Acceptor(BOB, ["peer"])
        other = Dialler(ALICE, "peer", None, punching=not punching).hello()[:MAGIC_SIZE]
        with pytest.raises(HandshakeError, match="altered"):
            dialler.finish(acceptor.reply(other + dialler.hello()[MAGIC_SIZE:]))


def test_an_acceptor_may_expect_a_peer() -> None:
    """Who proves to be another than the one that was called is refused."""
    dialler, acceptor = Dialler(EVE, "peer", None), Acceptor(BOB, ["peer"], expect=ALICE.peer_id)
    proof, _ = dialler.finish(acceptor.reply(dialler.hello()))
    with pytest.raises(HandshakeError, match=f"{EVE.peer_id} answered, not {ALICE.peer_id}"):
        acceptor.finish(proof)


def test_our_own_hello_sent_back_leads_nowhere() -> None:
    """Whoever reflects what we say has no key to go on with, whichever role we take."""
    hello = Dialler(ALICE, "peer", BOB.peer_id, ALICES, punching=True).hello()
    acceptor = Acceptor(ALICE, ["peer"], BOBS, expect=BOB.peer_id)
    reply = acceptor.reply(hello)
    for proof in (reply[HELLO_SIZE:], bytes(PROOF_SIZE)):
        with pytest.raises(HandshakeError):
            acceptor.finish(proof)


# ── any bytes ────────────────────────────────────────────────────────────────────────────────


@given(st.binary(max_size=2 * REPLY_SIZE))
def test_any_bytes_fail_with_the_documented_error(data: bytes) -> None:
    """Whatever a stranger sends at any step, it is a HandshakeError."""
    with pytest.raises(HandshakeError):
        Dialler(ALICE, "peer", None, ALICES).finish(data)
    with pytest.raises(HandshakeError):
        Dialler(ALICE, "peer", None, ALICES).finish(magic("peer") + data)
    acceptor = Acceptor(BOB, ["peer"], BOBS)
    with contextlib.suppress(HandshakeError):
        acceptor.reply((magic("peer") + data)[:HELLO_SIZE])
        with pytest.raises(HandshakeError):
            acceptor.finish(data)
