"""Learn a function from noisy samples of it: the smallest whole task.

    p2pnode run --task examples/regression.py:Wave --shard 0/3 --epochs 60 --batch-size 4

Each peer sees only its part of the line (contiguous shards: very non-IID), and no peer alone can
learn the whole wave. Averaged, the peers do. Small batches make an epoch last as long as a model is
on its way; with the default it is over in 30 ms, and most epochs average nothing.
"""

import torch
from torch import Tensor, nn

from p2pnode.node.task import Place, Task

SAMPLES = 3_000


class Wave(Task):
    """y = sin(3x) + noise, for x from -2 to 2."""

    def model(self) -> nn.Module:
        """Return a network with two hidden layers."""
        return nn.Sequential(
            nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
        )

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Return Adam: --lr 1.0, the default, stands for its usual 0.001."""
        return torch.optim.Adam(model.parameters(), lr=lr / 1000)

    def train_data(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return this shard's part of the line, (n, 1) and (n, 1)."""
        x = torch.linspace(-2, 2, SAMPLES).unsqueeze(1)
        y = torch.sin(3 * x) + 0.1 * torch.randn(x.shape)
        part = place.shard.of(SAMPLES)
        return x[part], y[part]

    def test_data(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return the whole line, without noise."""
        x = torch.linspace(-2, 2, 500).unsqueeze(1)
        return x, torch.sin(3 * x)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error; targets are numbers, so there is no accuracy."""
        return nn.functional.mse_loss(outputs, targets)
