"""node/merging.py and node/arrivals.py: from the mailbox into the model."""

import math
from pathlib import Path

import pytest
import torch
from learning import arrive, filled, fresh, peer

from p2pnode.node import encoding, weights
from p2pnode.node.arrivals import Arrival, arrivals
from p2pnode.node.checkpoint import Position
from p2pnode.node.codec import BLOCK
from p2pnode.node.encoding import Decoder
from p2pnode.node.errors import WeightsError
from p2pnode.node.merging import AGE_LEAD, BOOTSTRAP_MODELS, SEEN_LIMIT, Merger
from p2pnode.node.orders import Refused
from p2pnode.transport.manifest import ENCODINGS

START = Position(0, 0.0, {}, (), None, None)
AGED = Position(10, 10.0, {}, (), None, None)
WEIGHT = "0.weight"


def merger(folder: Path, staleness: float = 1.0) -> Merger:
    """A merger of Tiny models."""
    return Merger(folder / "mailbox", weights.schema(fresh()), staleness)


# ── the mailbox ──────────────────────────────────────────────────────────────────────────────


def test_only_the_newest_model_of_each_peer_counts(tmp_path: Path) -> None:
    """Of several models of a peer the newest is taken, and none that was seen already."""
    for seq in (1, 3, 2):
        arrive(tmp_path, 1, seq, fresh(), age=seq)
    arrive(tmp_path, 2, 5, fresh())
    found = arrivals(tmp_path / "mailbox", {peer(2).peer_id: 5})
    assert [(a.peer, a.seq) for a in found] == [(peer(1).peer_id, 3)]
    assert isinstance(found[0], Arrival) and found[0].age == 3


def test_other_files_are_overlooked(tmp_path: Path) -> None:
    """Parts, strangers' names and models whose envelope isn't there are nothing to average."""
    arrive(tmp_path, 1, 1, fresh())
    (tmp_path / "mailbox" / f"{peer(1).peer_id}-1.envelope").unlink()
    (tmp_path / "mailbox" / "part").mkdir()
    (tmp_path / "mailbox" / "note.safetensors").write_bytes(b"")
    assert arrivals(tmp_path / "mailbox", {}) == []
    assert arrivals(tmp_path / "nowhere", {}) == []


def test_a_model_removed_meanwhile_is_no_error(tmp_path: Path) -> None:
    """The daemon may remove a model after it was listed: the average goes on without it."""
    arrive(tmp_path, 1, 1, filled(4.0))
    own, merging = filled(0.0), merger(tmp_path)
    opened = merging._open

    def vanish(arrival: Arrival) -> object:
        arrival.path.unlink()
        return opened(arrival)

    merging._open = vanish  # type: ignore[assignment,method-assign]
    merged = merging.merge(own, START)
    assert merged.averaged == () and merged.refused == () and merged.position == START


# ── averaging in ─────────────────────────────────────────────────────────────────────────────


def test_what_has_arrived_is_averaged_in(tmp_path: Path) -> None:
    """Own and two others, all of one age: each counts a third; age and lineage follow."""
    ids = [arrive(tmp_path, 1, 4, filled(3.0)), arrive(tmp_path, 2, 7, filled(6.0))]
    own = filled(0.0)
    merged = merger(tmp_path).merge(own, Position(1, 1.0, {}, ("aa",), None, None))
    assert torch.allclose(own[WEIGHT], torch.full((2, 2), 3.0))
    assert {(a.peer, a.seq): a.weight for a in merged.averaged} == {
        (peer(1).peer_id, 4): pytest.approx(1 / 3),
        (peer(2).peer_id, 7): pytest.approx(1 / 3),
    }
    assert merged.position.seen == {peer(1).peer_id: 4, peer(2).peer_id: 7}
    assert merged.position.parents[0] == "aa" and set(merged.position.parents[1:]) == set(ids)
    assert merged.position.age == pytest.approx(1.0)


@pytest.mark.parametrize("encoded", ENCODINGS)
def test_encoded_models_are_averaged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: str
) -> None:
    """However a model is encoded, it counts the same; counters stay the own ones."""
    monkeypatch.setattr(encoding, "LEAST", 1)
    arrive(tmp_path, 1, 1, filled(3.0), encoded=encoded)
    own = filled(1.0)
    merged = merger(tmp_path).merge(own, Position(1, 1.0, {}, (), None, None))
    assert len(merged.averaged) == 1 and not merged.refused
    assert torch.allclose(own[WEIGHT], torch.full((2, 2), 2.0), atol=2 / 127)
    assert own["1.num_batches_tracked"] == 1


def test_a_manifest_that_lies_about_the_encoding_changes_nothing(tmp_path: Path) -> None:
    """The model is refused with a reason before anything is added."""
    arrive(tmp_path, 1, 1, filled(3.0), encoded="int8", said="bf16")
    arrive(tmp_path, 2, 1, filled(3.0), encoded="raw", said="int8+zstd")
    own = filled(1.0)
    merged = merger(tmp_path).merge(own, START)
    assert not merged.averaged
    assert sorted(refused.reason.partition("says")[2] for refused in merged.refused) == [
        " that it is 'int8', its manifest 'bf16'",
        " that it is 'raw', its manifest 'int8+zstd'",
    ]
    assert torch.equal(own[WEIGHT], filled(1.0)[WEIGHT])


def test_each_model_is_averaged_once(tmp_path: Path) -> None:
    """A model that stays in the mailbox isn't averaged in again."""
    arrive(tmp_path, 1, 1, filled(4.0))
    own, merging = filled(0.0), merger(tmp_path)
    first = merging.merge(own, START)
    again = merging.merge(own, first.position)
    assert len(first.averaged) == 1 and again.averaged == ()
    assert again.position == first.position


def test_an_untrained_newcomer_hardly_counts(tmp_path: Path) -> None:
    """At age 10 a model of age 1 has a tenth of our weight, and our age hardly falls."""
    arrive(tmp_path, 1, 1, filled(100.0), age=1.0)
    own = filled(0.0)
    merged = merger(tmp_path).merge(own, AGED)
    assert merged.averaged[0].weight == pytest.approx(1 / 11)
    assert merged.position.age == pytest.approx(10 - 9 / 11)
    arrive(tmp_path, 1, 2, filled(100.0), age=1.0)
    steeper = merger(tmp_path, staleness=3.0).merge(filled(0.0), AGED)
    assert steeper.averaged[0].weight == pytest.approx(1 / 1001)


@pytest.mark.parametrize("lie", [1e3, 1e18])
def test_a_liar_makes_nobody_stale(tmp_path: Path, lie: float) -> None:
    """A claimed age is believed up to AGE_LEAD ahead, so our age hardly moves, alone or not."""
    arrive(tmp_path, 1, 1, filled(1.0), age=lie)
    alone = merger(tmp_path).merge(filled(0.0), AGED)
    assert alone.averaged[0].weight == pytest.approx(1 / 2)
    assert alone.position.age == pytest.approx(10 + AGE_LEAD / 2)
    for number in (2, 3, 4):
        arrive(tmp_path, number, 1, filled(1.0), age=10.0)
    among_honest = merger(tmp_path).merge(filled(0.0), AGED)
    assert among_honest.position.age == pytest.approx(10 + AGE_LEAD / 5)


def test_who_is_far_behind_catches_up_at_once(tmp_path: Path) -> None:
    """Where most are far ahead they are believed: the age follows the weights."""
    for number in (1, 2, 3):
        arrive(tmp_path, number, 1, filled(1.0), age=50.0)
    merged = merger(tmp_path).merge(filled(0.0), AGED)
    assert merged.position.age == pytest.approx((10 + 3 * 50) / 4)


def test_what_was_seen_is_bounded(tmp_path: Path) -> None:
    """Of peers that come and go for months the latest are remembered."""
    seen = {f"peer{n}": n for n in range(SEEN_LIMIT)}
    arrive(tmp_path, 1, 7, filled(1.0))
    merged = merger(tmp_path).merge(filled(0.0), Position(1, 1.0, seen, (), None, None))
    assert len(merged.position.seen) == SEEN_LIMIT
    assert merged.position.seen[peer(1).peer_id] == 7 and "peer0" not in merged.position.seen


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({**filled(0.0), WEIGHT: torch.full((2, 2), math.nan)}, "NaN"),
        ({**filled(0.0), WEIGHT: torch.full((2, 2), math.inf)}, "infinite"),
        ({**filled(0.0), WEIGHT: torch.zeros(3, 2)}, "another model"),
        ({"x": torch.zeros(1)}, "another model"),
    ],
)
def test_a_broken_model_is_refused_and_changes_nothing(
    tmp_path: Path, state: dict[str, torch.Tensor], reason: str
) -> None:
    """NaN, infinity or another schema is refused with a reason, once; the good ones count."""
    arrive(tmp_path, 1, 1, state)
    arrive(tmp_path, 2, 1, filled(2.0))
    own, merging = filled(0.0), merger(tmp_path)
    merged = merging.merge(own, START)
    assert [a.peer for a in merged.averaged] == [peer(2).peer_id]
    assert [(r.peer, r.seq) for r in merged.refused] == [(peer(1).peer_id, 1)]
    assert reason in merged.refused[0].reason
    assert torch.equal(own[WEIGHT], torch.ones(2, 2))
    assert merging.merge(own, merged.position).refused == ()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """A cut-off model and an envelope that isn't one are counted refusals."""
    arrive(tmp_path, 1, 1, filled(1.0))
    arrive(tmp_path, 2, 1, filled(1.0))
    model = tmp_path / "mailbox" / f"{peer(1).peer_id}-1.safetensors"
    model.write_bytes(model.read_bytes()[:-3])
    (tmp_path / "mailbox" / f"{peer(2).peer_id}-1.envelope").write_bytes(b"\x00garbage")
    merged = merger(tmp_path).merge(filled(0.0), START)
    assert merged.averaged == ()
    assert {r.peer for r in merged.refused} == {peer(1).peer_id, peer(2).peer_id}
    assert all(isinstance(r, Refused) and "\n" not in r.reason for r in merged.refused)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_judge_may_refuse_what_is_fit(tmp_path: Path, bootstrap: bool) -> None:
    """It sees each fit model, open, and no broken one; what it says is the reason as it stands."""
    arrive(tmp_path, 1, 1, {**filled(0.0), WEIGHT: torch.full((2, 2), math.nan)}, age=1.0)
    for number, value in ((2, 3.0), (3, 7.0)):
        arrive(tmp_path, number, 1, filled(value), age=1.0)
    seen = []

    def judge(arrival: Arrival, reader: Decoder) -> str | None:
        value = reader.block(WEIGHT, 0, torch.empty(BLOCK, dtype=torch.uint8))[0].item()
        seen.append(value)
        return "it is wrong more often\nthan ours" if value == 7 else None

    merging = Merger(tmp_path / "mailbox", weights.schema(fresh()), 1.0, judge)
    own = filled(1.0)
    if bootstrap:
        merged = merging.bootstrap(own, START)
    else:
        merged = merging.merge(own, Position(1, 1.0, {}, (), None, None))
    assert sorted(seen) == [3, 7]
    assert [a.peer for a in merged.averaged] == [peer(2).peer_id]
    reasons = {refused.peer: refused.reason for refused in merged.refused}
    assert reasons[peer(3).peer_id] == "it is wrong more often than ours"
    assert "NaN" in reasons[peer(1).peer_id]
    assert own[WEIGHT][0, 0].item() == (3 if bootstrap else 2)


def test_a_judge_that_can_t_read_a_model_refuses_it(tmp_path: Path) -> None:
    """A file that breaks while it is judged costs this model, not the average."""
    arrive(tmp_path, 1, 1, filled(3.0))

    def judge(_arrival: Arrival, _reader: Decoder) -> str | None:
        raise WeightsError("it is cut off")

    merging = Merger(tmp_path / "mailbox", weights.schema(fresh()), 1.0, judge)
    merged = merging.merge(filled(1.0), START)
    assert not merged.averaged and "cut off" in merged.refused[0].reason


# ── starting from the swarm ──────────────────────────────────────────────────────────────────


def test_a_newcomer_starts_from_the_others_alone(tmp_path: Path) -> None:
    """Nothing of the untrained weights is left; the older of two counts less; so does its age."""
    arrive(tmp_path, 1, 1, filled(1.0), age=9.0)
    arrive(tmp_path, 2, 1, filled(4.0), age=8.0)
    own = fresh()
    merged = merger(tmp_path).bootstrap(own, START)
    assert torch.allclose(own[WEIGHT], torch.full((2, 2), 2.0))
    assert [a.peer for a in merged.averaged] == [peer(1).peer_id, peer(2).peer_id]
    assert merged.position.age == pytest.approx(9 * 2 / 3 + 8 / 3)
    assert len(merged.position.parents) == 2


def test_only_the_newest_are_started_from(tmp_path: Path) -> None:
    """Of many models the newest few are taken; the others wait for the first average."""
    for number in range(1, BOOTSTRAP_MODELS + 3):
        arrive(tmp_path, number, 1, filled(1.0), age=float(number))
    merged = merger(tmp_path).bootstrap(fresh(), START)
    assert [a.peer for a in merged.averaged] == [
        peer(number).peer_id for number in range(BOOTSTRAP_MODELS + 2, 2, -1)
    ]
    later = merger(tmp_path).merge(filled(1.0), merged.position)
    assert {a.peer for a in later.averaged} == {peer(1).peer_id, peer(2).peer_id}


@pytest.mark.parametrize(("age", "started"), [(11.0, False), (12.0, False), (12.5, True)])
def test_a_checkpoint_is_kept_unless_far_behind(tmp_path: Path, age: float, started: bool) -> None:
    """A peer that comes back goes on from its own model unless the swarm is 2 epochs ahead."""
    arrive(tmp_path, 1, 3, filled(1.0), age=age)
    own = filled(0.0)
    merged = merger(tmp_path).bootstrap(own, AGED)
    assert bool(merged.averaged) is started
    assert bool(own[WEIGHT].any()) is started
    # What wasn't used is still there to be averaged in.
    assert bool(merger(tmp_path).merge(own, merged.position).averaged) is not started


def test_a_liar_doesn_t_take_over_a_newcomer(tmp_path: Path) -> None:
    """Among honest models one that claims to be far ahead counts no more than they do."""
    arrive(tmp_path, 1, 1, filled(100.0), age=1e9)
    for number in (2, 3, 4):
        arrive(tmp_path, number, 1, filled(1.0), age=10.0)
    merged = merger(tmp_path).bootstrap(fresh(), START)
    assert [a.weight for a in merged.averaged] == pytest.approx([1 / 4] * 4)
    assert merged.position.age == pytest.approx(10 + AGE_LEAD / 4)
    kept = merger(tmp_path).bootstrap(filled(0.0), AGED)
    assert kept.averaged == (), "and its word alone throws no checkpoint away"


def test_nothing_to_start_from_is_a_fresh_start(tmp_path: Path) -> None:
    """An empty mailbox and one with broken models only leave the weights as they are."""
    own = fresh()
    assert merger(tmp_path).bootstrap(own, START).position == START
    arrive(tmp_path, 1, 1, {**filled(0.0), WEIGHT: torch.full((2, 2), math.nan)}, age=5.0)
    merged = merger(tmp_path).bootstrap(own, START)
    assert merged.averaged == () and len(merged.refused) == 1
    assert all(torch.equal(own[name], tensor) for name, tensor in fresh().items())
