"""What each verb does; all of it is short, as the work is done on the floors below.

A verb takes what was typed and returns the exit code. It imports what is slow inside, and raises
the errors of the folders it uses; main.py tells them.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from ..node import config as settings
from ..node.config import Config
from ..node.errors import ControlError
from ..node.home import Home
from ..node.kinds import Kind, address, integer, size
from ..node.options import (
    COUNT_LIMIT,
    OPTIONS,
    SPACE_LEAST,
    SPACE_MOST,
    STUN_PORT,
    TRACKER_PORT,
)
from ..node.shard import SHARDS_LIMIT
from .errors import NotRunning, UsageError

Verb: TypeAlias = Callable[[argparse.Namespace], int]


def _init(args: argparse.Namespace) -> int:
    from ..transport.identity import Identity
    from . import keys

    config = _config(args)
    home = Home(config.home)
    if home.key.exists() and not args.force:
        raise UsageError(f"{home.key} exists; p2pnode id shows it, --force replaces it")
    if args.ask_passphrase and args.passphrase_file:
        raise UsageError("--ask-passphrase and --passphrase-file exclude each other")
    passphrase = keys.ask_new() if args.ask_passphrase else keys.given(config.passphrase_file)
    home.create()
    identity = Identity.generate()
    identity.save(home.key, passphrase, overwrite=args.force)
    fresh = home.write_config(settings.template())
    print(f"peer ID     {identity.peer_id}")
    print(f"key         {home.key} ({'with a' if passphrase else 'no'} passphrase)")
    print(f"settings    {home.config_file}{'' if fresh else ' (kept as it was)'}")
    return 0


def _id(args: argparse.Namespace) -> int:
    from . import keys

    config = _config(args)
    identity = keys.load(Home(config.home).key, config.passphrase_file)
    print(f"peer ID     {identity.peer_id}")
    print(f"public key  {identity.public_key.hex()}")
    return 0


def _show_config(args: argparse.Namespace) -> int:
    _, found = settings.load(_flags(args), os.environ)
    if args.json:
        entries = {
            s.option.name: {"value": settings.as_json(s.value), "source": s.source} for s in found
        }
        print(json.dumps(entries, indent=2))
        return 0
    rows = [(s.option.name, settings.show(s.value) or "-", s.source) for s in found]
    name, value = (max(len(row[column]) for row in rows) for column in (0, 1))
    for row in rows:
        print(f"{row[0]:<{name}}  {row[1]:<{value}}  {row[2]}")
    return 0


def _run(args: argparse.Namespace) -> int:
    from . import keys

    config = _config(args)
    home = Home(config.home)
    identity = keys.load(home.key, config.passphrase_file)
    from ..node.daemon import run_node
    from .screens import view

    return run_node(config, identity, home, view=view(config))


def _status(args: argparse.Namespace) -> int:
    from ..node.control import Control

    home = Home(settings.home_of(_flags(args), os.environ))
    try:
        node = Control(home.control_path())
    except ControlError:
        raise NotRunning(f"start one with p2pnode run (home {home.path})") from None
    with node:
        if args.json:
            print(json.dumps(node.status().to_json(), ensure_ascii=False))
        else:
            from .screens import follow, print_once
            from .tui import drawable

            once = args.once or not drawable()
            print_once(node.status()) if once else follow(node.status)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import doctor

    config = _config(args)
    return doctor(config, Home(config.home), as_json=args.json)


def _tracker(args: argparse.Namespace) -> int:
    import trio

    from . import keys
    from .serve import Services, serve_tracker

    config = _config(args)
    home = Home(config.home)
    services = Services(
        address=_read(address(TRACKER_PORT, any_port=True), "--listen", args.address),
        stun=args.stun and _read(address(STUN_PORT, any_port=True), "--stun", args.stun),
        relay=home.path / "tracker-relay" if args.relay else None,
        space=_read(size(SPACE_LEAST, SPACE_MOST), "--relay-space", args.relay_space),
    )
    home.create()
    identity = keys.load_or_make(home.tracker_key, config.passphrase_file)
    trio.run(serve_tracker, services, identity)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from .demo import demo

    return demo(
        epochs=_read(integer(1, COUNT_LIMIT), "--epochs", args.epochs),
        shards=_read(integer(3, SHARDS_LIMIT), "--shards", args.shards),
        keep=args.keep,
    )


def _version(_: argparse.Namespace) -> int:
    from importlib.metadata import version

    print(version("p2pnode"))
    return 0


VERBS: Final[dict[str, Verb]] = {
    "init": _init,
    "id": _id,
    "config": _show_config,
    "run": _run,
    "status": _status,
    "doctor": _doctor,
    "tracker": _tracker,
    "demo": _demo,
    "version": _version,
}


def _flags(args: argparse.Namespace) -> settings.Flags:
    return {option.name: getattr(args, option.name, None) for option in OPTIONS}


def _config(args: argparse.Namespace) -> Config:
    return settings.load(_flags(args), os.environ)[0]


def _read(kind: Kind, flag: str, text: str) -> Any:
    try:
        return kind.read(text, Path.cwd())
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None
