"""The rules of the house that a machine can check, each with its reason."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import trio
from statuses import swarm_of

from p2pnode.node import control
from p2pnode.node.home import Home
from p2pnode.transport.identity import Identity

ROOT = Path(__file__).parent.parent
FLOORS = ("transport", "tracker", "node", "cli")
"""From the bottom to the top."""

NO_CODE_OF_OURS = ("tests", "docs", "bench", "examples", "build", "dist")
"""Top folders that are not part of the package."""

PATIENCE = 60


# ── reading the sources ──────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Module:
    """One file of the package, such as "node.mailbox"."""

    name: str
    path: Path

    @property
    def floor(self) -> str:
        return self.name.partition(".")[0]

    @property
    def tree(self) -> ast.Module:
        return _parse(self.path)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def modules() -> list[Module]:
    """All files of the package."""
    files = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return [Module(name, path) for name, path in zip(names, files, strict=True)]


MODULES = modules()
NAMES = {module.name for module in MODULES}


def imports(module: Module) -> Iterator[str]:
    """What it imports, anywhere in the file: "trio", "json", or "~node.mailbox" for our own."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            yield from _ours(module, node)


def _ours(module: Module, node: ast.ImportFrom) -> Iterator[str]:
    package = module.name.split(".")[: -node.level]
    base = ".".join([*package, *((node.module or "").split(".") if node.module else [])])
    for alias in node.names:
        inner = f"{base}.{alias.name}".strip(".")
        yield f"~{inner if inner in NAMES else base}"


def own_imports(module: Module) -> set[str]:
    """The modules of ours that it imports."""
    return {name[1:] for name in imports(module) if name.startswith("~")}


def top(name: str) -> str:
    """The package of an import."""
    return name.partition(".")[0]


def users(*packages: str) -> set[str]:
    """The modules that import one of these packages."""
    return {m.name for m in MODULES if any(top(name) in packages for name in imports(m))}


# ── who imports whom ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.name)
def test_imports_go_down_only(module: Module) -> None:
    """So that a floor can be understood, tested and replaced without those above it."""
    allowed = FLOORS[: FLOORS.index(module.floor) + 1]
    assert {top(name) for name in own_imports(module)} <= set(allowed)


def test_no_import_cycles() -> None:
    """A cycle is one module in several files: none of them can be read alone."""
    graph = {module.name: own_imports(module) for module in MODULES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a cycle: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.name)
def test_imports_of_our_own_are_relative(module: Module) -> None:
    """The repository's root is the package: an absolute import might find another copy."""
    assert "p2pnode" not in {top(name) for name in imports(module)}


NO_CORE = {"trio", "pynng", "asyncio", "select", "selectors", "socket", "ssl", "signal"}
NO_CORE |= {"time", "datetime", "threading", "subprocess", "multiprocessing"}
NO_CORE |= {"os", "io", "pathlib", "shutil", "tempfile", "mmap", "fcntl"}
CORES = {"transport.wire", "transport.envelope", "transport.manifest", "node.status"}


def cores() -> list[Module]:
    """The modules that say so, and those that everything else rests on."""
    return [
        module
        for module in MODULES
        if (ast.get_docstring(module.tree) or "").startswith("CORE") or module.name in CORES
    ]


@pytest.mark.parametrize("module", cores(), ids=lambda m: m.name)
def test_cores_know_no_world(module: Module) -> None:
    """Bytes and `now` in, values and bytes out: every case can be tested without waiting."""
    assert not {top(name) for name in imports(module)} & NO_CORE
    assert "open" not in _called(module)


IN_THE_WORKER = {"averaging", "checkpoint", "codec", "encoding", "learner", "merging", "mnist"}
IN_THE_WORKER |= {"session", "task", "weights"}
ON_SCREEN = {"demo", "doctor", "layout", "lines", "network", "panels", "screens", "tui"}
ONLY = [
    (
        "pynng",
        {"transport.sockets"},
        "its traps (leaks, lost messages, dangling views) are handled in one place",
    ),
    ("cbor2", {"transport.wire"}, "its default decoder takes more than the protocol allows"),
    (
        "torch torchvision safetensors numpy",
        {f"node.{name}" for name in IN_THE_WORKER},
        "it takes seconds and 200 MB to import: only the worker process does",
    ),
    (
        "rich",
        {f"cli.{name}" for name in ON_SCREEN},
        "what a node does doesn't depend on how it is shown",
    ),
    ("zeroconf", {"node.mdns"}, "it has threads and an event loop of its own"),
    (
        "miniupnpc",
        {"transport.nat.upnp"},
        "it would fetch whatever address anybody on the network names",
    ),
    ("aioice", {"transport.nat.stun_codec"}, "only its codec is used, its I/O is asyncio's"),
    ("argparse", {"cli.parser", "cli.verbs"}, "flags are made from one table"),
    ("tomllib", {"node.config"}, "settings have one reader, so one precedence"),
]


@pytest.mark.parametrize(("packages", "allowed", "reason"), ONLY, ids=[row[0] for row in ONLY])
def test_a_package_has_few_users(packages: str, allowed: set[str], reason: str) -> None:
    """Each of these packages has a reason to be used in few places."""
    found = users(*packages.split())
    assert found
    assert found <= allowed, reason


def test_the_worker_s_modules_use_no_trio() -> None:
    """Training and network are two processes; neither waits for the other's library."""
    assert not users("trio") & users("torch")


# ── what is never done ───────────────────────────────────────────────────────────────────────

NEVER_IMPORTED = {
    "pickle": "unpickling runs whatever a peer sends",
    "marshal": "like pickle",
    "shelve": "it pickles",
    "dill": "it pickles",
    "cloudpickle": "it pickles",
    "joblib": "it pickles",
    "multiprocessing": "it pickles, and it forks after torch has started threads",
    "asyncio": "there is one event loop, trio's",
}
NEVER_CALLED = {
    "eval": "it runs text",
    "exec": "it runs text",
    "compile": "it prepares text to be run",
    "__import__": "imports are written where a reader looks for them",
    "torch.load": "it unpickles",
    "torch.save": "it pickles",
    "np.load": "it may unpickle",
    "numpy.load": "it may unpickle",
    "os.fork": "torch's threads don't survive it",
    "os.system": "a shell reads what others wrote",
}


@cache
def _called(module: Module) -> set[str]:
    """The names that are called, as they are written: "open", "torch.load"."""
    calls = (node.func for node in ast.walk(module.tree) if isinstance(node, ast.Call))
    return {ast.unparse(call) for call in calls if isinstance(call, ast.Name | ast.Attribute)}


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.name)
def test_nothing_is_unpickled_or_run_from_text(module: Module) -> None:
    """What comes over the network is data, whatever it says."""
    for name in {top(name) for name in imports(module)} & NEVER_IMPORTED.keys():
        pytest.fail(f"{module.name} imports {name}: {NEVER_IMPORTED[name]}")
    for name in _called(module) & NEVER_CALLED.keys():
        pytest.fail(f"{module.name} calls {name}: {NEVER_CALLED[name]}")
    shells = [n for n in ast.walk(module.tree) if isinstance(n, ast.keyword) and n.arg == "shell"]
    assert not shells, "a shell reads what others wrote"


# ── the package ──────────────────────────────────────────────────────────────────────────────


def test_every_code_folder_is_packaged() -> None:
    """A folder that pyproject.toml doesn't name works here and is missing after `pip install`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {
        path.parent.relative_to(ROOT)
        for top_folder in ROOT.iterdir()
        if top_folder.is_dir()
        and top_folder.name not in NO_CODE_OF_OURS
        and not top_folder.name.startswith(".")
        for path in top_folder.rglob("*.py")
    }
    names = {".".join(folder.parts) for folder in folders}
    assert {name.partition(".")[0] for name in names} == set(FLOORS)
    assert set(settings["packages"]) == {"p2pnode", *(f"p2pnode.{name}" for name in names)}
    assert all((ROOT / folder / "__init__.py").exists() for folder in folders)


@pytest.mark.parametrize("floor", ["", *FLOORS, "transport/nat"])
def test_packages_are_empty(floor: str) -> None:
    """An __init__ that imports makes everything that is below it slow to start."""
    body = _parse(ROOT / floor / "__init__.py").body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


# ── real processes ───────────────────────────────────────────────────────────────────────────

RUN = "from p2pnode.cli.main import main; code = main(sys.argv[1:])"
HELP = """
from p2pnode.cli.parser import parse
try:
    parse()
except SystemExit:
    pass
"""


def reporting(code: str, names: tuple[str, ...]) -> str:
    """The code, and then a line on stderr that says which of the packages were imported."""
    report = f"print('imported', *(m for m in {names!r} if m in sys.modules), file=sys.stderr)"
    return f"import sys\n{code}\n{report}"


def imported(code: str, *names: str, args: tuple[str, ...] = ()) -> tuple[list[str], int]:
    """Which of these packages a fresh interpreter has after running the code, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", reporting(code, names), *args],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    *_, last = done.stderr.splitlines()
    assert last.startswith("imported"), done.stderr
    return last.split()[1:], done.returncode


def test_the_worker_imports_neither_trio_nor_pynng() -> None:
    """Two event loops and torch's threads in one process is what the prototype hung of."""
    code = "import p2pnode.node.worker, p2pnode.node.session, p2pnode.node.mnist"
    assert imported(code, "trio", "pynng", "torch") == (["torch"], 0)


def test_the_daemon_does_not_import_torch() -> None:
    """It takes 200 MB, and a node has it once, in the worker."""
    code = "import p2pnode.node.daemon, p2pnode.cli.screens, p2pnode.cli.demo"
    assert imported(code, "torch", "numpy", "trio") == (["trio"], 0)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with a key."""
    home = Home(tmp_path / "home")
    home.create()
    Identity.generate().save(home.key)
    return home


@pytest.mark.parametrize("verb", ["id", "config", "version"])
def test_quick_verbs_do_not_import_torch(home: Home, verb: str) -> None:
    """They answer in a moment."""
    where = () if verb == "version" else ("--home", str(home.path))
    assert imported(RUN, "torch", "numpy", args=(verb, *where)) == ([], 0)


@pytest.mark.parametrize("verb", ["", "run", "status", "tracker", "demo"])
def test_help_does_not_import_torch(verb: str) -> None:
    """Nor does it start anything else that is slow."""
    args = (*filter(None, [verb]), "--help")
    assert imported(HELP, "torch", "numpy", "trio", "pynng", args=args) == ([], 0)


@pytest.mark.parametrize("how", ["--json", "--once"])
def test_status_does_not_import_torch(home: Home, how: str) -> None:
    """It asks a running node, prints and ends."""

    async def main() -> tuple[list[str], int]:
        async with trio.open_nursery() as nursery:
            await nursery.start(control.serve, home.control_path(), lambda: swarm_of(3))
            args = ("status", "--home", str(home.path), how)
            done = await trio.to_thread.run_sync(
                lambda: imported(RUN, "torch", "numpy", "pynng", args=args)
            )
            nursery.cancel_scope.cancel()
        return done

    assert trio.run(main) == ([], 0)


@pytest.mark.e2e
def test_a_tracker_does_not_import_torch(home: Home) -> None:
    """It runs on the smallest machine there is."""
    script = reporting(RUN, ("torch", "numpy", "pynng"))
    args = ("tracker", "serve", "--home", str(home.path), "--listen", "127.0.0.1:0")
    process = subprocess.Popen(
        [sys.executable, "-c", script, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with process:
        assert process.stdout is not None
        assert "listening" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    assert errors.split() == ["imported", "pynng"]
    assert process.returncode == 0
