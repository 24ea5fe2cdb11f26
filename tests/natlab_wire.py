"""A long cable for the NAT laboratory: hands packets on between two network devices, later.

    natlab_wire.py left right 50        # milliseconds, each way

Strategy: not every kernel has netem. Raw sockets take whole frames, and with the header that
virtual machines use (PACKET_VNET_HDR, packet(7)) also what the kernel has left undone in them:
checksums, and cutting large ones. So nothing of the frames is looked at or changed.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time
from collections import deque

SOL_PACKET, PACKET_VNET_HDR = 263, 15  # linux/if_packet.h
ALL = 3  # ETH_P_ALL
FRAME = 65536 + 64


def plug(device: str) -> socket.socket:
    """The end of a cable."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.bind((device, ALL))
    sock.setblocking(False)
    return sock


def carry(one: socket.socket, two: socket.socket, seconds: float) -> None:
    """Hand on, for ever, in order."""
    far = {one: two, two: one}
    under_way: deque[tuple[float, socket.socket, bytes]] = deque()
    with selectors.DefaultSelector() as ready:
        for sock in far:
            ready.register(sock, selectors.EVENT_READ)
        while True:
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            for key, _ in ready.select(wait):
                near = next(sock for sock in far if sock is key.fileobj)
                frame, (*_, kind, _, _) = near.recvfrom(FRAME)
                if kind != socket.PACKET_OUTGOING:  # what we have sent ourselves
                    under_way.append((time.monotonic() + seconds, far[near], frame))
            while under_way and under_way[0][0] <= time.monotonic():
                _, to, frame = under_way.popleft()
                with contextlib.suppress(OSError):  # a cable that is full, or out, loses it
                    to.send(frame)


if __name__ == "__main__":
    left, right, milliseconds = sys.argv[1:]
    carry(plug(left), plug(right), float(milliseconds) / 1000)
