"""Helpers for the tests of learning: a tiny task, models that arrive, a daemon that notes all."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2pnode.node import encoding, weights
from p2pnode.node.keyring import Keyring, to_order
from p2pnode.node.orders import Report, Secrets, Setup
from p2pnode.node.sealing import create_plain
from p2pnode.node.session import Session
from p2pnode.node.task import Place, Task
from p2pnode.transport.envelope import Kind, peek, seal
from p2pnode.transport.identity import Identity
from p2pnode.transport.manifest import EXPIRY, Manifest, chunk_size_for
from p2pnode.transport.veil import veil

SAMPLES = 96
HERE = "learning:Tiny"


class Tiny(Task):
    """Two classes of points in the plane, a model of 12 numbers and batch statistics."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.1), nn.Linear(2, 2))

    def train_data(self, place: Place) -> tuple[Tensor, Tensor]:
        points, classes = _points(SAMPLES, seed=1)
        return points[place.shard.of(SAMPLES)], classes[place.shard.of(SAMPLES)]

    def test_data(self, place: Place) -> tuple[Tensor, Tensor]:
        return _points(64, seed=2)

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=lr / 10)


class Diverging(Tiny):
    """The loss of some training batches (counted from 0) is NaN."""

    broken: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self._batch = -1

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        loss = super().loss(outputs, targets)
        if not torch.is_grad_enabled():
            return loss  # the rehearsal and the tests
        self._batch += 1
        return loss * float("nan") if self._batch in self.broken else loss


class DivergesOnce(Diverging):
    """In the second of epochs of 6 batches."""

    broken = frozenset([8])


class DivergesAtOnce(Diverging):
    """In the first batch of all."""

    broken = frozenset([0])


class NoData(Task):
    """Half a task."""

    model = Tiny.model


class OddData(Tiny):
    """Gives one tensor where two belong."""

    def train_data(self, place: Place) -> Any:
        return torch.ones(3)


class WrongShape(Tiny):
    """Its model doesn't fit its data."""

    def model(self) -> nn.Module:
        return nn.Linear(7, 2)


class OddLoss(Tiny):
    """Forgets the mean."""

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")


class Sparse(Tiny):
    """Has a buffer that no model file can hold."""

    def model(self) -> nn.Module:
        model = super().model()
        model.register_buffer("table", torch.eye(2).to_sparse())
        return model


def _points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 2, generator=generator)
    return points, (points.sum(dim=1) > 0).long()


def setup(folder: Path, **changes: Any) -> Setup:
    """Orders for a short training of Tiny in this folder."""
    values: dict[str, Any] = {
        "task": HERE,
        "shard": "0/1",
        "epochs": 2,
        "batch_size": 16,
        "test_batch_size": 48,
        "lr": 1.0,
        "seed": 1,
        "device": "cpu",
        "threads": 1,
        "data_dir": None,
        "cache": folder / "cache",
        "folder": folder,
        "staleness": 1.0,
        "encoding": "raw",
    }
    return Setup(**{**values, **changes})


class FakeDaemon:
    """Notes every report; begins at once; may do something when a report of a type comes."""

    def __init__(self, *, bootstrap: bool = False) -> None:
        self.reports: list[Report] = []
        self.bootstrap = bootstrap
        self.ordered = 0
        self.keyring: Keyring | None = None

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def begin(self) -> bool:
        return self.bootstrap

    def threads(self) -> int:
        return self.ordered

    def secrets(self) -> Secrets | None:
        return to_order(self.keyring) if self.keyring else None

    def of(self, kind: type) -> list[Any]:
        """All reports of this type."""
        return [report for report in self.reports if isinstance(report, kind)]


def train(folder: Path, daemon: FakeDaemon | None = None, **changes: Any) -> FakeDaemon:
    """Run a whole session in this process; return its daemon."""
    daemon = daemon or FakeDaemon()
    Session(setup(folder, **changes), daemon).run()
    return daemon


def settle() -> None:
    """Wait until the checkpoint that is on its way is on the disk."""
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


def peer(number: int) -> Identity:
    """The same peer for the same number."""
    return Identity.from_seed(bytes([number]) * 32)


def arrive(
    folder: Path,
    number: int,
    seq: int,
    state: Mapping[str, Tensor],
    age: float = 1.0,
    encoded: str = "raw",
    said: str = "",
    keyring: Keyring | None = None,
) -> str:
    """Put a model of peer `number` into the mailbox as the daemon does; return its envelope ID.

    Its manifest says the truth about how it is encoded, unless it has `said` something else. In a
    private swarm both are sealed with this keyring.
    """
    mailbox = folder / "mailbox"
    mailbox.mkdir(parents=True, exist_ok=True)
    identity = peer(number)
    path = mailbox / f"{identity.peer_id}-{seq}.safetensors"
    create = keyring.create if keyring else create_plain
    size = encoding.save(path.with_suffix(".new"), state, encoded, 1, create)
    manifest = Manifest(
        swarm="main",
        seq=seq,
        epoch=max(1, int(age)),
        age=age,
        created=1.0,
        expires=1.0 + EXPIRY,
        schema=weights.fingerprint(weights.schema(state)),
        size=size,
        chunk_size=chunk_size_for(size),
        digests=bytes(32 * -(-size // chunk_size_for(size))),
        samples=1,
        encoding=said or encoded,
    )
    if keyring:
        manifest = veil(replace(manifest, swarm=keyring.secrets.id), keyring.secrets)
    data = seal(identity, Kind.MANIFEST, manifest.to_bytes())
    path.with_suffix(".envelope").write_bytes(data)
    path.with_suffix(".new").replace(path)
    return peek(data).id.hex()


def fresh(seed: int = 1) -> dict[str, Tensor]:
    """A Tiny model's first weights."""
    torch.manual_seed(seed)
    return Tiny().model().state_dict()


def filled(value: float) -> dict[str, Tensor]:
    """A Tiny model with the same number everywhere."""
    return {name: torch.full_like(tensor, value) for name, tensor in fresh().items()}
