"""Envelopes are COSE_Sign1 that any COSE library reads; nothing else opens as one."""

import json
from typing import Any

import cbor2
import pytest
from blake3 import blake3
from golden import FOLDER, golden
from hypothesis import given, settings
from hypothesis import strategies as st
from pycose.algorithms import EdDSA
from pycose.headers import KID, Algorithm
from pycose.keys.curves import Ed25519
from pycose.keys.okp import OKPKey
from pycose.messages.sign1message import Sign1Message

from p2pnode.transport import envelope, wire
from p2pnode.transport import identity as ids
from p2pnode.transport.envelope import Kind, peek, seal
from p2pnode.transport.errors import BadSignature, EnvelopeError
from p2pnode.transport.identity import Identity

STEADY = settings(deadline=None, derandomize=True)
"""The same examples in every run, however busy the machine is."""

SEED = bytes.fromhex("7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d")
SIGNER = Identity.from_seed(SEED)
SEALED = seal(SIGNER, Kind.MANIFEST, b"payload")


def test_golden_envelope() -> None:
    """libp2p's test key seals the golden manifest into the golden envelope, and it opens."""
    data = golden("envelope")
    assert seal(SIGNER, Kind.MANIFEST, golden("manifest")) == data
    opened = peek(data).verify(Kind.MANIFEST)
    assert opened.payload == golden("manifest")
    assert opened.peer_id == SIGNER.peer_id
    assert opened.public_key == SIGNER.public_key
    assert opened.data is data
    assert opened.id == blake3(data).digest() == golden("envelope-id")


def test_peek_does_not_verify() -> None:
    """peek gives payload, key and ID of an envelope whose signature is wrong; verify refuses."""
    forged = SEALED[:-1] + bytes([SEALED[-1] ^ 1])
    seen = peek(forged)
    assert (seen.payload, seen.peer_id) == (b"payload", SIGNER.peer_id)
    assert seen.id == blake3(forged).digest()
    with pytest.raises(BadSignature, match="…Umo7R3pq did not sign this manifest"):
        seen.verify(Kind.MANIFEST)


def test_kinds_are_kept_apart() -> None:
    """What was signed as a manifest does not verify as a peer record."""
    assert peek(SEALED).verify(Kind.MANIFEST).payload == b"payload"
    with pytest.raises(BadSignature):
        peek(SEALED).verify(Kind.PEER_RECORD)


def test_another_peers_key_does_not_fit() -> None:
    """An envelope whose key is exchanged for another's does not verify."""
    other = Identity.generate()
    with pytest.raises(BadSignature):
        peek(SEALED.replace(SIGNER.public_key, other.public_key)).verify(Kind.MANIFEST)


def test_every_changed_bit_is_noticed() -> None:
    """Whatever byte of an envelope changes, it opens no more."""
    for at in range(len(SEALED)):
        changed = bytearray(SEALED)
        changed[at] ^= 1 << at % 8
        with pytest.raises(EnvelopeError):
            peek(bytes(changed)).verify(Kind.MANIFEST)


def test_limits() -> None:
    """A manifest of 256 KiB fits; envelopes over the limit are refused by size."""
    largest = seal(SIGNER, Kind.MANIFEST, bytes(256 * 1024))
    assert len(peek(largest).verify(Kind.MANIFEST).payload) == 256 * 1024
    with pytest.raises(EnvelopeError, match="at most"):
        peek(seal(SIGNER, Kind.MANIFEST, bytes(257 * 1024)))
    with pytest.raises(EnvelopeError, match="at most"):
        peek(SEALED, limit=len(SEALED) - 1)
    assert peek(SEALED, limit=len(SEALED)).payload == b"payload"


HEADER = bytes.fromhex("a201270458 20".replace(" ", "")) + SIGNER.public_key
SIGNATURE = bytes(64)


@pytest.mark.parametrize(
    "parts",
    [
        None,
        [],
        {},
        [HEADER, {}, b""],
        [HEADER, {}, b"", SIGNATURE, b""],
        [HEADER, {"a": 1}, b"", SIGNATURE],
        [HEADER, None, b"", SIGNATURE],
        [HEADER, [], b"", SIGNATURE],
        [HEADER, {}, None, SIGNATURE],  # a detached payload
        [HEADER, {}, "text", SIGNATURE],
        [HEADER, {}, b"", bytes(63)],
        [HEADER, {}, b"", bytes(65)],
        [HEADER, {}, b"", "s" * 64],
        [b"", {}, b"", SIGNATURE],
        [b"\xa0", {}, b"", SIGNATURE],
        [HEADER[:-1], {}, b"", SIGNATURE],
        [HEADER + b"\0", {}, b"", SIGNATURE],
        [b"\xa2\x01\x26" + HEADER[3:], {}, b"", SIGNATURE],  # ES256
        [b"\xa3" + HEADER[1:], {}, b"", SIGNATURE],
        [{"alg": -8}, {}, b"", SIGNATURE],
    ],
    ids=str,
)
def test_other_structures_are_refused(parts: Any) -> None:
    """Only [header, {}, payload, 64 bytes] with our one header is an envelope."""
    with pytest.raises(EnvelopeError):
        peek(wire.encode_tagged(18, parts))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xd2",
        SEALED[1:],  # without the tag
        b"\xd2" + SEALED,
        b"\xd1" + SEALED[1:],  # COSE_Mac0
        SEALED[:-1],
        SEALED + b"\0",
        SEALED.replace(b"\x47payload", b"\x58\x07payload"),  # a non-minimal length
        SEALED.replace(b"\x84\x58\x26", b"\x9f\x58\x26") + b"\xff",  # an endless list
    ],
)
def test_other_encodings_are_refused(data: bytes) -> None:
    """Cut, prolonged, untagged and re-encoded envelopes are refused before any signature."""
    with pytest.raises(EnvelopeError) as caught:
        peek(data)
    assert not isinstance(caught.value, BadSignature)


@STEADY
@given(st.binary(max_size=300), st.sampled_from(Kind))
def test_any_payload_round_trips(payload: bytes, kind: Kind) -> None:
    """Any payload comes out of its envelope as it went in."""
    assert peek(seal(SIGNER, kind, payload)).verify(kind).payload == payload


@STEADY
@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: SEALED[:50] + tail))
def test_any_bytes_give_envelope_error(data: bytes) -> None:
    """Any bytes that nobody sealed give EnvelopeError."""
    with pytest.raises(EnvelopeError):
        peek(data).verify(Kind.MANIFEST)


def pycose_key(private: bytes = b"", public: bytes = SIGNER.public_key) -> OKPKey:
    """The key pair as pycose has it."""
    return OKPKey(crv=Ed25519, x=public, d=private)


def pycose_message(parts: Any, public: bytes) -> Any:
    """A COSE_Sign1 array as pycose reads it. (Its own loader cannot read cbor2 6's tuples.)"""
    message: Any = Sign1Message.from_cose_obj(list(parts), allow_unknown_attributes=False)
    message.key = pycose_key(public=public)
    return message


def test_pycose_verifies_our_envelopes() -> None:
    """pycose reads our header and finds our signature good, and not for another kind."""
    message = pycose_message(wire.decode_tagged(SEALED, 18, limit=999), SIGNER.public_key)
    assert message.phdr == {Algorithm: EdDSA, KID: SIGNER.public_key}
    message.external_aad = b"p2pnode/1 manifest"
    assert message.verify_signature()
    message.external_aad = b"p2pnode/1 peer-record"
    assert not message.verify_signature()


@pytest.mark.parametrize("kind", Kind)
def test_we_open_what_pycose_sealed(kind: Kind) -> None:
    """pycose's COSE_Sign1 is the same bytes as ours, and opens."""
    theirs = Sign1Message(
        phdr={Algorithm: EdDSA, KID: SIGNER.public_key},
        payload=b"theirs",
        external_aad=b"p2pnode/1 " + kind,
        key=pycose_key(SEED),
    ).encode()
    assert theirs == seal(SIGNER, kind, b"theirs")
    assert peek(theirs).verify(kind).payload == b"theirs"


COSE_WG: dict[str, str] = json.loads((FOLDER / "cose-eddsa-sig-01.json").read_text())
EXAMPLE = {key: bytes.fromhex(value) for key, value in COSE_WG.items() if key != "source"}


def test_the_cose_working_groups_example() -> None:
    """We sign what the COSE working group signs, and find its signature good."""
    tag = cbor2.loads(EXAMPLE["message"])
    header, _, payload, signature = tag.value
    signed = envelope.sig_structure(EXAMPLE["protected"], b"", EXAMPLE["payload"])
    assert (tag.tag, header, payload) == (18, EXAMPLE["protected"], EXAMPLE["payload"])
    assert signed == EXAMPLE["to_be_signed"]
    assert Identity.from_seed(EXAMPLE["seed"]).sign(signed) == signature
    assert ids.verify(EXAMPLE["public_key"], signature, signed)


def test_pycose_agrees_with_the_example() -> None:
    """So the library we check against is itself right."""
    header, unprotected, payload, signature = cbor2.loads(EXAMPLE["message"]).value
    parts = header, dict(unprotected), payload, signature
    message = pycose_message(parts, EXAMPLE["public_key"])
    assert message.verify_signature()


def test_another_profile_is_refused() -> None:
    """The example is good COSE_Sign1, but its key ID is no public key: not one of ours."""
    with pytest.raises(EnvelopeError):
        peek(EXAMPLE["message"])
