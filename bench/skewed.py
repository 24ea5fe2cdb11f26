"""MNIST as peers have it who see different things: each digit is dealt by a Dirichlet draw.

`--task bench/skewed.py:Skewed --shard I/N`: of every digit, the N shards get random shares, drawn
from a Dirichlet distribution with parameter ALPHA: many have hardly any of some digits. The draw is
the same for all peers. As in Hsu, Qi, Brown 2019, https://arxiv.org/abs/1909.06335
"""

import torch
from torch import Tensor

from p2pnode.node.mnist import Mnist
from p2pnode.node.shard import Shard
from p2pnode.node.task import Place

ALPHA = 0.3
DEAL = 7  # the seed of the draw


class Skewed(Mnist):
    """MNIST, dealt by label."""

    def train_data(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return this shard's images and labels."""
        images, labels = super().train_data(Place(Shard(), place.cache, place.data_dir))
        torch.manual_seed(DEAL)
        dealt = torch.distributions.Dirichlet(torch.full((place.shard.count,), ALPHA))
        mine = [
            _part(torch.nonzero(labels == digit)[:, 0], dealt.sample(), place.shard.index)
            for digit in range(10)
        ]
        rows = torch.cat(mine)
        return images[rows], labels[rows]


def _part(rows: Tensor, shares: Tensor, index: int) -> Tensor:
    """The rows of one digit that go to shard `index`."""
    ends = [0, *(shares.cumsum(0) * len(rows)).round().long().tolist()]
    return rows[ends[index] : ends[index + 1]]
