"""What encodings do to numbers and bytes: one block of a tensor at a time, without files.

int8 rounds up or down by chance, so that the mean over models and epochs is right (stochastic
rounding; Gupta et al. 2015, https://arxiv.org/abs/1502.02551). Unlike error feedback that needs no
memory of what was sent. The bytes of each encoding: docs/protocol/manifest.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self

import torch
import zstandard
from torch import Tensor

from ..transport.manifest import RAW
from . import weights
from .errors import WeightsError

BLOCK: Final = 1024 * 1024
"""Bytes of a decoded tensor that are handled at once: they stay in the processor's cache."""

GROUP: Final = 256
"""Numbers that share a scale: it costs a 64th of their bytes, and an outlier spoils no more."""

LEAST: Final = 4096
"""Numbers of a tensor that is worth encoding: biases and norms are small, and matter most."""

ENCODING: Final = "p2pnode.encoding"
TENSORS: Final = "p2pnode.tensors"
"""Metadata: the encoding's name, and a schema's line for each encoded tensor."""

SCALES: Final = ".scales"
"""Added to a tensor's name: its scales."""

NUMBERS: Final[Mapping[str, Mapping[torch.dtype, torch.dtype]]] = {
    RAW: {},
    "bf16": {torch.float32: torch.bfloat16},
    "int8": dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.int8),
}
"""Which numbers become which. Who trains in float64 wants the digits; 8 bits are few already."""

LENGTH: Final = 4
"""Bytes of the length that stands before a compressed block."""

LEVEL: Final = 1
"""Of zstd."""

SCALE_MOST: Final = torch.finfo(torch.float32).max / 128
"""So that no 8-bit number times its scale overflows."""


@dataclass(frozen=True, slots=True)
class Codec:
    """What one encoding makes of a tensor."""

    name: str
    numbers: Mapping[torch.dtype, torch.dtype]
    zstd: bool

    @classmethod
    def of(cls, encoding: str) -> Self:
        """The codec of one of transport.manifest.ENCODINGS."""
        numbers, _, zstd = encoding.partition("+")
        return cls(encoding, NUMBERS[numbers], bool(zstd))

    def encodes(self, dtype: torch.dtype) -> bool:
        """Whether anything is made of tensors of this type."""
        return self.zstd or dtype in self.numbers

    def stored(self, dtype: torch.dtype) -> torch.dtype:
        """What the numbers of an encoded tensor are stored as."""
        return self.numbers.get(dtype, dtype)

    def scaled(self, dtype: torch.dtype) -> bool:
        """Whether they have scales."""
        return self.numbers.get(dtype) == torch.int8


# ── blocks ───────────────────────────────────────────────────────────────────────────────────


def quantize(block: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a flat block as int8, and the float32 scale of each GROUP of its numbers.

    A number is less than one scale from its decoded one, and the same on average.
    """
    groups = torch.zeros(-(-len(block) // GROUP), GROUP)
    groups.view(-1)[: len(block)].copy_(block)
    scales = groups.abs().amax(dim=1).div_(127).clamp_(max=SCALE_MOST)
    groups.div_(torch.where(scales > 0, scales, 1.0).unsqueeze(1))
    groups.add_(_fractions(groups.numel(), chance).view_as(groups)).floor_().clamp_(-127, 127)
    return groups.view(-1)[: len(block)].to(torch.int8), scales


def _fractions(count: int, chance: torch.Generator) -> Tensor:
    """Return numbers from 0 to 1 by chance, in steps of 2**-16: three times as fast as torch.rand.

    Four come from each draw of 64 bits; `count` is a multiple of GROUP.
    """
    bits = torch.empty(count // 4, dtype=torch.int64).random_(-(2**63), None, generator=chance)
    return bits.view(torch.int16).float().add_(2**15).mul_(2**-16)


def dequantize(numbers: Tensor, scales: Tensor) -> Tensor:
    """Return the float32 numbers. Raises WeightsError for scales that no sender makes."""
    if not bool(((scales >= 0) & (scales <= SCALE_MOST)).all()):
        raise WeightsError("a scale is negative, too large or no number")
    groups = torch.zeros(len(scales), GROUP)
    groups.view(-1)[: len(numbers)].copy_(numbers)
    return groups.mul_(scales.unsqueeze(1)).view(-1)[: len(numbers)]


def compress(block: Tensor, zstd: zstandard.ZstdCompressor) -> bytes:
    """Return a block's length and frame; its plain bytes where a frame has no fewer."""
    columns = block.view(torch.uint8).view(-1, block.itemsize).t().contiguous()
    plain = weights.data(columns)
    frame = zstd.compress(plain)
    kept = frame if len(frame) < len(plain) else bytes(plain)
    return len(kept).to_bytes(LENGTH, "little") + kept


def decompress(data: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    """Return the block of `count` numbers in these bytes (uint8). Raises WeightsError."""
    size, plain = count * dtype.itemsize, data
    if len(data) < size:
        plain = torch.empty(size, dtype=torch.uint8)
        plain.numpy().data[:] = _inflate(data.numpy().data, size)
    return plain.view(dtype.itemsize, count).t().contiguous().view(-1).view(dtype)


def _inflate(frame: memoryview, size: int) -> memoryview:
    """Raises WeightsError unless a frame says and holds exactly so many bytes, and nothing more."""
    try:
        if zstandard.frame_content_size(frame) != size:
            raise WeightsError("a zstd frame isn't of its block's size")
        zstd = zstandard.ZstdDecompressor(max_window_size=BLOCK)
        plain = zstd.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WeightsError(f"a zstd frame is damaged ({error})") from None
    if len(plain) != size:
        raise WeightsError("a zstd frame isn't of the size that it says")
    return memoryview(plain)


def spans(count: int, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """Yield (first number, past the last) of each block of a tensor."""
    step = BLOCK // dtype.itemsize
    for start in range(0, count, step):
        yield start, min(start + step, count)
