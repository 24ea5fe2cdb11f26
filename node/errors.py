"""What can go wrong in a node.

    NodeError
    ├── ConfigError     a flag, a variable or p2pnode.toml
    └── HomeError       the node's folder
"""


class NodeError(Exception):
    """The node can't do what was asked."""


class ConfigError(NodeError):
    """A setting is wrong."""


class HomeError(NodeError):
    """The home folder can't be used."""
