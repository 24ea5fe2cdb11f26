"""The models that a relay holds: the newest of each author, whole, and never more than agreed."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import NOW, SCHEMA, body, offered

from lab import identity
from p2pnode.transport import shelf as module
from p2pnode.transport import wire
from p2pnode.transport.admission import DISK, Offered, Refusal
from p2pnode.transport.errors import ShelfError
from p2pnode.transport.link import Piece
from p2pnode.transport.manifest import EXPIRY
from p2pnode.transport.messages import Run
from p2pnode.transport.parts import Arrival
from p2pnode.transport.shelf import RESERVE, Shelf, intact

SIZE = 100_000  # a model of models.body
ALICE, BOB, CAROL = (identity(n).peer_id for n in (2, 3, 4))
NOBODY: dict[bytes, None] = {}


@dataclass
class Place:
    """A shelf and its clock."""

    folder: Path
    space: int = 10 * SIZE
    now: float = NOW

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> Shelf:
        """The relay starts (again)."""
        self.shelf = Shelf(self.folder, self.space, lambda: self.now)
        return self.shelf

    def begin(self, number: int, seq: int = 1, host: str = "", **fields: Any) -> Offered:
        """A model of this author is on its way: all of it but the filing."""
        model = offered(number, seq, **fields)
        data = fields.get("data") or body(seq)
        part, step = self.shelf.part(model, host or f"10.0.0.{number}"), model.manifest.chunk_size
        for chunk in range(model.manifest.chunks):
            piece = Piece(1, chunk, 0, data[chunk * step : (chunk + 1) * step])
            assert part.write([Arrival(piece, chunk * step, True)]) == [True]
        part.close()
        return model

    def end(self, model: Offered) -> bytes:
        """It is whole: its envelope ID."""
        author, seq = model.envelope.peer_id, model.manifest.seq
        self.now += 1
        self.shelf.file(model, self.folder / "part" / f"{author}-{seq}")
        return model.envelope.id

    def put(self, number: int, seq: int = 1, host: str = "", **fields: Any) -> bytes:
        """A model of this author comes in: its envelope ID."""
        return self.end(self.begin(number, seq, host, **fields))

    def authors(self) -> set[int]:
        """Whose models are here; each is checked to be the bytes that it says."""
        held = self.shelf.held()
        assert all(intact(model) for model in held)
        return {n for n in range(2, 60) if identity(n).peer_id in {m.peer for m in held}}

    def files(self) -> set[str]:
        """What lies in the folder, the parts too."""
        return {path.name[-10:] for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Room for ten models."""
    return Place(tmp_path)


# ── the newest of each author ────────────────────────────────────────────────────────────────


def test_holds_the_newest_model_of_each_author(place: Place) -> None:
    """A newer model takes the older one's place, in the index and on disk."""
    for number, seq in [(2, 1), (3, 5), (2, 2)]:
        place.put(number, seq)
    assert place.authors() == {2, 3}
    assert [place.shelf.newest(peer) for peer in (ALICE, BOB, CAROL)] == [2, 5, -1]
    assert [held.peer for held in place.shelf.held()] == [ALICE, BOB]
    assert len(place.files()) == 4


def test_a_newer_model_counts_only_when_it_is_whole(place: Place) -> None:
    """As long as the newer one is on its way, the older one is served."""
    old = place.put(2, 1)
    new = place.begin(2, 2)
    assert place.shelf.find(old) is not None
    assert place.shelf.newest(ALICE) == 1
    place.end(new)
    assert place.shelf.find(old) is None
    assert place.shelf.newest(ALICE) == 2


def test_models_of_one_run(place: Place) -> None:
    """Swarm and schema tell them apart."""
    place.put(2)
    place.put(3, swarm="other")
    place.put(4, schema=b"\1" * 32)
    mine = Run("main", "mnist", SCHEMA, 1, ())
    assert [held.peer for held in place.shelf.held_of(mine)] == [ALICE]


def test_a_replaced_model_is_read_to_its_end(place: Place) -> None:
    """Who has it open goes on; its bytes count until nobody reads it."""
    old = place.put(2, 1)
    path = place.folder / f"{ALICE}-1.model"
    with path.open("rb") as reader:
        place.put(2, 2)
        place.shelf.tidy({old}, NOBODY.keys())
        assert not path.exists()
        assert place.shelf.readable(old)
        assert place.shelf.taken == 2 * SIZE
        assert reader.read() == body(1)
    place.shelf.tidy(set(), NOBODY.keys())
    assert not place.shelf.readable(old)
    assert place.shelf.taken == SIZE


def test_a_transfer_goes_on_where_it_broke(place: Place) -> None:
    """What an earlier try left whole in the part file needn't come again, unless a newer came."""
    part = place.shelf.part(place.begin(2, 1), "10.0.0.2")
    assert part.find([0, 1]) == [0, 1]
    part.close()
    newer = place.shelf.part(offered(2, 2), "10.0.0.2")
    assert newer.find([0, 1]) == []
    newer.close()
    assert len(place.files()) == 1


@pytest.mark.parametrize(
    ("expires", "stays"), [(NOW + 50, 50), (NOW + EXPIRY, EXPIRY), (NOW + 9e9, EXPIRY)]
)
def test_models_expire(place: Place, expires: float, stays: float) -> None:
    """When their authors say, but never later than after a day by our clock; also while stopped."""
    place.now -= 1
    model = place.put(2, expires=expires)
    place.now = NOW + stays - 1
    place.shelf.tidy({model}, NOBODY.keys())
    assert place.open().readable(model)
    place.now += 1
    place.shelf.tidy({model}, NOBODY.keys())
    assert not place.shelf.readable(model)
    assert not place.files()


def test_expired_models_are_not_found_after_a_restart(place: Place) -> None:
    """A relay that was off for a day starts empty."""
    place.put(2)
    place.now += EXPIRY
    assert not place.open().held()
    assert not place.files()


def test_a_spoilt_model_is_dropped(place: Place) -> None:
    """Its file isn't what it was; its author may send it again."""
    model = place.put(2)
    (held,) = place.shelf.held()
    assert intact(held)
    held.path.write_bytes(body(2))
    assert not intact(held)
    assert place.shelf.drop(model)
    assert not place.shelf.drop(model)
    assert not intact(held)
    assert place.shelf.newest(ALICE) == -1
    assert not place.files()
    place.put(2)
    assert place.authors() == {2}


# ── quotas ───────────────────────────────────────────────────────────────────────────────────


def test_the_space_is_never_exceeded(place: Place) -> None:
    """However many come, what is there fits; of equals (about) the oldest went."""
    for number in range(2, 30):
        place.put(number, data=b"x" * (SIZE - 99 + number % 3))
        assert place.shelf.taken <= place.space
    assert place.authors() == set(range(20, 30))


def test_one_model_takes_a_quarter_at_most(place: Place) -> None:
    """That is what the relay admits."""
    assert place.shelf.most == place.space // 4


def test_many_peers_behind_one_address_are_one(place: Place) -> None:
    """A flood from one host pushes out its own models, not those of others."""
    place.put(2)
    place.put(3)
    for number in range(10, 50):
        place.put(number, host="10.9.9.9")
    assert place.authors() == {2, 3, *range(42, 50)}
    place.put(4)
    assert place.authors() == {2, 3, 4, *range(43, 50)}


def test_a_newcomer_pushes_nobody_out_who_holds_less(place: Place) -> None:
    """Nobody holds half as much as it wants: it is refused, and nothing goes."""
    for number in range(2, 12):
        place.put(number)
    large = offered(20, data=b"x" * place.shelf.most)
    with pytest.raises(Refusal, match="the relay is full") as caught:
        place.shelf.part(large, "10.0.0.20")
    assert caught.value.reason == DISK
    assert place.authors() == set(range(2, 12))
    assert len(place.files()) == 20


def test_an_author_without_room_for_two_gives_its_older_one(place: Place) -> None:
    """Where its host would else hold more than all others, a neighbour's model goes first, and then
    its own older one, before the new one is whole."""
    for number in range(2, 12):
        place.put(number, host="10.0.0.7" if number in (7, 8, 9) else "")
    kept = {2, 3, 4, 5, 6, 10, 11}
    place.put(7, 2)
    assert place.authors() == {*kept, 7, 9}
    place.begin(7, 3, data=b"x" * (2 * SIZE))
    assert place.authors() == {*kept, 7}
    place.begin(7, 4, data=b"x" * (3 * SIZE))
    assert place.authors() == kept


def test_models_are_few(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models can't fill the memory: by number, too, the host that has most gives way."""
    monkeypatch.setattr(module, "MODELS", 4)
    tiny = b"x"
    place.put(2, data=tiny)
    for number in range(10, 20):
        place.put(number, host="10.9.9.9", data=tiny)
    place.put(3, data=tiny)
    place.put(3, 2, data=tiny)
    assert place.authors() == {2, 3, 18, 19}


def test_parts_count(place: Place) -> None:
    """What is on its way has its room from the start: many at once can't take more together."""
    coming = [place.begin(number) for number in range(2, 12)]
    assert place.shelf.taken == place.space
    with pytest.raises(Refusal, match="the relay is full"):
        place.begin(30)
    for model in coming:
        place.end(model)
    assert place.authors() == set(range(2, 12))


def test_an_idle_part_goes_first(place: Place) -> None:
    """Of an author that was lost half-way; one that is being filled is left alone."""
    for number in range(2, 10):
        place.put(number)
    place.begin(20)
    busy = place.begin(21)
    place.shelf.tidy(set(), {busy.envelope.id: None}.keys())
    place.put(22)
    place.end(busy)
    assert place.authors() == {*range(2, 10), 21, 22}
    assert not list((place.folder / "part").iterdir())


def test_an_idle_part_expires(place: Place) -> None:
    """Of an author that never comes again; one that is still being filled stays."""
    idle, busy = place.begin(20), place.begin(21)
    coming = {busy.envelope.id: None}.keys()
    place.now = NOW + EXPIRY - 1
    place.shelf.tidy(set(), coming)
    assert place.shelf.taken == 2 * SIZE
    place.now += 2
    place.shelf.tidy(set(), coming)
    assert place.shelf.taken == SIZE
    assert len(place.files()) == 1
    assert not place.shelf.readable(idle.envelope.id)


def test_a_replaced_model_goes_before_others(place: Place) -> None:
    """Who reads it slowly doesn't cost others theirs: it is told that it is gone."""
    old = place.put(2, 1)
    for number in range(2, 11):
        place.put(number, 2)
    assert place.shelf.readable(old)
    assert place.shelf.taken == place.space
    place.put(20)
    assert not place.shelf.readable(old)
    assert place.authors() == {*range(2, 11), 20}


def test_a_full_disk_refuses(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that doesn't fit beside the reserve, and beside what is coming in already, is
    refused before a byte is fetched; nothing stays of it."""
    place.begin(3)
    usage = shutil.disk_usage("/")._replace(free=RESERVE + 2 * SIZE - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: usage)
    with pytest.raises(Refusal, match="100000 bytes don't fit") as caught:
        place.begin(2)
    assert caught.value.reason == DISK
    assert len(place.files()) == 1
    assert place.shelf.taken == SIZE


def test_models_come_in_in_several_threads(place: Place) -> None:
    """The index agrees with the disk and with the limits afterwards."""
    start = threading.Barrier(8)

    def work(share: int) -> None:
        start.wait()
        for seq in (1, 2, 3):
            for number in range(2 + share, 26, 8):
                model = place.begin(number, seq)
                place.shelf.file(model, place.folder / "part" / f"{model.envelope.peer_id}-{seq}")

    place.space = place.shelf.space = 100 * SIZE
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert place.authors() == set(range(2, 26))
    place.shelf.tidy(set(), NOBODY.keys())
    assert place.shelf.taken == 24 * SIZE
    assert len(place.files()) == 48


# ── after a restart ──────────────────────────────────────────────────────────────────────────


def test_a_restart_finds_everything(place: Place) -> None:
    """Models, whose host they are of, and since when."""
    for number in (2, 3):
        place.put(number)
    for number in range(10, 15):
        place.put(number, host="10.9.9.9")
    before = place.shelf.held()
    assert place.open().held() == before
    for number in range(20, 25):
        place.put(number)
    assert {2, 3} < place.authors()


def test_a_smaller_space_after_a_restart(place: Place) -> None:
    """The oldest go."""
    for number in range(2, 10):
        place.put(number)
    place.space = 4 * SIZE
    place.open()
    assert place.authors() == {6, 7, 8, 9}
    assert len(place.files()) == 8


def test_leftovers_are_removed(place: Place) -> None:
    """All that a kill at the worst moment can leave goes; what is whole and newest stays."""
    place.put(2, 3)
    good = place.files()
    note = (place.folder / f"{ALICE}-3.note").read_bytes()
    place.begin(5)
    for name, data in {
        f"{BOB}-1.note": note,  # before its model
        f"{BOB}-2.tmp": b"half",
        f"{BOB}-3.model": body(3),
        f"{CAROL}-1.note": b"\xa1garbage",
        f"{CAROL}-1.model": body(1),
        f"{CAROL}-2.note": note,
        f"{CAROL}-2.model": body(3)[:-1],
        f"{CAROL}-3.note": note,  # another's
        f"{CAROL}-3.model": body(3),
    }.items():
        (place.folder / name).write_bytes(data)
    place.open()
    assert place.authors() == {2}
    assert place.files() == good


def test_an_older_model_that_was_about_to_go(place: Place) -> None:
    """Of two of one author the newer stays."""
    place.put(2, 3)
    kept = {path: path.read_bytes() for path in place.folder.glob("*.*")}
    place.put(2, 4)
    for path, data in kept.items():
        path.write_bytes(data)
    assert place.open().newest(ALICE) == 4
    assert len(place.files()) == 2


STEPS = st.one_of(
    st.tuples(st.just("put"), st.integers(2, 9), st.integers(1, 5 * SIZE // 2)),
    st.tuples(st.just("begin"), st.integers(2, 9), st.integers(1, 5 * SIZE // 2)),
    st.tuples(st.just("tidy"), st.just(0), st.integers(0, 20_000)),
    st.tuples(st.just("drop"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
)


@given(st.lists(STEPS, max_size=30), st.integers(1, 12))
def test_whatever_happens_the_limits_hold(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], models: int
) -> None:
    """Bytes and models stay within limits, and what the index says lies on the disk, whole."""
    place = Place(tmp_path_factory.mktemp("steps"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MODELS", models)
        for seq, (what, number, amount) in enumerate(steps):
            _step(place, what, seq, number, amount)
            assert place.shelf.taken <= place.space
            assert len(place.shelf.held()) <= models
            assert all(intact(held) for held in place.shelf.held())
            assert len(list(place.folder.glob("*.*"))) == 2 * len(place.shelf.held())
            parts = sum(path.stat().st_size for path in (place.folder / "part").iterdir())
            models_size = sum(held.manifest.size for held in place.shelf.held())
            assert parts + models_size <= place.shelf.taken


def _step(place: Place, what: str, seq: int, number: int, amount: int) -> None:
    host, data = f"10.0.0.{number % 3}", b"x" * amount
    if what in ("put", "begin"):
        with contextlib.suppress(Refusal):
            model = place.begin(number, seq, host, data=data)
            if what == "put":
                place.end(model)
    elif what == "tidy":
        place.now += amount
        place.shelf.tidy(set(), NOBODY.keys())
    elif what == "drop":
        for held in place.shelf.held()[number : number + 1]:
            assert place.shelf.drop(held.id)
    else:
        place.open()


@given(st.binary(max_size=300) | st.builds(dict, envelope=st.binary()).map(wire.encode))
def test_any_bytes_as_a_note(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever lies in a note's file, the shelf opens and holds no model of it."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / f"{ALICE}-1.note").write_bytes(data)
    (folder / f"{ALICE}-1.model").write_bytes(b"x")
    assert not Place(folder).shelf.held()


def test_a_folder_that_can_not_be_used(tmp_path: Path) -> None:
    """One line says which, and what to do."""
    (tmp_path / "relay").write_text("not a folder")
    with pytest.raises(ShelfError, match="relay: Not a directory; remove what is there"):
        Shelf(tmp_path / "relay", 10**9, time.time)


def test_what_is_free_for_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk has, but for the reserve."""
    shelf = Shelf(tmp_path, 10**9, time.time)
    for free, left in ((RESERVE + 7, 7), (RESERVE, 0), (1, 0)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, usage=usage: usage)
        assert shelf.free() == left
