"""I/O: links over NNG. The only user of pynng; its traps are handled here and nowhere else.

trio owns the connection all the time. NNG (one plain Pair1 a peer) speaks over a socket pair whose
other end is ours: what it makes of a control message, we pass on to the network, and the other way
round. Model bytes are not shown to it: they go from the file's page cache to the network and back
through a few buffers that are used again and again (buffers.py), in the same frames that NNG would
make. So on the wire it is NNG's protocol, and NNG at the other end couldn't tell. (When NNG carried
them, too, its threads, and memory that it clears for each message, took a quarter of a delivery's
CPU time.)

What has to be known of pynng 0.9 (each point was seen):

- A Pair1 outlives its pipe and waits for another, which can't come. So the removal of the pipe
  ends the link.
- A failed or cancelled send leaves the message with the caller, and pynng forgets to free it.
- `recv_max_size` is unlimited by default: a stranger could declare gigabytes. We check the length
  before NNG sees it, and set it all the same.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable

import pynng
import trio
from pynng import ffi, lib

from .address import Address
from .buffers import Lease
from .errors import HandshakeError, LinkClosed, WireError
from .handshake import Session
from .link import CONTROL_LIMIT, DATA_KIND, HEADER_SIZE, PIECE_LIMIT, Piece, read_piece
from .stream import Filling, Stream

# What NNG is given at most: a kind byte and a sealed control message, with Pair1's 4-byte header.
CONTROL_FRAME_LIMIT = CONTROL_LIMIT + 64
# The kernel finds a host that vanished (no FIN, no RST) after 4 s, so that people see it within 5:
# an idle second, then three unanswered probes a second apart; data that nobody acknowledges for 4 s
# ends the connection too. (With 5 s each it took 5.8 s until the status said so.) So does a window
# that stays closed for 4 s, as tcp(7) has it: a process that is stopped in a transfer is redialled.
KEEPALIVE = (("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3))
UNACKNOWLEDGED_MS = 4000
# Bytes that the kernel may hold beyond those on their way: it would take megabytes, and an offer
# would stand behind them for seconds on a home uplink. With less than a piece we are woken several
# times for each.
UNSENT = PIECE_LIMIT
_CONTROL = b"\x00"
# SP over a stream: each side says hello in 8 bytes, then each frame has its length before it and
# Pair1's header: one hop.
_HELLO_SIZE, _LENGTH, _ONE_HOP = 8, struct.Struct(">Q"), bytes((0, 0, 0, 1))


def tune(sock: socket.socket | trio.socket.SocketType) -> None:
    """Set what a link's TCP socket needs: no delay, short queues, death noticed within 5 s."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    limits = (("TCP_USER_TIMEOUT", UNACKNOWLEDGED_MS), ("TCP_NOTSENT_LOWAT", UNSENT))
    for name, value in (*KEEPALIVE, *limits):
        if hasattr(socket, name):  # macOS lacks some; its defaults are slower, not wrong
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _check(error: int) -> None:
    if error:
        raise LinkClosed(ffi.string(lib.nng_strerror(error)).decode())


OnPipe = Callable[[object], None]


def _hand_over(descriptor: int, on_open: OnPipe, on_lost: OnPipe) -> pynng.Pair1:
    """A Pair1 that speaks over a connected socket; the descriptor is NNG's, or closed on failure.

    `on_open` is called in one of NNG's threads when the other end speaks Pair1 too, `on_lost` when
    the connection is gone, perhaps at once.
    """
    pair = pynng.Pair1(recv_max_size=CONTROL_FRAME_LIMIT, recv_buffer_size=1, send_buffer_size=0)
    pair.add_post_pipe_connect_cb(on_open)
    pair.add_post_pipe_remove_cb(on_lost)
    listener = ffi.new("nng_listener *")
    try:
        _check(lib.nng_listener_create(listener, pair.socket, b"socket://"))
        _check(lib.nng_listener_set_size(listener[0], b"recv-size-max", CONTROL_FRAME_LIMIT))
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
        self._settled = trio.Event()  # NNG has opened its end, or lost it before that
        self._waiting: trio.CancelScope | None = None
        self._begin_frame()
        self._net = Stream(descriptor)
        ours, theirs = socket.socketpair()
        self._nng = Stream(ours.detach())
        try:
            self._pair = _hand_over(
                theirs.detach(), lambda _: self._soon(self._open), lambda _: self._soon(self._end)
            )
        except BaseException:
            self._close_streams()
            raise

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
        ours, theirs = (Filling(memoryview(bytearray(_HELLO_SIZE))) for _ in range(2))
        await self._nng.fill(ours)
        await self._net.send(ours.whole)
        await self._net.fill(theirs)
        await self._nng.send(theirs.whole)
        await self._settled.wait()
        if not self._opened:
            raise LinkClosed

    # -- sending -------------------------------------------------------------------------------

    async def send(self, message: bytes) -> None:
        """Send a control message, sealed."""
        if len(message) > CONTROL_LIMIT:
            raise WireError(f"a control message of {len(message)} bytes")
        await self._give(pynng.Message(_CONTROL + self._session.sender.seal(message)))
        await self._pass_on()
        await trio.lowlevel.checkpoint()

    async def _give(self, message: pynng.Message) -> None:
        """Give NNG a message: at once where it can take it, as a call back costs more."""
        if self._lost:
            raise LinkClosed
        try:
            self._pair.send_msg(message, block=False)
        except pynng.TryAgain:
            await self._give_later(message)
        except pynng.NNGException:
            raise LinkClosed from None

    async def _give_later(self, message: pynng.Message) -> None:
        try:
            await self._pair.asend_msg(message)
        except BaseException as error:
            message._mem_freed = False  # it stayed ours: let its destructor free it
            if isinstance(error, pynng.NNGException):
                raise LinkClosed from None
            raise

    async def _pass_on(self) -> None:
        """The frame that NNG makes of it."""
        length = Filling(memoryview(bytearray(_LENGTH.size)))
        await self._nng.fill(length)
        rest = Filling(memoryview(bytearray(*_LENGTH.unpack(length.whole))))
        await self._nng.fill(rest)
        await self._net.send(length.whole, rest.whole)

    def room(self, transfer: int, chunk: int, offset: int, length: int) -> Piece:
        """A piece to be filled, in memory that is in use all the time."""
        lease = Lease()
        return Piece(transfer, chunk, offset, lease.memory[HEADER_SIZE:][:length], lease)

    async def send_piece(self, piece: Piece) -> None:
        """Send model bytes in the frame that NNG would make of them."""
        if self._lost:
            raise LinkClosed
        length = len(_ONE_HOP) + HEADER_SIZE + len(piece.body)
        head = _LENGTH.pack(length) + _ONE_HOP + piece.header()
        await self._net.send(head, piece.body)
        await trio.lowlevel.checkpoint()

    # -- receiving -----------------------------------------------------------------------------

    async def receive(self) -> bytes:
        """The next control message."""
        message = await self.receive_any()
        if isinstance(message, Piece):
            raise LinkClosed("model bytes where a message was due")
        return message

    async def receive_any(self) -> bytes | Piece:
        """The next control message or piece; anything else ends the link."""
        await trio.lowlevel.checkpoint()
        try:
            return await self._next()
        except (WireError, HandshakeError) as error:
            await self.aclose()
            raise LinkClosed(str(error)) from None

    def _begin_frame(self) -> None:
        """What is known of the frame that is being received: cancelled, the next try goes on."""
        self._start = Filling(memoryview(bytearray(_LENGTH.size + len(_ONE_HOP))))
        self._head = Filling(memoryview(bytearray(HEADER_SIZE)))
        self._body: Filling | None = None
        self._lease: Lease | None = None
        self._given = False  # NNG has it

    async def _next(self) -> bytes | Piece:
        if self._body is None:
            await self._net.fill(self._start)
            left = self._check_start()
            await self._net.fill(self._head)
            self._body = self._space(left)
        await self._net.fill(self._body)
        if self._lease is not None:
            frame = self._lease.memory[: HEADER_SIZE + len(self._body.whole)]
            frame[:HEADER_SIZE] = self._head.whole
            piece = read_piece(frame, self._lease)
            self._begin_frame()
            return piece
        message = await self._through_nng()
        self._begin_frame()
        return self._session.receiver.open(memoryview(message._buffer)[1:])

    def _check_start(self) -> int:
        """How many bytes follow the first ones of the content; raises WireError."""
        (length,) = _LENGTH.unpack_from(self._start.whole)
        left = int(length) - len(_ONE_HOP) - HEADER_SIZE
        if self._start.whole[_LENGTH.size :] != _ONE_HOP or left < 1:
            raise WireError("a frame that is none of ours")
        return left

    def _space(self, left: int) -> Filling:
        """Memory for the rest of the frame; raises WireError for one that can't be."""
        kind = self._head.whole[0]
        if kind == DATA_KIND and left <= PIECE_LIMIT:
            self._lease = Lease()
            return Filling(self._lease.memory[HEADER_SIZE:][:left])
        if kind == _CONTROL[0] and left <= CONTROL_FRAME_LIMIT:
            return Filling(memoryview(bytearray(left)))
        raise WireError(f"a frame of kind {kind} with {left} bytes")

    async def _through_nng(self) -> pynng.Message:
        """What NNG makes of the frame."""
        if not self._given:
            assert self._body is not None
            self._given = True
            with trio.CancelScope(shield=True):  # NNG reads at once
                await self._nng.send(self._start.whole, self._head.whole, self._body.whole)
        try:
            if not self._lost:
                with trio.CancelScope() as self._waiting:
                    return await self._pair.arecv_msg()
            return self._pair.recv_msg(block=False)  # NNG's end is lost: what had arrived
        except pynng.NNGException:
            raise LinkClosed from None
        finally:
            self._waiting = None

    # -- the end -------------------------------------------------------------------------------

    def _close_streams(self) -> None:
        self._net.close()
        self._nng.close()

    async def aclose(self) -> None:
        """Close; a send that waits fails with LinkClosed."""
        self._close_streams()
        self._pair.close()
        self._end()
