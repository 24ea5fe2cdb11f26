"""The option table and the four sources of a setting."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnode.node.config import Config, as_json, home_of, load, show, template
from p2pnode.node.errors import ConfigError
from p2pnode.node.options import OPTIONS, TRACKERS_LIMIT
from p2pnode.transport.address import Address


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that nobody has made yet."""
    return tmp_path / "home"


def toml(home: Path, text: str) -> Path:
    """Write p2pnode.toml."""
    home.mkdir(exist_ok=True)
    path = home / "p2pnode.toml"
    path.write_text(text, encoding="utf-8")
    return path


def config(home: Path, **flags: str | bool | list[str]) -> Config:
    """The settings with these flags and no variables."""
    return load({"home": str(home), **flags}, {})[0]


def error(home: Path, **flags: str | list[str]) -> str:
    """What the user reads."""
    with pytest.raises(ConfigError) as caught:
        load({"home": str(home), **flags}, {})
    return str(caught.value)


def test_the_defaults_are_the_prototypes(home: Path) -> None:
    """Without any source: MNIST, lr 1.0, batch 64, 14 epochs, seed 1, test batch 1000."""
    c = config(home)
    assert (c.task, c.lr, c.batch_size, c.epochs) == ("mnist", 1.0, 64, 14)
    assert (c.seed, c.test_batch_size, c.shard) == (1, 1000, "0/1")
    assert (c.public, c.tracker, c.listen) == (None, (), Address("0.0.0.0", 6000))


def test_config_has_one_field_for_each_option() -> None:
    """Nobody can add an option and forget the value, or the other way round."""
    assert [f.name for f in dataclasses.fields(Config)] == [o.name for o in OPTIONS]


def test_flag_beats_variable_beats_file_beats_default(home: Path) -> None:
    """One precedence for all options, and each setting tells where it came from."""
    file = toml(home, "# mine\nepochs = 1\nseed = 2\nlr = 3\n")
    flags = {"home": str(home), "epochs": "5"}
    c, found = load(flags, {"P2PNODE_EPOCHS": "6", "P2PNODE_SEED": "7"})
    assert (c.epochs, c.seed, c.lr, c.batch_size) == (5, 7, 3.0, 64)
    source = {s.option.name: s.source for s in found}
    assert source["epochs"] == "--epochs"
    assert source["seed"] == "P2PNODE_SEED"
    assert source["lr"] == f"{file}:4: lr"
    assert source["batch_size"] == "default"


def test_every_source_takes_every_option(home: Path, tmp_path: Path) -> None:
    """The same text as a flag, a variable and a TOML value gives the same setting."""
    texts = {o.name: o.default or o.example for o in OPTIONS if o.in_file}
    by_flag = load({"home": str(home)} | texts, {})[0]
    variables = {o.variable: texts[o.name] for o in OPTIONS if o.in_file}
    by_variable = load({"home": str(home)}, variables)[0]
    lines = [line[1:] for line in template().splitlines() if re.match(r"#[a-z_]+ = ", line)]
    assert len(lines) == len(texts)
    toml(home, "\n".join(lines))
    assert by_flag == by_variable == config(home)


def test_the_home_comes_from_flag_variable_or_platform(tmp_path: Path) -> None:
    """--home wins over P2PNODE_HOME; a relative one starts in the working directory."""
    assert home_of({"home": "/a"}, {"P2PNODE_HOME": "/b"}) == Path("/a")
    assert home_of({}, {"P2PNODE_HOME": "b"}) == Path.cwd() / "b"
    assert home_of({}, {}).name == "p2pnode"


def test_an_empty_variable_is_not_set(home: Path) -> None:
    """`P2PNODE_EPOCHS= p2pnode run` trains the default number of epochs."""
    assert load({"home": str(home)}, {"P2PNODE_EPOCHS": ""})[0].epochs == 14


def test_trackers_may_be_many(home: Path) -> None:
    """Repeated flags, a variable with spaces and a TOML list or text give several trackers."""
    two = (Address("a.example", 5555), Address("::1", 7))
    assert config(home, tracker=["a.example", "[::1]:7"]).tracker == two
    assert load({"home": str(home)}, {"P2PNODE_TRACKER": "a.example [::1]:7"})[0].tracker == two
    toml(home, 'tracker = ["a.example", "[::1]:7"]')
    assert config(home).tracker == two
    toml(home, 'tracker = "a.example"')
    assert config(home).tracker == two[:1]
    assert "too many" in error(home, tracker=["a"] * (TRACKERS_LIMIT + 1))


@pytest.mark.parametrize(
    ("public", "listen"),
    [
        ("2.2.2.2:7000", "0.0.0.0:7000"),
        ("[2001:db8::1]", "[::]:6000"),
        ("me.example:1", "0.0.0.0:1"),
    ],
)
def test_public_alone_says_where_to_listen(home: Path, public: str, listen: str) -> None:
    """--public 2.2.2.2:7000 listens on port 7000 of all interfaces of its family."""
    assert str(config(home, public=public).listen) == listen


def test_listen_wins_over_public(home: Path) -> None:
    """Behind a port mapping the bound address differs from the public one."""
    c = config(home, public="2.2.2.2:7000", listen="127.0.0.1:0")
    assert str(c.listen) == "127.0.0.1:0"


def test_relative_paths_start_where_they_were_written(home: Path) -> None:
    """In the file at the home, elsewhere in the working directory; ~ is the user's folder."""
    toml(home, 'data_dir = "data"\ntask = "mine.py:task"')
    assert config(home).data_dir == home / "data"
    assert config(home).task == f"{home}/mine.py:task"
    assert config(home, data_dir="data", task="mine.py:task").data_dir == Path.cwd() / "data"
    assert config(home, data_dir="~/data").data_dir == Path.home() / "data"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("shard", "3/3", "3/3"),
        ("shard", "a/b", "write --shard I/N"),
        ("epochs", "many", "not a whole number from 0"),
        ("epochs", "-1", "not a whole number from 0"),
        ("epochs", "9" * 5000, "not a whole number from 0"),
        ("lr", "nan", "not a number"),
        ("lr", "0", "not a number"),
        ("tui", "maybe", "neither true nor false"),
        ("device", "gpu", "not auto, cpu, cuda, cuda:N or mps"),
        ("task", "minst", "write mnist, module:attribute or path/to/file.py:attribute"),
        ("bootstrap", "maybe", "not one of auto, never, require"),
        ("swarm", "../x", "letters, digits"),
        ("swarm", "", "letters, digits"),
        ("swarm", "x" * 65, "letters, digits"),
        ("listen", "1.2.3.4.5:1", "neither an IP address nor a name"),
        ("public", "2.2.2.2:0", "port 0"),
        ("data_dir", "", "not a path"),
        ("data_dir", "~nobody-of-this-name/x", "no such user"),
    ],
)
def test_a_wrong_flag_is_named(home: Path, name: str, text: str, says: str) -> None:
    """The error starts with the flag, quotes the value, says what to write, and is one line."""
    flag = next(o.flag for o in OPTIONS if o.name == name)
    text_of_error = error(home, **{name: text})
    assert text_of_error.startswith(f"A setting is wrong: {flag}: ")
    assert says in text_of_error
    assert "\n" not in text_of_error
    assert len(text_of_error) < 300


def test_a_wrong_variable_is_named(home: Path) -> None:
    """Not the flag of the same option: the user never typed it."""
    with pytest.raises(ConfigError, match="P2PNODE_SHARD: 3/3"):
        load({"home": str(home)}, {"P2PNODE_SHARD": "3/3"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n\nepochs = \n", ":3: Invalid value"),
        ("epochs = 1\nepochs = 2\n", ":2: Cannot overwrite"),
        ("\nepoch = 1", ":2: epoch: there is no such key; did you mean epochs?"),
        ("batch-size = 1", ":1: batch-size: there is no such key; did you mean batch_size?"),
        ("\n[training]\nepochs = 1", ":2: training: there is no such key; p2pnode config lists"),
        ("\nzzz.epochs = 1", ":2: zzz: there is no such key"),
        ("\n\nepochs = '4'", ":3: epochs: write a whole number, not '4'"),
        ("epochs = true", ":1: epochs: write a whole number, not 'True'"),
        ("lr = 'fast'", ":1: lr: write a number, not 'fast'"),
        ("stay = 1", ":1: stay: write true or false, not '1'"),
        ("swarm = 1", ":1: swarm: write a text in quotes, not '1'"),
        ("# hello\nshard = '3/3'", ":2: shard: 3/3"),
        ("tracker = [5555]", ":1: tracker: write a text in quotes, not '5555'"),
        ("home = '/x'", ":1: home: there is no such key"),
        ("x = " + "[" * 100_000, "nested too deeply"),
        ("epochs = " + "9" * 5000, "p2pnode.toml"),
        ("#" * (1 << 20) + "\n", "more than"),
    ],
)
def test_a_wrong_file_names_line_and_key(home: Path, text: str, says: str) -> None:
    """Every mistake in p2pnode.toml says file, line, key and what to write."""
    path = toml(home, text)
    message = error(home)
    assert says in message
    assert str(path) in message
    assert "\n" not in message


def test_a_file_that_is_no_text_is_refused(home: Path) -> None:
    """Not UTF-8, a folder, unreadable: one line with the path."""
    path = toml(home, "")
    path.write_bytes(b"\xff\xfe")
    assert str(path) in error(home)
    path.unlink()
    path.mkdir()
    assert "Is a directory" in error(home)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_file_gives_settings_or_a_config_error(tmp_path: Path, data: bytes) -> None:
    """Fuzz: no bytes in p2pnode.toml give anything but a Config or one line of ConfigError."""
    (tmp_path / "p2pnode.toml").write_bytes(data)
    try:
        assert isinstance(config(tmp_path), Config)
    except ConfigError as caught:
        assert "\n" not in str(caught)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([o.name for o in OPTIONS if o.in_file]), text=st.text(max_size=40))
def test_any_flag_gives_settings_or_a_config_error(tmp_path: Path, name: str, text: str) -> None:
    """Fuzz: no text in a flag gives anything but a Config or one line of ConfigError."""
    try:
        assert isinstance(load({"home": str(tmp_path), name: text}, {})[0], Config)
    except ConfigError as caught:
        assert "\n" not in str(caught)


def test_the_template_is_valid_and_changes_nothing(home: Path) -> None:
    """What `init` writes holds only comments; p2pnode config shows defaults after it."""
    toml(home, template())
    assert tomllib.loads(template()) == {}
    assert all(s.source == "default" for s in load({"home": str(home)}, {})[1][1:])


def test_settings_have_a_form_for_scripts(home: Path) -> None:
    """Addresses and paths become texts, several trackers a list."""
    c = config(home, tracker=["a", "b"], data_dir="/d")
    assert as_json(c.tracker) == ["a:5555", "b:5555"]
    assert (as_json(c.data_dir), as_json(c.public), as_json(c.epochs)) == ("/d", None, 14)


def test_the_reference_shows_the_option_table() -> None:
    """docs/reference/config.md is what `python tests/reference.py` makes of OPTIONS."""
    assert reference.options() in reference.CONFIG.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "bytes_", "shown"),
    [("10GB", 10**10, "10GB"), ("500 MB", 5 * 10**8, "500MB"), ("123456789", 123456789, None)],
)
def test_a_size(home: Path, text: str, bytes_: int, shown: str | None) -> None:
    """A size is written with its unit or in bytes, and shown in the largest unit that is whole."""
    value = config(home, relay_space=text).relay_space
    assert value == bytes_
    assert show(value) == (shown or f"{text}B")


@pytest.mark.parametrize("text", ["lots", "1.5GB", "-1GB", "1MB", "9999TB9", "10GiB"])
def test_no_size(home: Path, text: str) -> None:
    """Anything else says what to write."""
    assert "is not a size such as 10GB" in error(home, relay_space=text)


@pytest.mark.parametrize(
    ("text", "bytes_", "shown"),
    [
        ("5MB/s", 5 * 10**6, "5MB/s"),
        ("20Mbit/s", 2_500_000, "20Mbit/s"),
        ("2.5 MB/s", 2_500_000, "20Mbit/s"),
        ("1Gbit/s", 125 * 10**6, "1Gbit/s"),
        ("none", 0, "none"),
        ("0", 0, "none"),
    ],
)
def test_a_rate(home: Path, text: str, bytes_: int, shown: str) -> None:
    """A rate is written in bytes or bits a second, and shown in the shortest of both."""
    value = config(home, up=text).up
    assert value == bytes_
    assert show(value) == shown
    assert config(home, up=shown).up == bytes_


@pytest.mark.parametrize("text", ["fast", "5MB", "5", "5mb/s", "-5MB/s", "1kB/s", "20Mbps"])
def test_no_rate(home: Path, text: str) -> None:
    """Anything else says what to write: a number alone may be bits or bytes."""
    assert "is not a rate such as 5MB/s or 20Mbit/s" in error(home, down=text)


def test_ways_in(home: Path) -> None:
    """The ways in stand in the order in which they are tried, each once."""
    assert config(home).reach == ("direct", "mapping", "punching", "relay")
    assert config(home, reach="relay, direct,relay").reach == ("direct", "relay")
    assert show(config(home, reach="relay,direct").reach) == "direct relay"
    for text in ("", ",", "direct,tunnel"):
        assert "is not one or more of direct, mapping" in error(home, reach=text or " ")
