"""Averaging: pure tensor maths over models that lie in files.

Strategy: the own model is averaged in place, tensor by tensor in blocks of 1 MiB, each block read
from every file into one small buffer. So K models need no more memory than one, however large.
Numbers are summed in float32 (float64 tensors in float64) and rounded once. Whole numbers and
truth values (counters, masks) have no mean: they stay as they are in the own model, and a newcomer
takes them from the first, the newest, model.

Every model is looked through once before anything is added, so a broken one changes nothing.

Weights: an older model counts less, (1 + how many epochs it is behind) ** -exponent; the
polynomial of FedAsync (Xie, Koyejo, Gupta 2019, https://arxiv.org/abs/1903.03934, section 5).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .codec import BLOCK
from .encoding import Decoder
from .errors import WeightsError
from .weights import tied


@dataclass(frozen=True, slots=True)
class Part:
    """One model of an average, and its share (all shares sum to 1)."""

    reader: Decoder
    share: float


def shares(ages: Sequence[float], reference: float, exponent: float) -> list[float]:
    """Return each model's share for its age (epochs of training); they sum to 1.

    Models younger than `reference` count less. With exponent 0 all count alike.
    """
    weights = [(1 + max(0.0, reference - age)) ** -exponent for age in ages]
    return [weight / sum(weights) for weight in weights]


def mean_age(ages: Sequence[float], shares: Sequence[float]) -> float:
    """Return the age of an average: the same mean as that of its weights."""
    return sum(age * share for age, share in zip(ages, shares, strict=True))


def check(reader: Decoder, schema: list[str]) -> None:
    """Look through a model before it is averaged into one of this schema.

    Raises WeightsError if it is another model or holds NaN or infinity, OSError.
    """
    if reader.schema() != schema:
        raise WeightsError(f"it is another model: {_difference(reader.schema(), schema)}")
    for name in reader.entries.keys() - reader.aliases:
        if not all(map(_finite, _blocks(reader, name))):
            raise WeightsError(f"{name} holds NaN or infinite numbers")


def finite(state: Mapping[str, Tensor]) -> bool:
    """Tell whether every number of a state dict is finite."""
    return all(_finite(tensor.detach().reshape(-1)) for tensor in state.values())


@torch.no_grad()
def average(own: Mapping[str, Tensor], own_share: float, parts: Sequence[Part]) -> None:
    """Turn `own` into own_share × own + Σ share × part, in place.

    The parts must be fit (see `check`). With own_share 0 nothing of `own` is left.
    Raises WeightsError or OSError if a file breaks meanwhile; `own` is then half averaged.
    """
    aliases = tied(own)
    for name in own.keys() - aliases:
        tensor = own[name]
        # A view if the tensor is contiguous and no lazy conjugate, else a copy.
        flat = tensor.detach().reshape(-1).resolve_conj()
        if not _is_number(tensor.dtype):
            if not own_share:
                _copy(flat, parts[0].reader, name)
        else:
            _average(_real(flat), own_share, parts, name)
        if not tensor.is_contiguous() or tensor.is_conj():
            tensor.copy_(flat.view(tensor.shape))


def _average(flat: Tensor, own_share: float, parts: Sequence[Part], name: str) -> None:
    precise = torch.float64 if flat.dtype == torch.float64 else torch.float32
    buffer = _buffer()
    for number, start in enumerate(range(0, flat.numel(), BLOCK // flat.itemsize)):
        mine = flat[start : start + BLOCK // flat.itemsize]
        # 0 × NaN is NaN, so a share of 0 starts from nothing.
        total = mine.to(precise) * own_share if own_share else torch.zeros_like(mine, dtype=precise)
        for part in parts:
            theirs = _real(part.reader.block(name, number, buffer))
            total.add_(theirs.to(total.device, precise), alpha=part.share)
        mine.copy_(total)


def _copy(flat: Tensor, reader: Decoder, name: str) -> None:
    start = 0
    for block in _blocks(reader, name):
        flat[start : start + block.numel()].copy_(block)
        start += block.numel()


def _blocks(reader: Decoder, name: str) -> Iterator[Tensor]:
    """Yield a tensor block by block, all in one buffer: use each before asking for the next."""
    buffer = _buffer()
    return (reader.block(name, number, buffer) for number in range(reader.blocks(name)))


def _buffer() -> Tensor:
    return torch.empty(BLOCK, dtype=torch.uint8)


def _real(flat: Tensor) -> Tensor:
    return torch.view_as_real(flat.resolve_conj()).reshape(-1) if flat.is_complex() else flat


def _is_number(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _finite(flat: Tensor) -> bool:
    if not _is_number(flat.dtype) or not flat.numel():
        return True
    if flat.itemsize == 1:  # torch can't compare 8-bit numbers
        flat = flat.float()
    # The lowest and the highest tell all: one is infinite or NaN as soon as any number is.
    low, high = torch.aminmax(_real(flat))
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _difference(theirs: list[str], mine: list[str]) -> str:
    """Show the first line that only one of two schemas has."""
    here, there = set(mine), set(theirs)
    missing = next((line for line in mine if line not in there), "nothing more")
    extra = next((line for line in theirs if line not in here), "nothing more")
    return f"{extra!r} there, {missing!r} here"
