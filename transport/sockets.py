"""I/O: links over NNG. The only user of pynng; its traps are handled here and nowhere else.

trio owns a connection until the handshake is done; then its descriptor goes to NNG through the
`socket://` listener, one plain Pair1 a peer. NNG frames the messages, buffers a few, and works in
threads of its own. What has to be known of pynng 0.9 for that (each point was seen):

- A Pair1 outlives its pipe and waits for another, which can't come. So the removal of the pipe
  ends the link: what has arrived is still read, then LinkClosed.
- A failed or cancelled send leaves the message with the caller, and pynng forgets to free it.
- Received bytes live in NNG's message: a Piece keeps its message alive (`owner`).
- `recv_max_size` is unlimited by default: a stranger could declare gigabytes. It is set.
- NNG allocates each message, and glibc gives freed pieces back to the system at once: the page
  faults were a sixth of a transfer's CPU time. `keep_freed_memory` tells it to keep some.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynng
import trio
from pynng import ffi, lib

from .address import Address
from .errors import HandshakeError, LinkClosed, WireError
from .handshake import Session
from .link import CONTROL_LIMIT, DATA_KIND, HEADER_SIZE, PIECE_LIMIT, Piece, read_piece

# A frame is one kind byte and a sealed control message, or a header and a piece; Pair1 counts its
# own 4-byte header, so a little room is left above the largest.
FRAME_LIMIT = max(CONTROL_LIMIT, PIECE_LIMIT) + HEADER_SIZE + 64
# Messages that NNG keeps ready for us: enough to overlap disk and network. None for the network, as
# the kernel holds one (UNSENT): an offer isn't stuck behind many pieces.
RECEIVE_BUFFER, SEND_BUFFER = 4, 0
# The kernel finds a host that vanished (no FIN, no RST) after 4 s, so that people see it within 5:
# an idle second, then three unanswered probes a second apart; data that nobody acknowledges for 4 s
# ends the connection too. (With 5 s each it took 5.8 s until the status said so.) So does a window
# that stays closed for 4 s, as tcp(7) has it: a process that is stopped in a transfer is redialled.
KEEPALIVE = (("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3))
UNACKNOWLEDGED_MS = 4000
# Bytes that the kernel may hold beyond those on their way: it would take megabytes, and an offer
# would stand behind them for seconds on a home uplink. With less than a piece NNG is woken several
# times for each: 128 KiB costs a fifth of the sender's CPU time.
UNSENT = PIECE_LIMIT
# Freed bytes that glibc keeps: the pieces of two transfers.
KEPT = 16 * 1024 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)

_CONTROL = b"\x00"


def tune(sock: socket.socket | trio.socket.SocketType) -> None:
    """Set what a link's TCP socket needs: no delay, short queues, death noticed within 5 s."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    limits = (("TCP_USER_TIMEOUT", UNACKNOWLEDGED_MS), ("TCP_NOTSENT_LOWAT", UNSENT))
    for name, value in (*KEEPALIVE, *limits):
        if hasattr(socket, name):  # macOS lacks some; its defaults are slower, not wrong
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def keep_freed_memory() -> None:
    """Let glibc keep the memory of pieces for the next ones; other C libraries do as they like."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT)
        mallopt(_M_MMAP_THRESHOLD, KEPT)


def _check(error: int) -> None:
    if error:
        raise LinkClosed(ffi.string(lib.nng_strerror(error)).decode())


@dataclass(frozen=True, slots=True)
class _Room:
    """The owner of a piece that is filled in place: the message it will be sent in."""

    message: Any


OnPipe = Callable[[object], None]


def _hand_over(descriptor: int, on_open: OnPipe, on_lost: OnPipe) -> pynng.Pair1:
    """A Pair1 that speaks over a connected socket; the descriptor is NNG's, or closed on failure.

    `on_open` is called in one of NNG's threads when the other end speaks Pair1 too, `on_lost` when
    the connection is gone, perhaps at once.
    """
    pair = pynng.Pair1(
        recv_max_size=FRAME_LIMIT, recv_buffer_size=RECEIVE_BUFFER, send_buffer_size=SEND_BUFFER
    )
    pair.add_post_pipe_connect_cb(on_open)
    pair.add_post_pipe_remove_cb(on_lost)
    listener = ffi.new("nng_listener *")
    try:
        _check(lib.nng_listener_create(listener, pair.socket, b"socket://"))
        _check(lib.nng_listener_set_size(listener[0], b"recv-size-max", FRAME_LIMIT))
        _check(lib.nng_listener_start(listener[0], 0))
        _check(lib.nng_listener_set_int(listener[0], b"socket:fd", descriptor))
    except BaseException:
        os.close(descriptor)
        pair.close()
        raise
    return pair


class NngLink:
    """A `Link` over NNG. Must be made inside trio, from a blocking or trio-owned descriptor."""

    def __init__(
        self,
        descriptor: int,
        session: Session,
        local: Address,
        remote: Address,
        dialled: bool,
        punched: bool = False,
    ) -> None:
        self.peer, self.local, self.remote = session.peer, local, remote
        self.dialled, self.punched = dialled, punched
        self._session = session
        self._token = trio.lowlevel.current_trio_token()
        self._lost = False
        self._opened = False
        self._settled = trio.Event()  # opened, or lost before that
        self._waiting: trio.CancelScope | None = None
        self._pair = _hand_over(
            descriptor, lambda _: self._soon(self._open), lambda _: self._soon(self._end)
        )

    def _soon(self, call: Callable[[], None]) -> None:
        """From one of NNG's threads into trio's."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call)

    def _open(self) -> None:
        self._opened = True
        self._settled.set()

    def _end(self) -> None:
        self._lost = True
        self._settled.set()
        if self._waiting is not None:
            self._waiting.cancel()

    async def opened(self) -> None:
        """Wait until NNG has met NNG at the other end; raises LinkClosed where it never does."""
        await self._settled.wait()
        if not self._opened:
            raise LinkClosed

    async def send(self, message: bytes) -> None:
        """Send a control message, sealed."""
        if len(message) > CONTROL_LIMIT:
            raise WireError(f"a control message of {len(message)} bytes")
        await self._send(pynng.Message(_CONTROL + self._session.sender.seal(message)))

    def room(self, transfer: int, chunk: int, offset: int, length: int) -> Piece:
        """A piece to be filled whose body lies in the message, so nothing is copied."""
        pointer = ffi.new("nng_msg **")
        _check(lib.nng_msg_alloc(pointer, HEADER_SIZE + length))
        message = pynng.Message(pointer[0])
        frame = memoryview(message._buffer)
        piece = Piece(transfer, chunk, offset, frame[HEADER_SIZE:], _Room(message))
        frame[:HEADER_SIZE] = piece.header()
        return piece

    async def send_piece(self, piece: Piece) -> None:
        """Send model bytes behind their header."""
        if isinstance(piece.owner, _Room):
            await self._send(piece.owner.message)
            return
        message = pynng.Message(piece.header())
        body = ffi.from_buffer(piece.body)
        _check(lib.nng_msg_append(message._nng_msg, body, len(body)))
        await self._send(message)

    async def _send(self, message: pynng.Message) -> None:
        """Send at once where there is room: a call back from NNG costs more than most messages."""
        if self._lost:
            raise LinkClosed
        try:
            self._pair.send_msg(message, block=False)
        except pynng.TryAgain:
            await self._send_later(message)
        except pynng.NNGException:
            raise LinkClosed from None
        else:
            await trio.lowlevel.checkpoint()

    async def _send_later(self, message: pynng.Message) -> None:
        try:
            await self._pair.asend_msg(message)
        except BaseException as error:
            message._mem_freed = False  # it stayed ours: let its destructor free it
            if isinstance(error, pynng.NNGException):
                raise LinkClosed from None
            raise

    async def receive(self) -> bytes:
        """The next control message."""
        message = await self.receive_any()
        if isinstance(message, Piece):
            raise LinkClosed("model bytes where a message was due")
        return message

    async def receive_any(self) -> bytes | Piece:
        """The next control message or piece; anything else ends the link."""
        message = await self._next()
        view = memoryview(message._buffer)
        try:
            if len(view) and view[0] == DATA_KIND:
                return read_piece(view, message)
            if len(view) and view[0] == _CONTROL[0]:
                return self._session.receiver.open(view[1:])
            raise WireError("an unknown kind of frame")
        except (WireError, HandshakeError) as error:
            await self.aclose()
            raise LinkClosed(str(error)) from None

    async def _next(self) -> pynng.Message:
        """Wait for a message; after the loss of the connection what is left, then the end."""
        try:
            if not self._lost:
                with trio.CancelScope() as self._waiting:
                    return await self._pair.arecv_msg()
            return self._pair.recv_msg(block=False)  # after the loss: what had arrived
        except pynng.NNGException:
            raise LinkClosed from None
        finally:
            self._waiting = None

    async def aclose(self) -> None:
        """Close; a send that waits fails with LinkClosed."""
        self._pair.close()
        self._end()
