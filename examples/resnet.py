"""Train a small ResNet on colour images, as one would on CIFAR-10.

    p2pnode run --task examples/resnet.py:Patterns --shard 0/3 --epochs 5

The images are made here (stripes and checks in random colours, under noise), so that nothing has to
be downloaded. For real images, return your own tensors from train_data and test_data.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2pnode.node.task import Place, Task

SAMPLES, TEST_SAMPLES, CLASSES = 3_000, 500, 4


class Block(nn.Module):
    """Two convolutions and a short cut (He et al. 2015, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) → (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Patterns(Task):
    """Horizontal, vertical or diagonal stripes, or checks?"""

    def model(self) -> nn.Module:
        """Return a ResNet with three blocks, 75,172 parameters."""
        return nn.Sequential(
            Block(3, 16, stride=2),  # (N, 16, 16, 16)
            Block(16, 32, stride=2),  # (N, 32, 8, 8)
            Block(32, 64, stride=2),  # (N, 64, 4, 4)
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),  # (N, 64)
            nn.Linear(64, CLASSES),
        )

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Return SGD with momentum: --lr 1.0, the default, stands for 0.05."""
        return torch.optim.SGD(model.parameters(), lr=lr / 20, momentum=0.9, weight_decay=5e-4)

    def train_data(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return this shard's images (n, 3, 32, 32) and classes (n)."""
        part = place.shard.of(SAMPLES)
        images, classes = draw(SAMPLES, seed=1)
        return images[part], classes[part]

    def test_data(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return images that no shard has."""
        return draw(TEST_SAMPLES, seed=2)


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `count` images (count, 3, 32, 32) and their classes (count), the same for a seed."""
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=random)

    classes = torch.randint(CLASSES, (count,), generator=random)
    down, across = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    width, shift = uniform(0.5, 1.2, 1, 1), uniform(0, 6.3, 1, 1)
    horizontal, vertical = torch.sin(width * down + shift), torch.sin(width * across + shift)
    diagonal = torch.sin(width * (down + across) + shift)
    kinds = torch.stack((horizontal, vertical, diagonal, horizontal * vertical))
    pattern = kinds[classes, torch.arange(count)].unsqueeze(1)  # (count, 1, 32, 32)
    images = pattern * uniform(-1, 1, 3, 1, 1) + uniform(-1, 1, 3, 1, 1)
    return images + 0.5 * torch.randn(images.shape, generator=random), classes
