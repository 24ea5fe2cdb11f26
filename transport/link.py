"""The seam between the protocol and the network.

Everything above this file speaks to a `Link` (one authenticated connection with one peer) and
gets its links from a `Network`. How the socket came to be (dialled, accepted, later mapped,
punched or relayed) stays below. `network.TcpNetwork` is the real one; `tests/lab.py` holds the
in-memory twin, and both pass the same suite.

A link carries two kinds of frames. Control messages are small and sealed under the session key of
the handshake. Data frames carry model bytes, which the chunk digests in the signed manifest bind,
so they are not sealed a second time.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from .address import Address
from .envelope import ENVELOPE_LIMIT
from .errors import WireError

Service: TypeAlias = Literal["peer", "tracker", "relay"]

# A control message carries at most one envelope and a few fields beside it.
CONTROL_LIMIT = ENVELOPE_LIMIT + 8 * 1024
# One data frame carries at most this many model bytes (measured: 1 MiB is where NNG is fastest).
PIECE_LIMIT = 1 << 20

_HEADER = struct.Struct(">B3xIII")
HEADER_SIZE = _HEADER.size  # 16 bytes
DATA_KIND = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """Model bytes of one chunk: `body` is valid as long as the piece is (it may point into NNG)."""

    transfer: int
    chunk: int
    offset: int
    body: memoryview | bytes
    owner: object = None

    def header(self) -> bytes:
        """The 16 bytes that go before the body."""
        return _HEADER.pack(DATA_KIND, self.transfer, self.chunk, self.offset)


def read_piece(frame: memoryview, owner: object = None) -> Piece:
    """Split a data frame into header and body; raises WireError."""
    if not HEADER_SIZE < len(frame) <= HEADER_SIZE + PIECE_LIMIT:
        raise WireError(f"a data frame of {len(frame)} bytes")
    _, transfer, chunk, offset = _HEADER.unpack_from(frame)
    return Piece(transfer, chunk, offset, frame[HEADER_SIZE:], owner)


class Link(Protocol):
    """One authenticated connection; messages arrive whole and in order, or the link is lost.

    One task sends and one task receives. After LinkClosed, or a send that was cancelled (its number
    is used up), only `aclose` is of use.
    """

    @property
    def peer(self) -> str:
        """The peer ID that the handshake proved."""

    @property
    def remote(self) -> Address:
        """The remote socket address, as seen from here."""

    @property
    def local(self) -> Address:
        """Our own socket address; without its host the link is dead."""

    @property
    def dialled(self) -> bool:
        """True where this side dialled."""

    @property
    def punched(self) -> bool:
        """True where it came through a punched hole: no sign that others can reach us."""

    async def send(self, message: bytes) -> None:
        """Send a control message of at most CONTROL_LIMIT bytes; raises LinkClosed."""

    def room(self, transfer: int, chunk: int, offset: int, length: int) -> Piece:
        """A piece to be sent once: its body is yours to fill, where the network will read it."""

    async def send_piece(self, piece: Piece) -> None:
        """Send model bytes; returns when the network has room for more; raises LinkClosed."""

    async def receive(self) -> bytes:
        """The next control message; raises LinkClosed, also when a data frame comes instead."""

    async def receive_any(self) -> bytes | Piece:
        """The next control message or piece; raises LinkClosed."""

    async def aclose(self) -> None:
        """Close at once; safe to call twice."""


Handler: TypeAlias = Callable[[Link], Awaitable[None]]
Handlers: TypeAlias = Mapping[Service, Handler]


class Network(Protocol):
    """Makes links. Both ends have proved their identity before a link exists."""

    async def dial(self, address: Address, service: Service, expect: str | None = None) -> Link:
        """Connect and shake hands; `expect` is the peer ID that must answer.

        Raises DialError (nobody there) or HandshakeError (somebody else there). The caller's
        cancel scope is the timeout.
        """

    async def punch(self, local: Address, targets: Sequence[Address], expect: str) -> Link:
        """Connect with a peer that does the same now: from our listening port to its addresses.

        The link may as well come in at our listener. Raises DialError once all targets are given
        up, NoRoute where nothing can be tried. The caller's cancel scope is the timeout.
        """

    async def listen(self, address: Address, handlers: Handlers, *, task_status: Any) -> None:
        """Accept for ever; `task_status.started` gets the bound Address; one task a link.

        The dialler says which service it wants; one port may offer several. A link is closed when
        its handler returns. Raises ListenError when the port is taken.
        """
