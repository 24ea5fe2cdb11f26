"""Encoded model files: fewer bytes to send, decoded block by block as they are averaged.

Strategy: an encoded file is a safetensors file that any tool opens, and only its large tensors are
encoded, each for itself. First the numbers: as bfloat16, or as int8 with a scale for each GROUP of
them. Then, with "+zstd", the bytes: each block of BLOCK decoded bytes becomes a zstd frame of its
own, its bytes sorted by significance, as only the higher ones compress. So writing and reading hold
one block, and no hostile frame can grow beyond it. What the tensors were stands in the metadata,
and must agree with the manifest and with our own model.

codec.py does it to one block; this file knows where blocks lie in files.
"""

from array import array
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Self

import torch
import zstandard
from torch import Tensor

from ..transport.manifest import RAW
from . import weights
from .codec import (
    BLOCK,
    ENCODING,
    GROUP,
    LEAST,
    LENGTH,
    LEVEL,
    SCALES,
    TENSORS,
    Codec,
    compress,
    decompress,
    dequantize,
    quantize,
    spans,
)
from .errors import WeightsError
from .sealing import Creating, Opening, PlainFile, Target, create_plain
from .weights import Entry, Reader

# ── writing ──────────────────────────────────────────────────────────────────────────────────


def save(
    path: Path,
    state: Mapping[str, Tensor],
    encoding: str,
    seed: int,
    create: Creating = create_plain,
) -> int:
    """Write a model so that the file appears whole; return its size in bytes.

    `seed` is of the rounding. Raises WeightsError for tensors that a file can't hold, OSError.
    """
    if encoding == RAW:
        weights.save(path, state, create=create)
        return path.stat().st_size
    part = path.with_suffix(".part")
    try:
        with create(part) as file:
            _Writer(file, weights.check(state), Codec.of(encoding), seed).write()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path.stat().st_size


class _Writer:
    """Writes one encoded file."""

    def __init__(self, file: Target, state: Mapping[str, Tensor], codec: Codec, seed: int) -> None:
        self._file, self._state, self._codec = file, state, codec
        self._aliases = weights.tied(state)
        self._names = sorted(state.keys() - self._aliases)
        self._encoded = {name for name in self._names if self._fits(name)}
        self._zstd = zstandard.ZstdCompressor(level=LEVEL)
        self._chance = torch.Generator().manual_seed(seed)

    def _fits(self, name: str) -> bool:
        """Whether a tensor is large, and nothing else has the name of its scales."""
        tensor = self._state[name]
        fits = tensor.numel() >= LEAST and self._codec.encodes(tensor.dtype)
        return fits and name + SCALES not in self._state

    def write(self) -> None:
        """Write tensors first and the header last: compressed sizes aren't known before.

        The header's room is what it would need if nothing shrank.
        """
        entries = weights.placed(dict(entry for name in self._names for entry in self._plan(name)))
        room, place = len(weights.header(entries, self._metadata())), 0
        scales = {
            name: entries[name + SCALES].start for name in self._encoded if self._scaled(name)
        }
        for name, entry in entries.items():
            self._file.seek(room + place)
            if name in self._encoded:
                nbytes = self._encode(name, room + scales.get(name, 0))
                shape = (nbytes,) if self._codec.zstd else entry.shape
            else:
                nbytes, shape = entry.nbytes, entry.shape
                if name in self._state:
                    self._file.write(weights.data(self._state[name]))
            entries[name] = Entry(entry.dtype, shape, place, nbytes)
            place += nbytes
        self._file.seek(0)
        self._file.write(weights.header(entries, self._metadata(), room))

    def _scaled(self, name: str) -> bool:
        return self._codec.scaled(self._state[name].dtype)

    def _plan(self, name: str) -> Iterator[tuple[str, Entry]]:
        """Yield what a tensor becomes in the file, a compressed one as if it didn't shrink."""
        tensor = self._state[name]
        shape, count, dtype = tuple(tensor.shape), tensor.numel(), tensor.dtype
        if name in self._encoded:
            stored = self._codec.stored(dtype)
            if self._scaled(name):
                groups = -(-count // GROUP)
                yield name + SCALES, Entry(torch.float32, (groups,), 0, 4 * groups)
            if self._codec.zstd:
                most = count * stored.itemsize + LENGTH * len(list(spans(count, dtype)))
                stored, shape, count = torch.uint8, (most,), most
            dtype = stored
        yield name, Entry(dtype, shape, 0, count * dtype.itemsize)

    def _metadata(self) -> dict[str, str]:
        lines = (
            weights.line(name, self._state[name].dtype, self._state[name].shape)
            for name in sorted(self._encoded)
        )
        return {ENCODING: self._codec.name, TENSORS: "\n".join(lines), **self._aliases}

    def _encode(self, name: str, scales_place: int) -> int:
        """Write a tensor's blocks here and its scales there; return the bytes of the blocks."""
        tensor, written, scales = self._state[name].detach(), 0, []
        flat = tensor.reshape(-1)  # a view if the tensor is contiguous, else a copy
        for start, end in spans(len(flat), tensor.dtype):
            block = flat[start:end].cpu().resolve_conj().resolve_neg()
            if self._scaled(name):
                block, scale = quantize(block, self._chance)
                scales.append(scale)
            else:
                block = _rounded(block, self._codec.stored(tensor.dtype))
            data = compress(block, self._zstd) if self._codec.zstd else weights.data(block)
            written += self._file.write(data)
        if scales:
            self._file.seek(scales_place)
            self._file.write(weights.data(torch.cat(scales)))
        return written


def _rounded(block: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers as another type, the largest finite ones still finite."""
    if dtype == block.dtype:
        return block
    most = torch.finfo(dtype).max
    return block.clamp(-most, most).to(dtype)


# ── reading ──────────────────────────────────────────────────────────────────────────────────


class Decoder:
    """An open model file as what it was before it was encoded.

    `entries` has every tensor by name with its decoded type, shape and `nbytes` (their `start`
    means nothing); `aliases` as in weights.Reader. `encoding` is what the manifest says. Raises
    WeightsError where the file says something else or can't be right, OSError where there is none.
    """

    def __init__(self, path: Path, encoding: str, opening: Opening = PlainFile) -> None:
        self._codec = Codec.of(encoding)
        self._reader = Reader(path, opening)
        self._frames: dict[str, array[int]] = {}
        try:
            self._read_metadata(encoding)
        except WeightsError:
            self.close()
            raise
        except ValueError as error:
            self.close()
            raise WeightsError(f"{path.name}: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def _read_metadata(self, encoding: str) -> None:
        metadata = self._reader.metadata
        if (said := metadata.get(ENCODING, RAW)) != encoding:
            raise WeightsError(f"the file says that it is {said!r}, its manifest {encoding!r}")
        lines = metadata.get(TENSORS, "").split("\n") if encoding != RAW else []
        self._encoded = dict(map(weights.parse_line, filter(None, lines)))
        own = {
            name: e for name, e in self._reader.aliases.items() if name not in (ENCODING, TENSORS)
        }
        names = self._reader.entries.keys() - self._reader.aliases
        for name, entry in self._encoded.items():
            self._check(name, entry, names)
        scales = {name + SCALES for name, e in self._encoded.items() if self._codec.scaled(e.dtype)}
        plain = {name: self._reader.entries[name] for name in names - scales}
        self.aliases = {alias: name for alias, name in own.items() if name in plain}
        self.entries = plain | self._encoded
        self.entries |= {alias: self.entries[name] for alias, name in self.aliases.items()}

    def _check(self, name: str, decoded: Entry, names: Set[str]) -> None:
        """Whether what lies in the file can be this tensor, encoded."""
        codec, count = self._codec, decoded.nbytes // decoded.dtype.itemsize
        stored = (codec.stored(decoded.dtype), decoded.shape)
        if codec.zstd:
            stored = (torch.uint8, self._shape(name)[:1])
        good = codec.encodes(decoded.dtype) and self._is(name, names, *stored)
        if codec.scaled(decoded.dtype):
            good = good and self._is(name + SCALES, names, torch.float32, (-(-count // GROUP),))
        if not good:
            raise WeightsError(f"{name!r} isn't what {codec.name} makes of it")

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._reader.entries[name].shape if name in self._reader.entries else ()

    def _is(self, name: str, names: Set[str], dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
        entries = self._reader.entries
        return name in names and (entries[name].dtype, entries[name].shape) == (dtype, shape)

    def schema(self) -> list[str]:
        """Describe the decoded model in the same lines as `weights.schema` does."""
        return weights.lines(self.entries, self.aliases)

    def blocks(self, name: str) -> int:
        """How many blocks a tensor has."""
        return -(-self.entries[name].nbytes // BLOCK)

    def block(self, name: str, number: int, buffer: Tensor) -> Tensor:
        """Return a block of a tensor, flat and decoded. Raises WeightsError, OSError.

        `buffer` is BLOCK bytes (uint8) that the block may lie in: use it before the next.
        """
        entry = self.entries[name]
        step = BLOCK // entry.dtype.itemsize
        count = min(step, entry.nbytes // entry.dtype.itemsize - number * step)
        if name in self._encoded or self.aliases.get(name) in self._encoded:
            return self._decode(self.aliases.get(name, name), number, count, buffer)
        raw = buffer[: count * entry.dtype.itemsize]
        self._reader.read(name, number * BLOCK, raw)
        return raw.view(entry.dtype)

    def _decode(self, name: str, number: int, count: int, buffer: Tensor) -> Tensor:
        dtype = self._encoded[name].dtype
        stored, first = self._codec.stored(dtype), number * (BLOCK // dtype.itemsize)
        if self._codec.zstd:
            numbers = decompress(self._frame(name, number, buffer), stored, count)
        else:
            raw = buffer[: count * stored.itemsize]
            self._reader.read(name, first * stored.itemsize, raw)
            numbers = raw.view(stored)
        if not self._codec.scaled(dtype):
            return numbers.to(dtype)
        scales = torch.empty(-(-count // GROUP))
        self._reader.read(name + SCALES, first // GROUP * 4, scales.view(torch.uint8))
        return dequantize(numbers, scales).to(dtype)

    def _frame(self, name: str, number: int, buffer: Tensor) -> Tensor:
        if name not in self._frames:
            self._frames[name] = self._find_frames(name)
        start, end = self._frames[name][number : number + 2]
        frame = buffer[: end - start - LENGTH]
        self._reader.read(name, start + LENGTH, frame)
        return frame

    def _find_frames(self, name: str) -> "array[int]":
        """Return where each block starts, and the end. Raises WeightsError."""
        total, entry = self._reader.entries[name].nbytes, self._encoded[name]
        head, places = torch.empty(LENGTH, dtype=torch.uint8), array("q", [0])
        itemsize = self._codec.stored(entry.dtype).itemsize
        if LENGTH * self.blocks(name) > total:
            raise WeightsError(f"{name!r} is too short for its blocks")
        for start, end in spans(entry.nbytes // entry.dtype.itemsize, entry.dtype):
            if places[-1] + LENGTH > total:
                break
            self._reader.read(name, places[-1], head)
            length = int.from_bytes(head.numpy().data, "little")
            if not 1 <= length <= (end - start) * itemsize:
                raise WeightsError(f"a block of {name!r} has a wrong length")
            places.append(places[-1] + LENGTH + length)
        if len(places) != self.blocks(name) + 1 or places[-1] != total:
            raise WeightsError(f"the blocks of {name!r} aren't as long as all of it")
        return places
