"""The options of a node: one table.

Strategy: the flags of `p2pnode run`, the `P2PNODE_` variables, the keys of p2pnode.toml and the
table in docs/reference/config.md are all made from OPTIONS, so they can't differ.
"""

from dataclasses import dataclass
from typing import Final

from ..transport.manifest import ENCODINGS
from .kinds import (
    BOOLEAN,
    DEVICE,
    PATH,
    SHARD,
    SWARM,
    TASK,
    Kind,
    address,
    choice,
    integer,
    number,
    rate,
    size,
    words,
)

PEER_PORT: Final = 6000
TRACKER_PORT: Final = 5555
"""The prototype's ports; people know them."""

STUN_PORT: Final = 3478
"""RFC 8489."""

WAYS: Final = ("direct", "mapping", "punching", "relay")
"""The ways in for others, as they are tried."""

SPACE_LEAST, SPACE_MOST = 10**7, 10**15
"""Bytes that a relay may use: two small models, and more than any disk has."""

RATE_LEAST, RATE_MOST = 10**5, 10**11
"""Bytes a second: peers take one that sends less than a piece of 1 MiB a minute for stalled, and
several of them share the limit; no network is as fast as the other."""

TRACKERS_LIMIT: Final = 16
"""Each tracker costs a connection and an announce every few seconds; nobody runs this many."""

COUNT_LIMIT: Final = 2**31 - 1
"""Epochs and batches; what every machine can count."""

SEED_LIMIT: Final = 2**63 - 1
"""torch.manual_seed and our CBOR both take it."""

THREADS_LIMIT: Final = 1024
"""More than any machine has cores today; torch allocates for each."""

PEERS_LIMIT: Final = 500
"""A connection costs two descriptors, and many systems allow a process 1024 of them."""

MAILBOX_LIMIT: Final = 256
"""A manifest names the models that were averaged, at most 256."""

STALENESS_LIMIT: Final = 10.0
"""With 10 a model that is one epoch behind weighs 0.001: steeper is the same as refusing it."""

LINGER_LIMIT: Final = 86_400.0
"""A day, in seconds; --stay is for longer."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `name` is its TOML key; `default` is text as a person would write it."""

    name: str
    kind: Kind
    default: str | None
    help: str
    group: str
    example: str = ""
    many: bool = False
    in_file: bool = True

    @property
    def flag(self) -> str:
        """The flag of `p2pnode run`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "P2PNODE_" + self.name.upper()


OPTIONS: Final = (
    Option(
        "home",
        PATH,
        None,
        "folder with the key, p2pnode.toml and the data",
        "Home",
        in_file=False,
    ),
    Option(
        "passphrase_file",
        PATH,
        None,
        "file with the passphrase of the key, if it has one",
        "Home",
        example="/run/secrets/p2pnode",
    ),
    Option(
        "swarm",
        SWARM,
        "main",
        "name of the swarm; peers of one swarm train one task together",
        "Swarm",
    ),
    Option(
        "tracker",
        address(TRACKER_PORT),
        None,
        "tracker that knows the swarm's peers; may be given several times",
        "Swarm",
        example="tracker.example:5555",
        many=True,
    ),
    Option(
        "peer",
        address(PEER_PORT),
        None,
        "any member of the swarm, to join through it; may be given several times",
        "Swarm",
        example="peer.example:6000",
        many=True,
    ),
    Option(
        "lan",
        BOOLEAN,
        "false",
        "find peers in the local network, and be found there (mDNS)",
        "Swarm",
    ),
    Option(
        "public",
        address(PEER_PORT),
        None,
        "address at which other peers reach this node",
        "Network",
        example="2.2.2.2:6000",
    ),
    Option(
        "listen",
        address(PEER_PORT, any_port=True),
        "0.0.0.0:6000",
        "address to listen on, port 0 for any free one; with --public alone, its port everywhere",
        "Network",
    ),
    Option(
        "reach",
        words(*WAYS),
        ",".join(WAYS),
        "ways in for others that may be used, of direct, mapping, punching, relay",
        "Network",
    ),
    Option(
        "stun",
        address(STUN_PORT),
        None,
        "STUN server beside the trackers', to ask where NATs show us; may be given several times",
        "Network",
        example="stun.example:3478",
        many=True,
    ),
    Option(
        "relay",
        BOOLEAN,
        "false",
        "be a relay: hold models for peers that can't be reached",
        "Network",
    ),
    Option(
        "relay_space",
        size(SPACE_LEAST, SPACE_MOST),
        "10GB",
        "disk that a relay's models may take, such as 500MB or 2TB",
        "Network",
    ),
    Option(
        "up",
        rate(RATE_LEAST, RATE_MOST),
        "none",
        "most that is sent a second, to all peers together: 5MB/s, 20Mbit/s, none",
        "Network",
    ),
    Option(
        "down",
        rate(RATE_LEAST, RATE_MOST),
        "none",
        "most that is received a second, from all peers together: 5MB/s, 20Mbit/s, none",
        "Network",
    ),
    Option(
        "max_peers",
        integer(1, PEERS_LIMIT),
        "50",
        "connections with other peers at most",
        "Network",
    ),
    Option(
        "fan_out",
        integer(1, PEERS_LIMIT),
        "8",
        "peers that each new model is offered to at most",
        "Network",
    ),
    Option(
        "task",
        TASK,
        "mnist",
        "what is trained: mnist, module:attribute or path/to/file.py:attribute",
        "Training",
    ),
    Option(
        "shard", SHARD, "0/1", "part I (from 0) of N equal parts of the training data", "Training"
    ),
    Option(
        "epochs",
        integer(0, COUNT_LIMIT),
        "14",
        "epochs to train; 0 goes on until stopped",
        "Training",
    ),
    Option("batch_size", integer(1, COUNT_LIMIT), "64", "training samples in a batch", "Training"),
    Option(
        "test_batch_size", integer(1, COUNT_LIMIT), "1000", "test samples in a batch", "Training"
    ),
    Option("lr", number(1e-12, 1e6), "1.0", "learning rate", "Training"),
    Option(
        "seed",
        integer(0, SEED_LIMIT),
        "1",
        "seed of the initial weights, equal for all peers of a swarm, and of shuffling",
        "Training",
    ),
    Option(
        "device", DEVICE, "auto", "where to train; auto takes a GPU if there is one", "Training"
    ),
    Option(
        "threads",
        integer(0, THREADS_LIMIT),
        "0",
        "threads to train with; 0 shares the cores among the nodes on this machine",
        "Training",
    ),
    Option(
        "data_dir",
        PATH,
        None,
        "folder with the training data, instead of the data that the task brings",
        "Training",
        example="/data/mnist",
    ),
    Option(
        "bootstrap",
        choice("auto", "never", "require"),
        "auto",
        "start from the swarm's models: if there are any, never, or wait until there are",
        "Averaging",
    ),
    Option(
        "encoding",
        choice(*ENCODINGS),
        "bf16+zstd",
        "how models are sent: bf16 rounds their numbers a little, int8 more; zstd packs the bytes",
        "Averaging",
    ),
    Option(
        "mailbox_models",
        integer(1, MAILBOX_LIMIT),
        "64",
        "models of other peers kept at most, the newest of each",
        "Averaging",
    ),
    Option(
        "staleness",
        number(0.0, STALENESS_LIMIT),
        "1.0",
        "a model D epochs behind weighs 1/(1+D)^X in the average; 0 weighs all alike",
        "Averaging",
    ),
    Option(
        "linger",
        number(0.0, LINGER_LIMIT),
        "10.0",
        "after the last epoch, seconds at most to go on serving the last model",
        "Ending",
    ),
    Option(
        "stay",
        BOOLEAN,
        "false",
        "after the last epoch, go on serving the last model until stopped",
        "Ending",
    ),
    Option(
        "tui", BOOLEAN, "true", "show the live screen in a terminal; without, log lines", "Output"
    ),
    Option(
        "log_json",
        BOOLEAN,
        "false",
        "write log lines as one JSON object a line, and no live screen",
        "Output",
    ),
)
