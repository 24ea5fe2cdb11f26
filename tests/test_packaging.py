"""What `pip install` gets: a wheel with the package, its data and its licences, nothing else."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent
PATIENCE = 150
MNIST = "p2pnode/node/data/mnist"


def run(*command: str, folder: Path, **environ: str) -> str:
    """Run to a good end: what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays as it is."""
    source = tmp_path_factory.mktemp("build") / "p2pnode"
    copytree(
        ROOT, source, ignore=ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    )
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", folder=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def contents(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel, opened."""
    with zipfile.ZipFile(wheel) as opened:
        yield opened


def test_holds_the_package_alone(contents: zipfile.ZipFile) -> None:
    """site-packages gets p2pnode/ and its metadata: no tests, docs, bench or examples."""
    names = contents.namelist()
    tops = {name.split("/")[0] for name in names}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"p2pnode", info}
    folders = {name.split("/")[1] for name in names if name.startswith("p2pnode/")}
    code = {"cli", "node", "tracker", "transport"}
    assert folders == {*code, "__init__.py", "py.typed"}


def test_holds_every_module(contents: zipfile.ZipFile) -> None:
    """What works in the checkout is there after an install."""
    packaged = {name for name in contents.namelist() if name.endswith(".py")}
    here = {"p2pnode/__init__.py"}
    for floor in ("cli", "node", "tracker", "transport"):
        here |= {f"p2pnode/{p.relative_to(ROOT)}" for p in (ROOT / floor).rglob("*.py")}
    assert packaged == here


def test_holds_mnist_as_it_was_published(contents: zipfile.ZipFile) -> None:
    """The four files, unpacked, match SHA256SUMS, and their licence is beside them."""
    lines = contents.read(f"{MNIST}/SHA256SUMS").decode().splitlines()
    assert len(lines) == 4
    for digest, name in map(str.split, lines):
        data = lzma.decompress(contents.read(f"{MNIST}/{name}.xz"))
        assert hashlib.sha256(data).hexdigest() == digest
    assert (
        "creativecommons.org/licenses/by-sa/3.0/" in contents.read(f"{MNIST}/LICENSE.md").decode()
    )


def test_names_its_licences_and_needs(contents: zipfile.ZipFile) -> None:
    """The metadata has the licence, both of its files, and what pip must fetch."""
    (path,) = (name for name in contents.namelist() if name.endswith(".dist-info/METADATA"))
    text = contents.read(path).decode()
    metadata = HeaderParser().parsestr(text)
    assert metadata["License-Expression"] == "Apache-2.0"
    licences = metadata.get_all("License-File") or []
    assert set(licences) == {"LICENSE", "node/data/mnist/LICENSE.md"}
    folder = path.removesuffix("METADATA")
    assert all(f"{folder}licenses/{name}" in contents.namelist() for name in licences)
    needed = {re.split("[<>=]", need)[0] for need in metadata.get_all("Requires-Dist") or []}
    assert {"torch", "torchvision", "trio", "pynng", "cbor2", "rich"} <= needed


def test_runs_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """Installed elsewhere, it runs from there, as a module and as a command, with its version."""
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", "--target", str(target), str(wheel), folder=elsewhere)
    assert {path.name for path in target.iterdir() if not path.name.endswith(".dist-info")} == {
        "p2pnode",
        "bin",
    }
    version = wheel.name.split("-")[1]
    where = str(target)
    module = (sys.executable, "-m", "p2pnode.cli.main", "version")
    assert version in run(*module, folder=elsewhere, PYTHONPATH=where)
    command = (sys.executable, str(target / "bin" / "p2pnode"), "version")
    assert version in run(*command, folder=elsewhere, PYTHONPATH=where)
    find = (sys.executable, "-c", "import p2pnode.node.config as c; print(c.__file__)")
    assert run(*find, folder=elsewhere, PYTHONPATH=where).startswith(where)
