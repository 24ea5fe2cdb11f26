"""node/task.py: finding a task by name, and what a task must bring."""

import contextlib
import importlib
import traceback
from collections.abc import Iterator
from pathlib import Path

import learning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.node.errors import TaskError
from p2pnode.node.mnist import Mnist
from p2pnode.node.shard import Shard
from p2pnode.node.task import Place, Task, load_task

PLACE = Place(Shard(), Path("unused"))
FILE = '''
from p2pnode.node.task import Task
class Mine(Task):
    """A task in a file."""
mine = Mine()
other = 7
class Fails(Task):
    def __init__(self):
        raise RuntimeError("no luck")
'''


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A task file with the name of one of Python's own modules."""
    path = tmp_path / "random.py"
    path.write_text(FILE)
    yield path
    importlib.import_module("random").Random  # noqa: B018  # still Python's


def test_the_built_in_task() -> None:
    """`mnist` is a name of its own."""
    assert isinstance(load_task("mnist"), Mnist)


@pytest.mark.parametrize("attribute", ["Mine", "mine"])
def test_a_class_or_an_instance_in_a_file(file: Path, attribute: str) -> None:
    """A file's task may be a class or an instance; the file's name does no harm."""
    assert type(load_task(f"{file}:{attribute}")).__name__ == "Mine"


def test_a_task_in_a_module() -> None:
    """A module on the path works as well."""
    assert isinstance(load_task("learning:Tiny"), learning.Tiny)


def test_a_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is on the path, as with `python -m`."""
    (tmp_path / "nearby_task.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert type(load_task("nearby_task:mine")).__name__ == "Mine"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cifar", "write mnist, MODULE:ATTRIBUTE or PATH/FILE.py:ATTRIBUTE"),
        ("", "write mnist"),
        (":x", "write mnist"),
        ("x:", "write mnist"),
        ("nowhere_at_all:task", "nowhere_at_all: there is no module"),
        ("nothere.py:task", "there is no file nothere.py"),
        ("learning:absent", "'absent' in learning is not a p2pnode.node.task.Task"),
        ("learning:SAMPLES", "'SAMPLES' in learning is not"),
    ],
)
def test_a_wrong_name_says_what_is_wrong(name: str, reason: str) -> None:
    """Each mistake in a name is one clear line."""
    with pytest.raises(TaskError, match=reason) as caught:
        load_task(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = ", "SyntaxError"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_broken_file_is_the_cause(tmp_path: Path, text: str, reason: str) -> None:
    """An error in the user's file is told in a line, and the traceback to show is its cause."""
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(TaskError, match=reason) as caught:
        load_task(f"{path}:task")
    cause = caught.value.__cause__
    assert cause is not None and "broken.py" in "".join(traceback.format_exception(cause))


def test_a_task_that_cannot_be_made(file: Path) -> None:
    """An error in __init__ is told with the task's name."""
    with pytest.raises(TaskError, match="Fails can't be made: RuntimeError: no luck"):
        load_task(f"{file}:Fails")


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=12))
def test_any_name_gives_a_task_or_the_error(name: str) -> None:
    """Any text gives a task or TaskError."""
    with contextlib.suppress(TaskError):
        assert isinstance(load_task(name), Task)


@pytest.mark.parametrize("method", ["train_data", "test_data"])
def test_what_a_task_must_bring(method: str) -> None:
    """A task without data or model says which method is missing."""
    with pytest.raises(TaskError, match=rf"Task has no {method}\(\)"):
        getattr(Task(), method)(PLACE)
    with pytest.raises(TaskError, match=r"Task has no model\(\)"):
        Task().model()


def test_the_defaults_are_for_classes() -> None:
    """Adadelta, cross entropy, and the highest output wins; numbers have no right answers."""
    task, outputs = Task(), torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    assert type(task.optimizer(torch.nn.Linear(1, 1), 0.5)) is torch.optim.Adadelta
    targets = torch.tensor([1, 1])
    expected = torch.nn.functional.cross_entropy(outputs, targets)
    assert torch.equal(task.loss(outputs, targets), expected)
    right = task.correct(outputs, targets)
    assert right is not None and right.item() == 1
    assert task.correct(outputs, torch.zeros(2, 2)) is None
