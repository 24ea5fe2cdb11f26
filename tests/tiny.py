"""Small tasks for end-to-end tests: epochs of a moment, a known best answer, a mistake or two."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from p2pnode.node.task import Place, Task

SAMPLES = 600


class Slope(Task):
    """Learn y = 3x - 1 from this shard's points; an epoch takes a third of a second."""

    pause = 0.3

    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def train_data(self, place: Place) -> tuple[Tensor, Tensor]:
        x = torch.linspace(-1, 1, SAMPLES).unsqueeze(1)
        part = place.shard.of(SAMPLES)
        return x[part], 3 * x[part] - 1

    def test_data(self, place: Place) -> tuple[Tensor, Tensor]:
        x = torch.linspace(-1, 1, 50).unsqueeze(1)
        return x, 3 * x - 1

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            time.sleep(self.pause / 10)  # a few batches: real work would take its time, too
        return nn.functional.mse_loss(outputs, targets)


class Curve(Slope):
    """The same data with another model: it can't be averaged with a Slope."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))


class Diverging(Slope):
    """Its weights become NaN in every epoch."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets) * float("nan")
