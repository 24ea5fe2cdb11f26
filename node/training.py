"""I/O: between the worker and the swarm: the worker's reports become models, board and log.

A model goes from the worker to the exchange through a slot that holds only the newest: digesting
and offering never make training wait, and a slow disk skips models rather than piling them up.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import trio

from ..transport.envelope import Kind, seal
from ..transport.exchange import Exchange, Terms
from ..transport.identity import Identity, short
from ..transport.manifest import EXPIRY, PARENTS_LIMIT, Manifest, chunk_size_for
from ..transport.messages import TASK_LIMIT, Run
from ..transport.outgoing import Held
from ..transport.parts import digest_file
from ..transport.sealed import sealed_size
from ..transport.session import Session
from ..transport.veil import veil
from . import orders
from .board import Board
from .config import Config
from .errors import HomeError
from .home import cache_folder, fair_threads
from .keyring import to_order
from .mailbox import Mailbox
from .seals import Seals
from .start import Start
from .status import printable
from .trainer import Trainer

# What a safetensors file may have beside its tensors: a length and the longest header that is read
# (weights.HEADER_LIMIT, but that module imports torch).
FILE_OVERHEAD = 8 + (8 << 20)
# An encoding whose blocks don't shrink adds 4 bytes to each: one to so many, as the smallest tensor
# that is encoded has 4096 (encoding.LEAST).
ENCODED_MORE = 1024
# What relays hear that a private swarm trains.
PRIVATE = "private"
# Models are offered at most this often: others average once an epoch, and they refuse a flood. Of
# epochs that are shorter only the newest model is sent.
PUBLISH_SECONDS = 0.5
# How often the number of nodes on this machine is looked at, to share the cores.
SHARE_SECONDS = 2.0
# How often the last model's delivery is looked at, once training is done.
LOOK_SECONDS = 0.05


class Training:
    """The worker's side of a node; the trainer's `Owner`."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        folder: Path,
        mailbox: Mailbox,
        exchange: Exchange,
        start: Start,
        board: Board,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        log: Callable[[str, str], None],
        seals: Seals | None = None,
    ) -> None:
        self._config, self._identity, self._seals = config, identity, seals
        self._mailbox, self._exchange = mailbox, exchange
        self._start, self._board = start, board
        self._wall, self._log = wall, log
        self._told = to_order(seals.keyring()) if seals else None
        setup = _setup(config, folder, self._told)
        self._threads = setup.threads
        self.trainer = Trainer(setup, self, clock=clock)
        self._terms: Terms | None = None
        self._schema = b""
        self._models_in, self._models_out = trio.open_memory_channel[orders.Model](1)
        self._ready = trio.Event()
        self._awaited: set[Session] = set()  # who was offered our newest model and hasn't answered

    async def run(self) -> None:
        """Train until done, then see the last model to the others (at most `linger` seconds)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._begin_each)
            nursery.start_soon(self._publish)
            if not self._config.threads:
                nursery.start_soon(self._share_cores)
            await self.trainer.run()
            with trio.move_on_after(self._config.linger):
                while self._undelivered():
                    await trio.sleep(LOOK_SECONDS)
            nursery.cancel_scope.cancel()

    def _undelivered(self) -> bool:
        publishing = self._models_out.statistics().tasks_waiting_receive == 0
        return publishing or bool(self._awaited & self._exchange.in_use())

    def answered(self, session: Session, held: Held | None = None) -> None:
        """A peer or relay has filed (or refused) a model of ours."""
        if held is None or held is self._mailbox.own:
            self._awaited.discard(session)

    # -- tasks -----------------------------------------------------------------------------------

    async def _begin_each(self) -> None:
        """Each time a worker is ready: give the swarm's models a moment to come in, then start."""
        while True:
            await self._ready.wait()
            self._ready = trio.Event()
            bootstrap = await self._start.wait(self._log)
            self.trainer.order(orders.Begin(bootstrap))

    async def _publish(self) -> None:
        """Digest, sign and offer each model of our worker; the newest is what counts."""
        async for model in self._models_out:
            try:
                await self._publish_one(model)
            except OSError as error:
                self._mailbox.discard(model.path)
                self._board.reject("disk")
                why = error.strerror or error
                self._log("error", f"the model of epoch {model.epoch} isn't sent: {why}")
            await trio.sleep(PUBLISH_SECONDS)

    async def _publish_one(self, model: orders.Model) -> None:
        assert self._terms is not None
        older = self._mailbox.own
        # A large file on a slow disk takes long, and stopping doesn't wait for it.
        run = replace(self._terms.run, schema=self._schema)
        manifest = await trio.to_thread.run_sync(
            manifest_of, model, run, older, self._wall(), abandon_on_cancel=True
        )
        if self._seals is not None:
            manifest = veil(manifest, self._seals.secrets)
        data = seal(self._identity, Kind.MANIFEST, manifest.to_bytes())
        held = await trio.to_thread.run_sync(self._mailbox.publish, model.path, data)
        self._awaited = self._exchange.announce(held)
        if older is not None:  # last, as freeing a large file takes milliseconds
            await trio.to_thread.run_sync(self._mailbox.discard, older.path)

    async def _share_cores(self) -> None:
        """Cores ÷ local peers, as they come and go."""
        while True:
            await trio.sleep(SHARE_SECONDS)
            fair = self._threads
            with suppress(HomeError, OSError):  # the runtime folder goes when the user logs out
                fair = await trio.to_thread.run_sync(fair_threads)
            if fair != self._threads:
                self._threads = fair
                self.trainer.order(orders.Threads(fair))
                self._log("info", f"threads: {fair} from the next epoch on (cores ÷ local nodes)")

    # -- Owner: what the trainer tells ---------------------------------------------------------

    def reported(self, report: orders.Report) -> None:
        """Dispatch by the kind of report."""
        match report:
            case orders.Ready():
                self._on_ready(report)
            case orders.Model():
                self._on_model(report)
            case orders.State():
                self._board.state(report)
                if report.detail:
                    self._log("warning", report.detail)
            case orders.Began():
                self._on_began(report)
            case orders.Progress():
                self._board.progress(report)
            case orders.Epoch():
                self._on_epoch(report)
            case orders.Finished():
                epochs = f"{report.epochs} epoch{'s' * (report.epochs != 1)}"
                self._log("info", f"training is done after {epochs}")

    def printed(self, line: str) -> None:
        """What the worker, torch or the user's task says."""
        self._log("info", f"worker: {line}")

    def crashed(self, detail: str) -> None:
        """The worker is started again."""
        self._board.reject("worker crash")
        self._log("error", f"the worker ended ({detail}); it goes on from its checkpoint")

    def _on_ready(self, ready: orders.Ready) -> None:
        self._board.ready(ready)
        self._schema = bytes.fromhex(ready.schema)
        self._terms = self._terms_of(ready)
        self._mailbox.keep(self._schema)
        self._exchange.agree(self._terms)
        threads = f"{ready.threads} thread{'s' * (ready.threads != 1)}"
        self._log("info", f"ready: {ready.samples} samples on {ready.device}, {threads}")
        if ready.threads != self._threads:  # changed since the setup, which a new worker gets again
            self.trainer.order(orders.Threads(self._threads))
        if self._told is not None:  # the same holds of secrets
            self.trainer.order(self._told)
        self._ready.set()

    def _terms_of(self, ready: orders.Ready) -> Terms:
        """What we train, as others are told of it."""
        tensors = tuple(map(printable, ready.tensors))
        task = printable(self._config.task)[:TASK_LIMIT]
        run = Run(self._config.swarm, task, self._schema, ready.parameters, tensors)
        most = ready.model_bytes + ready.model_bytes // ENCODED_MORE + FILE_OVERHEAD
        if self._seals is None:
            return Terms(run, most)
        swarm, schema = self._seals.secrets.id, self._seals.secrets.blind(self._schema)
        relayed = Run(swarm, PRIVATE, schema, 0, ())
        run = replace(run, swarm=swarm, schema=schema)
        return Terms(run, sealed_size(most), relayed, self._seals.unveil)

    def rekey(self) -> None:
        """The swarm's secrets, or for whom our models are, have changed: tell the worker."""
        told = to_order(self._seals.keyring()) if self._seals else None
        if told is not None and told != self._told:
            self._told = told
            self.trainer.order(told)

    def _on_began(self, began: orders.Began) -> None:
        self._board.age = began.age
        if began.sources:
            names = ", ".join(short(peer) for peer in began.sources)
            count = len(began.sources)
            what = f"average of {count} models" if count > 1 else "model of another peer"
            self._log("info", f"starts from the {what}: {names}")
        elif began.epoch:
            self._log("info", f"goes on from the checkpoint of epoch {began.epoch}")

    def _on_model(self, model: orders.Model) -> None:
        """Into the slot; one that still waits there is replaced."""
        self._board.age = model.age
        with suppress(trio.WouldBlock):
            self._mailbox.discard(self._models_out.receive_nowait().path)
        self._models_in.send_nowait(model)

    def _on_epoch(self, epoch: orders.Epoch) -> None:
        self._board.epoch(epoch)
        for refused in epoch.refused:
            self._board.reject("not averaged" if refused.peer else "own model broken")
            whose = short(refused.peer) if refused.peer else "our own model"
            self._log("warning", f"not averaged: {whose}: {refused.reason}")


def manifest_of(model: orders.Model, run: Run, own: Held | None, now: float) -> Manifest:
    """The manifest of our worker's new model; reads and digests its file (in a thread)."""
    chunk_size = chunk_size_for(model.path.stat().st_size)
    size, digests = digest_file(model.path, chunk_size)
    return Manifest(
        swarm=run.swarm,
        # Wall-clock numbers grow across restarts, even when the home was restored from a backup.
        seq=max(int(now * 1000), own.manifest.seq + 1 if own else 0),
        epoch=model.epoch,
        age=model.age,
        created=now,
        expires=now + EXPIRY,
        schema=run.schema,
        encoding=model.encoding,
        size=size,
        chunk_size=chunk_size,
        digests=digests,
        samples=model.samples,
        loss=model.loss,
        before=model.before,
        after=model.after,
        previous=own.id if own else None,
        parents=tuple(map(bytes.fromhex, model.parents[:PARENTS_LIMIT])),
        recipients=model.recipients,
    )


def _setup(config: Config, folder: Path, secrets: orders.Secrets | None) -> orders.Setup:
    return orders.Setup(
        task=config.task,
        shard=config.shard,
        epochs=config.epochs,
        batch_size=config.batch_size,
        test_batch_size=config.test_batch_size,
        lr=config.lr,
        seed=config.seed,
        device=config.device,
        threads=config.threads or fair_threads(),
        data_dir=config.data_dir,
        cache=cache_folder(),
        folder=folder,
        staleness=config.staleness,
        encoding=config.encoding,
        secrets=secrets,
    )
