"""node/session.py and node/learner.py: the epochs, in this process, with a tiny task."""

import errno
from pathlib import Path

import pytest
import torch
from learning import FakeDaemon, Tiny, arrive, filled, fresh, peer, settle, setup, train
from torch import Tensor, nn

from p2pnode.node import encoding, session, weights
from p2pnode.node import learner as learner_module
from p2pnode.node.encoding import Decoder
from p2pnode.node.errors import CheckpointError, NodeError, ShardError, TaskError
from p2pnode.node.learner import WORST_LOSS, Learner, choose_device
from p2pnode.node.orders import (
    Began,
    Epoch,
    Finished,
    Model,
    Progress,
    Ready,
    State,
    parse_report,
    to_line,
)
from p2pnode.node.session import Session
from p2pnode.node.shard import Shard
from p2pnode.node.task import Place, Task


def learner(folder: Path, *, shard: str = "0/1", seed: int = 1, batch: int = 16) -> Learner:
    """A learner of Tiny."""
    place = Place(Shard.parse(shard), folder)
    return Learner(Tiny(), place, device="cpu", seed=seed, lr=1.0, batch=batch, test=48)


def quiet(batch: int, samples: int, total: Tensor) -> None:
    """Progress that nobody watches."""


# ── the order of things ──────────────────────────────────────────────────────────────────────


def test_a_whole_run_in_order(tmp_path: Path) -> None:
    """Ready, Began, then per epoch: train, Model before the first test, tests, Epoch; Finished."""
    arrive(tmp_path, 1, 4, filled(0.1), age=1.0)
    daemon = train(tmp_path, epochs=2)
    told = [r.state if isinstance(r, State) else type(r).__name__ for r in daemon.reports]
    epoch = ["training", "Progress", "Model", "testing", "averaging", "testing", "Epoch"]
    assert told == ["Ready", "Began", *epoch, *epoch, "finished", "Finished"]
    first, second = daemon.of(Epoch)
    assert [(a.peer, a.seq) for a in first.averaged] == [(peer(1).peer_id, 4)]
    assert second.averaged == () and second.before == second.after
    assert 0 < first.train_seconds <= first.seconds
    assert daemon.of(Finished) == [Finished(2)]


def test_ready_describes_the_model_and_the_data(tmp_path: Path) -> None:
    """Ready carries what the swarm compares, and what is shown."""
    (ready,) = train(tmp_path, shard="1/3", epochs=1).of(Ready)
    assert ready.parameters == 16 and ready.samples == 32 and ready.test_samples == 64
    assert ready.schema == weights.fingerprint(weights.schema(fresh())).hex()
    assert ready.tensors[0] == "0.bias F32 2" and ready.device == "cpu" and ready.threads == 1
    assert (ready.epoch, ready.age) == (0, 0.0)
    assert ready.model_bytes == sum(t.nbytes for t in fresh().values())


def test_models_carry_their_lineage(tmp_path: Path) -> None:
    """A model's parents are what was averaged in since the last one, and its age follows."""
    envelope = arrive(tmp_path, 1, 1, filled(0.1), age=1.0)
    daemon = train(tmp_path, epochs=3)
    models = daemon.of(Model)
    assert [m.parents for m in models] == [(), (envelope,), ()]
    assert [m.age for m in models] == [1.0, 2.0, 3.0]
    assert [m.epoch for m in models] == [1, 2, 3]
    assert models[0].before is None and models[0].after is None
    assert models[1].before == daemon.of(Epoch)[0].before
    assert models[1].after == daemon.of(Epoch)[0].after
    assert all(m.samples == 96 and m.loss is not None for m in models)


def test_the_model_in_the_outbox_is_the_trained_one(tmp_path: Path) -> None:
    """The file is a safetensors file of the schema, written before the average."""
    daemon = train(tmp_path, epochs=1)
    (model,) = daemon.of(Model)
    state, _ = weights.load(model.path)
    assert model.path.parent == tmp_path / "outbox"
    assert weights.schema(state) == weights.schema(fresh())
    checkpoint, _ = weights.load(tmp_path / "checkpoint.safetensors")
    assert all(torch.equal(state[name], checkpoint[f"model.{name}"]) for name in state)


def test_models_are_sent_encoded_and_kept_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent is encoded as told; own model and checkpoint are the same as with raw."""
    monkeypatch.setattr(encoding, "LEAST", 1)
    scores = []
    for name in ("raw", "int8"):
        daemon = train(tmp_path / name, encoding=name)
        scores += [epoch.after for epoch in daemon.of(Epoch)]
    assert scores[:2] == scores[2:]
    (model, _) = daemon.of(Model)
    assert model.encoding == "int8"
    with Decoder(model.path, "int8") as reader:
        assert reader.schema() == weights.schema(fresh())
    raw, kept = (
        weights.load(tmp_path / name / "checkpoint.safetensors")[0] for name in ("raw", "int8")
    )
    assert all(torch.equal(raw[name], kept[name]) for name in raw)


def test_every_report_fits_the_protocol(tmp_path: Path) -> None:
    """All reports of a run go over the pipe and come back the same."""
    arrive(tmp_path, 1, 1, {"x": torch.zeros(1)})
    daemon = train(tmp_path, daemon=FakeDaemon(bootstrap=True))
    assert [parse_report(to_line(report)) for report in daemon.reports] == daemon.reports


def test_progress_comes_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told by the clock, not by the batch, and at the end of an epoch in any case."""
    (end,) = train(tmp_path / "a", epochs=1).of(Progress)
    assert (end.epoch, end.batch, end.batches) == (1, 6, 6)
    monkeypatch.setattr(session, "PROGRESS_INTERVAL", 0.0)
    told = train(tmp_path / "b", epochs=1).of(Progress)
    assert [(p.epoch, p.batch, p.batches) for p in told] == [(1, n, 6) for n in range(1, 7)]
    assert all(p.loss is not None and p.samples_per_second > 0 for p in told)


def test_what_a_killed_worker_was_writing_is_removed(tmp_path: Path) -> None:
    """A model of gigabytes that is only half written doesn't stay for weeks."""
    left = tmp_path / "outbox" / "7-4711.part"
    left.parent.mkdir()
    left.write_bytes(b"half")
    train(tmp_path)
    assert not left.exists()


def test_endless_training_goes_on(tmp_path: Path) -> None:
    """With 0 epochs training goes on until it is stopped."""

    class Stop(BaseException):
        pass

    class Impatient(FakeDaemon):
        def threads(self) -> int:
            if len(self.of(Epoch)) == 4:
                raise Stop
            return 0

    daemon = Impatient()
    with pytest.raises(Stop):
        Session(setup(tmp_path, epochs=0), daemon).run()
    settle()
    assert [e.epoch for e in daemon.of(Epoch)] == [1, 2, 3, 4]


def test_threads_change_between_epochs(tmp_path: Path) -> None:
    """An order for threads takes effect at the next epoch."""
    before = torch.get_num_threads()
    daemon = FakeDaemon()
    daemon.ordered = 2
    try:
        train(tmp_path, daemon=daemon, epochs=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ── newcomers ────────────────────────────────────────────────────────────────────────────────


def test_a_newcomer_starts_from_the_swarm(tmp_path: Path) -> None:
    """Began names the peers started from and their age; a crash before the first epoch's end
    doesn't lose that start."""
    arrive(tmp_path, 1, 3, filled(0.5), age=7.0)
    daemon = train(tmp_path, daemon=FakeDaemon(bootstrap=True), epochs=1)
    assert daemon.of(Began) == [Began(0, 7.0, (peer(1).peer_id,))]
    assert daemon.of(Model)[0].age == 8.0
    started, _ = weights.load(tmp_path / "checkpoint.previous.safetensors")
    assert torch.equal(started["model.0.weight"], torch.full((2, 2), 0.5))


def test_never_bootstrapping_starts_from_the_seed(tmp_path: Path) -> None:
    """Begin(False) leaves the weights, and what is there is averaged after the first epoch."""
    arrive(tmp_path, 1, 3, filled(0.5), age=7.0)
    daemon = train(tmp_path, epochs=1)
    assert daemon.of(Began) == [Began(0, 0.0, ())]
    assert len(daemon.of(Epoch)[0].averaged) == 1
    started, _ = weights.load(tmp_path / "checkpoint.previous.safetensors")
    assert torch.equal(started["model.0.weight"], fresh()["0.weight"])


def test_an_untrained_newcomer_does_not_spoil_the_average(tmp_path: Path) -> None:
    """After ten epochs, the average with untrained weights of age 1 is nearly as good as ours."""
    train(tmp_path, epochs=9)
    arrive(tmp_path, 1, 1, fresh(seed=77), age=1.0)
    (epoch,) = train(tmp_path, epochs=10).of(Epoch)
    assert epoch.averaged[0].weight < 0.1
    assert epoch.after.loss < epoch.before.loss + 0.1
    assert epoch.after.accuracy is not None and epoch.before.accuracy is not None
    assert epoch.after.accuracy > epoch.before.accuracy - 0.05 > 0.8


# ── going on ─────────────────────────────────────────────────────────────────────────────────


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped after two epochs and started again, training ends with the same weights."""
    train(tmp_path / "whole", epochs=4)
    train(tmp_path / "parts", epochs=2)
    daemon = train(tmp_path / "parts", epochs=4)
    (ready,) = daemon.of(Ready)
    assert (ready.epoch, ready.age) == (2, 2.0)
    assert [e.epoch for e in daemon.of(Epoch)] == [3, 4]
    assert daemon.of(Model)[0].after is not None
    whole, _ = weights.load(tmp_path / "whole" / "checkpoint.safetensors")
    parts, _ = weights.load(tmp_path / "parts" / "checkpoint.safetensors")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    """Started again after its last epoch, a worker finishes at once."""
    train(tmp_path, epochs=1)
    daemon = train(tmp_path, epochs=1)
    assert daemon.of(Epoch) == [] and daemon.of(Finished) == [Finished(1)]


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    """The run goes on from the checkpoint before, and says so."""
    train(tmp_path, epochs=3)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"damage")
    daemon = train(tmp_path, epochs=3)
    assert "damaged, went back to the one before" in daemon.of(State)[0].detail
    assert daemon.of(Ready)[0].epoch == 2
    assert [e.epoch for e in daemon.of(Epoch)] == [3]


def test_another_task_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """A checkpoint of another shard isn't touched."""
    train(tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match="it is of shard 0/1, not 0/2"):
        train(tmp_path, shard="0/2")


def test_the_learning_rate_is_the_one_set_now(tmp_path: Path) -> None:
    """Starting again with another --lr uses it; the optimizer's averages go on."""
    first = learner(tmp_path)
    first.train(1, quiet)
    second = learner(tmp_path)
    second._lr = 0.25
    second.restore(first.checkpoint(session.FRESH))
    assert second.optimizer.param_groups[0]["lr"] == 0.025
    assert len(second.optimizer.state_dict()["state"]) == 6


def test_another_optimizer_starts_with_no_state(tmp_path: Path) -> None:
    """A task whose optimizer was changed goes on with its weights, and doesn't crash."""
    first = learner(tmp_path)
    first.train(1, quiet)
    second = learner(tmp_path)
    second.task.optimizer = Task().optimizer  # type: ignore[method-assign]
    second.restore(first.checkpoint(session.FRESH))
    assert second.optimizer.state_dict()["state"] == {}
    second.train(2, quiet)


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────


def test_own_nan_is_never_sent(tmp_path: Path) -> None:
    """A diverged epoch goes back to the last good weights, is told, and training goes on."""
    daemon = train(tmp_path, task="learning:DivergesOnce", epochs=3)
    assert [m.epoch for m in daemon.of(Model)] == [1, 3]
    epochs = daemon.of(Epoch)
    assert [len(e.refused) for e in epochs] == [0, 1, 0]
    assert epochs[1].refused[0].peer == "" and "NaN" in epochs[1].refused[0].reason
    assert epochs[1].before == epochs[0].after
    assert daemon.of(Model)[1].age == 2.0


def test_nan_in_the_first_epoch_goes_back_to_the_start(tmp_path: Path) -> None:
    """Before any epoch was good, the weights that all start from are the good ones."""
    daemon = train(tmp_path, task="learning:DivergesAtOnce", epochs=2)
    assert [m.epoch for m in daemon.of(Model)] == [2]
    assert daemon.of(Model)[0].age == 1.0


def test_refused_models_are_told_once(tmp_path: Path) -> None:
    """A model that can't be averaged is told with its reason in the epoch it came in."""
    arrive(tmp_path, 1, 2, {**filled(0.0), "0.weight": torch.full((2, 2), torch.nan)})
    first, second = train(tmp_path, epochs=2).of(Epoch)
    assert [(r.peer, r.seq) for r in first.refused] == [(peer(1).peer_id, 2)]
    assert "NaN" in first.refused[0].reason and second.refused == ()


@pytest.mark.parametrize("broken", ["outbox", "checkpoint"])
def test_a_full_disk_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Without room for a model or a checkpoint training goes on and says what is missing."""
    write = weights.write

    def full(path: Path, *rest: object) -> int:
        if broken in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(weights, "write", full)
    daemon = train(tmp_path, epochs=2)
    assert len(daemon.of(Epoch)) == 2
    assert len(daemon.of(Model)) == (0 if broken == "outbox" else 2)
    details = [state.detail for state in daemon.of(State) if state.detail]
    assert details and all("No space left" in detail for detail in details)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"shard": "3/3"}, ShardError, "0 ≤ I < N"),
        ({"shard": "0/97"}, ShardError, "97"),
        ({"task": "learning:Nothing"}, TaskError, "'Nothing' in learning"),
        ({"task": "learning:NoData"}, TaskError, "NoData has no train_data"),
        ({"task": "learning:OddData"}, TaskError, "two tensors, inputs and targets"),
        ({"task": "learning:WrongShape"}, TaskError, "the model fails on its training data"),
        ({"task": "learning:OddLoss"}, TaskError, r"loss\(\) must return a scalar"),
        ({"task": "learning:Sparse"}, NodeError, "'table' is sparse"),
        ({"device": "cuda:99"}, TaskError, "--device cuda:99 isn't there"),
    ],
)
def test_mistakes_of_the_user_are_told_before_training(
    tmp_path: Path, changes: dict[str, str], error: type[NodeError], text: str
) -> None:
    """A wrong shard, task or device is one clear error, before the first epoch."""
    daemon = FakeDaemon()
    with pytest.raises(error, match=text) as caught:
        train(tmp_path, daemon, **changes)
    assert "\n" not in str(caught.value)
    assert daemon.of(Ready) == []


# ── learning ─────────────────────────────────────────────────────────────────────────────────


def test_all_peers_start_alike_and_shuffle_apart(tmp_path: Path) -> None:
    """The same seed gives the same first weights for every shard, and another order of samples."""
    one, other = learner(tmp_path, shard="0/2"), learner(tmp_path, shard="1/2")
    assert all(torch.equal(one.state()[name], other.state()[name]) for name in one.state())
    different = learner(tmp_path, shard="0/2", seed=2)
    assert not torch.equal(one.state()["0.weight"], different.state()["0.weight"])
    orders = []
    for shard in ("0/2", "1/2"):
        twin = learner(tmp_path, shard=shard)
        twin.inputs, twin.targets = one.inputs, one.targets
        twin.train(1, quiet)
        orders.append(twin.state()["0.weight"].clone())
    assert not torch.equal(*orders)


def test_a_last_batch_of_one_is_left_out(tmp_path: Path) -> None:
    """Batch normalisation can't take one sample, so a rest of one waits for another epoch."""
    assert learner(tmp_path, batch=19).batches == 5
    assert learner(tmp_path, batch=95).batches == 1
    assert learner(tmp_path, batch=96).batches == learner(tmp_path, batch=1000).batches == 1
    assert learner(tmp_path, batch=1).batches == 96
    learner(tmp_path, batch=19).train(1, quiet)


def test_the_loss_is_the_mean_over_samples(tmp_path: Path) -> None:
    """Testing gives the loss and the accuracy that one batch of everything gives."""
    tested = learner(tmp_path)
    scores = tested.test()
    tested.model.eval()
    with torch.no_grad():
        outputs = tested.model(tested.test_inputs)
    assert scores.loss == pytest.approx(float(tested.task.loss(outputs, tested.test_targets)))
    right = (outputs.argmax(1) == tested.test_targets).float().mean()
    assert scores.accuracy == pytest.approx(float(right))


class Rows(Tiny):
    """Gives outputs of another form than one row a sample, or the usual ones."""

    transposed = False

    def model(self) -> nn.Module:
        """Return a network that may turn its output on its side."""
        net = super().model()
        return nn.Sequential(net, Turn()) if self.transposed else net

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the usual loss; `outputs` must be those of the whole batch."""
        return super().loss(outputs.T if self.transposed else outputs, targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Count the usual way."""
        return super().correct(outputs.T if self.transposed else outputs, targets)


class Turn(nn.Module):
    """Rows become columns."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, classes) → (classes, N)."""
        return x.T


@pytest.mark.parametrize("transposed", [False, True])
def test_a_test_batch_is_computed_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transposed: bool
) -> None:
    """Slices save memory and change nothing that is reported, whatever form the outputs have."""
    task = Rows()
    task.transposed = transposed
    place = Place(Shard(), tmp_path)
    whole = Learner(task, place, device="cpu", seed=1, lr=1.0, batch=16, test=48)
    expected = whole.test()
    monkeypatch.setattr(learner_module, "TEST_SLICE", 7)
    sliced = whole.test()
    assert sliced.accuracy == expected.accuracy
    assert sliced.loss == pytest.approx(expected.loss, rel=1e-6)


def test_a_loss_that_overflows_is_the_worst_there_is(tmp_path: Path) -> None:
    """Scores hold finite numbers only."""
    tested = learner(tmp_path)
    with torch.no_grad():
        tested.model.get_parameter("3.bias").fill_(torch.inf)
    assert tested.test().loss == WORST_LOSS


def test_auto_finds_a_device() -> None:
    """Automatic choice never fails."""
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
