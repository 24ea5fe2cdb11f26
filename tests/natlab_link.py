"""A long, thin, lossy cable for the laboratory, without netem, which some kernels lack.

Strategy: each end of the cable is a TAP device in a machine's namespace, and one process carries
the frames from one to the other. `Way` decides when each frame of one direction arrives, and knows
no device and no clock. The process looks twice a millisecond: waking for each frame would take a
whole core at 100 Mbit/s.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field

TUN = "/dev/net/tun"
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
FRAME = 1514 + 4  # bytes: Ethernet's, with a VLAN's tag
BACKLOG = 4000  # frames that the kernel keeps while the process waits for a core
TICK = 0.0005  # seconds
# What waits at the narrow end at most, in seconds: as usual, about a round trip's worth.
QUEUE = 0.05


@dataclass(frozen=True)
class Cable:
    """Each way: seconds of delay, share of frames lost, bits a second (0: any), seconds queued."""

    delay: float = 0.0
    loss: float = 0.0
    rate: float = 0.0
    queue: float = QUEUE


@dataclass
class Way:
    """One direction: frames go in, and come out when they have arrived, or never."""

    cable: Cable
    chance: random.Random
    free: float = 0.0  # when the narrow end has sent what it has
    lost: int = 0
    full: int = 0
    flying: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self, frame: bytes, now: float) -> None:
        """A frame goes in: lost by chance, or for want of room, or on its way."""
        start = max(self.free, now)
        if self.chance.random() < self.cable.loss:
            self.lost += 1
        elif self.cable.rate and start - now > self.cable.queue:
            self.full += 1
        else:
            self.free = start + (8 * len(frame) / self.cable.rate if self.cable.rate else 0)
            self.flying.append((self.free + self.cable.delay, frame))

    def arrived(self, now: float) -> Iterator[bytes]:
        """Those that have arrived by now, in order."""
        while self.flying and self.flying[0][0] <= now:
            yield self.flying.popleft()[1]


def tap(name: str) -> int:
    """A new TAP device in the present namespace: its descriptor, without which it is gone."""
    device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


def command(near: int, far: int, cable: Cable) -> tuple[str, ...]:
    """The process that carries frames between two TAPs, whose descriptors it inherits."""
    return (sys.executable, __file__, *map(str, (near, far)), *map(repr, astuple(cable)))


def _carry(source: int, way: Way) -> None:
    """All that waits at a device goes in."""
    now = time.monotonic()
    while True:
        try:
            way.take(os.read(source, FRAME), now)
        except BlockingIOError:
            return
        except OSError:  # the device is down: a cable that was pulled
            return


def _deliver(target: int, way: Way) -> None:
    """All that has arrived comes out."""
    for frame in way.arrived(time.monotonic()):
        try:
            os.write(target, frame)
        except OSError:  # down, or no room: lost
            way.lost += 1


def carry(near: int, far: int, cable: Cable, over: Callable[[], bool] = lambda: False) -> None:
    """Until killed: both ways at once, with the same luck in each run."""
    ways = [(near, far, Way(cable, random.Random(1))), (far, near, Way(cable, random.Random(2)))]
    while not over():
        if any(way.flying for *_, way in ways):
            time.sleep(TICK)
        else:
            select.select([near, far], [], [], 1.0)
        for source, target, way in ways:
            _carry(source, way)
            _deliver(target, way)


if __name__ == "__main__":
    carry(int(sys.argv[1]), int(sys.argv[2]), Cable(*map(float, sys.argv[3:])))
