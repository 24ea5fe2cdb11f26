"""What a node is and does, as lines: header, training, accuracy.

Strategy: a panel turns a NodeStatus into a Section that can fill any number of rows; who shares
out the rows (layout.py) knows nothing of what is in them. Where rows are short, what is newest
stays; where cells are short, tables and bars show less rather than squeeze. The panels about
others are in network.py.
"""

from collections.abc import Sequence

from rich.text import Text

from ..node.status import (
    EpochStatus,
    NodeStatus,
    TrackerStatus,
    TrainingStatus,
)
from .layout import Section, fixed, newest
from .lines import (
    BAD,
    GOOD,
    LABEL,
    NAME,
    WARN,
    Column,
    Part,
    bar,
    count,
    cut,
    duration,
    figure,
    flow,
    item,
    light,
    line,
    sparkline,
    table,
    wrap,
)
from .network import peer_count


def header(status: NodeStatus, width: int) -> list[Text]:
    """Who this is, where it is reached, and how its trackers are."""
    items = [
        line(("p2pnode ", "bold"), status.version),
        item("shard", status.shard),
        item("up", duration(status.uptime)),
        item("swarm", status.swarm),
        item("task", status.task),
        item("peer", (status.peer, NAME)),
        *map(_tracker, status.trackers),
        _address(status),
        *(item(way.name, way.detail) for way in status.ways),
    ]
    if status.listening != status.public:
        items.append(item("listening", status.listening))
    return flow(items, width)


def _address(status: NodeStatus) -> Text:
    reachability = status.reachability.replace(f" at {status.public}", "")  # it stands before it
    where = line((status.public, NAME)) if status.public else line("no public address")
    return item("address", line(where, ", ", reachability))


def _tracker(tracker: TrackerStatus) -> Text:
    glyph, style = light(tracker.state)
    parts: list[Part] = [(f"{glyph} ", style), tracker.address, " ", (tracker.state, style)]
    if tracker.state == "connected":
        parts.append(f", {count(tracker.peers, 'peer')}")
    if tracker.detail:
        parts.append(f": {tracker.detail}")
    return item("tracker", line(*parts))


def training(t: TrainingStatus, width: int) -> Section:
    """State, epoch, progress; then speed, time left, loss."""
    lines = [progress(t, width), *_detail(t, width), *flow(figures(t), width)]
    return fixed("Training", _engine(t), lines, 2)


def progress(t: TrainingStatus, width: int) -> Text:
    """ "training    epoch 5 of 14  ━━━━━───  54 %  507/938", less of it where it is narrow."""
    left = line((f"{_state(t.state):<10}  ", _STATES.get(t.state, "")), _epoch_of(t), "  ")
    if not t.batches:
        return cut(left, width)
    batch = t.batches if t.state == "finished" else min(t.batch, t.batches)
    share = batch / t.batches
    percent, batches = f" {100 * share:3.0f} %", f"  {batch:,}/{t.batches:,}"
    room = width - left.cell_len - len(percent)
    if room < BAR:
        return cut(line(left, percent), width)
    if room - len(batches) < BAR:
        return line(left, bar(share, room), percent)
    return line(left, bar(share, room - len(batches)), percent, batches)


BAR = 8
"""Cells of the shortest bar that still shows that it moves."""


def _state(state: str) -> str:
    return {"failed": "✗ failed", "finished": "✓ finished"}.get(state, state)


_STATES = {
    "training": GOOD,
    "testing": "cyan",
    "averaging": "cyan",
    "finished": "bold green",
    "failed": BAD,
}


def _epoch_of(t: TrainingStatus) -> str:
    if not t.epoch:
        return f"{count(t.epochs, 'epoch')} to go" if t.epochs else ""
    return f"epoch {t.epoch} of {t.epochs}" if t.epochs else f"epoch {t.epoch}"


def figures(t: TrainingStatus) -> list[Text]:
    """Speed, time left, loss, where known."""
    items = []
    if t.samples_per_second > 0:
        items.append(line(f"{figure(t.samples_per_second, 0)} ", ("samples/s", LABEL)))
    if t.eta is not None:
        items.append(item("ends in" if t.epochs else "epoch ends in", duration(t.eta)))
    if t.loss is not None:
        items.append(item("loss", figure(t.loss, 4)))
    return items


def _engine(t: TrainingStatus) -> Text:
    parts = [f"{t.parameters:,} parameters"] if t.parameters else []
    if t.device:
        parts.append(f"{t.device}, {count(t.threads, 'thread')}")
    return line((", ".join(parts), LABEL))


def accuracy(history: Sequence[EpochStatus], width: int) -> Section:
    """Before → after averaging, an epoch a line, the newest last; or the loss of such a task."""
    name = "Accuracy" if _has_accuracy(history) else "Loss"
    title = f"{name} before → after averaging"
    rows = epochs(history, width) or [line(("no epoch is over yet", LABEL))]
    return Section(title, _curve(history, width - len(title) - 8), 1, len(rows), newest(rows))


def _has_accuracy(history: Sequence[EpochStatus]) -> bool:
    return not history or any(each.after.accuracy is not None for each in history)


def _curve(history: Sequence[EpochStatus], width: int) -> Text:
    values = [each.after.accuracy for each in history if each.after.accuracy is not None]
    if not values:
        values = [each.after.loss for each in history]
    return line((sparkline(values[-max(width, 1) :]), GOOD))


def epochs(history: Sequence[EpochStatus], width: int) -> list[Text]:
    """The table of epochs, old to new, without heads."""
    digits = len(str(history[-1].epoch)) if history else 0
    columns = [
        Column("", [line(("epoch ", LABEL), f"{e.epoch:{digits}}") for e in history]),
        Column("", [change(e) for e in history], right=True),
        Column("", [gain(e) for e in history], right=True),
        Column("", [_averaged(e.averaged) for e in history], drop=1),
        Column("", [line((duration(e.seconds), LABEL)) for e in history], right=True, drop=2),
    ]
    if _has_accuracy(history):
        columns.append(Column("", [_losses(e) for e in history], drop=3))
    return table(columns, width, head=False)


def change(e: EpochStatus) -> Text:
    """ "98.75 → 99.25 %", or the losses where the task has no accuracy."""
    if e.before.accuracy is None or e.after.accuracy is None:
        return line(figure(e.before.loss, 4), " → ", (figure(e.after.loss, 4), "bold"))
    return line(f"{100 * e.before.accuracy:.2f} → ", (f"{100 * e.after.accuracy:.2f} %", "bold"))


def gain(e: EpochStatus) -> Text:
    """What averaging changed: points of accuracy, or loss."""
    if e.before.accuracy is None or e.after.accuracy is None:
        better = e.before.loss - e.after.loss
        text = figure(e.after.loss - e.before.loss, 4)
    else:
        better = e.after.accuracy - e.before.accuracy
        text = figure(100 * better, 2)
    sign = "" if text.startswith("−") else "+"
    return line((sign + text, GOOD if better > 0 else WARN if better < 0 else LABEL))


def _averaged(models: int) -> Text:
    return line(count(models, "model")) if models else line(("alone", WARN))


def _losses(e: EpochStatus) -> Text:
    return line(("loss ", LABEL), f"{figure(e.before.loss, 4)} → {figure(e.after.loss, 4)}")


def node(title: str, status: NodeStatus, width: int) -> Section:
    """All that matters of one node in one section: progress, figures, newest epochs."""
    t = status.training
    top = [progress(t, width), *_detail(t, width), *flow(figures(t), width)]
    rows = epochs(status.history, width)

    def body(n: int) -> list[Text]:
        kept = min(len(top), max(n - 1, 1)) if rows else n
        return [*top[:kept], *newest(rows)(n - kept)]

    note = peer_count(status.peers)
    return Section(title, note, min(3, len(top) + len(rows)), len(top) + len(rows), body)


def _detail(t: TrainingStatus, width: int) -> list[Text]:
    return wrap(t.detail, width, BAD if t.state == "failed" else WARN)
