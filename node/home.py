"""A node's folder on this machine, and who else is at work here.

Strategy: everything a node keeps lies in one folder of mode 0700 (key, settings, a data folder for
each swarm). A running node holds flocks, never pid files to be believed: one on its home, so that
two nodes can't share it, and one on a marker in the user's runtime folder, so that nodes can count
each other and share the cores. The kernel drops a flock when its process ends, however it ends.
"""

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import platformdirs

from .errors import HomeError
from .kinds import SWARM

CONFIG_NAME: Final = "p2pnode.toml"

SOCKET_PATH_LIMIT: Final = 100
"""Bytes; a socket's path may have 107 on Linux and 103 on macOS (sun_path in unix(7))."""


def default_home() -> Path:
    """The platform's folder for a program's data, such as ~/.local/share/p2pnode."""
    return platformdirs.user_data_path("p2pnode", appauthor=False)


def cache_folder() -> Path:
    """The platform's folder for what can be made again, such as the unpacked MNIST."""
    return platformdirs.user_cache_path("p2pnode", appauthor=False)


class Home:
    """The folder of one node. Nothing is read or made before a method asks for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = path / "key.pem"
        self.tracker_key = path / "tracker.pem"
        self.config_file = path / CONFIG_NAME

    def create(self) -> None:
        """Make the folder with mode 0700, or check that only its owner can write to it."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = self.path.stat().st_mode
        except OSError as error:
            raise HomeError(f"{self.path}: {error.strerror}") from None
        if mode & 0o022:
            raise HomeError(f"others can write to {self.path}: run chmod 700 {self.path}")

    def write_config(self, text: str, overwrite: bool = False) -> bool:
        """Write p2pnode.toml and tell whether it was; one that is there stays as it is."""
        try:
            with self.config_file.open("w" if overwrite else "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        except OSError as error:
            raise HomeError(f"cannot write {self.config_file}: {error.strerror}") from None
        return True

    def swarm_folder(self, swarm: str) -> Path:
        """The data folder for a swarm, made if it isn't there: models, checkpoint, mailbox."""
        try:
            SWARM.read(swarm, self.path)
            folder = self.path / "swarms" / swarm
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HomeError(f"{folder}: {error.strerror}") from None
        except ValueError as error:
            raise HomeError(f"swarm {error}") from None
        return folder

    def control_path(self) -> Path:
        """Where a running node's control socket is: in the home if its path is short enough."""
        path = self.path / "control.sock"
        if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
            path = _runtime_folder() / f"{self._name()}.sock"
        if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
            raise HomeError(f"{path} is too long for a socket: choose a shorter --home")
        return path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only node of this home, and be counted by `local_peers`, as long as it is held.

        Raises HomeError that names the pid of the node that already runs.
        """
        self.create()
        with _opened(self.path / "lock") as own:
            self._take(own)
            marker = _markers() / self._name()
            with _marked(marker):
                try:
                    yield
                finally:
                    marker.unlink(missing_ok=True)

    def _take(self, own: BinaryIO) -> None:
        """Lock the home's lock file and write our pid into it, for the next one's error."""
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = own.read(20).decode(errors="replace").strip() or "unknown"
            raise HomeError(
                f"a node with the home {self.path} is already running (pid {holder}); "
                "use --home for another"
            ) from None
        except OSError as error:
            raise HomeError(f"{self.path} can't be locked: {error.strerror}") from None
        os.ftruncate(own.fileno(), 0)
        os.pwrite(own.fileno(), b"%d\n" % os.getpid(), 0)

    def _name(self) -> str:
        """A short name for this home in the runtime folder, equal however the path is spelt."""
        return hashlib.sha256(os.fsencode(self.path.resolve())).hexdigest()[:16]


def local_peers() -> int:
    """How many nodes of this user run on this machine now, the caller's included once locked."""
    return sum(map(_is_held, _markers().iterdir()))


def cores() -> int:
    """The cores that this process may use; in a container these are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


def fair_threads() -> int:
    """Threads for a node that shares the cores with the other nodes on this machine."""
    return max(1, cores() // max(1, local_peers()))


def _runtime_folder() -> Path:
    """This user's folder for what lives no longer than a session.

    It may lie in /tmp, where anybody could have made it: it must be ours and closed to others.
    """
    user = os.getuid()
    session = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{user}"
    base = session if os.access(session, os.W_OK | os.X_OK) else tempfile.gettempdir()
    folder = Path(base) / f"p2pnode-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise HomeError(f"{folder}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077:
        raise HomeError(f"{folder} must be a folder that only you can use: remove it")
    return folder


def _markers() -> Path:
    """One file for each home; a node holds its own locked. Who counts removes those of crashes."""
    folder = _runtime_folder() / "nodes"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _marked(marker: Path) -> BinaryIO:
    """The marker, made and locked; anew if it was removed before we had the lock."""
    while True:
        file = _opened(marker)
        fcntl.flock(file, fcntl.LOCK_EX)  # waits while another node is counting
        if _is_at(file, marker):
            return file
        file.close()


def _is_held(marker: Path) -> bool:
    try:
        with marker.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            _remove(file, marker)
    except FileNotFoundError:  # its node has just ended
        return False
    except BlockingIOError:
        return True
    return False


def _remove(left: BinaryIO, marker: Path) -> None:
    """Remove a marker of a crash, if we have it alone: so nobody removes a new one in its place."""
    with suppress(BlockingIOError):
        fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(left, marker):
            marker.unlink()


def _is_at(file: BinaryIO, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _opened(path: Path) -> BinaryIO:
    """A file to lock, made if it isn't there."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    except OSError as error:
        raise HomeError(f"{path}: {error.strerror}") from None
