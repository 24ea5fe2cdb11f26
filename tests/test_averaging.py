"""node/averaging.py: means of models, whatever their size, their age or their faults."""

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from p2pnode.node import averaging, encoding, weights
from p2pnode.node.averaging import Part, average, mean_age, shares
from p2pnode.node.codec import BLOCK
from p2pnode.node.encoding import Decoder
from p2pnode.node.errors import WeightsError
from p2pnode.node.weights import DTYPES

ages = st.lists(st.floats(0, 1e6), min_size=1, max_size=9)


@contextmanager
def files(folder: Path, *models: Mapping[str, Tensor]) -> Iterator[list[Decoder]]:
    """The models as open files."""
    with ExitStack() as stack:
        readers = []
        for number, model in enumerate(models):
            path = folder / f"{number}.safetensors"
            weights.save(path, model)
            readers.append(stack.enter_context(Decoder(path, "raw")))
        yield readers


def mean_of(folder: Path, own: dict[str, Tensor], *others: Mapping[str, Tensor]) -> None:
    """Average models in place, all alike."""
    share = 1 / (1 + len(others))
    with files(folder, *others) as readers:
        average(own, share, [Part(reader, share) for reader in readers])


# ── weights ──────────────────────────────────────────────────────────────────────────────────


@given(ages=ages, reference=st.floats(0, 1e6), exponent=st.floats(0, 4))
def test_shares_sum_to_one_and_the_older_never_count_more(
    ages: list[float], reference: float, exponent: float
) -> None:
    """Whatever the ages, shares are a division of 1 in which age never hurts."""
    result = shares([reference, *ages], reference, exponent)
    assert math.isclose(sum(result), 1)
    ranked = [share for _, share in sorted(zip([reference, *ages], result, strict=True))]
    assert ranked == sorted(ranked)


def test_shares_follow_the_polynomial() -> None:
    """One epoch behind with exponent 1 counts half; ahead counts like level; exponent 0 ignores."""
    assert shares([3, 2, 9], 3, 1.0) == [0.4, 0.2, 0.4]
    assert shares([3, 1], 3, 2.0) == pytest.approx([0.9, 0.1])
    assert shares([3, 1, 2], 3, 0.0) == [1 / 3] * 3


def test_the_age_is_the_same_mean() -> None:
    """The result of an average is as old as its parts, in their shares."""
    assert mean_age([4.0, 2.0], [0.75, 0.25]) == 3.5


# ── means ────────────────────────────────────────────────────────────────────────────────────


def test_a_mean_is_exact_over_many_blocks(tmp_path: Path) -> None:
    """Tensors that span blocks, and those that end inside one, are averaged whole."""
    count = BLOCK // 4 * 2 + 3
    own = {"large": torch.arange(count, dtype=torch.float32), "small": torch.tensor(1.0)}
    other = {"large": torch.arange(count, dtype=torch.float32) + 2, "small": torch.tensor(3.0)}
    mean_of(tmp_path, own, other)
    assert torch.equal(own["large"], torch.arange(count, dtype=torch.float32) + 1)
    assert own["small"] == 2


@pytest.mark.parametrize(
    "dtype",
    [dtype for dtype in weights.DTYPES.values() if dtype.is_floating_point or dtype.is_complex],
    ids=str,
)
def test_every_kind_of_number_is_averaged(tmp_path: Path, dtype: torch.dtype) -> None:
    """Floats of 8 to 64 bits and complex numbers have a mean, rounded once."""
    own = {"x": torch.ones(5).to(dtype)}
    mean_of(tmp_path, own, {"x": torch.full((5,), 4.0).to(dtype)})
    assert own["x"].dtype == dtype
    assert bytes(weights.data(own["x"])) == bytes(weights.data(torch.full((5,), 2.5).to(dtype)))


def test_double_numbers_keep_their_precision(tmp_path: Path) -> None:
    """float64 is summed in float64."""
    own = {"x": torch.tensor([1.0 + 2**-50], dtype=torch.float64)}
    mean_of(tmp_path, own, {"x": torch.tensor([1.0 + 2**-50], dtype=torch.float64)})
    assert own["x"].item() == 1.0 + 2**-50


def test_whole_numbers_stay_our_own(tmp_path: Path) -> None:
    """Counters and masks have no mean: the own ones stay."""
    own = {"steps": torch.tensor(5), "mask": torch.tensor([True, False])}
    mean_of(tmp_path, own, {"steps": torch.tensor(9), "mask": torch.tensor([False, False])})
    assert own["steps"] == 5 and own["mask"].tolist() == [True, False]


def test_a_newcomer_takes_everything_from_the_others(tmp_path: Path) -> None:
    """With share 0 nothing of the own model is left, NaN and counters included."""
    own = {"x": torch.tensor([math.nan, 1.0]), "steps": torch.tensor(0)}
    first = {"x": torch.tensor([1.0, 2.0]), "steps": torch.tensor(7)}
    second = {"x": torch.tensor([3.0, 4.0]), "steps": torch.tensor(6)}
    with files(tmp_path, first, second) as readers:
        average(own, 0.0, [Part(reader, 0.5) for reader in readers])
    assert own["x"].tolist() == [2.0, 3.0] and own["steps"] == 7


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_type_is_averaged_or_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    """Numbers with a mean get it, rounded once; whole numbers and truth values stay."""
    own, theirs = (torch.tensor([a, 0, 1]).to(dtype) for a in (1, 6))
    wide = torch.complex64 if dtype.is_complex else torch.float64
    mean = ((own.to(wide) + theirs.to(wide)) / 2).float() if not dtype.is_complex else None
    kept = not dtype.is_floating_point and not dtype.is_complex
    before, state = own.clone(), {"x": own}
    with files(tmp_path, {"x": theirs}) as (reader,):
        average(state, 0.5, [Part(reader, 0.5)])
    if kept:
        assert torch.equal(own, before)
    elif mean is None:
        assert torch.equal(own, (before + theirs) / 2)
    else:
        assert torch.equal(own.float(), mean.to(dtype).float())
    with files(tmp_path, {"x": theirs}) as (reader,):
        average(state, 0.0, [Part(reader, 1.0)])
    assert bytes(weights.data(own)) == bytes(weights.data(theirs))


def test_conjugate_views_are_averaged(tmp_path: Path) -> None:
    """A complex tensor may be a lazy conjugate; what it reads as is averaged."""
    own = {"x": torch.tensor([1 + 2j, 3 - 4j]).conj()}
    theirs = {"x": torch.tensor([1 + 4j, 1 + 4j])}
    with files(tmp_path, theirs) as (reader,):
        averaging.check(reader, weights.schema(own))
        assert averaging.finite(own)
        average(own, 0.5, [Part(reader, 0.5)])
    assert own["x"].resolve_conj().tolist() == [1 + 1j, 2 + 4j]


def test_tied_and_strided_tensors_are_averaged_once(tmp_path: Path) -> None:
    """A tied tensor isn't averaged twice; a transposed one keeps its layout."""
    shared, turned = torch.zeros(3), torch.zeros(2, 3).t()
    own = {"a": shared, "b": shared, "turned": turned}
    theirs = torch.full((3,), 4.0)
    mean_of(tmp_path, own, {"a": theirs, "b": theirs, "turned": torch.arange(6.0).view(3, 2)})
    assert own["a"].tolist() == [2.0] * 3 and own["b"] is shared
    assert torch.equal(turned, torch.arange(6.0).view(3, 2) / 2) and not turned.is_contiguous()


@given(count=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_mean_of_equals_is_itself(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int
) -> None:
    """Averaging copies of one model changes it by rounding only."""
    torch.manual_seed(seed)
    own = {"x": torch.randn(50)}
    before = own["x"].clone()
    mean_of(tmp_path_factory.getbasetemp(), own, *[{"x": before}] * count)
    assert torch.allclose(own["x"], before, rtol=1e-6)


# ── models that are refused ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.float8_e5m2, torch.complex64]
)
def test_numbers_that_are_not_finite_are_found(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    """One NaN or infinity anywhere in a model refuses it, and ours is seen too."""
    broken = torch.zeros(BLOCK // 2 + 7)
    broken[-1] = value
    state = {"fine": torch.zeros(3), "broken": broken.to(dtype)}
    with files(tmp_path, state) as (reader,), pytest.raises(WeightsError, match="broken holds NaN"):
        averaging.check(reader, weights.schema(state))
    assert not averaging.finite(state)


def test_a_fit_model_passes(tmp_path: Path) -> None:
    """Whole numbers, empty tensors and large but finite floats are fine."""
    state = {"a": torch.tensor([3e38, -3e38]), "n": torch.tensor([2**62]), "e": torch.empty(0, 2)}
    with files(tmp_path, state) as (reader,):
        averaging.check(reader, weights.schema(state))
    assert averaging.finite(state)


def test_another_model_is_told_by_its_difference(tmp_path: Path) -> None:
    """A model of another schema is refused with the first line that differs."""
    mine, theirs = (
        {"w": torch.zeros(2), "b": torch.zeros(1)},
        {"w": torch.zeros(3), "b": torch.zeros(1)},
    )
    with files(tmp_path, theirs) as (reader,), pytest.raises(WeightsError) as caught:
        averaging.check(reader, weights.schema(mine))
    assert "'w F32 3' there, 'w F32 2' here" in str(caught.value)


@pytest.mark.parametrize(("encoded", "models"), [("raw", 64), ("int8+zstd", 16)])
def test_many_large_models_need_little_memory(tmp_path: Path, encoded: str, models: int) -> None:
    """However many models of 40 MB are averaged, it takes the memory of a few blocks."""
    own = {f"layer{n}": torch.ones(1024, 1024) for n in range(10)}
    encoding.save(tmp_path / "large", own, encoded, 1)
    with Decoder(tmp_path / "large", encoded) as reader:
        peak, stop = [0], threading.Event()

        def watch() -> None:
            while not stop.wait(0.001):
                peak[0] = max(peak[0], _resident())

        before = _resident()
        watcher = threading.Thread(target=watch)
        watcher.start()
        averaging.check(reader, weights.schema(own))
        average(own, 0.5, [Part(reader, 0.5 / models)] * models)
        stop.set()
        watcher.join()
    assert peak[0] - before < 24 * 1024 * 1024
    assert torch.allclose(own["layer9"], torch.ones(1024, 1024), rtol=1e-4)


def _resident() -> int:
    """Bytes of this process in memory, mapped files included (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
