"""The model, its data and the device they are on: what an ordinary PyTorch program is.

Strategy: data lie on the device as whole tensors, batches are index selections, losses are summed
on the device and fetched when somebody asks. So an epoch here takes as long as the same loop
written by hand. Each epoch seeds torch from (seed, shard, epoch): two peers never shuffle or drop
alike, and an epoch that is done again after a crash goes as it went before.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from ..transport.manifest import Scores
from .checkpoint import Checkpoint, Position
from .errors import TaskError
from .task import Place, Task, blame

WORST_LOSS: Final = 1e30
"""Stands for a test loss that overflowed: Scores hold finite numbers only."""

REHEARSAL: Final = 2
"""Samples of the first try: the fewest that batch normalisation takes."""

TEST_SLICE: Final = 125
"""Samples that a CPU tests at once: enough to keep its cores busy."""

DATA_SHARE: Final = 0.5
"""Of a GPU's free memory that the data may take; the rest is for the training."""


class Learner:
    """A model in training. Raises TaskError where the task's code fails before the training."""

    def __init__(
        self, task: Task, place: Place, *, device: str, seed: int, lr: float, batch: int, test: int
    ) -> None:
        self.task, self.device = task, choose_device(device)
        self._seed, self._shard, self._lr = seed, place.shard, lr
        self._batch, self._test_batch = batch, test
        self.inputs, self.targets = self._load(task.train_data, place)
        self.test_inputs, self.test_targets = self._load(task.test_data, place)
        self.reset()
        self._rehearse()

    def reset(self) -> None:
        """Start anew from the weights that all peers start from."""
        torch.manual_seed(self._seed)
        with blame("model() failed"):
            self.model = self.task.model().to(self.device)
        self.forget()

    def forget(self) -> None:
        """Give the optimizer a fresh state: its old one belongs to other weights."""
        with blame("optimizer() failed"):
            self.optimizer = self.task.optimizer(self.model, self._lr)

    @property
    def samples(self) -> int:
        """How many samples this shard has."""
        return len(self.inputs)

    @property
    def test_samples(self) -> int:
        """How many samples there are to test on."""
        return len(self.test_inputs)

    def chance(self, epoch: int) -> int:
        """Return the seed of what is left to chance when this epoch's model is sent."""
        return _mix(self._seed, str(self._shard), epoch, "sent")

    @property
    def batches(self) -> int:
        """How many batches an epoch has."""
        full, rest = divmod(self.samples, self._batch)
        # A last batch of one breaks batch normalisation; another epoch shuffles it elsewhere.
        return full + (rest > 1 or (rest == 1 and full == 0))

    # ── training and testing ─────────────────────────────────────────────────────────────────

    def train(self, epoch: int, progress: Callable[[int, int, Tensor], None]) -> float:
        """Train one epoch; return its mean loss, NaN included.

        `progress(batches done, samples done, sum of their losses)` is called after each batch; the
        sum is a tensor on the device, so only reading it costs anything.
        """
        torch.manual_seed(_mix(self._seed, str(self._shard), epoch))
        order = torch.randperm(self.samples).to(self.inputs.device)
        total, done = torch.zeros((), device=self.device), 0
        self.model.train()
        for batch in range(self.batches):
            rows = order[batch * self._batch : (batch + 1) * self._batch]
            inputs, targets = self._fetch(self.inputs[rows], self.targets[rows])
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.task.loss(self.model(inputs), targets)
            torch.autograd.backward(loss)
            self.optimizer.step()
            total += loss.detach() * len(rows)
            done += len(rows)
            progress(batch + 1, done, total)
        return float(total) / done

    @torch.inference_mode()
    def test(self) -> Scores:
        """Test the model on the whole test data."""
        self.model.eval()
        loss = torch.zeros((), device=self.device)
        correct: Tensor | None = torch.zeros((), dtype=torch.long, device=self.device)
        for start in range(0, self.test_samples, self._test_batch):
            rows = slice(start, start + self._test_batch)
            inputs, targets = self._fetch(self.test_inputs[rows], self.test_targets[rows])
            outputs = self._outputs(inputs)
            loss += self.task.loss(outputs, targets) * len(targets)
            right = self.task.correct(outputs, targets)
            correct = None if correct is None or right is None else correct + right
        mean = float(loss) / self.test_samples
        mean = mean if math.isfinite(mean) else WORST_LOSS
        return Scores(mean, None if correct is None else int(correct) / self.test_samples)

    def _outputs(self, inputs: Tensor) -> Any:
        """Return the model's outputs for a test batch, computed in slices where that is the same.

        The activations of 1,000 images take 400 MB that nobody looks at, and outgrow the caches.
        """
        if self.device.type != "cpu" or len(inputs) <= TEST_SLICE:
            return self.model(inputs)
        first, *others = torch.split(inputs, TEST_SLICE)
        outputs = self.model(first)
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != first.shape[:1]:
            return self.model(inputs)  # not a row a sample: only the model knows how to join them
        return torch.cat([outputs, *map(self.model, others)])

    # ── to and from a checkpoint ─────────────────────────────────────────────────────────────

    def state(self) -> dict[str, Any]:
        """Return the model's state dict; it shares the model's memory."""
        return self.model.state_dict()

    def checkpoint(self, position: Position) -> Checkpoint:
        """Return all that training goes on from; it shares the model's memory."""
        optimizer = {
            "kind": type(self.optimizer).__name__,
            "state": self.optimizer.state_dict()["state"],
        }
        return Checkpoint(self.state(), optimizer, position)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this model.

        Learning rates stay as they are set now; another kind of optimizer starts with no state.
        """
        self.model.load_state_dict(checkpoint.model)
        self.forget()
        if checkpoint.optimizer.get("kind") == type(self.optimizer).__name__:
            current = self.optimizer.state_dict()
            self.optimizer.load_state_dict({**current, "state": checkpoint.optimizer["state"]})

    # ── data ─────────────────────────────────────────────────────────────────────────────────

    def _load(
        self, method: Callable[[Place], tuple[Tensor, Tensor]], place: Place
    ) -> tuple[Tensor, Tensor]:
        """Get a task's data and put them on the device where there is room."""
        torch.manual_seed(self._seed)  # generated data are the same for all peers, too
        with blame(f"{method.__name__}() failed"):
            data = method(place)
        match data:
            case (Tensor() as inputs, Tensor() as targets) if 0 < len(inputs) == len(targets):
                if self._has_room(inputs.nbytes + targets.nbytes):
                    return self._fetch(inputs, targets)
                return inputs, targets
        raise TaskError(
            f"{method.__name__}() must return two tensors, inputs and targets, of the same length"
        )

    def _has_room(self, nbytes: int) -> bool:
        if self.device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(self.device)
        return nbytes <= free * DATA_SHARE

    def _fetch(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs.to(self.device), targets.to(self.device)

    @torch.no_grad()
    def _rehearse(self) -> None:
        """Try the task on a few samples, so that its mistakes come out before the training."""
        inputs, targets = self._fetch(self.inputs[:REHEARSAL], self.targets[:REHEARSAL])
        self.model.eval()
        with blame("the model fails on its training data"):
            outputs = self.model(inputs)
        with blame("loss() fails on the model's outputs"):
            loss = self.task.loss(outputs, targets)
        with blame("correct() fails on the model's outputs"):
            self.task.correct(outputs, targets)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise TaskError("loss() must return a scalar tensor, the mean over the batch")


def choose_device(name: str) -> torch.device:
    """Return the device of "auto", "cpu", "cuda", "cuda:N" or "mps". Raises TaskError."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise TaskError(f"--device {name} isn't there ({reason}); try --device auto") from None


def _mix(*parts: object) -> int:
    """Return a 64-bit seed of these values."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8])
