"""What can be typed: the verbs and their flags.

Strategy: a flag of `run` is a row of the option table, kept as the text that was typed; config.py
reads it like any other source, so a wrong one gets the same error. argparse only splits the line.
"""

import argparse
from collections.abc import Sequence
from typing import Final, NoReturn, TypeAlias

from ..node.kinds import BOOLEAN
from ..node.options import OPTIONS, STUN_PORT, TRACKER_PORT, Option
from .errors import UsageError

DEMO_EPOCHS: Final = "4"
DEMO_SHARDS: Final = "20"
"""Three of twenty parts are 3,000 images each: an epoch takes seconds, and 90 % is reached."""

KEYED: Final = ("home", "passphrase_file")
"""The options of verbs that use a key and nothing else."""

NETWORKED: Final = ("home", "tracker", "peer", "lan", "public", "listen", "reach", "stun")
"""The options of a node that say how it is reached."""


RELAYING: Final = ("relay", "relay_space")
"""The options of a node that a tracker has, too."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours, and that guesses no shortened flags."""

    def __init__(self, prog: str | None = None, description: str | None = None) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """A mistake in the line becomes an exception, which main tells in one line."""
        raise UsageError(f"{message}; see {self.prog} --help")


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Split the command line; `verb` names what to run. Raises UsageError."""
    args, unknown = parser().parse_known_args(argv)
    if unknown:
        verb = " ".join([args.verb, *([args.action] if "action" in args else [])])
        raise UsageError(f"{unknown[0]} means nothing here; see p2pnode {verb} --help")
    return args


def parser() -> Parser:
    """All verbs."""
    top = Parser("p2pnode", "Train a PyTorch model together, peer to peer, without a coordinator.")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    _init(_verb(verbs, "init", "make the home folder, a key and p2pnode.toml", KEYED))
    _verb(verbs, "id", "print the peer ID and the public key", KEYED)
    _json(_verb(verbs, "config", "print every setting and where it came from", ("home",)))
    _verb(verbs, "run", "run a node: train and exchange models", [o.name for o in OPTIONS])
    _status(_verb(verbs, "status", "show what the running node is doing", ("home",)))
    _json(_verb(verbs, "doctor", "say why others can't reach this node, and what helps", NETWORKED))
    _tracker(_verb(verbs, "tracker", "run a tracker, which knows the peers of swarms", ()))
    _demo(_verb(verbs, "demo", "a tracker and three nodes train MNIST on this machine", ()))
    _verb(verbs, "version", "print the version", ())
    return top


def _verb(verbs: Verbs, name: str, help: str, options: Sequence[str]) -> Parser:
    verb: Parser = verbs.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    for option in OPTIONS:
        if option.name in options:
            _flag(verb, option)
    return verb


def _flag(verb: Parser, option: Option) -> None:
    if option.kind is BOOLEAN:
        action = argparse.BooleanOptionalAction
        verb.add_argument(option.flag, dest=option.name, action=action, help=_help(option))
        return
    how = "append" if option.many else "store"
    verb.add_argument(
        option.flag, dest=option.name, action=how, metavar=option.kind.metavar, help=_help(option)
    )


def _help(option: Option) -> str:
    return f"{option.help} (default: {option.default})" if option.default else option.help


def _init(verb: Parser) -> None:
    verb.add_argument("--force", action="store_true", help="replace the key; the old ID is lost")
    verb.add_argument("--ask-passphrase", action="store_true", help="ask for a passphrase")


def _json(verb: Parser) -> None:
    verb.add_argument("--json", action="store_true", help="print one JSON object")


def _status(verb: Parser) -> None:
    _json(verb)
    verb.add_argument("--once", action="store_true", help="print the screen once and end")


def _tracker(verb: Parser) -> None:
    verbs = verb.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    serve = _verb(verbs, "serve", "serve until stopped by Ctrl-C or SIGTERM", KEYED)
    where = f"0.0.0.0:{TRACKER_PORT}"
    serve.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default=where,
        dest="address",
        help=f"address to listen on, port 0 for any free one (default: {where})",
    )
    stun = f"0.0.0.0:{STUN_PORT}"
    serve.add_argument(
        "--stun",
        metavar="HOST:PORT",
        nargs="?",
        const=stun,
        help=f"tell peers where NATs show them (STUN, UDP and TCP); without HOST:PORT at {stun}",
    )
    relay, space = (next(o for o in OPTIONS if o.name == name) for name in RELAYING)
    serve.add_argument("--relay", action="store_true", help=relay.help)
    serve.add_argument("--relay-space", metavar="SIZE", default=space.default, help=_help(space))


def _demo(verb: Parser) -> None:
    numbers = {
        "--epochs": (DEMO_EPOCHS, "epochs to train"),
        "--shards": (DEMO_SHARDS, "parts of MNIST, of which three are trained on"),
    }
    for flag, (default, help) in numbers.items():
        verb.add_argument(flag, metavar="N", default=default, help=f"{help} (default: {default})")
    verb.add_argument("--keep", action="store_true", help="keep the nodes' folders and logs")
