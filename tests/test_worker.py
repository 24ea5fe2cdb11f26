"""node/worker.py: the real process, driven over its pipes."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from learning import setup
from sealing import KEYRING, OLD, content

from p2pnode.node.errors import WeightsError
from p2pnode.node.keyring import to_order
from p2pnode.node.orders import (
    FAILED_LIMIT,
    Began,
    Begin,
    Epoch,
    Failed,
    Finished,
    Model,
    Ready,
    Report,
    Threads,
    parse_report,
    to_line,
)

SEEN_BY_OTHERS = ("cmdline", "environ")

TASK = '''
import os, signal, sys, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from learning import Tiny

class Loud(Tiny):
    """Prints, reads, and looks around."""

    def model(self):
        print('{{"type": "Finished", "epochs": 9}}')
        sys.stdout.write("half a line")
        sys.__stdout__.write("another")
        os.write(1, b"raw bytes\\n")
        print("read:", repr(sys.stdin.read()))
        print("trio" in sys.modules, "pynng" in sys.modules)
        print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
        print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        return super().model()

class Pausing(Tiny):
    """In its 14th batch, the second of its third epoch, it waits at the gate."""

    batch = -1

    def loss(self, outputs, targets):
        import torch
        self.batch += torch.is_grad_enabled()
        if self.batch == 13:
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()
            Path(__file__).with_name("gate").read_text()
        return super().loss(outputs, targets)

class Crashing(Tiny):
    """Fails in training, where the rehearsal couldn't see it."""

    def train_data(self, place):
        inputs, targets = super().train_data(place)
        targets[20:] = 99
        return inputs, targets

class Mistaken(Tiny):
    def model(self):
        return undefined_name

class Wordy(Tiny):
    def model(self):
        raise ValueError("é" * 2_000_000)
'''


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """The file with the tasks."""
    path = tmp_path / "tasks.py"
    path.write_text(TASK.format(tests=str(Path(__file__).parent)))
    return path


class Worker:
    """A worker process and its pipes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process = process
        self.orders: IO[bytes] = process.stdin
        self.reports: IO[bytes] = process.stdout

    def order(self, *orders: Any) -> None:
        """Write orders."""
        for order in orders:
            self.orders.write(to_line(order))
        self.orders.flush()

    def read(self, last: type | None = None) -> list[Report]:
        """Read reports until one of this type has come, or until the end."""
        reports = []
        for line in self.reports:
            reports.append(parse_report(line))
            if last is not None and isinstance(reports[-1], last):
                break
        return reports


@contextmanager
def worker(folder: Path) -> Iterator[Worker]:
    """A worker process; gone at the end, whatever happens."""
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "p2pnode.node.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        with process:
            try:
                yield Worker(process)
            finally:
                process.kill()


def test_a_whole_life(tmp_path: Path, task: Path) -> None:
    """Setup, Ready, Begin, epochs, Finished, exit code 0. What the task prints goes to stderr, its
    stdin is empty, Ctrl-C is ignored, SIGTERM isn't, neither trio nor pynng is there."""
    with worker(tmp_path) as running:
        running.order(setup(tmp_path, task=f"{task}:Loud"))
        reports = running.read(Ready)
        running.process.send_signal(signal.SIGINT)
        running.order(Threads(1), Begin(False))
        reports += running.read()
        assert running.process.wait() == 0
    assert [type(report) for report in reports].count(Finished) == 1
    assert reports[-1] == Finished(2)
    assert [e.epoch for e in reports if isinstance(e, Epoch)] == [1, 2]
    errors = (tmp_path / "stderr").read_text()
    assert '"epochs": 9' in errors and "half a line" in errors and "raw bytes" in errors
    assert "read: ''\nFalse False\nTrue\nTrue\n" in errors


def test_killed_in_the_middle_of_an_epoch(tmp_path: Path, task: Path) -> None:
    """Killed with -9 in epoch 3 and started again, a worker goes on after epoch 2. And when the
    daemon is gone (stdin ends), it ends at once, though it is deep in the task's code."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    order = setup(tmp_path, task=f"{task}:Pausing", epochs=6)
    with worker(tmp_path) as running:
        running.order(order, Begin(False))
        with gate.open("w"):  # opens when the worker is at the gate
            running.process.kill()
            running.process.wait()
        killed = running.read()
    with worker(tmp_path) as running:
        running.order(order, Begin(True))
        with gate.open("w"):
            running.orders.close()
            assert running.process.wait() == 1
        resumed = running.read()
    assert [report.epoch for report in killed if isinstance(report, Epoch)] == [1, 2]
    assert [(r.epoch, r.age) for r in resumed if isinstance(r, Ready)] == [(2, 2.0)]
    assert [report.epoch for report in resumed if isinstance(report, Began)] == [2]
    assert [report.epoch for report in resumed if isinstance(report, Epoch)] == [3, 4]


def test_secrets_come_on_the_pipe_alone(tmp_path: Path, task: Path) -> None:
    """In a private swarm models are sealed, from a new generation on with that; no secret stands in
    arguments, environment, or what the worker prints."""
    old = to_order(replace(KEYRING, secrets=OLD))
    with worker(tmp_path) as running:
        running.order(setup(tmp_path, task=f"{task}:Loud", epochs=1, secrets=old))
        running.read(Ready)
        seen = [Path(f"/proc/{running.process.pid}/{name}").read_bytes() for name in SEEN_BY_OTHERS]
        running.order(to_order(KEYRING), Begin(False))
        reports = running.read()
        assert running.process.wait() == 0
    (model,) = (report for report in reports if isinstance(report, Model))
    assert content(model.path)
    with pytest.raises(WeightsError, match="number 2; the newest here is 1"):
        content(model.path, OLD)
    seen.append((tmp_path / "stderr").read_bytes())
    for secret in (old.root, *to_order(KEYRING).generations.values()):
        assert not any(secret.encode() in text for text in seen)


def test_a_mistake_and_a_crash(tmp_path: Path, task: Path) -> None:
    """The user's mistake is Failed and exit code 2, with a traceback into the user's file for the
    log; an error in training is a crash, exit code 1, to be tried again."""
    for name, code in (("Wordy", 2), ("Mistaken", 2), ("Crashing", 1)):
        with worker(tmp_path) as running:
            running.order(setup(tmp_path, task=f"{task}:{name}"), Begin(False))
            reports = running.read()
            assert running.process.wait() == code
        failed = [report.text for report in reports if isinstance(report, Failed)]
        errors = (tmp_path / "stderr").read_text()
        assert "Traceback" in errors
        if name == "Wordy":
            assert failed[0].endswith("é") and len(failed[0]) == FAILED_LIMIT
        elif code == 2:
            assert "NameError: name 'undefined_name'" in failed[0] and "tasks.py" in errors
        else:
            assert failed == []


@pytest.mark.parametrize(
    ("line", "code"),
    [(b"", 1), (to_line(Begin(True)), 2), (b"garbage\n", 2), (b"x" * 2_000_000, 2)],
    ids=["end", "another order", "garbage", "too long"],
)
def test_without_a_setup_it_ends(tmp_path: Path, line: bytes, code: int) -> None:
    """A pipe that ends or brings anything but Setup ends the worker before it loads torch."""
    with worker(tmp_path) as running:
        with contextlib.suppress(BrokenPipeError):
            running.orders.write(line)
            running.orders.close()
        reports = running.read()
        assert running.process.wait() == code
    assert all(isinstance(report, Failed) for report in reports) and len(reports) == code - 1
