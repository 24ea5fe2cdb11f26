"""What is trained: the small class that a user writes to bring a model and data.

Strategy: `Task` has three methods that a task must define (model, training data, test data) and
three that have a default (optimizer, loss, right answers), which suit classification. Data are
whole tensors: the worker indexes them itself, since with tensors in memory every loader is slower.
`load_task` finds a task by name; docs/howto/own-task.md shows how to write one.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import NodeError, TaskError
from .shard import Shard

BUILT_IN: Final = {"mnist": "p2pnode.node.mnist:Mnist"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task finds its data."""

    shard: Shard
    cache: Path  # a folder to keep unpacked or downloaded data in, shared with other nodes
    data_dir: Path | None = None  # the user's --data-dir


class Task:
    """A model and its data. Subclass it, and name the class (or an instance) with --task."""

    def model(self) -> nn.Module:
        """Return a fresh model. All peers get the same weights, since all use the same seed."""
        raise TaskError(f"{type(self).__name__} has no model()")

    def train_data(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return this shard's inputs and targets: one row a sample, as many in both."""
        raise TaskError(f"{type(self).__name__} has no train_data()")

    def test_data(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return inputs and targets to test on, the same for all peers."""
        raise TaskError(f"{type(self).__name__} has no test_data()")

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Return the optimizer: Adadelta unless overridden."""
        return torch.optim.Adadelta(model.parameters(), lr=lr)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch (a scalar): cross entropy unless overridden."""
        return F.cross_entropy(outputs, targets)

    def correct(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """Return how many answers of a batch are right (a scalar), None where that means nothing.

        Unless overridden: the highest output wins where targets are class numbers, else None.
        """
        if targets.is_floating_point() or targets.is_complex():
            return None
        answers: Tensor = outputs.argmax(dim=1)
        return (answers == targets).sum()


def load_task(name: str) -> Task:
    """Load a task by name: "mnist", "module:attribute" or "path/file.py:attribute".

    Raises TaskError that says what is missing; errors in the user's code are its cause.
    """
    where, colon, attribute = BUILT_IN.get(name, name).rpartition(":")
    if not (colon and where and attribute):
        known = ", ".join(BUILT_IN)
        raise TaskError(f"{name!r}; write {known}, MODULE:ATTRIBUTE or PATH/FILE.py:ATTRIBUTE")
    with blame(f"{where} can't be imported"):
        module = _load_file(Path(where)) if where.endswith(".py") else _import(where)
    task = getattr(module, attribute, None)
    if isinstance(task, type) and issubclass(task, Task):
        with blame(f"{name} can't be made"):
            task = task()
    if not isinstance(task, Task):
        raise TaskError(f"{attribute!r} in {where} is not a p2pnode.node.task.Task")
    return task


def _import(name: str) -> ModuleType:
    # `python -m` puts the current folder first on the path; a console script doesn't.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            # A slip of the pen: nobody needs a traceback to see it.
            raise TaskError(f"{name}: there is no module {error.name!r}") from None
        raise


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TaskError(f"there is no file {path}")
    # A name of its own, so that a task file called random.py doesn't hide Python's.
    spec = importlib.util.spec_from_file_location(f"p2pnode_task_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def blame(what: str) -> Iterator[None]:
    """Turn an exception of the user's code into a TaskError that starts with `what`."""
    try:
        yield
    except NodeError:
        raise
    except (Exception, SystemExit) as error:  # a script that ends itself, too
        raise TaskError(f"{what}: {type(error).__name__}: {error}") from error
