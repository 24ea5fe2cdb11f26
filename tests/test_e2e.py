"""The main job as users run it: real processes, real sockets, real signals, the real MNIST."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from swarm import P2PNODE, NodeProcess, Process, Swarm, free_port, p2pnode

from p2pnode.node.status import NodeStatus

pytestmark = pytest.mark.e2e
TINY = str(Path(__file__).parent / "tiny.py")
# An epoch of these tests takes a third of a second: one that waited for a peer would show.
UNDELAYED = 3.0
SLOPE = ("--task", f"{TINY}:Slope", "--epochs", "0", "--batch-size", "60")


def averaged(status: NodeStatus) -> bool:
    """Whether the node's last epoch averaged a model of another."""
    return bool(status.history) and status.history[-1].averaged > 0


def connected(count: int):  # type: ignore[no-untyped-def]
    """Whether so many peers are connected."""
    return lambda status: sum(p.state == "connected" for p in status.peers) == count


def line_about(node: Process, pattern: str) -> str:
    """The whole output line that matches."""
    start = node.says(pattern).start()
    return node.text[node.text.rfind("\n", 0, start) + 1 :].split("\n")[0]


def test_three_peers_train_mnist_together(tmp_path: Path) -> None:
    """Real MNIST on shards: all average, better on the mean after than before, and exit 0."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker()
        nodes = [
            swarm.node(f"n{i}", tracker, "--shard", f"{i}/60", "--epochs", "2", "--stay")
            for i in range(3)
        ]
        ended = [node.wait(lambda s: s.training.state == "finished") for node in nodes]
        gains = []
        for status in ended:
            assert [epoch.epoch for epoch in status.history] == [1, 2]
            assert any(epoch.averaged for epoch in status.history)
            assert (status.history[-1].after.accuracy or 0) > 0.8
            for epoch in status.history:
                assert epoch.before.accuracy is not None
                assert epoch.after.accuracy is not None
                gains.append(epoch.after.accuracy - epoch.before.accuracy)
        assert sum(gains) / len(gains) >= 0
        for node in nodes:
            code, seconds = node.stop()
            assert code == 0
            assert seconds < 2


def test_it_ends_after_the_last_epoch(tmp_path: Path) -> None:
    """After its last epoch a node delivers its last model and exits 0 (the prototype hung)."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker()
        flags = ("--task", f"{TINY}:Slope", "--epochs", "4", "--batch-size", "60")
        nodes = [swarm.node(name, tracker, *flags) for name in ("alice", "bob")]
        assert [node.finish() for node in nodes] == [0, 0]
        assert all("training is done after 4 epochs" in node.text for node in nodes)


def test_a_lone_peer_trains_without_a_tracker(tmp_path: Path) -> None:
    """No tracker answers, no peer is there: the epochs go on (the prototype hung before them)."""
    with Swarm(tmp_path) as swarm:
        node = swarm.node("alone", f"127.0.0.1:{free_port()}", *SLOPE)
        status = node.wait(lambda s: len(s.history) >= 3)
        assert status.history[-1].averaged == 0
        assert status.trackers[0].state == "unreachable"
        assert "refused" in status.trackers[0].detail


def test_nodes_start_before_the_tracker_and_survive_it(tmp_path: Path) -> None:
    """Peers find each other once a tracker is up, train on when it dies, and find newcomers
    when it is back."""
    with Swarm(tmp_path) as swarm:
        port = free_port()
        alice = swarm.node("alice", f"127.0.0.1:{port}", *SLOPE)
        bob = swarm.node("bob", f"127.0.0.1:{port}", *SLOPE)
        alice.wait(lambda s: len(s.history) >= 1)
        tracker = swarm.tracker(port)
        alice.wait(connected(1))
        swarm.tracker_process.kill()
        alice.wait(lambda s: s.trackers[0].state == "unreachable")
        before = alice.wait(averaged).history[-1].epoch
        alice.wait(lambda s: averaged(s) and s.history[-1].epoch > before + 2)
        swarm.tracker_process.start()
        carol = swarm.node("carol", tracker, *SLOPE)
        carol.wait(connected(2))
        bob.wait(connected(2))


def test_killed_and_back_again(tmp_path: Path) -> None:
    """kill -9: the others notice within 5 s and train on; started again it goes on from its
    checkpoint as the same peer."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker()
        alice = swarm.node("alice", tracker, *SLOPE)
        # Epochs of a moment: by the time it is back the swarm would be the better start.
        bob = swarm.node("bob", tracker, *SLOPE, "--bootstrap", "never")
        bob.wait(lambda s: averaged(s) and len(s.history) >= 3)
        alice.wait(connected(1))
        reached = bob.wait(lambda s: True).history[-1].epoch
        bob.kill()
        began = time.monotonic()
        alice.wait(connected(0))
        assert time.monotonic() - began < 5
        last = alice.wait(lambda s: s.history).history[-1].epoch
        alone = alice.wait(lambda s: s.history[-1].epoch >= last + 3)
        assert max(epoch.seconds for epoch in alone.history) < UNDELAYED
        bob.start()
        bob.says("goes on from the checkpoint")
        status = bob.wait(averaged)
        assert status.history[0].epoch >= reached
        assert any(p.peer == bob.peer for p in alice.wait(connected(1)).peers)


def test_a_peer_that_hangs_delays_nobody(tmp_path: Path) -> None:
    """A stopped process keeps its connections and answers nothing: the others' epochs go on."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker()
        alice = swarm.node("alice", tracker, *SLOPE)
        bob = swarm.node("bob", tracker, *SLOPE)
        bob.wait(averaged)
        alice.wait(connected(1))
        bob.process.send_signal(signal.SIGSTOP)
        last = alice.wait(lambda s: s.history).history[-1].epoch
        alone = alice.wait(lambda s: s.history[-1].epoch >= last + 5)
        assert max(epoch.seconds for epoch in alone.history) < UNDELAYED
        bob.process.send_signal(signal.SIGCONT)
        bob.wait(lambda s: averaged(s) and s.history[-1].epoch > last + 2)


def test_the_last_peer_alone_rests(tmp_path: Path) -> None:
    """Done and alone, a node that stays uses no core (a lone hivemind peer burns one)."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker()
        flags = ("--task", f"{TINY}:Slope", "--epochs", "2", "--batch-size", "60", "--stay")
        alice = swarm.node("alice", tracker, *flags)
        bob = swarm.node("bob", tracker, *flags)
        for node in (alice, bob):
            node.wait(lambda s: s.training.state == "finished")
        bob.stop()
        alice.wait(lambda s: not s.peers)
        before, began = _cpu_seconds(alice.process.pid), time.monotonic()
        time.sleep(2)  # nothing to wait for: it is about what doesn't happen
        used = _cpu_seconds(alice.process.pid) - before
        assert used < 0.1 * (time.monotonic() - began)


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_dead_peers_worker_is_gone(tmp_path: Path) -> None:
    """A daemon that is killed takes its worker with it."""
    with Swarm(tmp_path) as swarm:
        node = swarm.node("alice", None, *SLOPE)
        node.wait(lambda s: s.history)
        worker = node.worker()
        node.kill()
        deadline = time.monotonic() + 5
        while Path(f"/proc/{worker}").exists() and _state(worker) != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_late_joiner_starts_from_the_swarm(tmp_path: Path) -> None:
    """A newcomer starts from the average of the others' models, and drags nobody down."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker()
        early = [swarm.node(f"early{i}", tracker, *SLOPE) for i in range(2)]
        trained = early[0].wait(lambda s: averaged(s) and s.history[-1].after.loss < 0.05)
        late = swarm.node("late", tracker, *SLOPE)
        late.says("starts from the average of 2 models")
        status = late.wait(lambda s: s.history)
        assert status.history[0].before.loss < 0.1
        later = early[0].wait(lambda s: len(s.peers) == 2 and averaged(s))
        assert later.history[-1].after.loss <= trained.history[-1].after.loss + 0.01


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_is_quick_and_clean(tmp_path: Path, number: int) -> None:
    """Ctrl-C or SIGTERM: exit 0 in under 2 s, the tracker told, the worker gone, files whole."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker()
        alice = swarm.node("alice", tracker, *SLOPE)
        bob = swarm.node("bob", tracker, *SLOPE)
        alice.wait(averaged)
        bob.wait(averaged)
        pid = bob.worker()
        code, seconds = bob.stop(number)
        assert code == 0
        assert seconds < 2
        assert not Path(f"/proc/{pid}").exists()
        swarm.tracker_process.says("left")
        alice.wait(lambda s: not s.peers)
        assert not bob.home.control_path().exists()
        folder = bob.home.path / "swarms" / "main"
        assert (folder / "checkpoint.safetensors").stat().st_size > 0
        assert not list(folder.rglob("*.tmp"))


def test_garbage_on_every_port_stops_nobody(tmp_path: Path) -> None:
    """Bytes that mean nothing, on the tracker's and a peer's port: counted, and all go on."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker()
        alice = swarm.node("alice", tracker, *SLOPE)
        bob = swarm.node("bob", tracker, *SLOPE)
        listening = alice.wait(averaged).listening
        for target in (listening, tracker):
            for garbage in (b"\xff", b"hello", b"GET / HTTP/1.1\r\n\r\n", os.urandom(100_000)):
                _throw(target, garbage)
        status = alice.wait(lambda s: any(r.startswith("handshake") for r, _ in s.rejects))
        epoch = status.history[-1].epoch
        alice.wait(lambda s: averaged(s) and s.history[-1].epoch > epoch + 1)
        carol = swarm.node("carol", tracker, *SLOPE)
        carol.wait(connected(2))
        bob.wait(connected(2))


def _throw(target: str, garbage: bytes) -> None:
    host, _, port = target.rpartition(":")
    with socket.create_connection((host, int(port))) as sock:
        try:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(10)
            while sock.recv(1000):
                pass
        except OSError:
            pass  # it closed on us: just so


def test_another_model_is_told_and_not_averaged(tmp_path: Path) -> None:
    """A peer whose model differs is refused with a readable difference, on both sides."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker()
        alice = swarm.node("alice", tracker, *SLOPE)
        curve = ("--task", f"{TINY}:Curve", *SLOPE[2:])
        mallory = swarm.node("mallory", tracker, *curve)
        status = alice.wait(lambda s: dict(s.rejects).get("run"))
        assert not any(epoch.averaged for epoch in status.history)
        text = line_about(alice, r"rejected \(run\)")
        assert "mine 2 parameters" in text
        assert "theirs 25" in text
        assert "bias" in text
        mallory.says(r"rejected \(run\)|another run")


def test_nan_weights_go_nowhere(tmp_path: Path) -> None:
    """A peer whose training diverges sends nothing, says so, and harms nobody."""
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker()
        alice = swarm.node("alice", tracker, *SLOPE)
        sick = swarm.node("sick", tracker, "--task", f"{TINY}:Diverging", *SLOPE[2:])
        sick.says("training gave NaN")
        alice.wait(connected(1))
        status = alice.wait(lambda s: len(s.history) >= 3)
        assert all(epoch.after.loss < 100 for epoch in status.history)
        assert status.mailbox.models == 0


def test_status_tells_scripts_everything(tmp_path: Path) -> None:
    """`p2pnode status --json` is one JSON object; with no node running it is one clear line."""
    with Swarm(tmp_path) as swarm:
        node = swarm.node("alice", None, *SLOPE)
        node.wait(lambda s: s.history)
        told = json.loads(p2pnode("status", "--json", home=node.home.path).stdout)
        assert told["peer"] == node.peer
        assert told["training"]["epoch"] >= 1
        assert node.stop()[0] == 0
        gone = p2pnode("status", home=node.home.path)
        assert gone.returncode == 1
        assert gone.stderr.count("\n") == 1
        assert "p2pnode run" in gone.stderr


MISTAKES = [
    (("--shard", "3/3"), "--shard"),
    (("--shard", "a/b"), "--shard"),
    (("--public", "2.2.2.2:nonsense"), "--public"),
    (("--task", "no.such:thing"), "no.such"),
    (("--task", f"{TINY}:Nothing"), "Nothing"),
    (("--device", "cuda:99"), "cuda"),
    (("--data-dir", "/nowhere"), "/nowhere"),
    (("--bootstrap", "perhaps"), "--bootstrap"),
]


@pytest.mark.parametrize(("flags", "named"), MISTAKES)
def test_a_users_mistake_is_one_line(tmp_path: Path, flags: tuple[str, ...], named: str) -> None:
    """Wrong settings end with exit code 2 and one line that names them; never a traceback."""
    assert p2pnode("init", home=tmp_path / "home").returncode == 0
    done = p2pnode("run", "--no-tui", "--listen", "127.0.0.1:0", *flags, home=tmp_path / "home")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("p2pnode:")]
    assert len(errors) == 1
    assert named in errors[0]


def test_a_busy_port_is_one_line(tmp_path: Path) -> None:
    """A taken port ends the node at once, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert p2pnode("init", home=tmp_path / "home").returncode == 0
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = p2pnode("run", "--no-tui", "--listen", address, home=tmp_path / "home")
    assert done.returncode == 2
    assert address in done.stderr
    assert "--listen" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_two_nodes_of_one_home_exclude_each_other(tmp_path: Path) -> None:
    """A second node with the same home is refused, and the first one goes on."""
    with Swarm(tmp_path) as swarm:
        node = swarm.node("alice", None, *SLOPE)
        node.wait(lambda s: s.history)
        second = p2pnode("run", "--no-tui", "--listen", "127.0.0.1:0", home=node.home.path)
        assert second.returncode == 2
        assert "already running" in second.stderr
        node.wait(lambda s: len(s.history) >= 2)


def test_the_workers_crash_costs_an_epoch(tmp_path: Path) -> None:
    """A worker that is killed is started again from its checkpoint; the node stays."""
    with Swarm(tmp_path) as swarm:
        node: NodeProcess = swarm.node("alice", None, *SLOPE)
        epoch = node.wait(lambda s: len(s.history) >= 2).history[-1].epoch
        os.kill(node.worker(), signal.SIGKILL)
        node.says("killed by signal 9")
        status = node.wait(lambda s: s.history and s.history[-1].epoch > epoch + 1)
        assert dict(status.rejects) == {"worker crash": 1}


def test_the_demo_shows_the_main_job(tmp_path: Path) -> None:
    """`p2pnode demo`: a tracker and three nodes on real MNIST; exit 0, a table, nothing left."""
    done = subprocess.run(
        [*P2PNODE, "demo", "--epochs", "1"],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"node {number}" in done.stdout for number in range(3))
    assert "before → after" in done.stdout
    assert not list(tmp_path.glob("p2pnode-demo-*"))
