"""node/encoding.py: models in fewer bytes, and back."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import zstandard
from golden import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from test_weights import same_bits, states
from torch import Tensor

from p2pnode.node import averaging, codec, encoding, weights
from p2pnode.node.averaging import Part, average
from p2pnode.node.codec import BLOCK, GROUP, LEAST, Codec, dequantize, quantize
from p2pnode.node.encoding import Decoder, save
from p2pnode.node.errors import WeightsError
from p2pnode.node.training import ENCODED_MORE
from p2pnode.node.weights import DTYPES
from p2pnode.transport.manifest import ENCODING_LIMIT, ENCODINGS

LOSSLESS = ("raw", "raw+zstd")
TINY = 1e-42
"""Less than any number that a scale in float32 can tell apart."""


def decoded(path: Path, name: str) -> dict[str, Tensor]:
    """All tensors of a file, as they are averaged."""
    buffer = torch.empty(BLOCK, dtype=torch.uint8)
    with Decoder(path, name) as reader:
        return {
            tensor: torch.cat(
                [torch.empty(0, dtype=entry.dtype)]
                + [reader.block(tensor, n, buffer).clone() for n in range(reader.blocks(tensor))]
            ).view(entry.shape)
            for tensor, entry in reader.entries.items()
        }


def through(folder: Path, state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """What others get of a model."""
    save(folder / "model.safetensors", state, name, seed=1)
    return decoded(folder / "model.safetensors", name)


@pytest.fixture
def least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that isn't empty is worth encoding, in blocks of a few numbers."""
    monkeypatch.setattr(encoding, "LEAST", 1)


# ── what comes back ──────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("least")
@pytest.mark.parametrize("name", LOSSLESS)
def test_every_tensor_goes_through_bit_exact(tmp_path_factory: Any, name: str) -> None:
    """All types, 0-d, empty, non-contiguous and tied ones, NaN and all, come back bit for bit."""

    @settings(max_examples=100, deadline=None)
    @given(state=states)
    def check(state: dict[str, Tensor]) -> None:
        if state:
            state = {**state, max(state) + "'": state[max(state)]}
        folder = tmp_path_factory.getbasetemp()
        found = through(folder, state, name)
        assert found.keys() == state.keys()
        assert all(same_bits(found[tensor], state[tensor]) for tensor in state)
        with Decoder(folder / "model.safetensors", name) as reader:
            assert reader.schema() == weights.schema(state)

    check()


@pytest.mark.usefixtures("least")
@pytest.mark.parametrize("name", ENCODINGS)
def test_only_floats_of_full_size_lose_anything(tmp_path: Path, name: str) -> None:
    """Whole numbers, truth values, float64, complex and 8-bit numbers go through bit-exact."""
    torch.manual_seed(1)
    raw = torch.randint(0, 2, (8 * 640,), dtype=torch.uint8)
    state = {str(dtype): raw.view(dtype) for dtype in DTYPES.values()}
    codec = Codec.of(name)
    found = through(tmp_path, state, name)
    for dtype in set(DTYPES.values()) - codec.numbers.keys():
        assert same_bits(found[str(dtype)], state[str(dtype)]), dtype


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(numbers=st.lists(floats, min_size=1, max_size=300), seed=st.integers(0, 9))
def test_int8_is_less_than_a_scale_away(numbers: list[float], seed: int) -> None:
    """Any finite numbers come back with an error of at most their group's largest ÷ 127."""
    block = torch.tensor(numbers)
    packed, scales = quantize(block, torch.Generator().manual_seed(seed))
    error = (dequantize(packed, scales).double() - block.double()).abs()
    most = scales.double().repeat_interleave(GROUP)[: len(block)] * (1 + 1e-5) + TINY * 127
    assert bool((error <= most).all())
    assert packed.dtype == torch.int8 and len(scales) == math.ceil(len(block) / GROUP)


@settings(max_examples=100, deadline=None)
@given(numbers=st.lists(floats, min_size=1, max_size=50))
def test_bf16_is_rounded_and_stays_finite(tmp_path_factory: Any, numbers: list[float]) -> None:
    """A number in bf16 is within 2⁻⁸ of itself, the largest ones and the smallest, too."""
    own = torch.tensor(numbers).repeat(LEAST)
    found = through(tmp_path_factory.getbasetemp(), {"x": own}, "bf16")["x"].double()
    assert bool(((found - own).abs() <= own.double().abs() * 2**-8 + 1e-40).all())


def test_int8_is_right_on_average() -> None:
    """Rounding by chance has no bias: the mean of many roundings is the number itself."""
    block = torch.linspace(-1, 1, GROUP)
    chance = torch.Generator().manual_seed(3)
    mean = torch.stack([dequantize(*quantize(block, chance)) for _ in range(4000)]).mean(0)
    assert float((mean - block).abs().max()) < 0.1 / 127


@pytest.mark.parametrize("name", ENCODINGS)
def test_models_of_several_blocks_come_back(tmp_path: Path, name: str) -> None:
    """Blocks that don't end where a group or the tensor does; transposed, tied, small ones, too."""
    torch.manual_seed(1)
    large = torch.randn(BLOCK // 4 * 2 + 333)
    state = {
        "large": large,
        "half": torch.randn(3, BLOCK // 6 + 1).half(),
        "turned": torch.randn(300, 200).t(),
        "tied": large,
        "counter": torch.tensor(7),
        "steps": torch.arange(5000),
        "bias": torch.randn(64),
        "empty": torch.empty(0, 3),
    }
    found = through(tmp_path, state, name)
    assert found.keys() == state.keys()
    for tensor in ("counter", "steps", "bias", "empty"):
        assert same_bits(found[tensor], state[tensor])
    for tensor in ("large", "half", "turned", "tied"):
        most = {"raw": 0.0, "bf1": 2**-6, "int": 5 / 127}[name[:3]]
        assert float((found[tensor].float() - state[tensor].float()).abs().max()) <= most
    with Decoder(tmp_path / "model.safetensors", name) as reader:
        assert reader.schema() == weights.schema(state)
        averaging.check(reader, weights.schema(state))


def test_the_sizes_are_what_is_promised(tmp_path: Path) -> None:
    """int8 with zstd needs less than a quarter; nothing is ever larger than peers grant it."""
    torch.manual_seed(1)
    state = {"w": torch.randn(1000, 1000).mul_(0.02)}
    sizes = {}
    for name in ENCODINGS:
        size = save(tmp_path / "model.safetensors", state, name, 1)
        assert (tmp_path / "model.safetensors").stat().st_size == size
        sizes[name] = size / 4e6
    assert sizes["int8+zstd"] < 0.25 < sizes["int8"] < 0.26
    assert sizes["bf16+zstd"] < 0.4 and sizes["bf16"] < 0.501 and sizes["raw+zstd"] < 0.9
    noise = {f"{n}": torch.randint(0, 255, (LEAST,), dtype=torch.uint8) for n in range(100)}
    grown = save(tmp_path / "model.safetensors", noise, "raw+zstd", 1)
    with (tmp_path / "model.safetensors").open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    assert grown - header <= weights.size(noise) + weights.size(noise) // ENCODED_MORE


def test_names_are_short_enough() -> None:
    """Manifests hold every encoding's name."""
    assert all(len(name) <= ENCODING_LIMIT for name in ENCODINGS)


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    """A model that is sent again is the same; torch's own chance is untouched."""
    state = {"w": torch.randn(LEAST)}
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    files = []
    for seed in (1, 1, 2):
        save(tmp_path / "model.safetensors", state, "int8", seed)
        files.append((tmp_path / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_tensor_with_the_name_of_scales_stays_as_it_is(tmp_path: Path) -> None:
    """A model may have a tensor w and a tensor w.scales of its own."""
    state = {"w": torch.randn(LEAST), "w.scales": torch.randn(LEAST)}
    found = through(tmp_path, state, "int8")
    assert same_bits(found["w"], state["w"])
    assert not same_bits(found["w.scales"], state["w.scales"])


def test_safetensors_opens_encoded_files(tmp_path: Path) -> None:
    """The library finds int8 numbers and scales, and that is all there is to know."""
    state = {"w": torch.randn(64, 256)}
    save(tmp_path / "model.safetensors", state, "int8", 1)
    theirs = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert theirs.keys() == {"w", "w.scales"}
    assert theirs["w"].shape == (64, 256) and theirs["w"].dtype == torch.int8
    again = theirs["w"] * theirs["w.scales"].unsqueeze(1)
    assert torch.equal(again, decoded(tmp_path / "model.safetensors", "int8")["w"])
    save(tmp_path / "model.safetensors", state, "bf16+zstd", 1)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {
            "p2pnode.encoding": "bf16+zstd",
            "p2pnode.tensors": "w F32 64x256",
        }


def test_encoded_models_are_averaged(tmp_path: Path) -> None:
    """The mean of the own model and an encoded one is that of the decoded one."""
    torch.manual_seed(1)
    own, other = {"w": torch.randn(5000)}, {"w": torch.randn(5000)}
    for name in ENCODINGS:
        mine, theirs = {"w": own["w"].clone()}, through(tmp_path, other, name)
        with Decoder(tmp_path / "model.safetensors", name) as reader:
            average(mine, 0.5, [Part(reader, 0.5)])
        assert torch.allclose(mine["w"], (own["w"] + theirs["w"]) / 2, atol=1e-6)


# ── files that lie ───────────────────────────────────────────────────────────────────────────


def _write(path: Path, tensors: dict[str, Tensor], name: str, *lines: str) -> Path:
    about = {codec.ENCODING: name, codec.TENSORS: "\n".join(lines)}
    weights.write(path, tensors, about)
    return path


def _refused(path: Path, name: str, schema: Mapping[str, Tensor], reason: str) -> None:
    with pytest.raises(WeightsError, match=reason), Decoder(path, name) as reader:
        averaging.check(reader, weights.schema(schema))


def _frame(data: bytes, length: int | None = None) -> Tensor:
    size = len(data) if length is None else length
    return torch.tensor(list(size.to_bytes(4, "little") + data), dtype=torch.uint8)


WANTED = {"w": torch.zeros(256)}
INT8 = torch.zeros(256, dtype=torch.int8)
SCALES = torch.zeros(1)
PACKED = zstandard.ZstdCompressor().compress(bytes(1024))


@pytest.mark.parametrize(
    ("tensors", "name", "line", "reason"),
    [
        ({"w": INT8}, "int8", "w F32 256", "isn't what int8 makes"),
        ({"w": INT8, "w.scales": torch.zeros(3)}, "int8", "w F32 256", "isn't what int8 makes"),
        ({"w": INT8, "w.scales": SCALES.half()}, "int8", "w F32 256", "isn't what int8 makes"),
        ({"w": INT8.float(), "w.scales": SCALES}, "int8", "w F32 256", "isn't what int8 makes"),
        ({"w": INT8, "w.scales": SCALES}, "int8", "w F32 255", "isn't what int8 makes"),
        ({"w": INT8, "w.scales": SCALES}, "int8", "w F64 256", "isn't what int8 makes"),
        ({"w": INT8, "w.scales": SCALES}, "int8", "v F32 256", "isn't what int8 makes"),
        ({"w": INT8, "w.scales": SCALES}, "int8", "w F4 256", "unknown dtype"),
        ({"w": INT8, "w.scales": SCALES}, "int8", "w F32 -256", "shape"),
        ({"w": INT8, "w.scales": SCALES}, "int8", "w F32 " + "9" * 99, "shape"),
        ({"w": INT8, "w.scales": SCALES}, "int8", "w F32 " + "x".join("1" * 65), "shape"),
        ({"w": INT8, "w.scales": SCALES}, "int8", "w", "unpack|shape"),
        ({"w": INT8, "w.scales": SCALES}, "int8", "", "another model"),
        ({"w": INT8, "w.scales": SCALES - 1}, "int8", "w F32 256", "a scale is"),
        ({"w": INT8, "w.scales": SCALES + math.nan}, "int8", "w F32 256", "a scale is"),
        ({"w": INT8, "w.scales": SCALES + math.inf}, "int8", "w F32 256", "a scale is"),
        ({"w": INT8, "w.scales": SCALES + 3e38}, "int8", "w F32 256", "a scale is"),
        ({"w": torch.full((256,), math.nan).bfloat16()}, "bf16", "w F32 256", "NaN or infinite"),
        ({"w": torch.zeros(256)}, "bf16", "w F32 256", "isn't what bf16 makes"),
        ({"w": torch.zeros(256).int()}, "bf16", "w I32 256", "isn't what bf16 makes"),
        ({"w": _frame(PACKED)}, "raw+zstd", "w F32 255", "another model"),
        ({"w": _frame(PACKED).view(1, -1)}, "raw+zstd", "w F32 256", "isn't what raw.zstd makes"),
        ({"w": _frame(PACKED)}, "bf16+zstd", "w F32 256", "isn't of its block's size"),
        ({"w": _frame(PACKED, 9)}, "raw+zstd", "w F32 256", "aren't as long as all of it"),
        ({"w": _frame(PACKED, 0)}, "raw+zstd", "w F32 256", "wrong length"),
        ({"w": _frame(PACKED, 1025)}, "raw+zstd", "w F32 256", "wrong length"),
        ({"w": _frame(PACKED, 500)}, "raw+zstd", "w F32 256", "aren't as long as all of it"),
        ({"w": _frame(PACKED + b"!")}, "raw+zstd", "w F32 256", "damaged"),
        ({"w": _frame(PACKED[:-1])}, "raw+zstd", "w F32 256", "damaged|size"),
        ({"w": _frame(b"garbage, no frame")}, "raw+zstd", "w F32 256", "damaged"),
        ({"w": _frame(b"")[:3]}, "raw+zstd", "w F32 256", "too short"),
        ({"w": torch.zeros(256)}, "raw", "", "its manifest"),
    ],
)
def test_lies_are_refused_with_a_reason(
    tmp_path: Path, tensors: dict[str, Tensor], name: str, line: str, reason: str
) -> None:
    """What the metadata say, the scales and the frames must fit the model that we train."""
    said = "int8" if name == "raw" else name
    path = _write(tmp_path / "lie.safetensors", tensors, said, line)
    _refused(path, name, WANTED, reason)


def test_file_and_manifest_must_agree(tmp_path: Path) -> None:
    """A file that says nothing of an encoding is raw, whatever its manifest says."""
    save(tmp_path / "model.safetensors", WANTED, "raw", 1)
    _refused(tmp_path / "model.safetensors", "int8", WANTED, "says that it is 'raw'.*'int8'")


RLE = ((2**17 << 3) | 3).to_bytes(3, "little") + b"\x00"
"""A last block that repeats a zero 128 KiB times (RFC 8878, section 3.1.1.2)."""

BOMBS = {
    "honest": zstandard.ZstdCompressor(level=19).compress(bytes(20 * BLOCK)),
    "silent": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(20_000)),
    "says 1024 bytes": b"\x28\xb5\x2f\xfd\x60\x00\x03" + RLE,
    "a window of a terabyte": b"\x28\xb5\x2f\xfd\x40\xf0\x00\x03" + RLE,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_does_not_go_off(tmp_path: Path, kind: str) -> None:
    """A frame that would grow beyond its block is refused, whatever it says of its size."""
    frame = _frame(BOMBS[kind][:1000])
    path = _write(tmp_path / "bomb.safetensors", {"w": frame}, "raw+zstd", "w F32 256")
    _refused(path, "raw+zstd", WANTED, "zstd frame")


def test_a_huge_shape_is_refused_at_once(tmp_path: Path) -> None:
    """A line that claims an exabyte costs nothing, even for our own model's schema."""
    path = _write(tmp_path / "x.safetensors", {"w": _frame(b"x")}, "raw+zstd", f"w F32 {2**58}")
    _refused(path, "raw+zstd", WANTED, "another model")
    with Decoder(path, "raw+zstd") as reader, pytest.raises(WeightsError, match="too short"):
        reader.block("w", 0, torch.empty(BLOCK, dtype=torch.uint8))


@pytest.mark.parametrize("name", ENCODINGS)
def test_any_bytes_are_a_model_or_the_error(tmp_path: Path, name: str) -> None:
    """Any damage to an encoded file gives a model or WeightsError."""
    path = tmp_path / "fuzz.safetensors"
    state = {"a": torch.ones(LEAST), "b": torch.ones(2, 2).long(), "c": torch.ones(LEAST).half()}
    save(path, state, name, 1)
    whole = path.read_bytes()
    places = st.integers(0, 700) | st.integers(0, len(whole))

    @settings(max_examples=200, deadline=None)
    @given(at=places, patch=st.binary(max_size=8), cut=st.just(0) | st.integers(0, 40))
    def damage(at: int, patch: bytes, cut: int) -> None:
        damaged = whole[:at] + patch + whole[at + len(patch) :]
        path.write_bytes(damaged[: len(damaged) - cut])
        try:
            with Decoder(path, name) as reader:
                averaging.check(reader, weights.schema(state))
        except WeightsError as error:
            assert str(error)

    damage()


# ── the protocol's page ──────────────────────────────────────────────────────────────────────


def test_the_golden_file_reads(tmp_path: Path) -> None:
    """A tiny file as docs/protocol/manifest.md has it: int8 with a scale, and a bias beside it."""
    path = tmp_path / "golden.safetensors"
    path.write_bytes(golden("encoded-model"))
    found = decoded(path, "int8+zstd")
    assert found["bias"].tolist() == [0.5]
    assert found.keys() == {"bias", "weight"}
    assert torch.equal(found["weight"], torch.eye(8) * 127)
