"""Model files: a state dict as a safetensors file, written and read piece by piece.

Strategy: the format is a length, a JSON header and raw bytes, so reading and writing it is
short, and doing it here keeps memory small: the safetensors library copies a whole model to
write it and maps whole files to read them. Any safetensors tool reads our files, and the tests
compare with it. Headers of other peers' files are checked for types, bounds, holes and overlaps
before anything is read; nothing is ever unpickled.

A tied tensor (two names, one memory) is written once. As in safetensors' own `save_model`, the
metadata then holds {other name: name in the file}, and loading gives both names one tensor.

Format: https://github.com/huggingface/safetensors#format
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Final, Self

import torch
from blake3 import blake3
from torch import Tensor

from .errors import WeightsError
from .sealing import Creating, Opening, PlainFile, create_plain

HEADER_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of a header: room for 80,000 tensors, and a hostile one can't fill the memory."""

DIMENSIONS_LIMIT: Final = 64
"""Of one tensor, as in torch; keeps the product of a hostile shape small."""

DTYPES: Final = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor stands in a file: `start` and `nbytes` count bytes of the whole file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


# ── state dicts ──────────────────────────────────────────────────────────────────────────────


def tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return {name: the first name (sorted) of the same memory} for the tensors met before."""
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name in sorted(state):
        tensor = state[name]
        if not tensor.numel():
            continue  # no memory to share
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if (kept := first.setdefault(place, name)) != name:
            aliases[name] = kept
    return aliases


def schema(state: Mapping[str, Tensor]) -> list[str]:
    """Describe a state dict, one line a tensor: "fc.weight F32 10x128", or "head.weight = …"."""
    aliases = tied(check(state))
    return [
        f"{name} = {aliases[name]}"
        if name in aliases
        else line(name, state[name].dtype, state[name].shape)
        for name in sorted(state)
    ]


def fingerprint(lines: list[str]) -> bytes:
    """Return the 32-byte BLAKE3 digest of a schema."""
    return blake3("\n".join(lines).encode()).digest()


def size(state: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors, tied ones once."""
    aliases = tied(state)
    return sum(tensor.nbytes for name, tensor in state.items() if name not in aliases)


def check(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return the state dict if a file can hold it. Raises WeightsError that names the tensor."""
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"{name!r} is a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise WeightsError(f"{name!r} is sparse or has no memory; only dense tensors can go")
        if tensor.dtype not in _NAMES:
            raise WeightsError(f"{name!r} has dtype {tensor.dtype}, which safetensors doesn't know")
        if "\n" in name or name == "__metadata__":
            raise WeightsError(f"a tensor can't be named {name!r}")
    return state


def line(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Return a tensor's line of a schema."""
    return f"{name} {_NAMES[dtype]} {'x'.join(map(str, shape)) or 'scalar'}"


def parse_line(text: str) -> tuple[str, Entry]:
    """Read what `line` returns: a name, and an entry without a place. Raises ValueError."""
    name, dtype, dimensions = text.rsplit(" ", 2)
    sizes = dimensions.split("x") if dimensions != "scalar" else []
    # Three times 18 digits is no tensor, but a number that Python multiplies at once.
    if len(sizes) > DIMENSIONS_LIMIT or not all(s.isdecimal() and len(s) < 19 for s in sizes):
        raise ValueError(f"{name!r} has a shape that isn't one")
    if dtype not in DTYPES:
        raise ValueError(f"{name!r} has the unknown dtype {dtype!r}")
    shape = tuple(map(int, sizes))
    return name, Entry(DTYPES[dtype], shape, 0, prod(shape) * DTYPES[dtype].itemsize)


def lines(entries: Mapping[str, Entry], aliases: Mapping[str, str]) -> list[str]:
    """Describe the tensors of a file in the same lines as `schema` describes a state dict."""
    return [
        f"{name} = {aliases[name]}" if name in aliases else line(name, entry.dtype, entry.shape)
        for name, entry in sorted(entries.items())
    ]


# ── writing ──────────────────────────────────────────────────────────────────────────────────


def save(
    path: Path,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    create: Creating = create_plain,
) -> int:
    """Write a state dict so that the file appears whole; return its bytes before any sealing.

    Raises WeightsError for tensors that a file can't hold, OSError for a full disk.
    """
    part = path.with_suffix(".part")
    try:
        written = write(part, state, metadata, create)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return written


def write(
    path: Path,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    create: Creating = create_plain,
) -> int:
    """Write a state dict tensor by tensor; return its bytes before any sealing."""
    aliases = tied(check(state))
    entries = placed(
        {
            name: Entry(tensor.dtype, tuple(tensor.shape), 0, tensor.nbytes)
            for name, tensor in state.items()
            if name not in aliases
        }
    )
    with create(path) as file:
        file.write(header(entries, {**(metadata or {}), **aliases}))
        for name in entries:
            file.write(data(state[name]))
        return file.tell()


def data(tensor: Tensor) -> memoryview:
    """Return the tensor's bytes in row-major order; a view where its memory allows."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def placed(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the tensors in the order of the file, each behind the one before.

    Wide types first, so that every tensor is aligned to its type. Here and in `header` a `start`
    counts from the header's end.
    """
    found, start = {}, 0
    for name in sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name)):
        found[name] = replace(entries[name], start=start)
        start += entries[name].nbytes
    return found


def header(entries: Mapping[str, Entry], metadata: Mapping[str, str], room: int = 0) -> bytes:
    """Return a file's first bytes, filled up to `room`. Raises WeightsError for too many."""
    content: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for name, entry in entries.items():
        content[name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.start + entry.nbytes],
        }
    text = json.dumps(content, separators=(",", ":")).encode()
    text = text.ljust(max(len(text) + -len(text) % 8, room - 8))
    if len(text) > HEADER_LIMIT:
        raise WeightsError(f"{len(entries)} tensors need more than {HEADER_LIMIT} bytes of header")
    return len(text).to_bytes(8, "little") + text


# ── reading ──────────────────────────────────────────────────────────────────────────────────


class Reader:
    """An open model file whose header is right; it stays readable when the file is unlinked.

    `entries` has every tensor by name, tied ones under each of their names (see `aliases`).
    Raises WeightsError for a file that isn't safetensors, OSError where there is none.
    """

    def __init__(self, path: Path, opening: Opening = PlainFile) -> None:
        self._file = opening(path)
        try:
            self._read_header(path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_header(self, path: Path) -> None:
        size = self._file.size
        length = int.from_bytes(self._bytes(0, 8), "little")
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise WeightsError(f"{path.name} isn't a safetensors file, or is cut off")
        try:
            header = _parse(self._bytes(8, length))
            self.metadata = _read_metadata(header)
            self.entries = _read_entries(header, 8 + length, size)
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"{path.name}: {error}") from None
        self.aliases = {
            alias: name
            for alias, name in self.metadata.items()
            if name in self.entries and alias not in self.entries
        }
        self.entries |= {alias: self.entries[name] for alias, name in self.aliases.items()}

    def _bytes(self, place: int, count: int) -> bytes:
        data = bytearray(count)
        return bytes(data[: self._file.read(memoryview(data), place)])

    def schema(self) -> list[str]:
        """Describe the file in the same lines as `schema` describes a state dict."""
        return lines(self.entries, self.aliases)

    def read(self, name: str, offset: int, into: Tensor) -> None:
        """Fill `into` (uint8, on the CPU) with the tensor's bytes from `offset` on.

        Raises WeightsError if the file has become shorter.
        """
        place = self.entries[name].start + offset
        if self._file.read(into.numpy().data, place) < len(into):
            raise WeightsError(f"{name!r} is cut off")

    def tensors(self) -> dict[str, Tensor]:
        """Load everything into memory; tied names share one tensor."""
        loaded = {name: self._load(name) for name in self.entries if name not in self.aliases}
        return loaded | {alias: loaded[name] for alias, name in self.aliases.items()}

    def _load(self, name: str) -> Tensor:
        entry = self.entries[name]
        raw = torch.empty(entry.nbytes, dtype=torch.uint8)
        self.read(name, 0, raw)
        return raw.view(entry.dtype).view(entry.shape)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file whole: its tensors and its metadata. Raises WeightsError, OSError."""
    with Reader(path) as reader:
        return reader.tensors(), reader.metadata


def _parse(text: bytes) -> dict[str, Any]:
    header = json.loads(text.decode(), object_pairs_hook=_no_duplicates)
    if not isinstance(header, dict):
        raise ValueError("the header isn't a JSON object")
    return header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the header names something twice")
    return found


def _read_metadata(header: dict[str, Any]) -> dict[str, str]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("the metadata isn't text")
    return metadata


def _read_entries(header: dict[str, Any], base: int, size: int) -> dict[str, Entry]:
    """Check that the tensors fill the file from `base` to `size` without hole or overlap."""
    entries = {name: _read_entry(name, value, base) for name, value in header.items()}
    end = base
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.nbytes)):
        if entry.start != end:
            raise ValueError(f"hole or overlap at byte {end}")
        end += entry.nbytes
    if end != size:
        raise ValueError(f"{size} bytes, but its tensors need {end}")
    return entries


def _read_entry(name: str, value: Any, base: int) -> Entry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            if dtype not in DTYPES:
                raise ValueError(f"{name!r} has the unknown dtype {dtype!r}")
            natural = all(_is_natural(number) for number in (*shape, start, end))
            if not natural or len(shape) > DIMENSIONS_LIMIT:
                raise ValueError(f"{name!r} has a shape or place that isn't a number")
            entry = Entry(DTYPES[dtype], tuple(shape), base + start, end - start)
            if entry.nbytes == prod(shape) * entry.dtype.itemsize:
                return entry
    raise ValueError(f"{name!r} has no dtype, shape and place that fit together")


def _is_natural(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**63
