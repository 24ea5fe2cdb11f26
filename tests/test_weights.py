"""node/weights.py: model files, ours and everybody's."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from p2pnode.node import weights
from p2pnode.node.errors import WeightsError
from p2pnode.node.training import FILE_OVERHEAD
from p2pnode.node.weights import DTYPES, Reader


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any bits of any type and shape, 0-d and empty and non-contiguous ones among them."""
    dtype = draw(st.sampled_from(sorted(DTYPES.values(), key=str)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = math.prod(shape) * dtype.itemsize
    raw = torch.tensor(list(draw(st.binary(min_size=count, max_size=count))), dtype=torch.uint8)
    if dtype == torch.bool:
        raw = raw % 2
    tensor = raw.view(dtype).view(shape)
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n"), min_size=1)
states = st.dictionaries(names.filter(lambda name: name != "__metadata__"), tensors(), max_size=6)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal to the last bit, NaN included."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and bytes(weights.data(one)) == bytes(weights.data(other))


@settings(max_examples=200, deadline=None)
@given(state=states)
def test_every_state_dict_round_trips(tmp_path_factory: Any, state: dict[str, Tensor]) -> None:
    """Every type that torch and safetensors share comes back bit for bit, tied ones tied."""
    if state:
        name = max(state)
        state = {**state, name + "'": state[name]}
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    assert weights.save(path, state) == path.stat().st_size
    loaded, _ = weights.load(path)
    assert loaded.keys() == state.keys()
    assert all(same_bits(loaded[name], state[name]) for name in state)
    assert weights.tied(loaded) == weights.tied(state)
    with Reader(path) as reader:
        assert reader.schema() == weights.schema(state) == weights.schema(loaded)


def test_the_table_of_types_is_whole() -> None:
    """No type that the safetensors library reads into torch is missing."""
    assert safetensors.torch._TYPES.items() <= DTYPES.items()


def test_safetensors_reads_our_files(tmp_path: Path) -> None:
    """The safetensors library reads every type it knows, and the metadata."""
    state = {name: torch.arange(6).to(dtype) for name, dtype in safetensors.torch._TYPES.items()}
    weights.save(tmp_path / "ours.safetensors", state, {"made": "here"})
    theirs = safetensors.torch.load_file(tmp_path / "ours.safetensors")
    assert theirs.keys() == state.keys()
    assert all(same_bits(theirs[name], state[name]) for name in state)
    with safetensors.safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"made": "here"}


def test_we_read_files_of_safetensors(tmp_path: Path) -> None:
    """A file that the safetensors library wrote reads the same."""
    state = {"a": torch.randn(3, 2), "b": torch.tensor(7), "c": torch.randn(5).bfloat16()}
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors", {"format": "pt"})
    ours, metadata = weights.load(tmp_path / "theirs.safetensors")
    assert all(same_bits(ours[name], state[name]) for name in state)
    assert metadata == {"format": "pt"}


class Tied(nn.Module):
    """Embedding and head share their weight, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    """The file holds a tied weight once, the schema tells, and a module loads both names."""
    model, other = Tied(), Tied()
    weights.save(tmp_path / "tied.safetensors", model.state_dict())
    assert weights.schema(model.state_dict()) == [
        "embedding.weight F32 5x3",
        "head.weight = embedding.weight",
    ]
    assert weights.size(model.state_dict()) == 5 * 3 * 4
    with Reader(tmp_path / "tied.safetensors") as reader:
        assert reader.aliases == {"head.weight": "embedding.weight"}
    other.load_state_dict(weights.load(tmp_path / "tied.safetensors")[0])
    assert torch.equal(other.head.weight, model.embedding.weight)
    assert other.head.weight is other.embedding.weight
    safetensors.torch.load_model(other, tmp_path / "tied.safetensors")


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ("text", "is a str, not a tensor"),
        (torch.randn(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "no memory"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
    ],
)
def test_what_a_file_cannot_hold_is_named(tmp_path: Path, tensor: Any, reason: str) -> None:
    """A state dict that no file can hold is refused by the tensor's name; nothing is left over."""
    with pytest.raises(WeightsError, match=f"'odd'.*{reason}"):
        weights.save(tmp_path / "x.safetensors", {"odd": tensor})
    assert list(tmp_path.iterdir()) == []


def test_thousands_of_tensors(tmp_path: Path) -> None:
    """What a file has beside its tensors is within what peers grant it, however many there are."""
    assert weights.HEADER_LIMIT + 8 == FILE_OVERHEAD
    state = {f"blocks.{n}.attention.projection.weight": torch.zeros(1) for n in range(20_000)}
    size = weights.save(tmp_path / "model.safetensors", state)
    assert 1 << 20 < size - weights.size(state) < FILE_OVERHEAD
    with weights.Reader(tmp_path / "model.safetensors") as reader:
        assert reader.schema() == weights.schema(state)


def test_the_fingerprint_tells_models_apart() -> None:
    """Names, types, shapes and ties change the fingerprint; values and order don't."""
    base = {"a": torch.zeros(2, 3), "b": torch.zeros(())}
    same = {"b": torch.ones(()), "a": torch.ones(2, 3)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.zeros(())},
        {"a": torch.zeros(2, 3).half(), "b": torch.zeros(())},
        {"a": torch.zeros(2, 3), "c": torch.zeros(())},
        {"a": torch.zeros(2, 3), "b": torch.zeros(1)},
    ]

    def fingerprint(state: dict[str, Tensor]) -> bytes:
        return weights.fingerprint(weights.schema(state))

    assert fingerprint(base) == fingerprint(same)
    assert len({fingerprint(state) for state in [base, *others]}) == 5
    assert fingerprint(base).hex() == (
        "3a083e8e19c0093ee3a930e514c9381a57fb28666a5676398b3d014d384c7547"
    )


def _file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((length or len(text)).to_bytes(8, "little") + text + data)
    return path


def _entry(start: int, end: int, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (b"[]", b"", "isn't a JSON object"),
        (b"{" * 5000, b"", "Expecting property name"),
        (b"[" * 100_000, b"", "recursion"),
        (b"\xff\xff", b"", "can't decode"),
        (b'{"a": 1, "a": 2}', b"", "twice"),
        ({"__metadata__": {"a": 1}}, b"", "metadata"),
        ({"a": 7}, b"", "fit together"),
        ({"a": _entry(0, 4, dtype="F4")}, b"0000", "unknown dtype"),
        ({"a": _entry(0, 4, dtype=["F32"])}, b"0000", "fit together"),
        ({"a": _entry(0, 4, shape=[-1])}, b"0000", "isn't a number"),
        ({"a": _entry(0, 4, shape=[True])}, b"0000", "isn't a number"),
        ({"a": _entry(0, 4, shape=[1] * 65)}, b"0000", "isn't a number"),
        ({"a": _entry(0, 8)}, b"00000000", "fit together"),
        ({"a": _entry(0, 4), "b": _entry(2, 6)}, b"000000", "overlap"),
        ({"a": _entry(4, 8)}, b"00000000", "hole"),
        ({"a": _entry(0, 4)}, b"000", "3 bytes|need"),
        ({"a": _entry(0, 4)}, b"00000", "need"),
        ({"a": _entry(4, 0)}, b"0000", "fit together"),
        ({"a": _entry(0, 2**70, shape=[2**68])}, b"", "isn't a number"),
    ],
)
def test_lying_headers_are_refused(tmp_path: Path, header: Any, data: bytes, reason: str) -> None:
    """A header that lies about types, sizes or places is refused before anything is read."""
    with pytest.raises(WeightsError, match=reason):
        Reader(_file(tmp_path / "lie.safetensors", header, data))


@pytest.mark.parametrize("length", [0, 1, 2**63, 100, weights.HEADER_LIMIT + 1])
def test_a_wrong_length_is_refused(tmp_path: Path, length: int) -> None:
    """The first eight bytes can't make us read more than the file has or the limit allows."""
    path = _file(tmp_path / "long.safetensors", b"{}", length=length)
    if length == 0:
        path.write_bytes(bytes(8))
    with pytest.raises(WeightsError, match="isn't a safetensors file, or is cut off"):
        Reader(path)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 200), patch=st.binary(max_size=8), cut=st.integers(0, 40))
def test_any_bytes_are_a_model_or_the_error(
    tmp_path_factory: Any, at: int, patch: bytes, cut: int
) -> None:
    """Any damage to a file gives a model or WeightsError."""
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    weights.save(path, {"a": torch.ones(3), "b": torch.ones(2, 2).long()}, {"x": "y"})
    whole = path.read_bytes()
    damaged = whole[:at] + patch + whole[at + len(patch) :]
    path.write_bytes(damaged[: len(damaged) - cut])
    try:
        assert weights.load(path)[0] is not None
    except WeightsError as error:
        assert path.name in str(error)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    """A file cut off after its header was read gives an error, not zeros and not a crash."""
    path = tmp_path / "shrinks.safetensors"
    weights.save(path, {"a": torch.ones(1000)})
    with Reader(path) as reader:
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(WeightsError, match="'a' is cut off"):
            reader.tensors()


def test_a_file_that_is_unlinked_stays_readable(tmp_path: Path) -> None:
    """The daemon may remove a model while the worker reads it."""
    path = tmp_path / "gone.safetensors"
    weights.save(path, {"a": torch.arange(9)})
    with Reader(path) as reader:
        path.unlink()
        assert torch.equal(reader.tensors()["a"], torch.arange(9))
