"""From the mailbox into the model: what has arrived is averaged in, or refused with a reason.

Strategy: `merge` keeps the own model and weighs the others by how far they are behind it;
`bootstrap` starts from the newest of the others alone. Both look at each model once, whatever
comes of it: the sequence number last looked at stands in the position and in the checkpoint.

A model's age is what its peer says. It is believed up to AGE_LEAD epochs beyond the own age or the
median, so one liar can neither make the others look stale nor outweigh them in a newcomer's start.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_high, median_low
from typing import Final, TypeAlias

from torch import Tensor

from ..transport.manifest import PARENTS_LIMIT
from . import averaging
from .arrivals import Arrival, Unreadable, arrivals
from .averaging import Part
from .checkpoint import Position
from .encoding import Decoder
from .errors import WeightsError
from .keyring import Keyring
from .orders import TEXT_LIMIT, Averaged, Refused

BOOTSTRAP_MODELS: Final = 8
"""The newest so many are enough for a good start, and quick to read."""

BOOTSTRAP_BEHIND: Final = 2.0
"""Epochs that a checkpoint may be behind before the swarm's models are the better start."""

AGE_LEAD: Final = 10.0
"""Epochs ahead of the own age and the median that are believed: who catches up still does so in a
few epochs, and a lie of any size counts no more than this."""

SEEN_LIMIT: Final = 4096
"""Peers whose last number is kept, the latest: far more than a mailbox holds, and a checkpoint's
header stays small in a swarm where peers come and go for months."""


Judge: TypeAlias = Callable[[Arrival, Decoder], str | None]
"""Looks at a model that could be averaged in; a sentence says why it isn't."""


def trusting(_arrival: Arrival, _reader: Decoder) -> None:
    """The judge that takes every model."""


@dataclass(frozen=True, slots=True)
class Merged:
    """The position after a merge, what came into the model and what didn't."""

    position: Position
    averaged: tuple[Averaged, ...] = ()
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class _Fit:
    """An open model that can be averaged in."""

    arrival: Arrival
    reader: Decoder


class Merger:
    """Merges the models of one mailbox into state dicts of one schema.

    `judge` sees each model that is fit, before anything is averaged; `keyring` opens those of a
    private swarm.
    """

    def __init__(
        self,
        mailbox: Path,
        schema: list[str],
        staleness: float,
        judge: Judge = trusting,
        *,
        keyring: Callable[[], Keyring | None] = lambda: None,
    ) -> None:
        self._mailbox, self._schema, self._staleness = mailbox, schema, staleness
        self._judge, self._keyring = judge, keyring

    def merge(self, own: Mapping[str, Tensor], position: Position) -> Merged:
        """Average all that has arrived since into `own`, in place."""
        found = arrivals(self._mailbox, position.seen, self._keyring())
        with self._opened(found) as (fit, refused):
            ages = [position.age, *(model.arrival.age for model in fit)]
            ages = _believed(ages, max(position.age, median_low(ages)))
            shares = averaging.shares(ages, position.age, self._staleness)
            return self._apply(own, position, fit, refused, ages, shares)

    def bootstrap(self, own: Mapping[str, Tensor], position: Position) -> Merged:
        """Put the average of the newest models into `own`, in place, if they are well ahead.

        They are for a fresh start; a checkpoint must be more than BOOTSTRAP_BEHIND epochs behind.
        The median of their ages is compared, and older ones than that count less.
        """
        found = arrivals(self._mailbox, {}, self._keyring())
        newest = sorted(found, key=_age, reverse=True)[:BOOTSTRAP_MODELS]
        with self._opened(newest) as (fit, refused):
            needed = position.age + BOOTSTRAP_BEHIND if position.epoch else 0.0
            ages = [model.arrival.age for model in fit]
            if not fit or (middle := median_high(ages)) <= needed:
                return Merged(_after(position, refused), refused=refused)
            ages = _believed(ages, middle)
            shares = averaging.shares(ages, middle, self._staleness)
            return self._apply(own, position, fit, refused, [0.0, *ages], [0.0, *shares])

    def _apply(
        self,
        own: Mapping[str, Tensor],
        position: Position,
        fit: Sequence[_Fit],
        refused: tuple[Refused, ...],
        ages: Sequence[float],
        shares: Sequence[float],
    ) -> Merged:
        """Average; the first of ages and shares is the own model's."""
        averaged = tuple(
            Averaged(model.arrival.peer, model.arrival.seq, share)
            for model, share in zip(fit, shares[1:], strict=True)
        )
        position = _after(position, (*averaged, *refused))
        if not fit:
            return Merged(position, refused=refused)
        parts = [Part(model.reader, share) for model, share in zip(fit, shares[1:], strict=True)]
        averaging.average(own, shares[0], parts)
        parents = (*position.parents, *(model.arrival.id for model in fit))[-PARENTS_LIMIT:]
        age = averaging.mean_age(ages, shares)
        return Merged(replace(position, age=age, parents=parents), averaged, refused)

    @contextmanager
    def _opened(
        self, found: Sequence[Arrival | Unreadable]
    ) -> Iterator[tuple[list[_Fit], tuple[Refused, ...]]]:
        """Open the models that can be averaged in, and say why the others can't."""
        fit: list[_Fit] = []
        refused: list[Refused] = []
        try:
            for arrival in found:
                match self._look(arrival):
                    case _Fit() as model:
                        fit.append(model)
                    case str(reason):
                        reason = " ".join(reason.split())[:TEXT_LIMIT]
                        refused.append(Refused(arrival.peer, arrival.seq, reason))
            yield fit, tuple(refused)
        finally:
            for model in fit:
                model.reader.close()

    def _look(self, arrival: Arrival | Unreadable) -> _Fit | str | None:
        """Open a model, or say why it can't be averaged in; None if a newer one has come."""
        try:
            model = self._open(arrival)
            if (reason := self._verdict(model)) is None:
                return model
            model.reader.close()
            return reason
        except FileNotFoundError:
            return None
        except (WeightsError, OSError) as error:
            return str(error)

    def _open(self, arrival: Arrival | Unreadable) -> _Fit:
        """Open a model. Raises WeightsError, OSError."""
        if isinstance(arrival, Unreadable):
            raise WeightsError(arrival.reason)
        return _Fit(arrival, Decoder(arrival.path, arrival.encoding, arrival.opening))

    def _verdict(self, model: _Fit) -> str | None:
        """Look through an open model; it is closed if that fails. Raises WeightsError, OSError."""
        try:
            averaging.check(model.reader, self._schema)
            return self._judge(model.arrival, model.reader)
        except BaseException:
            model.reader.close()
            raise


def _believed(ages: Sequence[float], reference: float) -> list[float]:
    return [min(age, reference + AGE_LEAD) for age in ages]


def _after(position: Position, looked_at: Sequence[Averaged | Refused]) -> Position:
    new = {model.peer: model.seq for model in looked_at}
    old = [(peer, seq) for peer, seq in position.seen.items() if peer not in new]
    return replace(position, seen=dict([*old, *new.items()][-SEEN_LIMIT:]))


def _age(arrival: Arrival | Unreadable) -> float:
    return arrival.age if isinstance(arrival, Arrival) else -1.0
