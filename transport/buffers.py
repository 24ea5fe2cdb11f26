"""I/O: memory for pieces, used again and again: fresh memory costs a page fault for every 4 KiB.

A buffer belongs to whoever holds its lease. When the lease is gone, so is the claim: the next one
to ask gets the same memory, most likely still in the processor's cache. All links of the process
share the buffers, as hardly ever more than a few are sending or receiving at the same moment.
"""

from __future__ import annotations

import mmap

from .link import HEADER_SIZE, PIECE_LIMIT

# Free buffers that are kept: the pieces of two transfers. What more there was goes back to the
# system.
KEPT = 16
# A frame begins so far into its pages that the model bytes begin a page: copying is fastest so.
_BEFORE = mmap.PAGESIZE - HEADER_SIZE

_free: list[memoryview] = []  # append and pop are atomic: leases end in any thread


class Lease:
    """Memory for a piece's header and body, ours as long as this object lives."""

    __slots__ = ("memory",)

    def __init__(self) -> None:
        try:
            self.memory = _free.pop()
        except IndexError:
            self.memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE + PIECE_LIMIT))[_BEFORE:]

    def __del__(self) -> None:
        if len(_free) < KEPT:
            _free.append(self.memory)
