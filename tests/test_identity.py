"""Peer IDs are libp2p's; key files are private, whole, and explain themselves."""

import base64
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed448
from golden import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.transport import identity as ids
from p2pnode.transport.errors import IdentityError
from p2pnode.transport.identity import Identity

STEADY = settings(deadline=None, derandomize=True)
"""The same examples in every run, however busy the machine is."""

# libp2p specs, peer-ids/peer-ids.md, "Test vectors": protobuf of a key pair.
SPEC_PRIVATE = bytes.fromhex(
    "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
    "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
)
SPEC_PUBLIC = bytes.fromhex(
    "080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
)
SPEC = Identity.from_seed(SPEC_PRIVATE[4:36])

# (protobuf of the public key, its peer ID)
LIBP2P = [
    # The pair above, with the peer ID that go-libp2p's HTTP authentication test has for it.
    (SPEC_PUBLIC, "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"),
    # libp2p specs, tls/tls.md, test vector 1: the key in the certificate's extension.
    (
        bytes.fromhex("08011220a77f1d92fedb59dddaea5a1c4abd1ac2fbde7d7b879ed364501809923d7c11b9"),
        "12D3KooWM6CgA9iBFZmcYAHA6A2qvbAxqfkmrYiRQuz3XEsk4Ksv",
    ),
    # libp2p specs, peer-ids/peer-ids.md, examples; the key is read from the same ID as a CID,
    # after its two bytes for "CID version 1, libp2p-key" and the two of the multihash.
    (
        base64.b32decode(b"AFZAAJAIAEJCAL72GWUZ2OR47OYXXN6B3RKWDMMKRXGKJXZY3RQT5KCZYN7LCM3L")[4:],
        "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA",
    ),
]


@pytest.mark.parametrize(("protobuf", "text"), LIBP2P)
def test_peer_ids_are_libp2ps(protobuf: bytes, text: str) -> None:
    """libp2p's published keys have libp2p's published peer IDs, both ways."""
    assert ids.peer_id(protobuf[4:]) == text
    assert b"\x08\x01\x12\x20" + ids.public_key(text) == protobuf


def test_the_spec_key_pair() -> None:
    """The private key of libp2p's test vector has its public key and peer ID."""
    assert SPEC.public_key == SPEC_PUBLIC[4:] == SPEC_PRIVATE[36:]
    assert SPEC.peer_id == LIBP2P[0][1]


def test_golden_peer_id() -> None:
    """The peer ID of the golden multihash, byte for byte: 0024, then the protobuf key."""
    assert golden("peer-id") == b"\x00\x24" + SPEC_PUBLIC
    page = Path(__file__).parent.parent / "docs" / "protocol" / "identity.md"
    assert ids.peer_id(golden("peer-id")[6:]) in page.read_text()


@STEADY
@given(st.binary(min_size=32, max_size=32))
def test_peer_ids_round_trip(key: bytes) -> None:
    """Any 32 bytes have a peer ID of 52 characters that gives them back."""
    text = ids.peer_id(key)
    assert len(text) == 52
    assert text.startswith("12D3KooW")
    assert ids.public_key(text) == key


@STEADY
@given(st.text(max_size=60) | st.from_regex(r"12D3KooW[1-9A-Za-z]{44}", fullmatch=True))
def test_any_text_is_a_peer_id_or_identity_error(text: str) -> None:
    """Any text gives IdentityError, or the key whose only peer ID it is."""
    try:
        key = ids.public_key(text)
    except IdentityError:
        return
    assert ids.peer_id(key) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1" * 52,
        "z" * 52,
        "1" + "z" * 51,
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # an RSA peer ID
        SPEC.peer_id[:-1],
        SPEC.peer_id + "1",
        SPEC.peer_id[:-1] + "0",  # no base58 digit
        SPEC.peer_id[:-1] + "é",
        " " + SPEC.peer_id,
        "1" + SPEC.peer_id[:-1],
    ],
)
def test_other_texts_are_no_peer_ids(text: str) -> None:
    """Other kinds of peer IDs, cut and changed ones are refused in one short line."""
    with pytest.raises(IdentityError, match="is not an Ed25519 peer ID") as caught:
        ids.public_key(text)
    assert "\n" not in str(caught.value)


def test_short_peer_id() -> None:
    """People see an ellipsis and the last eight characters."""
    assert ids.short(SPEC.peer_id) == "…Umo7R3pq"


def test_wrong_lengths_are_refused() -> None:
    """Keys and seeds of other lengths are IdentityErrors."""
    with pytest.raises(IdentityError, match="32 bytes, not 31"):
        ids.peer_id(bytes(31))
    with pytest.raises(IdentityError, match="32 bytes, not 33"):
        Identity.from_seed(bytes(33))


def test_signatures() -> None:
    """RFC 8032's first test vector; then every other key, data or length verifies as False."""
    signer = Identity.from_seed(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    signature = signer.sign(b"")
    assert signature.hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    assert ids.verify(signer.public_key, signature, b"")
    assert not ids.verify(signer.public_key, signature, b"a")
    assert not ids.verify(SPEC.public_key, signature, b"")
    assert not ids.verify(signer.public_key, signature[:-1], b"")
    assert not ids.verify(signer.public_key[:-1], signature, b"")
    assert not ids.verify(b"\xff" * 32, signature, b"")


def test_identities_are_values() -> None:
    """Equal keys are equal identities; the private key is not shown."""
    assert Identity.from_seed(bytes(32)) == Identity.from_seed(bytes(32))
    assert Identity.generate() != Identity.generate()
    assert "PrivateKey" not in repr(SPEC)


@pytest.mark.parametrize("passphrase", [None, b"open sesame"])
def test_key_files_round_trip(tmp_path: Path, passphrase: bytes | None) -> None:
    """A saved key loads again; its file is PKCS#8 PEM and private whatever the umask."""
    path = tmp_path / "key.pem"
    old = os.umask(0)
    try:
        SPEC.save(path, passphrase)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load(path, passphrase) == SPEC
    assert (b"ENCRYPTED" in path.read_bytes()) == (passphrase is not None)
    assert [p.name for p in tmp_path.iterdir()] == ["key.pem"]


def test_a_key_is_not_overwritten(tmp_path: Path) -> None:
    """An existing key stays, unless overwriting was asked for."""
    path = tmp_path / "key.pem"
    SPEC.save(path)
    with pytest.raises(IdentityError, match=f"{path} already exists"):
        Identity.generate().save(path)
    assert Identity.load(path) == SPEC
    other = Identity.generate()
    (tmp_path / "key.pem.new").write_text("left by a crash")
    other.save(path, overwrite=True)
    assert Identity.load(path) == other
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["key.pem"]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """The error says how to mend it."""
    path = tmp_path / "key.pem"
    SPEC.save(path)
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(IdentityError, match=f"run chmod 600 {path}"):
            Identity.load(path)


def write_key(path: Path, data: bytes) -> Path:
    """A private file with any bytes."""
    path.touch(0o600)
    path.write_bytes(data)
    return path


ED448 = ed448.Ed448PrivateKey.generate()
NO_SECRET = serialization.NoEncryption()


def test_foreign_key_files_are_refused(tmp_path: Path) -> None:
    """Other keys, other formats, garbage, pipes, folders and nothing at all: a clear line each."""
    pem = serialization.Encoding.PEM
    other = ED448.private_bytes(pem, serialization.PrivateFormat.PKCS8, NO_SECRET)
    public = ED448.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    SPEC.save(tmp_path / "good")
    cut = (tmp_path / "good").read_bytes().replace(b"M", b"!", 1)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, words in [
        (write_key(tmp_path / "other", other), "holds another kind of key than Ed25519"),
        (write_key(tmp_path / "public", public), "is not a PKCS#8 PEM key file"),
        (write_key(tmp_path / "garbage", os.urandom(99)), "is not a PKCS#8 PEM key file"),
        (write_key(tmp_path / "empty", b""), "is not a PKCS#8 PEM key file"),
        (write_key(tmp_path / "cut", cut), "is damaged"),
        (tmp_path / "pipe", "is not a file"),
        (tmp_path, "cannot read"),
        (tmp_path / "none", "run p2pnode init"),
        (tmp_path / "good" / "key", "cannot read"),
    ]:
        with pytest.raises(IdentityError, match=words) as caught:
            Identity.load(path)
        assert "\n" not in str(caught.value)


def test_passphrases_explain_themselves(tmp_path: Path) -> None:
    """Missing, wrong, empty and needless passphrases are told apart."""
    SPEC.save(tmp_path / "open")
    SPEC.save(tmp_path / "locked", b"secret")
    with pytest.raises(IdentityError, match="locked needs its passphrase"):
        Identity.load(tmp_path / "locked")
    with pytest.raises(IdentityError, match="passphrase is wrong"):
        Identity.load(tmp_path / "locked", b"guess")
    with pytest.raises(IdentityError, match="passphrase is wrong"):
        Identity.load(tmp_path / "locked", b"")
    with pytest.raises(IdentityError, match="open has no passphrase, but one was given"):
        Identity.load(tmp_path / "open", b"secret")
    with pytest.raises(IdentityError, match="the passphrase is empty"):
        SPEC.save(tmp_path / "new", b"")
    assert not (tmp_path / "new").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A missing folder is one clear line."""
    with pytest.raises(IdentityError, match=r"cannot write .*: No such file or directory"):
        SPEC.save(tmp_path / "missing" / "key.pem")


def test_a_full_disk_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full there is no key file, rather than a broken one."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IdentityError, match="No space left"):
        SPEC.save(tmp_path / "key.pem")
    assert list(tmp_path.iterdir()) == []
