"""The MNIST task of the prototype: its network, its data, and where the data lie.

Strategy: the package carries the four files of MNIST, packed. They are unpacked once into the
cache folder, in torchvision's layout (MNIST/raw), and torchvision.datasets.MNIST reads them. This
shard's images become one tensor that is normalised once; batches only index it.

Data: Y. LeCun and C. Cortes, CC BY-SA 3.0 (data/mnist/LICENSE.md); format: IDX,
https://yann.lecun.com/exdb/mnist/. Network: https://github.com/pytorch/examples/tree/main/mnist
"""

import gzip
import hashlib
import lzma
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Final, cast

from torch import Tensor, nn
from torch.nn import functional as F

from .errors import TaskError
from .shard import Shard
from .task import Place, Task

PACKED: Final = Path(__file__).parent / "data" / "mnist"
TRAIN: Final = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST: Final = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

RAW: Final = Path("MNIST") / "raw"
"""Where torchvision looks below its root."""

MEAN: Final = 0.1307
STD: Final = 0.3081
"""Of all training pixels, as fractions of white."""

SIDE: Final = 28
"""Pixels of an image, across and down."""


class Net(nn.Module):
    """Two convolutions, two linear layers: 1,199,882 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities of the ten digits, (N, 10), for images (N, 1, 28, 28)."""
        x = F.relu(self.conv1(x))  # (N, 32, 26, 26)
        x = F.relu(self.conv2(x))  # (N, 64, 24, 24)
        x = self.dropout1(F.max_pool2d(x, 2))  # (N, 64, 12, 12)
        x = self.dropout2(F.relu(self.fc1(x.flatten(1))))  # (N, 128)
        return F.log_softmax(self.fc2(x), dim=1)


class Mnist(Task):
    """Handwritten digits: 60,000 images to train on, split among the shards, 10,000 to test."""

    def model(self) -> nn.Module:
        """Return the network."""
        return Net()

    def train_data(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return this shard's images (n, 1, 28, 28) and labels (n)."""
        return _read(folder(place), place.shard, train=True)

    def test_data(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return the test images and labels."""
        return _read(folder(place), Shard(), train=False)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean negative log-likelihood."""
        return F.nll_loss(outputs, targets)


# ── where the files are ──────────────────────────────────────────────────────────────────────


def folder(place: Place) -> Path:
    """Return torchvision's root: the four unpacked files are in its MNIST/raw; unpack if need be.

    Raises TaskError if --data-dir has not all of them, or the package's own are damaged.
    """
    if place.data_dir is None:
        return _unpack_packaged(place.cache)
    files = _find(place.data_dir)
    if all(file == place.data_dir / RAW / name for name, file in files.items()):
        return place.data_dir
    # A cache of its own, renewed when a file changes.
    state = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files.values()]
    name = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
    root = place.cache / f"data-{name}"
    for name, file in files.items():
        if not (root / RAW / name).exists():
            _unpack(file, root / RAW / name)
    return root


def _find(data_dir: Path) -> dict[str, Path]:
    """Find each of the four files, plain, .gz or .xz, in a folder or in its MNIST/raw."""
    if not data_dir.is_dir():
        raise TaskError(f"--data-dir {data_dir} is not a folder")
    for home in (data_dir / RAW, data_dir):
        found = {name: file for name in TRAIN + TEST if (file := _variant(home, name))}
        if len(found) == len(TRAIN + TEST):
            return found
    missing = ", ".join(name for name in TRAIN + TEST if name not in found)
    raise TaskError(f"{data_dir} (or MNIST/raw in it) lacks {missing}; plain, .gz or .xz")


def _variant(home: Path, name: str) -> Path | None:
    variants = (home / f"{name}{suffix}" for suffix in ("", ".gz", ".xz"))
    return next((file for file in variants if file.is_file()), None)


def _unpack_packaged(root: Path) -> Path:
    """Unpack the package's files where they are missing or damaged, and check what comes out."""
    raw = root / RAW
    for line in (PACKED / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        if not (raw / name).exists() or _sha256(raw / name) != digest:
            _unpack(PACKED / f"{name}.xz", raw / name, digest)
    return root


def _unpack(source: Path, target: Path, digest: str | None = None) -> None:
    """Unpack one file; it appears whole or not at all, however many processes do the same."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    try:
        with os.fdopen(handle, "wb") as file, _open(source) as packed:
            shutil.copyfileobj(packed, file, 1024 * 1024)
        if digest is not None and _sha256(Path(part)) != digest:
            raise TaskError(f"{source} is damaged; install p2pnode again")
        Path(part).replace(target)
    except (lzma.LZMAError, gzip.BadGzipFile, EOFError) as error:
        raise TaskError(f"{source} can't be unpacked: {error}") from error
    finally:
        Path(part).unlink(missing_ok=True)


def _open(source: Path) -> IO[bytes]:
    match source.suffix:
        case ".gz":
            return cast(IO[bytes], gzip.open(source))
        case ".xz":
            return lzma.open(source)
    return source.open("rb")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ── reading them ─────────────────────────────────────────────────────────────────────────────


def _read(root: Path, shard: Shard, *, train: bool) -> tuple[Tensor, Tensor]:
    """Let torchvision read; keep this shard's images, normalised once. Raises TaskError."""
    from torchvision.datasets import MNIST  # takes a second and 160 MB: only this task pays it

    try:
        data = MNIST(str(root), train=train)
        images, labels = data.data, data.targets
        fits = images.shape == (len(labels), SIDE, SIDE)
    except (RuntimeError, ValueError, AssertionError, IndexError, KeyError) as error:
        why = str(error) or type(error).__name__
        raise TaskError(f"{root / RAW} can't be read as MNIST: {why}") from None
    if not fits:
        raise TaskError(f"{root / RAW} holds {len(images)} images but {len(labels)} labels")
    part = shard.of(len(labels))
    scaled = images[part].float().div_(255).sub_(MEAN).div_(STD)
    return scaled.unsqueeze(1), labels[part].long().clone()
