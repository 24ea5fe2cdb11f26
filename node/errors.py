"""What can go wrong on one machine, as one tree.

    NodeError
    ├── ConfigError           a flag, a variable or p2pnode.toml is wrong
    ├── HomeError             the node's folder can't be used
    ├── ShardError            --shard doesn't name a part of the data
    ├── TaskError             the task can't be loaded or used
    ├── WeightsError          a model file or a state dict can't be read or written
    ├── CheckpointError       the checkpoint belongs to another run
    ├── WorkerProtocolError   a line between the daemon and its worker is wrong
    ├── WorkerCrashed         the training process ends again and again
    ├── ControlError          no running node answers on the control socket
    └── StatusError           bytes that aren't the status of a node

`str(error)` is a whole sentence for a person: the first line of the class's docstring says what
is wrong, the argument says where and what to do.
"""

from collections.abc import Iterator


class NodeError(Exception):
    """The node can't go on."""

    def __str__(self) -> str:
        sentence = (type(self).__doc__ or type(self).__name__).strip().splitlines()[0].rstrip(".")
        detail = super().__str__()
        return f"{sentence}: {detail}" if detail else sentence


class ConfigError(NodeError):
    """A setting is wrong."""


class HomeError(NodeError):
    """The home folder can't be used."""


class ShardError(NodeError):
    """The shard is wrong."""


class TaskError(NodeError):
    """The task can't be used."""


class WeightsError(NodeError):
    """The model file can't be used."""


class CheckpointError(NodeError):
    """The checkpoint can't be used."""


class WorkerProtocolError(NodeError):
    """A line between the daemon and its worker can't be read."""


class StatusError(NodeError):
    """The node's status can't be read; node and p2pnode may be of different versions."""


class WorkerCrashed(NodeError):
    """The training process ended by itself."""


class ControlError(NodeError):
    """The node can't be asked."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group, as nurseries raise them, however deep they lie."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    else:
        yield error
