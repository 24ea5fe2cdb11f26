"""The models on disk: the newest of each peer, whole or not at all, never more than agreed."""

from __future__ import annotations

import fcntl
import mmap
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import NOW, body, file, fill, manifest, offered, sealed

from lab import identity
from p2pnode.node import mailbox as module
from p2pnode.node.arrivals import Arrival as Found
from p2pnode.node.arrivals import arrivals
from p2pnode.node.mailbox import PARTS_LIMIT, RESERVE, Mailbox
from p2pnode.transport.admission import DISK, Refusal

ME = identity(1).peer_id
ALICE, BOB, CAROL = (identity(n).peer_id for n in (2, 3, 4))


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    """An empty one."""
    return Mailbox(tmp_path, ME, 64)


def names(folder: Path) -> set[str]:
    """The files of a folder, whole peer IDs shortened."""
    return {path.name[-22:] for path in folder.rglob("*") if path.is_file()}


def here(mailbox: Mailbox) -> dict[str, int]:
    """Peer → number of its model, each checked to be the bytes that it says."""
    for held in mailbox.models():
        assert held.path.read_bytes() == body(held.manifest.seq)
    return {held.peer: held.manifest.seq for held in mailbox.models()}


# ── the newest of each peer ──────────────────────────────────────────────────────────────────


def test_holds_the_newest_model_of_each_peer(mailbox: Mailbox, tmp_path: Path) -> None:
    """A newer model takes the place of its peer's older one, in the index and on disk."""
    for number, seq in [(2, 1), (3, 5), (2, 2)]:
        file(mailbox, number, seq)
    assert here(mailbox) == {ALICE: 2, BOB: 5}
    assert {(mailbox.newest(p)) for p in (ALICE, BOB, CAROL)} == {2, 5, -1}
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"spare"}
    assert files == {f"{p}-{n}{x}" for p, n in here(mailbox).items() for x in module._SUFFIXES}


def test_the_worker_sees_what_the_daemon_files(mailbox: Mailbox, tmp_path: Path) -> None:
    """Both processes agree on names and envelopes."""
    model = file(mailbox, 2, 7, age=3.5)
    path = tmp_path / "mailbox" / f"{ALICE}-7.safetensors"
    assert arrivals(tmp_path / "mailbox", {}) == [
        Found(ALICE, 7, path, model.envelope.id.hex(), 3.5, "raw")
    ]


def test_a_model_appears_with_its_envelope(
    mailbox: Mailbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment in which the model is renamed into place its envelope is there, whole."""
    model = offered(2, 3)
    part = fill(mailbox, model)
    seen: list[bytes] = []
    replace = Path.replace

    def spy(self: Path, target: Path) -> Path:
        if self == part:
            seen.append(target.with_suffix(".envelope").read_bytes())
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    mailbox.file(model, part)
    assert seen == [model.envelope.data]


def test_an_open_mapping_survives_replacement(mailbox: Mailbox) -> None:
    """The worker goes on reading a model that it has mapped while a newer one is filed."""
    file(mailbox, 2, 1)
    with mailbox.models()[0].path.open("rb") as old:
        view = mmap.mmap(old.fileno(), 0, access=mmap.ACCESS_READ)
        file(mailbox, 2, 2)
        assert not Path(old.name).exists()
        assert view[:] == body(1)
        view.close()


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="only Linux tells who reads a file")
def test_a_replaced_model_becomes_the_next_part(mailbox: Mailbox) -> None:
    """The file is used again, whole chunks of it are not: nothing in it is of the new model."""
    file(mailbox, 2, 1)
    used = mailbox.models()[0].path.stat().st_ino
    file(mailbox, 2, 2)
    part = mailbox.part(offered(2, 3))
    assert part.find([0, 1]) == []
    assert part.path.stat().st_ino == used
    part.close()
    file(mailbox, 2, 3)
    assert here(mailbox) == {ALICE: 3}
    assert mailbox.models()[0].path.stat().st_ino == used


def test_a_replaced_model_that_is_read_is_left_alone(mailbox: Mailbox) -> None:
    """As long as anybody has it open or mapped, its bytes stay what they are."""
    file(mailbox, 2, 1)
    with mailbox.models()[0].path.open("rb") as old:
        for seq in (2, 3, 4):
            file(mailbox, 2, seq)
            old.seek(0)
            assert old.read() == body(1)
    assert here(mailbox) == {ALICE: 4}


def test_two_models_with_one_number(mailbox: Mailbox) -> None:
    """Of two models that a peer signs under one number the first stays, and stays whole."""
    first, second = offered(2, 4), offered(2, 4, epoch=9)
    for model in (first, second):
        mailbox.file(model, fill(mailbox, model))
    assert [held.id for held in mailbox.models()] == [first.envelope.id]
    assert here(mailbox) == {ALICE: 4}


def test_models_are_served_newest_first(mailbox: Mailbox, tmp_path: Path) -> None:
    """Our own model first, then the others by age: what a newcomer is offered."""
    for number, created in [(2, NOW), (3, NOW + 2), (4, NOW + 1)]:
        file(mailbox, number, created=created)
    publish(mailbox, tmp_path, 1)
    assert [held.peer for held in mailbox.held()] == [ME, BOB, CAROL, ALICE]


# ── bounds ───────────────────────────────────────────────────────────────────────────────────


def test_more_models_than_agreed(tmp_path: Path) -> None:
    """The oldest go, with their files; their numbers are remembered, so they don't come again."""
    mailbox = Mailbox(tmp_path, ME, 2)
    for number, created in [(2, NOW + 9), (3, NOW), (4, NOW + 5)]:
        file(mailbox, number, created=created)
    assert here(mailbox) == {ALICE: 1, CAROL: 1}
    assert not any(BOB in path.name for path in tmp_path.rglob("*"))
    assert mailbox.newest(BOB) == 1


def test_numbers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that come and go for months take no memory; those whose model is here are known."""
    monkeypatch.setattr(module, "NUMBERS_LIMIT", 3)
    mailbox = Mailbox(tmp_path, ME, 2)
    file(mailbox, 2, created=NOW + 100)
    for number in range(3, 9):
        file(mailbox, number, created=NOW + number)
    known = [n for n in range(2, 9) if mailbox.newest(identity(n).peer_id) == 1]
    assert known == [2, 7, 8]


def test_a_smaller_limit_after_a_restart(tmp_path: Path) -> None:
    """A mailbox that holds more than the new limit is brought down to it."""
    before = Mailbox(tmp_path, ME, 64)
    for number in range(2, 8):
        file(before, number, created=NOW + number)
    assert len(here(Mailbox(tmp_path, ME, 3))) == 3


def test_a_full_disk_is_refused(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that doesn't fit beside the reserve is refused before a byte is fetched."""
    usage = shutil.disk_usage("/")._replace(free=RESERVE + 99_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: usage)
    with pytest.raises(Refusal, match="100000 bytes don't fit") as caught:
        mailbox.part(offered(2))
    assert caught.value.reason == DISK


def test_a_transfer_goes_on_where_it_broke(mailbox: Mailbox) -> None:
    """What an earlier try left whole in the part file needn't come again."""
    model = offered(2)
    fill(mailbox, model)
    part = mailbox.part(model)
    assert part.find([0, 1]) == [0, 1]
    part.close()


def test_a_newer_model_removes_the_part_of_the_older(mailbox: Mailbox, tmp_path: Path) -> None:
    """A peer whose models always break off half-way takes the room of one."""
    for seq in range(5):
        fill(mailbox, offered(2, seq))
    fill(mailbox, offered(3, 1))
    parts = {path.name for path in (tmp_path / "mailbox" / "part").iterdir()}
    assert parts == {f"{ALICE}-4", f"{BOB}-1"}


def test_parts_are_bounded(mailbox: Mailbox, tmp_path: Path) -> None:
    """However many peers break off, so many parts stay, the one that comes in among them."""
    for number in range(2, PARTS_LIMIT + 10):
        part = fill(mailbox, offered(number))
        assert part.exists()
    assert len(list((tmp_path / "mailbox" / "part").iterdir())) <= PARTS_LIMIT


def test_models_are_filed_in_several_threads(tmp_path: Path) -> None:
    """Filing at the same time leaves an index that agrees with the disk and with the limit."""
    mailbox = Mailbox(tmp_path, ME, 8)
    models = [offered(number, seq) for seq in (1, 2, 3) for number in range(2, 20)]
    start = threading.Barrier(8)

    def work(some: list[Any]) -> None:
        start.wait()
        for model in some:
            mailbox.file(model, fill(mailbox, model))

    # A peer's models come one after the other, as the exchange fetches them.
    shares = [[m for n, m in enumerate(models) if n % 18 % 8 == share] for share in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, shares))
    assert here(mailbox) == here(Mailbox(tmp_path, ME, 8))
    assert len(here(mailbox)) == 8


# ── our own model ────────────────────────────────────────────────────────────────────────────


def publish(mailbox: Mailbox, folder: Path, seq: int, **fields: Any) -> Path:
    """The worker wrote a model, and the daemon publishes it: its path."""
    path = folder / "outbox" / f"{seq}-77.safetensors"
    path.write_bytes(body(seq))
    older = mailbox.own
    mailbox.publish(path, sealed(1, manifest(body(seq), seq=seq, **fields)))
    if older is not None:
        mailbox.discard(older.path)
    return path


def test_the_newest_own_model_is_served(mailbox: Mailbox, tmp_path: Path) -> None:
    """Publishing replaces our older model; what is not published leaves the outbox."""
    publish(mailbox, tmp_path, 1)
    newest = publish(mailbox, tmp_path, 2)
    skipped = tmp_path / "outbox" / "3-77.safetensors"
    skipped.write_bytes(b"x")
    mailbox.discard(skipped)
    mailbox.discard(newest)
    assert mailbox.own is not None
    assert mailbox.own.path == newest
    assert mailbox.held() == [mailbox.own]
    assert names(tmp_path) == {"2-77.safetensors", "2-77.envelope"}


def test_an_own_model_is_published_again_under_the_same_name(
    mailbox: Mailbox, tmp_path: Path
) -> None:
    """A worker that trains an epoch again writes the same file; it isn't removed as the older."""
    publish(mailbox, tmp_path, 1)
    path = tmp_path / "outbox" / "1-77.safetensors"
    mailbox.publish(path, sealed(1, manifest(body(1), seq=9)))
    mailbox.discard(path)
    assert mailbox.own is not None
    assert (mailbox.own.manifest.seq, path.read_bytes()) == (9, body(1))


# ── after a restart ──────────────────────────────────────────────────────────────────────────


def test_a_restart_finds_everything(mailbox: Mailbox, tmp_path: Path) -> None:
    """Models, numbers and our own model are there again."""
    file(mailbox, 2, 3)
    file(mailbox, 3, 4)
    publish(mailbox, tmp_path, 5)
    again = Mailbox(tmp_path, ME, 64)
    assert again.models() == mailbox.models()
    assert again.held() == mailbox.held()
    assert (again.newest(ALICE), again.newest(BOB)) == (3, 4)


def _damage(folder: Path, mailbox: Mailbox) -> Iterator[str]:
    """All that a kill at the worst moment, or a bad disk, can leave."""
    inbox, outbox = folder / "mailbox", folder / "outbox"
    yield "a part"
    fill(mailbox, offered(5))
    yield "an envelope before its model"
    (inbox / f"{CAROL}-8.envelope").write_bytes(offered(4, 8).envelope.data)
    yield "half of an envelope"
    (inbox / f"{CAROL}-9.tmp").write_bytes(b"half")
    yield "a model whose envelope is gone"
    (inbox / f"{CAROL}-7.safetensors").write_bytes(body(7))
    yield "a model that is too short"
    (inbox / f"{BOB}-9.envelope").write_bytes(offered(3, 9).envelope.data)
    (inbox / f"{BOB}-9.safetensors").write_bytes(body(9)[:-1])
    yield "an envelope that is none"
    (inbox / f"{BOB}-10.envelope").write_bytes(b"\xd2garbage")
    (inbox / f"{BOB}-10.safetensors").write_bytes(body(10))
    yield "an older model that was about to go"
    (inbox / f"{ALICE}-2.envelope").write_bytes(offered(2, 2).envelope.data)
    (inbox / f"{ALICE}-2.safetensors").write_bytes(body(2))
    yield "a model of ours that wasn't signed yet"
    (outbox / "4-77.safetensors").write_bytes(body(4))
    yield "half of a model of ours"
    (outbox / "5-77.part").write_bytes(b"half")


def test_after_a_power_cut_models_of_others_are_fetched_again(
    mailbox: Mailbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file from before this boot may hold zeros under its right name and size."""
    file(mailbox, 2)
    publish(mailbox, tmp_path, 1)
    assert module._booted() < mailbox.models()[0].path.stat().st_mtime
    assert here(Mailbox(tmp_path, ME, 64)) == {ALICE: 1}, "a restart of the node alone"
    monkeypatch.setattr(module, "_booted", lambda: time.time() + 1)
    after = Mailbox(tmp_path, ME, 64)
    assert not after.models() and after.newest(ALICE) == -1
    assert not list((tmp_path / "mailbox").glob("*.*"))
    assert after.own is not None


def test_leftovers_are_removed(mailbox: Mailbox, tmp_path: Path) -> None:
    """A restart keeps what is whole and newest, and nothing else stays on the disk."""
    file(mailbox, 2, 3)
    publish(mailbox, tmp_path, 1)
    good = names(tmp_path)
    assert len(list(_damage(tmp_path, mailbox))) == 9
    again = Mailbox(tmp_path, ME, 64)
    assert here(again) == {ALICE: 3}
    assert again.own is not None
    assert names(tmp_path) == good


def test_models_of_another_schema_are_dropped(mailbox: Mailbox, tmp_path: Path) -> None:
    """A task that was changed under the same swarm name starts with an empty mailbox."""
    file(mailbox, 2, 9, schema=b"\1" * 32)
    file(mailbox, 3, 1)
    publish(mailbox, tmp_path, 4, schema=b"\1" * 32)
    mailbox.keep(bytes(32))
    assert here(mailbox) == {BOB: 1}
    assert mailbox.own is None
    assert mailbox.newest(ALICE) == -1
    assert len(names(tmp_path)) == 2
    assert here(Mailbox(tmp_path, ME, 64)) == {BOB: 1}


def test_the_models_of_an_older_key_of_ours(tmp_path: Path) -> None:
    """After `init --force` the model that the old key signed isn't ours any more."""
    publish(Mailbox(tmp_path, ME, 64), tmp_path, 1)
    assert Mailbox(tmp_path, BOB, 64).own is None


@given(st.binary(max_size=300))
def test_any_bytes_as_an_envelope(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever lies in an envelope's file, the mailbox opens and holds no model of it."""
    folder = tmp_path_factory.mktemp("fuzz")
    Mailbox(folder, ME, 64)
    (folder / "mailbox" / f"{ALICE}-1.envelope").write_bytes(data)
    (folder / "mailbox" / f"{ALICE}-1.safetensors").write_bytes(b"x")
    assert not Mailbox(folder, ME, 64).models()
