"""A worker's training from start to end, epoch after epoch.

    train → is it finite? → write the model, tell → test → average in what has arrived
          → test → checkpoint → tell

Strategy: the model is told of right after its training, so that it travels while we test. Nothing
here waits for the network: what is in the mailbox is averaged, what isn't comes with the next
epoch. Files of others never stop the training: a model that can't be used is refused, with a
reason. A full disk costs a model or a checkpoint, not the training.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

import torch
from torch import Tensor

from ..transport.messages import TENSOR_TEXT_LIMIT, TENSORS_LIMIT
from . import averaging, encoding, weights
from .checkpoint import Position, Run, Store
from .keyring import Keyring, from_order
from .learner import Learner
from .merging import Merger
from .orders import (
    PROGRESS_INTERVAL,
    TEXT_LIMIT,
    Began,
    Epoch,
    Finished,
    Model,
    Progress,
    Ready,
    Refused,
    Report,
    Secrets,
    Setup,
    State,
)
from .sealing import create_plain
from .shard import Shard
from .task import Place, load_task

FRESH: Final = Position(0, 0.0, {}, (), None, None)


class Daemon(Protocol):
    """The other end, as the training sees it."""

    def report(self, report: Report) -> None:
        """Tell the daemon."""

    def begin(self) -> bool:
        """Wait for the order to begin; return whether to bootstrap."""

    def threads(self) -> int:
        """Return how many threads to use from now on; 0 = as they are."""

    def secrets(self) -> Secrets | None:
        """Return the newest secrets of a private swarm; None in an open one."""


class Session:
    """One run of the worker. Raises NodeError for what only the user can mend."""

    def __init__(self, setup: Setup, daemon: Daemon) -> None:
        self._setup, self._daemon = setup, daemon
        self._outbox = setup.folder / "outbox"
        self._outbox.mkdir(parents=True, exist_ok=True)
        for part in self._outbox.glob("*.part"):  # of a worker that was killed while it wrote
            part.unlink()
        _set_threads(setup.threads)
        shard = Shard.parse(setup.shard)
        self._learner = Learner(
            load_task(setup.task),
            Place(shard, setup.cache, setup.data_dir),
            device=setup.device,
            seed=setup.seed,
            lr=setup.lr,
            batch=setup.batch_size,
            test=setup.test_batch_size,
        )
        self._schema = weights.schema(self._learner.state())
        fingerprint = weights.fingerprint(self._schema).hex()
        self._store = Store(setup.folder, Run(_identity(setup.task), str(shard), fingerprint))
        self._merger = Merger(
            setup.folder / "mailbox", self._schema, setup.staleness, keyring=self._keyring
        )
        self._position = FRESH
        self._restore()

    def run(self) -> None:
        """Train until all epochs are done."""
        self._daemon.report(self._ready())
        sources = self._bootstrap() if self._daemon.begin() else ()
        if sources or not self._position.epoch:
            self._save()  # the weights that a NaN or a crash in the first epoch goes back to
        self._daemon.report(Began(self._position.epoch, self._position.age, sources))
        while not self._setup.epochs or self._position.epoch < self._setup.epochs:
            _set_threads(self._daemon.threads())
            self._epoch()
        self._settle()
        self._daemon.report(State("finished"))
        self._daemon.report(Finished(self._position.epoch))

    def _ready(self) -> Ready:
        learner, state = self._learner, self._learner.state()
        return Ready(
            parameters=sum(parameter.numel() for parameter in learner.model.parameters()),
            model_bytes=weights.size(state),
            schema=weights.fingerprint(self._schema).hex(),
            tensors=tuple(line[:TENSOR_TEXT_LIMIT] for line in self._schema[:TENSORS_LIMIT]),
            samples=learner.samples,
            test_samples=learner.test_samples,
            device=str(learner.device),
            threads=torch.get_num_threads(),
            epoch=self._position.epoch,
            age=self._position.age,
        )

    # ── an epoch ─────────────────────────────────────────────────────────────────────────────

    def _epoch(self) -> None:
        started = time.monotonic()
        self._position = replace(self._position, epoch=self._position.epoch + 1)
        broken = self._train()
        train_seconds = time.monotonic() - started
        self._daemon.report(State("testing"))
        before = self._learner.test()
        self._daemon.report(State("averaging"))
        merged = self._merger.merge(self._learner.state(), self._position)
        self._position = merged.position
        self._daemon.report(State("testing"))
        after = self._learner.test() if merged.averaged else before
        self._position = replace(self._position, before=before, after=after)
        self._save()
        self._daemon.report(
            Epoch(
                epoch=self._position.epoch,
                before=before,
                after=after,
                averaged=merged.averaged,
                refused=broken + merged.refused,
                seconds=time.monotonic() - started,
                train_seconds=train_seconds,
            )
        )

    def _train(self) -> tuple[Refused, ...]:
        """Train and send the model; return the refusal of a broken one."""
        self._daemon.report(State("training"))
        loss = self._learner.train(self._position.epoch, self._progress())
        if not averaging.finite(self._learner.state()):
            epoch = self._position.epoch
            self._restore()
            self._position = replace(self._position, epoch=epoch)
            reason = "training gave NaN or infinite weights; went back to the last good ones"
            return (Refused("", epoch, reason),)
        self._position = replace(self._position, age=self._position.age + 1)
        self._send(_finite(loss))
        return ()

    def _progress(self) -> Callable[[int, int, Tensor], None]:
        """Return what tells the progress of an epoch that starts now."""
        started = last = time.monotonic()
        epoch, batches = self._position.epoch, self._learner.batches

        def progress(batch: int, samples: int, total: Tensor) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < PROGRESS_INTERVAL and batch < batches:
                return
            last = now
            loss, rate = _finite(float(total) / samples), samples / (now - started)
            self._daemon.report(Progress(epoch, batch, batches, rate, loss))

        return progress

    def _send(self, loss: float | None) -> None:
        """Write the model to the outbox and tell the daemon."""
        # The process ID keeps an epoch that is trained again from replacing a file being sent.
        path = self._outbox / f"{self._position.epoch}-{os.getpid()}.safetensors"
        try:
            chance = self._learner.chance(self._position.epoch)
            keyring = self._keyring()
            create = keyring.create if keyring else create_plain
            encoding.save(path, self._learner.state(), self._setup.encoding, chance, create)
        except OSError as error:
            self._trouble("training", "this model isn't sent", error)
            return
        position = self._position
        self._position = replace(position, parents=())
        self._daemon.report(
            Model(
                epoch=position.epoch,
                age=position.age,
                path=path,
                samples=self._learner.samples,
                loss=loss,
                before=position.before,
                after=position.after,
                parents=position.parents,
                encoding=self._setup.encoding,
                recipients=keyring.recipients if keyring else (),
            )
        )

    def _keyring(self) -> Keyring | None:
        """Return what seals and opens models now; None in an open swarm."""
        secrets = self._daemon.secrets()
        return from_order(secrets) if secrets else None

    # ── the models of others ─────────────────────────────────────────────────────────────────

    def _bootstrap(self) -> tuple[str, ...]:
        """Start from the newest models of the swarm if they are ahead; return whose they are."""
        self._daemon.report(State("bootstrapping"))
        merged = self._merger.bootstrap(self._learner.state(), self._position)
        self._position = merged.position
        for refusal in merged.refused:
            text = _line(f"the model of {refusal.peer} is refused: {refusal.reason}")
            self._daemon.report(State("bootstrapping", text))
        if merged.averaged:
            self._learner.forget()
        return tuple(model.peer for model in merged.averaged)

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────

    def _save(self) -> None:
        try:
            self._store.write(self._learner.checkpoint(self._position))
        except OSError as error:
            self._trouble("averaging", "no checkpoint", error)

    def _settle(self) -> None:
        try:
            self._store.wait()
        except OSError as error:
            self._trouble("averaging", "no checkpoint", error)

    def _trouble(self, state: str, what: str, error: OSError) -> None:
        """The disk is full, or the like: it costs a file, not the training."""
        self._daemon.report(State(state, _line(f"{what}: {error.strerror or error}")))

    def _restore(self) -> None:
        """Go back to the last checkpoint, or to the first weights where there is none."""
        self._settle()
        checkpoint, trouble = self._store.load()
        if trouble:
            self._daemon.report(State("loading", _line(f"checkpoint: {trouble}")))
        if checkpoint is None:
            self._learner.reset()
            self._position = FRESH
        else:
            self._learner.restore(checkpoint)
            self._position = checkpoint.position


def _identity(task: str) -> str:
    """Return the task's name as a checkpoint keeps it: a file is the same in another folder."""
    where, _, attribute = task.rpartition(":")
    return f"{where.rsplit('/', 1)[-1]}:{attribute}" if where.endswith(".py") else task


def _set_threads(threads: int) -> None:
    if threads and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def _finite(loss: float) -> float | None:
    return loss if abs(loss) < float("inf") else None


def _line(text: str) -> str:
    return " ".join(text.split())[:TEXT_LIMIT]
