"""I/O: the local socket on which a running node tells its status; both ends.

A Unix socket in the home folder (mode 0700), so it is this user's alone. Whoever connects gets one
status each time it sends a byte: four bytes of length, then the bytes of a NodeStatus. The asking
side is plain blocking sockets: `p2pnode status` starts in a moment, without trio or NNG.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from .errors import ControlError
from .status import STATUS_LIMIT, NodeStatus

if TYPE_CHECKING:
    import trio

_LENGTH: Final = struct.Struct(">I")
# A node answers from memory; one that takes longer hangs.
ANSWER_SECONDS: Final = 5.0


class Control:
    """The asking side: `with Control(path) as node: node.status()`."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_SECONDS)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as error:
            self._socket.close()
            why = error.strerror or error
            raise ControlError(
                f"nobody answers at {path} ({why}): start a node with p2pnode run"
            ) from None

    def status(self) -> NodeStatus:
        """What the node is doing now. Raises ControlError, and StatusError for what isn't one."""
        try:
            self._socket.sendall(b"?")
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
            if length > STATUS_LIMIT:
                raise ControlError(f"a status of {length} bytes")
            return NodeStatus.from_bytes(self._read(length))
        except TimeoutError:
            raise ControlError(f"no answer came in {ANSWER_SECONDS:.0f} s") from None
        except OSError:
            raise ControlError("the node stopped") from None

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise ControlError("the node stopped")
            data += part
        return bytes(data)

    def close(self) -> None:
        """Close; safe to call twice."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


async def serve(
    path: Path, status: Callable[[], NodeStatus], *, task_status: trio.TaskStatus[None]
) -> None:
    """Answer until cancelled; the socket's file is removed afterwards."""
    import trio

    async def answer(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while await stream.receive_some(1):  # no further byte until this one is answered
                data = status().to_bytes()
                await stream.send_all(_LENGTH.pack(len(data)) + data)

    path.unlink(missing_ok=True)  # left by a node that was killed; the home's lock is ours
    listening = trio.socket.socket(socket.AF_UNIX)
    try:
        await listening.bind(os.fspath(path))
        path.chmod(0o600)
        listening.listen(16)
        task_status.started()
        await trio.serve_listeners(answer, [trio.SocketListener(listening)])
    finally:
        listening.close()
        path.unlink(missing_ok=True)
