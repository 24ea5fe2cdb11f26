"""node/orders.py and node/records.py: the lines between daemon and worker."""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.node import orders
from p2pnode.node.errors import WorkerProtocolError
from p2pnode.node.orders import (
    LINE_LIMIT,
    Averaged,
    Begin,
    Epoch,
    Failed,
    Model,
    Progress,
    State,
    Threads,
    parse_order,
    parse_report,
    to_line,
)
from p2pnode.transport.manifest import Scores

GOLDEN: dict[bytes, Any] = {
    b'{"type": "Begin", "bootstrap": true}\n': Begin(True),
    b'{"type": "Threads", "threads": 2}\n': Threads(2),
    b'{"type": "State", "state": "testing", "detail": ""}\n': State("testing"),
    b'{"type": "Progress", "epoch": 1, "batch": 3, "batches": 9, "samples_per_second": 640.5, '
    b'"loss": null}\n': Progress(1, 3, 9, 640.5, None),
    b'{"type": "Model", "epoch": 2, "age": 1.5, "path": "/o/2.safetensors", "samples": 60, '
    b'"loss": 0.5, "before": {"loss": 0.25, "accuracy": 0.75}, "after": null, '
    b'"parents": ["ab"], "encoding": "int8", "recipients": []}\n': Model(
        2, 1.5, Path("/o/2.safetensors"), 60, 0.5, Scores(0.25, 0.75), None, ("ab",), "int8"
    ),
    b'{"type": "Epoch", "epoch": 1, "before": {"loss": 2.0, "accuracy": null}, '
    b'"after": {"loss": 1.0, "accuracy": null}, '
    b'"averaged": [{"peer": "12D3", "seq": 7, "weight": 0.5}], "refused": [], '
    b'"seconds": 2.0, "train_seconds": 1.0}\n': Epoch(
        1, Scores(2.0), Scores(1.0), (Averaged("12D3", 7, 0.5),), (), 2.0, 1.0
    ),
    b'{"type": "Failed", "text": "no data"}\n': Failed("no data"),
}

numbers = st.floats(allow_nan=False, allow_infinity=False)
st.register_type_strategy(Path, st.text(min_size=1).map(Path))
st.register_type_strategy(Scores, st.builds(Scores, numbers, st.none() | st.floats(0, 1)))


def _values(kind: type) -> st.SearchStrategy[Any]:
    """Any value of an order or report."""
    special: dict[str, st.SearchStrategy[Any]] = {
        "state": st.sampled_from(orders.STATES),
        "age": numbers,
        "loss": st.none() | numbers,
    }
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    given_fields = {name: strategy for name, strategy in special.items() if name in fields}
    floats = {name: numbers for name, hint in fields.items() if hint is float}
    rows = {"averaged": st.tuples(st.builds(Averaged, weight=numbers))}
    tuples = {name: strategy for name, strategy in rows.items() if name in fields}
    return st.builds(kind, **{**floats, **tuples, **given_fields})


KINDS: tuple[Any, ...] = (*get_args(orders.Order), *get_args(orders.Report))
anything: st.SearchStrategy[Any] = st.one_of([_values(kind) for kind in KINDS])


def _damaged(line: bytes) -> st.SearchStrategy[bytes]:
    places = st.integers(0, len(line) - 1)
    patches = st.binary(max_size=3)
    return st.builds(lambda at, new: line[:at] + new + line[at + 1 :], places, patches)


damaged = st.sampled_from(sorted(GOLDEN)).flatmap(_damaged)


@given(anything)
def test_every_value_round_trips(value: Any) -> None:
    """What is written on one line reads back as the same value."""
    line = to_line(value)
    parse = parse_order if isinstance(value, orders.Order) else parse_report
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert parse(line) == value


@pytest.mark.parametrize("line", GOLDEN)
def test_golden_lines(line: bytes) -> None:
    """The lines stay as they are: a daemon and a worker of two versions may meet."""
    value = GOLDEN[line]
    assert to_line(value) == line
    assert (parse_order if isinstance(value, orders.Order) else parse_report)(line) == value


@given(st.binary(max_size=200) | damaged)
def test_any_bytes_give_a_value_or_the_error(line: bytes) -> None:
    """Any line gives a value or WorkerProtocolError."""
    for parse in (parse_order, parse_report):
        with contextlib.suppress(WorkerProtocolError):
            parse(line)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"type": "Begin"}', "missing or unknown field 'bootstrap'"),
        (
            b'{"type": "Begin", "bootstrap": 1}',
            r"bootstrap has the wrong type .* \(int\)",
        ),
        (b'{"type": "Threads", "threads": true}', "wrong type"),
        (b'{"type": "Threads", "threads": 1, "x": 1}', "unknown field 'x'"),
        (b'{"type": ["Begin"], "bootstrap": true}', "none of Setup, Begin, Threads"),
        (b'{"type": "Model"}', "none of"),
        (b"[" * 100_000, "nested too deep"),
        (b" " * (LINE_LIMIT + 1), "at most"),
        (b"nothing", "Expecting value"),
        (b'{"type": "Begin", "bootstrap": NaN}', "NaN isn't a JSON number"),
        (b"\xff", "codec can't decode"),
    ],
)
def test_wrong_orders_say_what_is_wrong(line: bytes, reason: str) -> None:
    """A wrong line names the field."""
    with pytest.raises(WorkerProtocolError, match=reason):
        parse_order(line)


@pytest.mark.parametrize(
    ("field", "value"),
    [("state", "sleeping"), ("loss", 1e999), ("loss", "1"), ("epoch", 1.0), ("epoch", None)],
)
def test_wrong_reports_are_refused(field: str, value: Any) -> None:
    """States are of a table, numbers are finite, counts are whole."""
    kind = State("testing") if field == "state" else Progress(1, 3, 9, 640.5, None)
    document = {"type": type(kind).__name__, **dataclasses.asdict(kind), field: value}
    with pytest.raises(WorkerProtocolError):
        parse_report(json.dumps(document).replace("Infinity", "1e999").encode())


def test_scores_that_are_none_are_refused() -> None:
    """An accuracy above 1 is a wrong line, not an error of another kind."""
    line = to_line(Epoch(1, Scores(1.0, 1.0), Scores(1.0), (), (), 1.0, 1.0))
    with pytest.raises(WorkerProtocolError, match="accuracy"):
        parse_report(line.replace(b'"accuracy": 1.0', b'"accuracy": 1.5'))


def test_what_does_not_fit_is_not_written() -> None:
    """A line that is too long or a NaN is our own mistake and never reaches the pipe."""
    with pytest.raises(WorkerProtocolError, match="at most"):
        to_line(Failed("x" * LINE_LIMIT))
    with pytest.raises(ValueError, match="JSON"):
        to_line(Progress(1, 1, 1, math.nan, None))
