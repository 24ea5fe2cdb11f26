"""Peer messages: the bytes of docs/protocol/messages.md, and nothing else."""

from __future__ import annotations

import contextlib
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from golden import golden
from hypothesis import given
from hypothesis import strategies as st

from lab import identity
from p2pnode.transport import (
    downloads,
    exchange,
    haves,
    incoming,
    messages,
    outgoing,
    sender,
    session,
    sources,
    transfer,
    wire,
)
from p2pnode.transport import link as links
from p2pnode.transport.envelope import ENVELOPE_LIMIT
from p2pnode.transport.errors import WireError
from p2pnode.transport.link import CONTROL_LIMIT, PIECE_LIMIT, Piece, read_piece
from p2pnode.transport.manifest import DIGEST, DIGESTS_LIMIT, ENCODING_LIMIT, ENCODINGS
from p2pnode.transport.messages import (
    Bye,
    Credit,
    Done,
    Fetch,
    Gone,
    Have,
    Hello,
    Message,
    Offer,
    Peers,
    Ping,
    Pong,
    Reject,
    Run,
    Stop,
    Want,
    difference,
    from_bytes,
    to_bytes,
)

PAGE = Path(__file__).parent.parent / "docs/protocol/messages.md"
RUN = Run(
    swarm="main",
    task="mnist",
    schema=bytes(range(32)),
    parameters=1_199_882,
    tensors=("conv1.bias float32 [32]", "conv1.weight float32 [32,1,3,3]"),
)
MODEL = golden("envelope-id")

MESSAGES: dict[str, Message] = {
    "peer-hello": Hello(RUN, 3),
    "peer-hello-encodings": Hello(RUN, 3, ENCODINGS),
    "peer-bye": Bye("stopped"),
    "peer-offer": Offer(golden("envelope")),
    "peer-want": Want(),
    "peer-fetch": Fetch(7, MODEL, ((0, 1), (2, 1)), 8),
    "peer-have": Have(MODEL, ((0, 1), (2, 1))),
    "peer-credit": Credit(7, 4),
    "peer-stop": Stop(7),
    "peer-gone": Gone(7),
    "peer-done": Done(MODEL),
    "peer-reject": Reject(MODEL, "digest", "chunk 2 doesn't match its digest"),
    "peer-ping": Ping(41),
    "peer-pong": Pong(41),
    "peer-peers": Peers((golden("tracker-signed-record"),), (identity(2).peer_id,)),
}
# A piece of 22,070 bytes would fill a page: the golden one is shorter than any that is sent.
PIECE = Piece(7, 2, 1 << 20, b"model bytes")


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_messages(name: str) -> None:
    """Each message has the golden bytes, and the golden bytes are that message."""
    assert to_bytes(MESSAGES[name]) == golden(name)
    assert from_bytes(golden(name)) == MESSAGES[name]


def test_every_kind_has_a_golden_vector() -> None:
    """No message is without one."""
    assert {type(message) for message in MESSAGES.values()} == set(messages._KINDS)


def test_golden_piece() -> None:
    """A data frame is a 16-byte header and the model bytes as they are."""
    assert PIECE.header() + bytes(PIECE.body) == golden("peer-piece")
    read = read_piece(memoryview(golden("peer-piece")))
    assert replace(read, body=bytes(read.body)) == PIECE


def test_the_docs_tell_every_limit() -> None:
    """The numbers of docs/protocol/messages.md are those of the code."""
    modules = (
        *(downloads, exchange, haves, incoming, links, messages, outgoing, sender, session),
        *(sources, transfer),
    )
    told = dict(re.findall(r"\| `([A-Z_]+)` \| ([0-9.]+) \|", PAGE.read_text()))
    assert len(told) > 10
    assert {name: float(value) for name, value in told.items()} == {
        name: float(getattr(module, name))
        for name in told
        for module in modules
        if hasattr(module, name)
    }


def test_the_docs_tell_every_field() -> None:
    """Each kind of message has its row in docs/protocol/messages.md."""
    page = PAGE.read_text()
    for kind, name in messages._KINDS.items():
        assert f"| `{name}` |" in page
        assert all(f"`{field.name}`" in page for field in fields(kind))


def test_who_names_no_encodings_reads_raw_models() -> None:
    """A hello without them, or with an empty list, is one that reads raw models only."""
    for value in (GOOD["hello"], GOOD["hello"] | {"encodings": []}):
        told = from_bytes(wire.encode(value))
        assert isinstance(told, Hello)
        assert told.encodings == ("raw",)


# ── limits ───────────────────────────────────────────────────────────────────────────────────


def test_the_largest_messages_fit_a_control_message() -> None:
    """The largest hello, offer and fetch, in the widest script, are within what a link carries."""
    wide = "\U0001f40d"
    tensors = tuple(f"{n:03}" + wide * (messages.TENSOR_TEXT_LIMIT - 3) for n in range(256))
    run = Run(wide * 64, wide * messages.TASK_LIMIT, bytes(32), 2**63 - 1, tensors)
    gaps = tuple((2 * n + 2**31, 2**31) for n in range(messages.RANGES_LIMIT))
    assert len(tensors) == messages.TENSORS_LIMIT
    for message in (
        Hello(run, 2**63 - 1, (wide * ENCODING_LIMIT,) * messages.ENCODINGS_LIMIT),
        Offer(bytes(ENVELOPE_LIMIT)),
        Fetch(2**32 - 1, bytes(32), gaps, 1),
        Have(bytes(32), tuple((2 * n, 1) for n in range(messages.HAVE_LIMIT))),
        Reject(bytes(32), wide * 64, wide * messages.TEXT_LIMIT),
        Peers((bytes(messages.RECORD_LIMIT),) * 32, (wide * messages.PEER_LIMIT,) * 32),
    ):
        data = to_bytes(message)
        assert len(data) <= CONTROL_LIMIT
        assert from_bytes(data) == message


def test_a_fetch_can_name_every_gap_that_there_can_be() -> None:
    """A manifest has at most so many chunks; every second one missing gives the most ranges."""
    assert messages.RANGES_LIMIT * 2 * DIGEST == DIGESTS_LIMIT


def test_texts_are_made_fit_to_be_told() -> None:
    """A reason that holds line breaks, escapes or too much is told as one short line."""
    told = from_bytes(to_bytes(Bye("two\nlines \x1b[2J" + "x" * 1000)))
    assert isinstance(told, Bye)
    assert told.reason.startswith("two?lines ?[2Jxxx")
    assert len(told.reason) == messages.TEXT_LIMIT
    rejected = from_bytes(to_bytes(Reject(MODEL, "r\n" * 99, "\ud800")))
    assert rejected == Reject(MODEL, ("r?" * 99)[: messages.REASON_LIMIT], "?")


GOOD: dict[str, dict[str, Any]] = {
    name.removeprefix("peer-"): wire.decode(golden(name), limit=CONTROL_LIMIT)  # type: ignore[misc]
    for name in MESSAGES
}
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("hello", {"version": 2}),
    ("hello", {"run": {}}),
    ("hello", {"run": GOOD["hello"]["run"] | {"swarm": "x" * 65}}),
    ("hello", {"run": GOOD["hello"]["run"] | {"schema": b"short"}}),
    ("hello", {"run": GOOD["hello"]["run"] | {"tensors": ["t"] * 257}}),
    ("hello", {"run": GOOD["hello"]["run"] | {"tensors": ["t" * 257]}}),
    ("hello", {"run": GOOD["hello"]["run"] | {"tensors": ["escape \x1b"]}}),
    ("hello", {"epoch": -1}),
    ("hello", {"encodings": ["x" * 17]}),
    ("hello", {"encodings": ["x"] * 33}),
    ("hello", {"encodings": "raw"}),
    ("hello", {"epoch": 1.0}),
    ("bye", {"reason": "x" * 513}),
    ("bye", {"reason": b"bytes"}),
    ("offer", {"envelope": b""}),
    ("offer", {"envelope": bytes(ENVELOPE_LIMIT + 1)}),
    ("fetch", {"ranges": []}),
    ("fetch", {"ranges": [1]}),
    ("fetch", {"ranges": [0, 2**32]}),
    ("fetch", {"ranges": [0, 1] * (messages.RANGES_LIMIT + 1)}),
    ("fetch", {"ranges": ["0", "1"]}),
    ("fetch", {"model": bytes(31)}),
    ("fetch", {"credit": 0}),
    ("fetch", {"credit": 1025}),
    ("fetch", {"transfer": 2**32}),
    ("credit", {"pieces": 0}),
    ("credit", {"pieces": 1025}),
    ("stop", {"transfer": -1}),
    ("gone", {"transfer": None}),
    ("done", {"model": bytes(33)}),
    ("reject", {"reason": "x" * 65}),
    ("peers", {"records": [b"r"] * 33}),
    ("peers", {"records": [bytes(4097)]}),
    ("peers", {"records": [b""]}),
    ("peers", {"records": ["text"]}),
    ("peers", {"left": ["p"] * 33}),
    ("peers", {"left": ["p" * 65]}),
    ("peers", {"left": "p"}),
    ("ping", {"number": 2**63}),
    ("pong", {"number": True}),
]


@pytest.mark.parametrize(("kind", "wrong"), WRONG)
def test_wrong_fields_are_refused_by_name(kind: str, wrong: dict[str, Any]) -> None:
    """A field of another type or beyond its limit is a WireError that names it."""
    with pytest.raises(WireError, match=rf"{next(iter(wrong))}|version"):
        from_bytes(wire.encode(GOOD[kind] | wrong))


@pytest.mark.parametrize("kind", GOOD)
def test_missing_fields_are_refused(kind: str) -> None:
    """Every field is needed; only lists may be left out where they are empty."""
    for name in set(GOOD[kind]) - {"t", "encodings"}:
        less = {key: value for key, value in GOOD[kind].items() if key != name}
        with pytest.raises(WireError):
            from_bytes(wire.encode(less))


@pytest.mark.parametrize("kind", GOOD)
def test_unknown_fields_are_ignored(kind: str) -> None:
    """A newer peer's extra fields do no harm."""
    assert from_bytes(wire.encode(GOOD[kind] | {"newer": [1]})) == MESSAGES[f"peer-{kind}"]


def test_unknown_kinds_are_refused() -> None:
    """A kind that isn't in the table is named in the error."""
    with pytest.raises(WireError, match="unknown kind of message: 'dance'"):
        from_bytes(wire.encode({"t": "dance"}))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    """Any bytes give a value or the documented error."""
    with contextlib.suppress(WireError):
        assert to_bytes(from_bytes(data))


@given(st.data())
def test_any_damage_gives_a_message_or_a_wire_error(data: st.DataObject) -> None:
    """Bytes that are nearly a message, too."""
    good = bytearray(golden(data.draw(st.sampled_from(sorted(MESSAGES)))))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = from_bytes(bytes(good))
    except WireError:
        return
    assert from_bytes(to_bytes(message)) == message


def test_pieces_without_or_with_too_many_bytes_are_refused() -> None:
    """A data frame has a body, of at most a mebibyte."""
    for body in (b"", bytes(PIECE_LIMIT + 1)):
        with pytest.raises(WireError, match="data frame"):
            read_piece(memoryview(PIECE.header() + body))


# ── the run description ──────────────────────────────────────────────────────────────────────


def test_equal_runs_don_t_differ() -> None:
    """The task's name is for people: the same tensors are the same run."""
    assert difference(RUN, RUN) is None
    assert difference(RUN, replace(RUN, task="/home/me/mnist.py:TASK")) is None


def test_another_swarm_is_told() -> None:
    """The swarm comes first, and alone."""
    assert difference(RUN, replace(RUN, swarm="other")) == "swarm: mine 'main', theirs 'other'"


def test_another_model_is_told() -> None:
    """Tasks, sizes and the first tensor on each side that the other lacks, in one line."""
    wide = "conv1.weight float32 [64,1,3,3]"
    theirs = replace(
        RUN, task="cifar", schema=bytes(32), parameters=2, tensors=(RUN.tensors[0], wide)
    )
    assert difference(RUN, theirs) == (
        "task: mine 'mnist', theirs 'cifar'; model: mine 1,199,882 parameters, theirs 2; only mine"
        " has conv1.weight float32 [32,1,3,3]; only theirs has conv1.weight float32 [64,1,3,3]"
    )


def test_one_more_tensor_is_told() -> None:
    """Where only one side has something else, only that is told."""
    theirs = replace(RUN, schema=bytes(32), tensors=RUN.tensors[:1])
    assert str(difference(RUN, theirs)).endswith("only mine has conv1.weight float32 [32,1,3,3]")


def test_a_difference_beyond_the_list_is_told() -> None:
    """Where the tensors that are listed are the same, that is said."""
    theirs = replace(RUN, schema=bytes(32))
    assert str(difference(RUN, theirs)).endswith("the first 2 tensors are the same")


@given(st.text(), st.text())
def test_any_difference_can_be_told(mine: str, theirs: str) -> None:
    """Whatever peers call their tensors, the difference travels in a Bye."""
    told = difference(
        replace(RUN, tensors=(mine,)), replace(RUN, schema=bytes(32), tensors=(theirs,))
    )
    assert isinstance(from_bytes(to_bytes(Bye(str(told)))), Bye)
