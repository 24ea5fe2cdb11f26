"""node/checkpoint.py: going on after a crash."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from p2pnode.node import weights
from p2pnode.node.checkpoint import Checkpoint, Position, Run, Store
from p2pnode.node.errors import CheckpointError, WeightsError
from p2pnode.transport.manifest import Scores

RUN = Run("mnist", "0/3", "ab" * 32)
POSITION = Position(3, 2.5, {"12D3": 7}, ("cd",), Scores(0.5, 0.75), Scores(0.25, None))


def checkpoint(epoch: int = 3) -> Checkpoint:
    """A model with one step of Adam behind it."""
    torch.manual_seed(epoch)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    position = replace(POSITION, epoch=epoch)
    return Checkpoint(model.state_dict(), optimizer.state_dict()["state"], position)


def store(folder: Path, *epochs: int) -> Store:
    """A store into which these epochs were written."""
    made = Store(folder, RUN)
    for epoch in epochs:
        made.write(checkpoint(epoch))
    made.wait()
    return made


def same(one: Any, other: Any) -> bool:
    """Equal, tensors to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def test_everything_comes_back(tmp_path: Path) -> None:
    """Model, optimizer and position are the same after a round trip, in another process's store."""
    store(tmp_path, 3)
    loaded, trouble = Store(tmp_path, RUN).load()
    assert loaded is not None and trouble == ""
    assert same(loaded.model, checkpoint().model)
    assert same(loaded.optimizer, checkpoint().optimizer)
    assert loaded.position == POSITION


def test_no_checkpoint_is_a_fresh_start(tmp_path: Path) -> None:
    """An empty folder has no checkpoint, and that is no trouble."""
    assert Store(tmp_path, RUN).load() == (None, "")


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    """Two checkpoints are on the disk, nothing else; the newest is read."""
    loaded, _ = store(tmp_path, 1, 2, 3).load()
    assert loaded is not None and loaded.position.epoch == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.previous.safetensors",
        "checkpoint.safetensors",
    ]


def _flip(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-1],
        _flip,
        lambda data: b"x" * 99,
    ],
    ids=["empty", "header only", "cut", "one bit", "garbage"],
)
def test_a_damaged_checkpoint_falls_back(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Whatever happened to the newest, the one before is used, and it is said."""
    kept = store(tmp_path, 1, 2)
    kept.path.write_bytes(damage(kept.path.read_bytes()))
    loaded, trouble = kept.load()
    assert loaded is not None and loaded.position.epoch == 1
    assert trouble.startswith("damaged, went back to the one before")


def test_two_damaged_checkpoints_are_a_fresh_start(tmp_path: Path) -> None:
    """With nothing left to go on from, training starts afresh and says so."""
    kept = store(tmp_path, 1, 2)
    kept.path.write_bytes(b"")
    kept.previous.write_bytes(b"")
    assert kept.load() == (None, "all checkpoints are damaged, starting afresh")


def test_a_crash_between_the_renames_loses_one_epoch(tmp_path: Path) -> None:
    """If only the previous file is there, it is used."""
    kept = store(tmp_path, 1, 2)
    kept.path.unlink()
    loaded, _ = kept.load()
    assert loaded is not None and loaded.position.epoch == 1


def test_a_half_written_checkpoint_is_never_read(tmp_path: Path) -> None:
    """A file that a killed process was writing is no checkpoint."""
    kept = store(tmp_path, 1)
    kept.path.with_suffix(".part").write_bytes(kept.path.read_bytes()[:50])
    loaded, trouble = kept.load()
    assert loaded is not None and trouble == ""


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (replace(RUN, task="other.py:Task"), "it is of task mnist, not other.py:Task"),
        (replace(RUN, shard="1/3"), "it is of shard 0/3, not 1/3"),
        (replace(RUN, schema="cd" * 32), "it is of schema abab"),
    ],
)
def test_another_run_is_told_what_to_do(tmp_path: Path, run: Run, reason: str) -> None:
    """A checkpoint of another task, shard or model is never overwritten or mixed in."""
    store(tmp_path, 1)
    with pytest.raises(CheckpointError, match=reason) as caught:
        Store(tmp_path, run).load()
    assert "use another --swarm or --home" in str(caught.value)


def test_any_file_of_tensors_is_not_a_checkpoint(tmp_path: Path) -> None:
    """A model put in the checkpoint's place is damage, not a crash."""
    kept = store(tmp_path, 1, 2)
    weights.save(kept.path, {"a": torch.ones(2)}, {"p2pnode": '{"version": 1}'})
    loaded, trouble = kept.load()
    assert loaded is not None and "not a checkpoint" in trouble


def test_an_optimizer_of_odd_things_is_named(tmp_path: Path) -> None:
    """What no file can hold is refused by its type; nested numbers and tuples are fine."""
    state: dict[Any, Any] = {0: {"betas": (0.9, [1, None]), "name": "x", "on": True}}
    kept = Store(tmp_path, RUN)
    kept.write(replace(checkpoint(), optimizer=state))
    loaded, _ = kept.load()
    assert loaded is not None and loaded.optimizer == state
    with pytest.raises(WeightsError, match="has a object"):
        kept.write(replace(checkpoint(), optimizer={"0": object()}))
    assert not kept.path.with_suffix(".part").exists()


def test_a_disk_error_is_told_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while the thread brings the file to the disk comes out at the next call."""
    kept = store(tmp_path, 1)

    def broken(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    kept.write(checkpoint(2))
    with pytest.raises(OSError, match="No space"):
        kept.wait()
    monkeypatch.undo()
    loaded, _ = kept.load()
    assert loaded is not None and loaded.position.epoch == 1
