"""The verbs: what is printed, which exit code, and that mistakes are one line."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import reference
import trio
from asking import mapped_tcp

from p2pnode.cli import verbs
from p2pnode.cli.main import FAILED, INTERRUPTED, MISTAKE, OK, main
from p2pnode.cli.serve import OPEN_FILES, Services, Strangers, serve_tracker, take_open_files
from p2pnode.cli.verbs import VERBS
from p2pnode.node import control
from p2pnode.node.config import Config
from p2pnode.node.errors import ControlError
from p2pnode.node.home import Home
from p2pnode.node.status import Event, NodeStatus
from p2pnode.transport.address import Address
from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.identity import Identity
from p2pnode.transport.messages import RELAY_RUN, Hello, to_bytes
from p2pnode.transport.network import TcpNetwork

STATUS = NodeStatus(
    version="1",
    peer=Identity.from_seed(bytes(32)).peer_id,
    swarm="main",
    task="mnist",
    shard="0/3",
    public="",
    listening="127.0.0.1:6000",
    reachability="unknown",
    uptime=1.0,
    events=(Event(0.0, "info", "hello"),),
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test's own, and no settings of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("P2PNODE_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "home"
    monkeypatch.setenv("P2PNODE_HOME", str(path))
    return path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a verb; gives exit code, stdout, stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        return (code, *capfd.readouterr())

    return run


Run = Callable[..., tuple[int, str, str]]


def mistake(result: tuple[int, str, str]) -> str:
    """The one line of a mistake of the user's."""
    code, out, err = result
    assert (code, out) == (MISTAKE, "")
    assert err.startswith("p2pnode: ")
    assert err.count("\n") == 1
    return err


def test_init_makes_key_and_settings(run: Run, home: Path) -> None:
    """The folder 0700, the key 0600, the commented file; it prints the peer ID."""
    code, out, err = run("init")
    assert (code, err) == (OK, "")
    assert Identity.load(home / "key.pem").peer_id in out
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "key.pem").stat().st_mode & 0o777 == 0o600
    assert "#epochs = 14" in (home / "p2pnode.toml").read_text()


def test_init_never_overwrites_a_key_without_force(run: Run, home: Path) -> None:
    """--force makes a new identity, and still leaves the user's settings alone."""
    run("init")
    (home / "p2pnode.toml").write_text("epochs = 3")
    before = Identity.load(home / "key.pem")
    assert "--force replaces it" in mistake(run("init"))
    assert Identity.load(home / "key.pem") == before
    code, out, _ = run("init", "--force")
    assert (code, "kept as it was" in out) == (OK, True)
    assert Identity.load(home / "key.pem") != before
    assert (home / "p2pnode.toml").read_text() == "epochs = 3"


def test_a_passphrase_comes_from_a_file_or_a_variable(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's line end is not meant; without any passphrase the error says to give it."""
    file = tmp_path / "passphrase"
    file.write_text("secret\n")
    assert "with a passphrase" in run("init", "--passphrase-file", str(file))[1]
    assert Identity.load(home / "key.pem", b"secret")
    assert run("id", "--passphrase-file", str(file))[0] == OK
    monkeypatch.setenv("P2PNODE_PASSPHRASE", "secret")
    assert run("id")[0] == OK
    monkeypatch.setenv("P2PNODE_PASSPHRASE", "other")
    assert "passphrase is wrong" in mistake(run("id"))
    monkeypatch.delenv("P2PNODE_PASSPHRASE")
    assert "give --passphrase-file" in mistake(run("id"))


def test_a_passphrase_is_asked_for_in_a_terminal(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice when it is new; without a terminal the error says what to use instead."""
    assert "--passphrase-file" in mistake(run("init", "--ask-passphrase"))
    answers = iter(["one", "two", "one", "one", "one"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    assert "differ" in mistake(run("init", "--ask-passphrase"))
    assert not (home / "key.pem").exists()
    assert run("init", "--ask-passphrase")[0] == OK
    assert Identity.load(home / "key.pem", b"one").peer_id in run("id")[1]


def test_passphrase_sources_that_are_no_passphrase(run: Run, tmp_path: Path) -> None:
    """A missing, empty or many-line file, or two sources at once: nothing is made."""
    file = tmp_path / "passphrase"
    assert "cannot read" in mistake(run("init", "--passphrase-file", str(file)))
    for text in ("", "\n", "a\nb\n", "x" * 2000):
        file.write_text(text)
        assert "one line" in mistake(run("init", "--passphrase-file", str(file)))
    both = ("--ask-passphrase", "--passphrase-file", str(file))
    assert "exclude each other" in mistake(run("init", *both))


def test_id_prints_peer_id_and_public_key(run: Run, home: Path) -> None:
    """Both are what others need to know this node by."""
    run("init")
    identity = Identity.load(home / "key.pem")
    code, out, _ = run("id")
    assert code == OK
    assert out.split() == [
        "peer",
        "ID",
        identity.peer_id,
        "public",
        "key",
        identity.public_key.hex(),
    ]


def test_a_missing_or_open_key_is_one_line(run: Run, home: Path) -> None:
    """The line says which command mends it."""
    assert "run p2pnode init" in mistake(run("id"))
    assert "run p2pnode init" in mistake(run("run"))
    run("init")
    (home / "key.pem").chmod(0o644)
    assert "chmod 600" in mistake(run("run"))


def test_config_shows_each_setting_and_its_source(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line each for people, one object for scripts."""
    home.mkdir()
    (home / "p2pnode.toml").write_text("\nepochs = 3\ntracker = ['a']\n")
    monkeypatch.setenv("P2PNODE_SEED", "5")
    lines = [line.split() for line in run("config")[1].splitlines()]
    assert ["epochs", "3", f"{home}/p2pnode.toml:2:", "epochs"] in lines
    assert ["seed", "5", "P2PNODE_SEED"] in lines
    assert ["public", "-", "default"] in lines
    found = json.loads(run("config", "--json")[1])
    assert found["tracker"] == {"value": ["a:5555"], "source": f"{home}/p2pnode.toml:3: tracker"}
    assert found["stay"] == {"value": False, "source": "default"}


def test_run_hands_over_config_identity_home_and_view(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit code is run's."""
    seen: list[object] = []

    def run_node(config: Config, identity: Identity, home: Home, view: object) -> int:
        seen.extend([config.epochs, config.stay, identity, home.path, callable(view)])
        return 7

    monkeypatch.setattr("p2pnode.node.daemon.run_node", run_node)
    run("init")
    assert run("run", "--epochs", "2", "--stay")[0] == 7
    assert seen == [2, True, Identity.load(home / "key.pem"), home, True]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "--shard", "3/3"], "--shard: 3/3; write --shard I/N"),
        (["run", "--shard", "a/b"], "--shard: 'a/b'"),
        (["run", "--tracker", "a:b"], "--tracker: 'a:b'"),
        (["run", "--epoch", "3"], "--epoch means nothing here; see p2pnode run --help"),
        (["run", "--epochs"], "expected one argument; see p2pnode run --help"),
        (["rnu"], "invalid choice: 'rnu'"),
        ([], "required: VERB"),
        (["tracker"], "required: ACTION"),
        (["tracker", "serve", "--listen", "x:y"], "--listen: 'x:y'"),
        (["tracker", "serve", "--listen", "192.0.2.1:0"], "not an address of this machine"),
        (["demo", "--epochs", "0"], "--epochs: '0'"),
        (["demo", "--shards", "2"], "--shards: '2'"),
        (["id", "--home", "a\0b"], "--home: 'a\\x00b' is not a path"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(run: Run, argv: list[str], says: str) -> None:
    """It names what was wrong and says what to write."""
    run("init")
    assert says in mistake(run(*argv))


def test_a_broken_settings_file_is_one_line(run: Run, home: Path) -> None:
    """With file, line and key; `status` and `id --home` elsewhere still work."""
    home.mkdir()
    (home / "p2pnode.toml").write_text("\nepoch = 3")
    assert f"{home}/p2pnode.toml:2: epoch: " in mistake(run("run"))
    assert "No node is running" in run("status")[2]


def test_a_home_that_is_a_file_is_one_line(run: Run, tmp_path: Path) -> None:
    """Every verb that needs the folder says so."""
    (tmp_path / "file").write_text("")
    for verb in (["init"], ["id"], ["tracker", "serve"]):
        assert "file" in mistake(run(*verb, "--home", str(tmp_path / "file")))


@pytest.fixture
def node(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A running node, as far as its control socket can tell."""
    Home(home).create()
    token: list[trio.lowlevel.TrioToken] = []
    scope = trio.CancelScope()
    ready = threading.Event()

    async def serve() -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                token.append(trio.lowlevel.current_trio_token())
                path = Home(home).control_path()
                await nursery.start(control.serve, path, lambda: STATUS)
                ready.set()

    thread = threading.Thread(target=trio.run, args=[serve])
    thread.start()
    assert ready.wait(10)
    yield
    token[0].run_sync_soon(scope.cancel)
    thread.join()


@pytest.mark.usefixtures("node")
def test_status_prints_json_for_scripts(run: Run) -> None:
    """One object, the same as NodeStatus.to_json."""
    code, out, _ = run("status", "--json")
    assert code == OK
    assert json.loads(out) == STATUS.to_json()


@pytest.mark.usefixtures("node")
def test_status_without_a_terminal_prints_the_screen_once(run: Run) -> None:
    """So that `p2pnode status | less` works."""
    code, out, _ = run("status")
    assert code == OK
    assert "main" in out
    assert out == run("status", "--once")[1]


def test_status_without_a_node_says_how_to_start_one(run: Run) -> None:
    """That is no mistake in the line: code 1."""
    code, _, err = run("status")
    assert code == FAILED
    assert "start one with p2pnode run" in err
    assert err.count("\n") == 1


def test_version_is_the_packages(run: Run) -> None:
    """As pip knows it."""
    assert run("version")[1].count(".") == 2


def test_the_reference_shows_every_verb_and_flag() -> None:
    """docs/reference/cli.md is what `python tests/reference.py` makes of the parser."""
    assert reference.verbs() in reference.CLI.read_text(encoding="utf-8")
    assert all(f"### p2pnode {verb}" in reference.verbs() for verb in VERBS)


def fails_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `version` raise the error."""

    def fail(_: object) -> int:
        raise error

    monkeypatch.setitem(verbs.VERBS, "version", fail)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(28, "No space left on device", "/x"), FAILED, "/x: No space left on device"),
        (ControlError("the node stopped"), FAILED, "the node stopped"),
        (ExceptionGroup("", [ExceptionGroup("", [ControlError("deep")])]), FAILED, "deep"),
    ],
)
def test_an_error_while_running_is_one_line_and_code_1(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    """However deep in nurseries it was raised."""
    fails_with(error, monkeypatch)
    found, _, err = run("version")
    assert (found, err.count("\n")) == (code, 1)
    assert err.endswith(f"{line}\n")


def test_an_interrupt_that_nobody_handled_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell expects, without a traceback."""
    fails_with(KeyboardInterrupt(), monkeypatch)
    assert run("version") == (INTERRUPTED, "", "")


def test_a_bug_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that we didn't foresee is dressed up as the user's mistake."""
    fails_with(ExceptionGroup("", [ControlError("x"), ZeroDivisionError()]), monkeypatch)
    with pytest.raises(ExceptionGroup):
        run("version")


LAZY = """
import sys
from p2pnode.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*{"torch", "trio", "pynng", "rich", "numpy"} & set(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "argv", [["--help"], ["version"], ["config"], ["id"], ["status", "--json"], ["run", "--help"]]
)
@pytest.mark.usefixtures("node")
def test_small_verbs_load_nothing_slow(argv: list[str], home: Path) -> None:
    """torch takes three seconds, trio and rich a tenth each: people wait for none of them."""
    command = [sys.executable, "-c", LAZY, *argv]
    Identity.generate().save(home / "key.pem")
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stderr.split() == []


def test_a_reader_that_goes_away_is_no_error(home: Path) -> None:
    """`p2pnode config | head -1`: nothing on stderr."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "p2pnode.cli.main", "config"]
    found = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (found.returncode, found.stderr) == (FAILED, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tracker_serve_tells_its_port_and_ends_at_a_signal(number: signal.Signals) -> None:
    """The first line tells the address, also of a free port; Ctrl-C and SIGTERM end it well."""
    lines: list[bytes] = []

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            identity = Identity.from_seed(bytes(32))
            services = Services(Address("127.0.0.1", 0))
            nursery.start_soon(serve_tracker, services, identity, lines.append)
            with trio.fail_after(10):
                while not lines:
                    await trio.sleep(0.01)
            signal.raise_signal(number)

    trio.run(serve)
    first = lines[0].decode().splitlines()[0]
    assert first.split()[-1].startswith("127.0.0.1:")
    assert not first.endswith(":0")


def test_a_tracker_relays_and_answers_stun(tmp_path: Path) -> None:
    """--relay at its own port, --stun at another; peers of its swarms are told of both."""
    lines: list[bytes] = []
    me, peer = Identity.from_seed(bytes(32)), Identity.from_seed(bytes([1]) * 32)
    anywhere = Address("127.0.0.1", 0)
    services = Services(anywhere, anywhere, tmp_path / "relay", 10**9)

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_tracker, services, me, lines.append)
            with trio.fail_after(10):
                while len(b"".join(lines).splitlines()) < 3:
                    await trio.sleep(0.01)
                stun, relay, tracker = b"".join(lines).decode().splitlines()
                asked = Address.parse(stun.split()[-1])
                assert (await mapped_tcp(asked, anywhere)).host == "127.0.0.1"
                assert str(tmp_path / "relay") in relay
                at = Address.parse(tracker.split()[-1])
                for service in ("tracker", "relay"):
                    link = await TcpNetwork(peer).dial(at, service, me.peer_id)  # type: ignore[arg-type]
                    await link.send(to_bytes(Hello(RELAY_RUN, 0)))
                    with suppress(LinkClosed):
                        while service == "relay":
                            await link.receive_any()
                    await link.aclose()
                while len(b"".join(lines).splitlines()) < 4:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(serve)
    told = b"".join(lines).decode().splitlines()[3]
    assert "relay: rejected (member) from" in told and told.count("relay: ") == 1


@pytest.mark.parametrize(
    ("before", "after"), [(1024, OPEN_FILES), (OPEN_FILES + 1, OPEN_FILES + 1)]
)
def test_a_tracker_may_open_as_many_files_as_it_serves(before: int, after: int) -> None:
    """With a relay and STUN that is more than processes usually may; never fewer than before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= OPEN_FILES:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))
    try:
        take_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (after, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_tracker_that_relays_beside_a_node(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its models in a folder of its own: what one holds the other would remove."""
    given: list[Services] = []

    async def note(services: Services, _: Identity) -> None:
        given.append(services)

    monkeypatch.setattr("p2pnode.cli.serve.serve_tracker", note)
    assert run("tracker", "serve", "--relay")[0] == OK
    (services,) = given
    assert services.relay is not None and services.relay.parent == home
    assert services.relay != home / "relay"  # the node's (daemon.py)


def test_tracker_serve_makes_its_key_once(run: Run, home: Path) -> None:
    """Without `init`; and a busy port is one line that says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        where = f"127.0.0.1:{busy.getsockname()[1]}"
        assert "taken by another program" in mistake(run("tracker", "serve", "--listen", where))
        made = (home / "tracker.pem").read_bytes()
        assert "--listen" in mistake(run("tracker", "serve", "--listen", where))
    assert (home / "tracker.pem").read_bytes() == made
    assert (home / "tracker.pem").stat().st_mode & 0o777 == 0o600


def test_a_flood_of_strangers_is_a_few_lines() -> None:
    """A port scanner fills no disk: the 1st, 10th, 100th and 1000th are told."""
    told: list[str] = []
    strangers = Strangers(told.append)
    for _ in range(1234):
        strangers.refused("no hello")
    assert len(told) == 4
    assert told[-1] == "1000 connections refused, the last: no hello"
