"""A node's folder, its locks, and the count of nodes on this machine."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from p2pnode.node import home as home_module
from p2pnode.node.errors import HomeError
from p2pnode.node.home import Home, cores, default_home, fair_threads, local_peers

HOLD = """
import sys
from pathlib import Path
from p2pnode.node.home import Home
with Home(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of this test's own, short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home that nobody has made yet."""
    return Home(tmp_path / "home")


def hold(home: Home) -> "subprocess.Popen[str]":
    """Another process that holds the home, as a running node does."""
    command = [sys.executable, "-c", HOLD, str(home.path)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_create_makes_a_folder_for_its_owner_alone(home: Home) -> None:
    """Mode 0700, parents too, and again without harm."""
    home.create()
    home.create()
    assert home.path.stat().st_mode & 0o777 == 0o700


def test_create_refuses_a_folder_that_others_write_to(home: Home) -> None:
    """Who can write there can swap the key; the error says the command that mends it."""
    home.path.mkdir()
    home.path.chmod(0o777)
    with pytest.raises(HomeError, match="chmod 700"):
        home.create()


def test_create_says_what_stands_in_the_way(home: Home) -> None:
    """A file where the folder should be is one line, not a traceback."""
    home.path.write_text("")
    with pytest.raises(HomeError, match="File exists"):
        home.create()


def test_the_settings_file_is_not_overwritten(home: Home) -> None:
    """What the user wrote stays, unless asked otherwise."""
    home.create()
    assert home.write_config("mine")
    assert not home.write_config("other")
    assert home.config_file.read_text() == "mine"
    assert home.write_config("other", overwrite=True)
    assert home.config_file.read_text() == "other"


def test_a_swarm_has_a_folder(home: Home) -> None:
    """It lies in the home and is made when first asked for."""
    folder = home.swarm_folder("mnist-2")
    assert folder == home.path / "swarms" / "mnist-2"
    assert folder.is_dir()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a\0", "ä", "x" * 65, ".hidden"])
def test_a_swarms_name_cannot_leave_the_home(home: Home, name: str) -> None:
    """Names are letters, digits, dots, underscores and hyphens, and start with no dot."""
    with pytest.raises(HomeError, match="letters"):
        home.swarm_folder(name)


def test_a_second_node_is_refused_and_told_the_first_ones_pid(home: Home) -> None:
    """Two nodes with one key would contradict each other."""
    with (
        hold(home) as child,
        pytest.raises(HomeError, match=rf"already running \(pid {child.pid}\); use --home"),
        home.lock(),
    ):
        pass


def test_a_killed_node_leaves_no_lock(home: Home) -> None:
    """kill -9: the kernel drops the flock, so the next start goes well and the count is right."""
    with hold(home) as child:
        assert local_peers() == 1
        child.kill()
        child.wait()
        assert local_peers() == 0
        assert not list(home_module._markers().iterdir()), "what it left is gone"
        with home.lock():
            assert local_peers() == 1


def test_a_marker_that_was_removed_meanwhile_is_made_anew(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that counts removes the marker just before we lock it: we are counted all the same."""
    opened = home_module._opened
    left = 2

    def removed(path: Path) -> BinaryIO:
        nonlocal left
        file = opened(path)
        if path.parent.name == "nodes" and left:
            left -= 1
            path.unlink()
        return file

    monkeypatch.setattr(home_module, "_opened", removed)
    with home.lock():
        assert left == 0
        assert local_peers() == 1


def test_an_error_inside_the_lock_is_left_as_it_is(home: Home) -> None:
    """Only the lock's own trouble is a HomeError."""
    with pytest.raises(FileNotFoundError), home.lock():
        raise FileNotFoundError
    assert local_peers() == 0


def test_nodes_on_this_machine_are_counted(home: Home, tmp_path: Path) -> None:
    """Each counts itself once; a node that ended is not counted."""
    assert local_peers() == 0
    with home.lock():
        assert local_peers() == 1
        with Home(tmp_path / "other").lock():
            assert local_peers() == 2
        assert local_peers() == 1
    assert local_peers() == 0


def test_threads_are_a_fair_share_of_the_cores(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cores ÷ local nodes, at least one: three with one each beat three with two."""
    monkeypatch.setattr(home_module, "cores", lambda: 2)
    assert fair_threads() == 2
    with home.lock():
        assert fair_threads() == 2
        with Home(tmp_path / "b").lock(), Home(tmp_path / "c").lock():
            assert fair_threads() == 1


def test_cores_are_those_this_process_may_use() -> None:
    """Affinity, not the machine: a container may have fewer."""
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_the_control_socket_is_in_the_home_where_it_fits(runtime: Path) -> None:
    """A socket's path is limited to about 100 bytes; a long home gets one in the runtime folder."""
    assert Home(Path("/h")).control_path() == Path("/h/control.sock")
    long = Home(Path("/" + "h" * 120)).control_path()
    assert long.is_relative_to(runtime)
    assert len(bytes(long)) <= 100
    assert long != Home(Path("/" + "h" * 121)).control_path()


def test_no_place_for_the_control_socket_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If even the runtime folder's path is too long, the user can shorten the home."""
    base = tmp_path / ("r" * 120)
    base.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    with pytest.raises(HomeError, match="shorter --home"):
        Home(tmp_path / ("h" * 120)).control_path()


def test_a_runtime_folder_of_somebody_else_is_refused(runtime: Path) -> None:
    """In /tmp anybody could have made it."""
    mine = runtime / f"p2pnode-{os.getuid()}"
    mine.mkdir()
    mine.chmod(0o755)
    with pytest.raises(HomeError, match="only you"):
        local_peers()
    mine.rmdir()
    mine.symlink_to(runtime)
    with pytest.raises(HomeError, match="only you"):
        local_peers()


def test_without_a_session_the_runtime_folder_is_the_temporary_one(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container or under cron."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / "gone"))
    monkeypatch.setattr(tempfile, "tempdir", str(runtime))
    assert local_peers() == 0
    assert (runtime / f"p2pnode-{os.getuid()}").is_dir()


def test_the_default_home_is_the_platforms() -> None:
    """platformdirs knows each system's conventions."""
    assert default_home().name == "p2pnode"
