"""examples/: each learns, alone and together, and does what its first lines say."""

import re
from pathlib import Path

import torch
from learning import train

from p2pnode.node import weights
from p2pnode.node.averaging import Part, average
from p2pnode.node.encoding import Decoder
from p2pnode.node.learner import Learner
from p2pnode.node.orders import Epoch, Model, Ready
from p2pnode.node.shard import Shard
from p2pnode.node.task import Place, load_task

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_every_example_can_be_run_as_it_says() -> None:
    """The command in the docstring names a task in that file."""
    files = sorted(EXAMPLES.glob("*.py"))
    assert [file.name for file in files] == ["regression.py", "resnet.py"]
    for file in files:
        (named,) = re.findall(r"--task (examples/\S+)", file.read_text())
        assert load_task(str(EXAMPLES.parent / named)).__doc__


def test_the_resnet_learns_patterns(tmp_path: Path) -> None:
    """On a fifth of the images, in three epochs, most patterns are told apart."""
    task = f"{EXAMPLES / 'resnet.py'}:Patterns"
    daemon = train(tmp_path, task=task, shard="0/5", epochs=3, test_batch_size=500)
    assert daemon.of(Ready)[0].parameters == 75_172
    accuracy = daemon.of(Epoch)[-1].after.accuracy
    assert accuracy is not None and accuracy > 0.6


def test_the_regression_learns_together_what_no_peer_knows(tmp_path: Path) -> None:
    """Three peers that average after each epoch know more of the wave than one by itself."""
    task = f"{EXAMPLES / 'regression.py'}:Wave"
    alone = train(tmp_path / "alone", task=task, shard="0/3", epochs=15).of(Epoch)[-1].after
    assert alone.accuracy is None
    learners = [
        Learner(
            load_task(task),
            Place(Shard(n, 3), tmp_path),
            device="cpu",
            seed=1,
            lr=1.0,
            batch=16,
            test=500,
        )
        for n in range(3)
    ]
    for epoch in range(1, 16):
        for learner in learners:
            learner.train(epoch, lambda *_: None)
        _average_all(tmp_path, learners)
    assert learners[0].test().loss < alone.loss / 2


def _average_all(folder: Path, learners: list[Learner]) -> None:
    """Every model becomes the mean of all, as after an epoch in which all arrived in time."""
    paths = [folder / f"{n}.safetensors" for n in range(len(learners))]
    for path, learner in zip(paths, learners, strict=True):
        weights.save(path, learner.state())
    for learner in learners:
        readers = [Decoder(path, "raw") for path in paths]
        average(learner.state(), 0.0, [Part(reader, 1 / len(readers)) for reader in readers])
        for reader in readers:
            reader.close()


def test_generated_data_are_the_same_for_all(tmp_path: Path) -> None:
    """Two peers of one shard get the same noise, since data are made after seeding."""
    models = []
    for name in ("one", "other"):
        task = f"{EXAMPLES / 'regression.py'}:Wave"
        daemon = train(tmp_path / name, task=task, shard="1/3", epochs=1)
        models.append(weights.load(daemon.of(Model)[0].path)[0])
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_guides_task_learns(tmp_path: Path) -> None:
    """The task in docs/howto/own-task.md, as it stands there."""
    guide = (EXAMPLES.parent / "docs" / "howto" / "own-task.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "flowers.py").write_text(code)
    daemon = train(tmp_path, task=f"{tmp_path / 'flowers.py'}:Flowers", epochs=6, shard="0/3")
    assert daemon.of(Ready)[0].samples == 200
    accuracy = daemon.of(Epoch)[-1].after.accuracy
    assert accuracy is not None and accuracy > 0.7
