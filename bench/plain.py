"""The plain PyTorch loop that an epoch is measured against: `python bench/plain.py SHARD EPOCHS`.

What anyone would write for this model: MNIST by torchvision, normalised once, batches by index, and
two tests after each epoch. With `tuned` it also does what p2pnode's worker does to be quick (test
in slices; the allocator's settings come from the environment), so that the rest of a node's cost
can be seen. It prints one JSON line an epoch.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import MNIST

BATCH, TEST_BATCH, SLICE = 64, 1000, 125


class Net(nn.Module):
    """The same 1,199,882 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images to log-probabilities."""
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.dropout1(F.max_pool2d(x, 2))
        x = self.dropout2(F.relu(self.fc1(x.flatten(1))))
        return F.log_softmax(self.fc2(x), dim=1)


def load(cache: Path, train: bool, part: slice) -> tuple[Tensor, Tensor]:
    """Images, normalised, and labels."""
    data = MNIST(str(cache), train=train)
    images = data.data[part].float().div_(255).sub_(0.1307).div_(0.3081)
    return images.unsqueeze(1), data.targets[part].clone()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """One epoch."""
    model.train()
    for rows in torch.randperm(len(x)).split(BATCH):
        optimizer.zero_grad()
        F.nll_loss(model(x[rows]), y[rows]).backward()
        optimizer.step()


@torch.inference_mode()
def test(model: nn.Module, x: Tensor, y: Tensor, tuned: bool) -> tuple[float, float]:
    """Loss and accuracy."""
    model.eval()
    loss = correct = 0.0
    for images, labels in zip(x.split(TEST_BATCH), y.split(TEST_BATCH), strict=True):
        parts = images.split(SLICE) if tuned else (images,)
        outputs = torch.cat([model(part) for part in parts])
        loss += F.nll_loss(outputs, labels, reduction="sum").item()
        correct += (outputs.argmax(1) == labels).sum().item()
    return loss / len(x), correct / len(x)


def main() -> None:
    """Train as told."""
    number, of = map(int, sys.argv[1].split("/"))
    epochs, cache, tuned = int(sys.argv[2]), Path(sys.argv[3]), "tuned" in sys.argv
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = Net()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    size = 60_000 // of
    x, y = load(cache, True, slice(number * size, (number + 1) * size))
    test_x, test_y = load(cache, False, slice(None))
    print(json.dumps({"kind": "ready"}), flush=True)
    sys.stdin.readline()  # all three begin together
    for epoch in range(1, epochs + 1):
        began = time.monotonic()
        train(model, optimizer, x, y)
        test(model, test_x, test_y, tuned)
        test(model, test_x, test_y, tuned)
        seconds = time.monotonic() - began
        print(json.dumps({"kind": "epoch", "epoch": epoch, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
