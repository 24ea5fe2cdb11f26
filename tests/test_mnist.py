"""node/mnist.py: the data, wherever they lie, and the network."""

import gzip
import hashlib
import lzma
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import train
from torch import Tensor

from p2pnode.node import mnist
from p2pnode.node.errors import ShardError, TaskError
from p2pnode.node.mnist import MEAN, PACKED, STD, TEST, TRAIN, Mnist, Net
from p2pnode.node.orders import Epoch, Ready
from p2pnode.node.shard import Shard
from p2pnode.node.task import Place


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache into which the package's files are unpacked once."""
    path = tmp_path_factory.mktemp("cache")
    mnist.folder(Place(Shard(), path))
    return path


def idx(items: int, *, images: bool) -> bytes:
    """An IDX file: item n holds the byte n everywhere."""
    shape = (items, 28, 28) if images else (items,)
    header = bytes((0, 0, 8, len(shape))) + b"".join(n.to_bytes(4) for n in shape)
    return header + b"".join(bytes([n % 256]) * (784 if images else 1) for n in range(items))


def write(folder: Path, suffix: str = "", pack: Any = bytes, items: int = 10) -> Path:
    """A folder with four small files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TRAIN + TEST:
        (folder / f"{name}{suffix}").write_bytes(pack(idx(items, images="images" in name)))
    return folder


# ── the package's own files ──────────────────────────────────────────────────────────────────


def test_the_package_carries_mnist(cache: Path) -> None:
    """60,000 and 10,000 images of 28 × 28, labels 0 to 9, normalised to mean 0 and deviation 1."""
    images, labels = Mnist().train_data(Place(Shard(), cache))
    assert images.shape == (60_000, 1, 28, 28) and images.dtype == torch.float32
    assert labels.shape == (60_000,) and labels.bincount().nonzero().flatten().tolist() == list(
        range(10)
    )
    assert abs(images.mean()) < 1e-3 and abs(images.std() - 1) < 1e-3
    assert len(Mnist().test_data(Place(Shard(3, 7), cache))[0]) == 10_000


def test_torchvision_reads_the_cache(cache: Path) -> None:
    """The unpacked files are in torchvision's layout, and it sees the same images."""
    datasets = pytest.importorskip("torchvision.datasets")
    theirs = datasets.MNIST(cache, train=False)
    images, labels = Mnist().test_data(Place(Shard(), cache))
    assert torch.equal(labels, theirs.targets)
    expected = (theirs.data.float() / 255 - MEAN) / STD
    assert torch.allclose(images.squeeze(1), expected, atol=1e-6)


def test_a_shard_is_its_part_of_the_whole(cache: Path) -> None:
    """Shard i/n has the i-th of n contiguous parts, and only that is read."""
    images, labels = Mnist().train_data(Place(Shard(), cache))
    part, part_labels = Mnist().train_data(Place(Shard(1, 600), cache))
    assert torch.equal(part, images[100:200]) and torch.equal(part_labels, labels[100:200])
    with pytest.raises(ShardError, match="60000 samples"):
        Mnist().train_data(Place(Shard(0, 60_001), cache))


def test_the_packed_files_are_the_published_ones() -> None:
    """The digests in the package are those of the files as they are published."""
    lines = (PACKED / "SHA256SUMS").read_text().splitlines()
    assert {line.split()[1] for line in lines} == {*TRAIN, *TEST}
    assert "ShareAlike 3.0" in (PACKED / "LICENSE.md").read_text()


def test_a_damaged_cache_is_mended(cache: Path, tmp_path: Path) -> None:
    """A file that was cut off or changed is unpacked again."""
    raw = shutil.copytree(cache / "MNIST", tmp_path / "MNIST") / "raw"
    (raw / TEST[1]).write_bytes(b"short")
    (raw / TRAIN[1]).unlink()
    mnist.folder(Place(Shard(), tmp_path))
    assert all(
        (raw / name).read_bytes() == (cache / "MNIST/raw" / name).read_bytes()
        for name in (TEST[1], TRAIN[1])
    )


def test_several_processes_may_unpack_at_once(tmp_path: Path) -> None:
    """Whoever comes first or last, the files are whole and nothing else is left."""
    failures: list[Exception] = []

    def unpack() -> None:
        try:
            mnist._unpack(PACKED / f"{TEST[0]}.xz", tmp_path / TEST[0])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=unpack) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [path.name for path in tmp_path.iterdir()] == [TEST[0]]
    digest = hashlib.sha256((tmp_path / TEST[0]).read_bytes()).hexdigest()
    assert digest in (PACKED / "SHA256SUMS").read_text()


def test_a_damaged_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed file that isn't what was published says to install again, and leaves nothing."""
    packed = shutil.copytree(PACKED, tmp_path / "packed")
    (packed / f"{TEST[1]}.xz").write_bytes(lzma.compress(b"other"))
    monkeypatch.setattr(mnist, "PACKED", packed)
    with pytest.raises(TaskError, match="is damaged; install p2pnode again"):
        mnist._unpack_packaged(tmp_path)
    assert not list((tmp_path / "MNIST" / "raw").glob(".*"))


# ── the user's files ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["", "MNIST/raw"])
@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)]
)
def test_the_users_folder(tmp_path: Path, where: str, suffix: str, pack: Any) -> None:
    """--data-dir takes the four files, packed or not, or the folder above MNIST/raw."""
    write(tmp_path / "mine" / where, suffix, pack)
    place = Place(Shard(1, 2), tmp_path / "cache", tmp_path / "mine")
    images, labels = Mnist().train_data(place)
    assert labels.tolist() == [5, 6, 7, 8, 9]
    assert torch.allclose(images[0] * STD + MEAN, torch.full((1, 28, 28), 5 / 255))
    # Nothing is written into the user's folder; what torchvision can read there isn't copied.
    assert len(list((tmp_path / "mine" / where).iterdir())) == 4
    assert (tmp_path / "cache").exists() is bool(suffix or not where)


def test_changed_files_are_unpacked_again(tmp_path: Path) -> None:
    """The unpacked copy belongs to the files as they are now."""
    place = Place(Shard(), tmp_path / "cache", write(tmp_path / "mine", ".gz", gzip.compress))
    assert len(Mnist().test_data(place)[0]) == 10
    write(tmp_path / "mine", ".gz", gzip.compress, items=12)
    assert len(Mnist().test_data(place)[0]) == 12


def test_a_mixed_folder(tmp_path: Path) -> None:
    """Some files packed and some not is fine."""
    mine = write(tmp_path / "mine", ".gz", gzip.compress)
    (mine / f"{TEST[1]}.gz").unlink()
    (mine / TEST[1]).write_bytes(idx(10, images=False))
    assert len(Mnist().test_data(Place(Shard(), tmp_path / "cache", mine))[1]) == 10


def test_missing_files_are_listed(tmp_path: Path) -> None:
    """A folder that lacks some of the files says which."""
    mine = write(tmp_path / "mine")
    (mine / TEST[0]).unlink()
    (mine / TRAIN[1]).unlink()
    with pytest.raises(TaskError, match=rf"lacks {TRAIN[1]}, {TEST[0]}; plain, .gz or .xz"):
        Mnist().train_data(Place(Shard(), tmp_path / "cache", mine))
    with pytest.raises(TaskError, match="is not a folder"):
        Mnist().train_data(Place(Shard(), tmp_path / "cache", tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08\x03",
        b"nothing at all, long enough",
        idx(10, images=True)[:-1],
        idx(9, images=False),
    ],
    ids=["empty", "header only", "text", "cut off", "labels"],
)
def test_files_that_are_not_images_are_told(tmp_path: Path, data: bytes) -> None:
    """A file of another kind or length is one clear error with its folder."""
    mine = write(tmp_path / "mine")
    (mine / TRAIN[0]).write_bytes(data)
    with pytest.raises(TaskError, match=r"MNIST/raw can't be read as MNIST: \w"):
        Mnist().train_data(Place(Shard(), tmp_path / "cache", mine))


def test_images_and_labels_must_match(tmp_path: Path) -> None:
    """As many labels as images."""
    mine = write(tmp_path / "mine")
    (mine / TRAIN[1]).write_bytes(idx(11, images=False))
    with pytest.raises(TaskError, match="10 images but 11 labels"):
        Mnist().train_data(Place(Shard(), tmp_path / "cache", mine))


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_packed_file_that_is_broken_is_told(tmp_path: Path, suffix: str) -> None:
    """Packed files that can't be unpacked are the user's to mend."""
    mine = write(tmp_path / "mine", suffix, lambda data: b"no archive")
    with pytest.raises(TaskError, match="can't be unpacked"):
        Mnist().train_data(Place(Shard(), tmp_path / "cache", mine))


# ── the network ──────────────────────────────────────────────────────────────────────────────


def test_the_network_is_the_prototypes() -> None:
    """1,199,882 parameters; ten log-probabilities for each image."""
    net = Net().eval()
    assert sum(parameter.numel() for parameter in net.parameters()) == 1_199_882
    with torch.no_grad():
        outputs = net(torch.zeros(2, 1, 28, 28))
    assert outputs.shape == (2, 10)
    assert torch.allclose(outputs.exp().sum(1), torch.ones(2))


class FewDigits(Mnist):
    """MNIST with a small test set."""

    def test_data(self, place: Place) -> tuple[Tensor, Tensor]:
        images, labels = super().test_data(place)
        return images[:500], labels[:500]


def test_it_learns_digits(cache: Path, tmp_path: Path) -> None:
    """Three epochs on 600 images know most of the digits."""
    daemon = train(tmp_path, task="test_mnist:FewDigits", shard="0/100", cache=cache, epochs=3)
    assert daemon.of(Ready)[0].parameters == 1_199_882
    assert daemon.of(Ready)[0].samples == 600
    accuracy = daemon.of(Epoch)[-1].after.accuracy
    assert accuracy is not None and accuracy > 0.6
