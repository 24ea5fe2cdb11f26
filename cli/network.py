"""What a node knows of the others, as lines: peers, models on their way, events.

Strategy: as in panels.py. Peers that are connected come first, so those stay when room is short;
a last line says how many don't fit.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from rich.text import Text

from ..node.status import Event, MailboxStatus, NodeStatus, PeerStatus, TransferStatus
from ..transport.identity import short
from .layout import Section, newest
from .lines import (
    BAD,
    GOOD,
    LABEL,
    NAME,
    UNKNOWN,
    WARN,
    Column,
    bar,
    clock,
    count,
    duration,
    figure,
    first,
    flow,
    item,
    light,
    line,
    milliseconds,
    rate,
    size,
    table,
    wrap,
)


def peers(all_peers: Sequence[PeerStatus], width: int) -> Section:
    """The neighbours, connected ones first, as many as fit."""
    order = sorted(all_peers, key=lambda peer: _RANK.get(peer.state, 2))
    empty = [line(("none yet: they appear as they join", LABEL))]

    def body(rows: int) -> list[Text]:
        more = len(order) >= rows > 2
        shown = order[: rows - 1 - more]
        lines = _peer_table(shown, width)[:rows]
        return [*lines, line((f"and {len(order) - len(shown)} more", LABEL))] if more else lines

    if not order:
        return Section("Peers", line(), 1, 1, lambda n: empty[:n])
    return Section("Peers", peer_count(order), 2, len(order) + 1, body, step=2)


_RANK = {"connected": 0, "relayed": 1, "connecting": 2, "lost": 3}


def peer_count(all_peers: Sequence[PeerStatus]) -> Text:
    """ "12 connected, 1 lost"."""
    counts = Counter(peer.state for peer in all_peers)
    states = sorted(counts, key=lambda state: _RANK.get(state, 2))
    return line(", ".join(f"{counts[state]} {state}" for state in states))


def _peer_table(shown: Sequence[PeerStatus], width: int) -> list[Text]:
    def right(head: str, least: int, drop: int, cell: Callable[[PeerStatus], Text]) -> Column:
        return Column(head, [cell(p) for p in shown], right=True, least=least, drop=drop)

    columns = [
        Column("  peer", [_peer_name(p) for p in shown]),
        Column("path", [line(p.path) for p in shown], flexible=True),
        right("rtt", 6, 2, lambda p: line(milliseconds(p.round_trip))),
        right("epoch", 5, 0, lambda p: line(UNKNOWN if p.epoch is None else f"{p.epoch}")),
        right("behind", 6, 1, lambda p: _behind(p.behind)),
        right("weight", 6, 3, lambda p: line(figure(p.weight, 2))),
        right("in", 7, 4, lambda p: _bytes(p, p.bytes_in)),
        right("", 9, 7, lambda p: line((rate(p.rate_in), GOOD))),
        right("out", 7, 5, lambda p: _bytes(p, p.bytes_out)),
        right("", 9, 8, lambda p: line((rate(p.rate_out), GOOD))),
        right("silent", 6, 6, _silent),
    ]
    return table(columns, width)


def _peer_name(peer: PeerStatus) -> Text:
    glyph, style = light(peer.state)
    return line((f"{glyph} ", style), (short(peer.peer), NAME))


def _bytes(peer: PeerStatus, amount: int) -> Text:
    """What went over connections; what a relay carries is not counted by peers."""
    return line(size(amount) if amount or peer.state != "relayed" else UNKNOWN)


def _silent(peer: PeerStatus) -> Text:
    return line(UNKNOWN if peer.state == "relayed" else duration(peer.silent))


def _behind(behind: float | None) -> Text:
    return line((figure(behind, 1), WARN if behind is not None and behind >= 2 else ""))


def models(status: NodeStatus, width: int) -> Section:
    """The mailbox, what was refused and why, and what is on its way."""
    items = flow([_mailbox(status.mailbox), *_rejects(status.rejects)], width)
    moving = table(_transfer_columns(status.transfers), width, head=False)
    note = line(count(len(moving), "transfer")) if moving else line()

    def body(rows: int) -> list[Text]:
        return [*items[:rows], *first(moving, max(rows - len(items), 0))]

    return Section("Models", note, 1, len(items) + len(moving), body)


def _mailbox(m: MailboxStatus) -> Text:
    held = f"{m.models} of {m.limit_models}" if m.limit_models else f"{m.models}"
    return item("mailbox", f"{held}, {size(m.bytes)}, {m.waiting} waiting")


def _rejects(rejects: Sequence[tuple[str, int]]) -> list[Text]:
    if not rejects:
        return [item("refused", "none")]
    head, *tail = [line(f"{number:,} {reason}") for reason, number in rejects]
    return [line(("refused ", WARN), head), *tail]


def _transfer_columns(transfers: Sequence[TransferStatus]) -> list[Column]:
    return [
        Column("", [line("← in" if t.direction == "in" else "→ out") for t in transfers]),
        Column("", [line((short(t.peer), NAME)) for t in transfers]),
        Column("", [line(("epoch ", LABEL), f"{t.epoch}") for t in transfers], drop=2),
        Column("", [bar(_done(t), 16) for t in transfers], drop=4),
        Column("", [line(f"{100 * _done(t):.0f} %") for t in transfers], right=True),
        Column("", [line(f"{size(t.done)} of {size(t.size)}") for t in transfers], drop=3),
        Column("", [line((rate(t.rate), GOOD)) for t in transfers], right=True, drop=1, least=9),
    ]


def _done(t: TransferStatus) -> float:
    return min(t.done / t.size, 1.0) if t.size else 1.0


def events(all_events: Sequence[tuple[str, Event]], width: int) -> Section:
    """What happened, each with who says so (or ""), the newest last."""
    rows = [row for who, event in all_events for row in _event(who, event, width)]
    rows = rows or [line(("nothing yet", LABEL))]
    return Section("Events", line(), 1, len(rows), newest(rows))


def _event(who: str, event: Event, width: int) -> list[Text]:
    glyph, style = {"warning": ("!", WARN), "error": ("✗", BAD)}.get(event.level, (" ", ""))
    name = (f"{who}  ", NAME) if who else ""
    head = line((f"{clock(event.at)} ", LABEL), (f"{glyph} ", style), name)
    indent = line(" " * head.cell_len)
    text = wrap(event.text, width - head.cell_len, style) or [line()]
    return [line(indent if i else head, each) for i, each in enumerate(text)]
