"""node/keyring.py: what a worker of a private swarm seals and opens with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from learning import FakeDaemon, arrive, filled, fresh, train
from learning import peer as identity_of
from sealing import KEYRING, OLD, OTHERS, SECRETS, content

from p2pnode.node import weights
from p2pnode.node.arrivals import Arrival, Unreadable, arrivals
from p2pnode.node.checkpoint import Position
from p2pnode.node.errors import WeightsError
from p2pnode.node.keyring import Audience, Keyring, from_order, to_order, wrap
from p2pnode.node.merging import Merger
from p2pnode.node.orders import Model, Report, parse_order, to_line
from p2pnode.node.sealing import Source
from p2pnode.transport.membership.hpke import KemPrivate
from p2pnode.transport.sealed import PREFIX, Header, header_length

KEMS = {name: KemPrivate.generate() for name in ("alice", "bob", "carol")}
SECRET = bytes([8]) * 32


def keyring(name: str, *recipients: str) -> Keyring:
    """The keyring of a member, whose models are for these (none: all)."""
    wraps = tuple(wrap(KEMS[peer].public, SECRET, SECRETS.id, name) for peer in recipients)
    audience = Audience(SECRET, recipients, wraps) if recipients else None
    return Keyring(name, SECRETS, KEMS[name], audience)


def read(source: Source) -> bytes:
    """All of it."""
    data = bytearray(source.size)
    source.read(memoryview(data), 0)
    source.close()
    return bytes(data)


def test_the_worker_gets_what_the_daemon_has() -> None:
    """The keyring travels as one line, also with an audience and the largest keys."""
    for ring in (KEYRING, keyring("alice", *KEMS)):
        order = parse_order(to_line(to_order(ring)))
        assert from_order(order) == ring  # type: ignore[arg-type]


def test_no_secret_shows() -> None:
    """Neither value prints its secrets: they end up in no log and no traceback."""
    ring = keyring("alice", "bob")
    text = f"{ring!r} {to_order(ring)!r}"
    for secret in (SECRETS.root, SECRETS.generations[0][1], SECRET, KEMS["alice"].x25519):
        assert secret.hex() not in text
        assert repr(secret) not in text


def test_recipients_alone_open_a_file(tmp_path: Path) -> None:
    """Each of them opens it; another member is told that it is for others."""
    ring, path = keyring("alice", "alice", "bob"), tmp_path / "m"
    with ring.create(path) as file:
        file.write(b"for two")
    for name in ("alice", "bob"):
        assert read(keyring(name).open("alice", ring.recipients, path)) == b"for two"
    with pytest.raises(WeightsError, match="it is for other members"):
        keyring("carol").open("alice", ring.recipients, path)
    with pytest.raises(WeightsError, match="it is for other members"):
        keyring("carol").open("alice", (), path)
    with pytest.raises(WeightsError):
        content(path)


def test_a_wrap_belongs_to_its_author_and_its_place(tmp_path: Path) -> None:
    """It opens for no other author's file, no other recipient, and none that has no wrap."""
    ring, path = keyring("alice", "alice", "bob"), tmp_path / "m"
    with ring.create(path) as file:
        file.write(b"for two")
    for author, recipients in [
        ("carol", ("alice", "bob")),
        ("alice", ("bob", "alice")),
        ("alice", ("alice", "carol", "bob")),
    ]:
        with pytest.raises(WeightsError):
            keyring("bob").open(author, recipients, path)


# ── in the training ──────────────────────────────────────────────────────────────────────────


def test_a_private_training_writes_sealed_models(tmp_path: Path) -> None:
    """What is sent is sealed with the newest generation; the training goes on as everywhere."""
    daemon = FakeDaemon()
    daemon.keyring = KEYRING
    train(tmp_path, daemon)
    models: list[Model] = daemon.of(Model)
    assert len(models) == 2
    for model in models:
        assert model.path.read_bytes().startswith(b"p2pseal\x01")
        assert b"p2pnode" not in model.path.read_bytes()
        assert model.recipients == ()
        with pytest.raises(WeightsError, match="isn't a safetensors file"):
            weights.load(model.path)
        (tmp_path / "plain").write_bytes(content(model.path))
        assert weights.load(tmp_path / "plain")[0].keys() == fresh().keys()


def test_new_secrets_count_from_the_next_model_on(tmp_path: Path) -> None:
    """The daemon may tell of a new generation, or of recipients, at any time."""

    class Rotating(FakeDaemon):
        def report(self, report: Report) -> None:
            if isinstance(report, Model):
                self.keyring = {1: KEYRING, 2: keyring("alice", "alice")}.get(report.epoch)
            super().report(report)

    daemon = Rotating()
    daemon.keyring = Keyring("me", OLD)
    train(tmp_path, daemon, epochs=3)
    headers = [header(model.path) for model in daemon.of(Model)]
    assert [(h.generation, len(h.wraps)) for h in headers] == [(1, 0), (2, 0), (0, 1)]
    assert [model.recipients for model in daemon.of(Model)] == [(), (), ("alice",)]


def header(path: Path) -> Header:
    """What a sealed file begins with."""
    data = path.read_bytes()
    return Header.from_bytes(data[PREFIX : PREFIX + header_length(data[:PREFIX])])


def test_sealed_models_are_averaged(tmp_path: Path) -> None:
    """As plain ones are, to the last bit, whatever generation they are of."""
    for folder, ring in (("open", None), ("private", KEYRING)):
        arrive(tmp_path / folder, 2, 1, filled(3.0), age=2.0, keyring=ring)
        old = replace(KEYRING, secrets=OLD) if ring else None
        arrive(tmp_path / folder, 3, 1, filled(5.0), age=7.0, encoded="raw+zstd", keyring=old)
    results = []
    for folder, ring in (("open", None), ("private", KEYRING)):
        own = fresh()
        lines = weights.schema(own)
        merger = Merger(tmp_path / folder / "mailbox", lines, 1.0, keyring=partial(_same, ring))
        merged = merger.merge(own, Position(1, 1.0, {}, (), None, None))
        assert len(merged.averaged) == 2
        assert not merged.refused
        results.append((own, merged.position.age))
    (one, age), (two, other_age) = results
    assert age == other_age
    assert all(torch.equal(one[name], two[name]) for name in one)


def _same(ring: Keyring | None) -> Keyring | None:
    return ring


def test_a_model_that_does_not_open_is_refused_alone(tmp_path: Path) -> None:
    """Cut off, of another file, another swarm or a generation to come: the others still count."""
    for number in (2, 3, 4, 5):
        arrive(tmp_path, number, 1, filled(3.0), keyring=KEYRING)
    cut = tmp_path / "mailbox" / f"{identity_of(3).peer_id}-1.safetensors"
    cut.write_bytes(cut.read_bytes()[:-20])
    other = tmp_path / "mailbox" / f"{identity_of(4).peer_id}-1.safetensors"
    moved = cut.with_name(f"{identity_of(5).peer_id}-1.safetensors")
    moved.write_bytes(other.read_bytes()[:-1] + b"x")
    arrive(tmp_path, 6, 1, filled(3.0), keyring=Keyring("x", OTHERS))
    later = SECRETS.with_generation(3, bytes([9]) * 32)
    arrive(tmp_path, 7, 1, filled(3.0), keyring=replace(KEYRING, secrets=later))
    own = fresh()
    merger = Merger(tmp_path / "mailbox", weights.schema(own), 1.0, keyring=lambda: KEYRING)
    merged = merger.merge(own, Position(1, 1.0, {}, (), None, None))
    assert {a.peer for a in merged.averaged} == {identity_of(2).peer_id, identity_of(4).peer_id}
    reasons = {r.peer: r.reason for r in merged.refused}
    assert len(reasons) == 4
    assert "segment 0 (the last) is altered" in reasons[identity_of(3).peer_id]
    assert "segment 0 (the last) is altered" in reasons[identity_of(5).peer_id]
    assert "altered, or is of another model or swarm" in reasons[identity_of(6).peer_id]
    assert "number 3; the newest here is 2" in reasons[identity_of(7).peer_id]
    assert all("\n" not in reason for reason in reasons.values())


def test_open_and_private_don_t_mix(tmp_path: Path) -> None:
    """A node in an open swarm refuses a sealed model, one in a private swarm a plain one."""
    arrive(tmp_path / "open", 2, 1, filled(3.0))
    arrive(tmp_path / "private", 2, 1, filled(3.0), keyring=KEYRING)
    (found,) = arrivals(tmp_path / "open" / "mailbox", {}, KEYRING)
    assert isinstance(found, Unreadable)
    assert "isn't sealed" in found.reason
    (found,) = arrivals(tmp_path / "private" / "mailbox", {})
    assert isinstance(found, Unreadable)
    assert "this node is in an open one" in found.reason
    (found,) = arrivals(tmp_path / "private" / "mailbox", {}, KEYRING)
    assert isinstance(found, Arrival)
