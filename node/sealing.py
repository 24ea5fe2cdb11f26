"""Sealed model files on disk, as the worker writes and reads them; transport/sealed.py is the form.

Strategy: a sealed file looks like a plain one to whoever writes or reads tensors: they name places
of the plain bytes. Writing keeps the segments that aren't full yet (an encoded file is not written
from start to end: its header comes last) and seals each segment once, when all of it is there: two
seals under one nonce would give the plaintext away. Reading opens the segments that are asked for,
whole ones straight into the reader's buffer, and keeps a few: models are read block by block, and a
block begins in the segment in which the one before ended. The last segment is opened first, so a
file that was cut off at a segment's end is noticed before any of it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, TypeAlias

from ..transport import sealed
from ..transport.errors import SealedError, TransportError
from ..transport.sealed import PREFIX, SEGMENT, TAG, Cipher, Header, Unwrap
from .errors import WeightsError

KEPT: Final = 3
"""Open segments that a reader keeps: where a tensor's blocks and its scales meet, and one more."""


class Source(Protocol):
    """An open file of which any part can be read; `size` in bytes."""

    size: int

    def read(self, into: memoryview, place: int) -> int:
        """Fill `into` from `place` on; how many bytes, fewer only at the end."""

    def close(self) -> None:
        """Close the file."""


class Target(Protocol):
    """A file that is written, each byte once; as a context it is whole when that ends well."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        """Finish and close the file; after an error close it only."""

    def seek(self, place: int, /) -> int:
        """Go to this place."""

    def tell(self) -> int:
        """The place."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Write on from there."""


Opening: TypeAlias = Callable[[Path], Source]
Creating: TypeAlias = Callable[[Path], Target]


class PlainFile:
    """A file as it is. Raises OSError where there is none."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, into: memoryview, place: int) -> int:
        """Fill `into` from `place` on; how many bytes, fewer only at the end."""
        return _read(self._file.fileno(), into, place)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def create_plain(path: Path) -> Target:
    """A file that is written as it is."""
    return path.open("wb")


# ── reading ──────────────────────────────────────────────────────────────────────────────────


class SealedFile:
    """A sealed file, open; `size` is that of what is in it.

    Raises WeightsError for one that can't be opened with what `unwrap` finds, OSError.
    """

    def __init__(self, path: Path, unwrap: Unwrap) -> None:
        self._name = path.name
        self._file = path.open("rb", buffering=0)
        self._kept: dict[int, bytearray] = {}
        self._scratch = bytearray(SEGMENT + TAG)
        try:
            self._begin(unwrap)
            self._segment(self._count - 1)
        except TransportError as error:
            self.close()
            raise WeightsError(f"{self._name}: {_why(error)}") from None
        except BaseException:
            self.close()
            raise

    def _begin(self, unwrap: Unwrap) -> None:
        length = sealed.header_length(self._bytes(0, PREFIX))
        self._start = PREFIX + length + sealed.COMMITMENT
        total = os.fstat(self._file.fileno()).st_size
        self.size = sealed.plain_size(total - self._start)
        header = Header.from_bytes(self._bytes(PREFIX, length))
        commitment = self._bytes(PREFIX + length, sealed.COMMITMENT)
        self._count = sealed.segments(self.size)
        self._cipher = Cipher.opening(header, commitment, unwrap)

    def _bytes(self, place: int, count: int) -> bytes:
        data = bytearray(count)
        return bytes(data[: _read(self._file.fileno(), memoryview(data), place)])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, into: memoryview, place: int) -> int:
        """Fill `into` from `place` on; how many bytes, fewer only at the end.

        Raises WeightsError.
        """
        into = into[: max(0, self.size - place)]
        done = 0
        try:
            while done < len(into):
                done += self._read_one(into[done:], *divmod(place + done, SEGMENT))
        except SealedError as error:
            raise WeightsError(f"{self._name}: {_why(error)}") from None
        return done

    def _read_one(self, into: memoryview, number: int, offset: int) -> int:
        """Fill `into` with what is of one segment."""
        count = min(self._length(number) - offset, len(into))
        if count == self._length(number) and number not in self._kept:
            self._open(number, into[:count])
        else:
            into[:count] = memoryview(self._segment(number))[offset : offset + count]
        return count

    def _segment(self, number: int) -> bytearray:
        """A segment, kept for the next reads."""
        if number in self._kept:
            found = self._kept.pop(number)
        else:
            full = len(self._kept) >= KEPT
            found = self._kept.pop(next(iter(self._kept))) if full else bytearray(SEGMENT)
            self._open(number, memoryview(found)[: self._length(number)])
        self._kept[number] = found  # the last used one is the last
        return found

    def _open(self, number: int, into: memoryview) -> None:
        data = memoryview(self._scratch)[: len(into) + TAG]
        if _read(self._file.fileno(), data, self._start + number * (SEGMENT + TAG)) < len(data):
            raise SealedError("it is cut off")
        self._cipher.open(number, number == self._count - 1, data, into)

    def _length(self, number: int) -> int:
        return min(SEGMENT, self.size - number * SEGMENT)


def _read(file: int, into: memoryview, place: int) -> int:
    done = 0
    while done < len(into) and (count := os.preadv(file, [into[done:]], place + done)):
        done += count
    return done


def _why(error: TransportError) -> str:
    """What was wrong, without the sentence that WeightsError says better."""
    return str(error).removeprefix(f"{str(SealedError()).rstrip('.')}: ").rstrip(".")


# ── writing ──────────────────────────────────────────────────────────────────────────────────


class SealedTarget:
    """A sealed file that is written, at any places, each byte once.

    What isn't a whole segment yet stays in memory: of an encoded model a 64th of its bytes.
    """

    def __init__(self, path: Path, header: Header, key: bytes) -> None:
        self._cipher = Cipher(header, key)
        self._file = path.open("wb", buffering=0)
        self._place = self._end = 0
        self._parts: dict[int, _Part] = {}
        self._sealed: set[int] = set()
        self._out = memoryview(bytearray(SEGMENT + TAG))
        self._write(memoryview(self._cipher.start), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()

    def seek(self, place: int, /) -> int:
        """Go to this place."""
        self._place = place
        return place

    def tell(self) -> int:
        """The place."""
        return self._place

    def write(self, data: bytes | memoryview, /) -> int:
        """Write on from there. Raises OSError, ValueError for what is there already."""
        view = memoryview(data).cast("B")
        done = 0
        self._end = max(self._end, self._place + len(view))
        while done < len(view):
            done += self._put(view[done:], *divmod(self._place + done, SEGMENT))
        self._place += done
        for number in [n for n, part in self._parts.items() if part.filled == SEGMENT]:
            if (number + 1) * SEGMENT < self._end:  # the last one has another nonce
                self._seal(number, last=False, plain=memoryview(self._parts.pop(number).data))
        return done

    def _put(self, view: memoryview, number: int, offset: int) -> int:
        """Take what is of one segment."""
        view = view[: SEGMENT - offset]
        if len(view) == SEGMENT and (number + 1) * SEGMENT < self._end:
            if number in self._parts:
                raise ValueError("a part of a sealed file was written twice")
            self._seal(number, last=False, plain=view)
        else:
            part = self._parts.setdefault(number, _Part())
            part.data[offset : offset + len(view)] = view
            part.filled += len(view)
            if part.filled > SEGMENT:
                raise ValueError("a part of a sealed file was written twice")
        return len(view)

    def _finish(self) -> None:
        last = sealed.segments(self._end) - 1
        part = self._parts.pop(last, None) or _Part()
        if self._parts or part.filled != self._end - last * SEGMENT:
            raise ValueError("a part of a sealed file was never written, or twice")
        self._seal(last, last=True, plain=memoryview(part.data)[: part.filled])

    def _seal(self, number: int, *, last: bool, plain: memoryview) -> None:
        if number in self._sealed:
            raise ValueError("a part of a sealed file was written twice")
        self._sealed.add(number)
        out = self._out[: len(plain) + TAG]
        self._cipher.seal(number, last, plain, out)
        self._write(out, len(self._cipher.start) + number * (SEGMENT + TAG))

    def _write(self, data: memoryview, place: int) -> None:
        while data:
            count = os.pwrite(self._file.fileno(), data, place)
            data, place = data[count:], place + count


class _Part:
    """A segment that isn't full yet."""

    def __init__(self) -> None:
        self.data, self.filled = bytearray(SEGMENT), 0
