"""NodeStatus: the bytes that `p2pnode status` reads and the JSON that scripts read."""

import contextlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statuses import statuses, swarm_of

from p2pnode.node import status as module
from p2pnode.node.errors import StatusError
from p2pnode.node.status import (
    STATUS_LIMIT,
    TEXT_LIMIT,
    EpochStatus,
    Event,
    NodeStatus,
    PeerStatus,
    TrackerStatus,
    TrainingStatus,
    TransferStatus,
)
from p2pnode.transport import wire
from p2pnode.transport.errors import WireError
from p2pnode.transport.manifest import Scores

REFERENCE = Path(__file__).parent.parent / "docs" / "reference" / "status.md"


@settings(max_examples=60, deadline=None)
@given(statuses())
def test_a_status_comes_back_from_its_bytes(status: NodeStatus) -> None:
    """What the daemon writes, the screen reads, to the last bit."""
    assert NodeStatus.from_bytes(status.to_bytes()) == status


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_status_or_a_status_error(data: bytes) -> None:
    """Nothing else ever comes out of the parser."""
    with contextlib.suppress(StatusError):
        assert isinstance(NodeStatus.from_bytes(data), NodeStatus)


_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
_values = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner)
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_value_in_any_field_gives_a_status_or_a_status_error(data: st.DataObject) -> None:
    """One field of a good status, however deep, replaced by anything that CBOR carries."""
    plain: Any = wire.decode(swarm_of(2).to_bytes(), limit=STATUS_LIMIT)
    place = plain
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else [0]))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(_values)
    with contextlib.suppress(StatusError, WireError):
        NodeStatus.from_bytes(wire.encode(plain))


def test_a_field_of_a_newer_node_is_ignored() -> None:
    """An older screen shows a newer node."""
    plain: Any = wire.decode(swarm_of(1).to_bytes(), limit=STATUS_LIMIT)
    plain["relays"] = ["somewhere"]
    plain["training"]["watts"] = 12
    assert NodeStatus.from_bytes(wire.encode(plain)) == swarm_of(1)


def test_the_error_names_the_field() -> None:
    """A wrong field is named with its place."""
    plain: Any = wire.decode(swarm_of(1).to_bytes(), limit=STATUS_LIMIT)
    plain["training"]["epoch"] = -1
    with pytest.raises(StatusError, match=r"status\.training\.epoch is wrong"):
        NodeStatus.from_bytes(wire.encode(plain))


def test_numbers_that_are_not_finite_become_unknown() -> None:
    """The loss of a diverged model is no number, in the bytes and in JSON."""
    diverged = replace(
        swarm_of(0),
        uptime=math.inf,
        training=TrainingStatus(loss=math.nan, eta=math.inf),
    )
    back = NodeStatus.from_bytes(diverged.to_bytes())
    assert (back.uptime, back.training.loss, back.training.eta) == (0.0, None, None)
    assert diverged.to_json()["training"]["loss"] is None


def test_long_and_broken_texts_are_cut_and_mended() -> None:
    """A file name with a lone surrogate, an escape, an endless error still make a status."""
    status = replace(swarm_of(0), events=(Event(0.0, "error", "\udcff\x1b\n" + 5000 * "x"),))
    (event,) = NodeStatus.from_bytes(status.to_bytes()).events
    assert event.text == "���" + (TEXT_LIMIT - 3) * "x"


def test_a_full_status_is_far_below_the_limit() -> None:
    """50 peers, 64 epochs and 50 events fit many times."""
    assert len(swarm_of(50, epochs=64).to_bytes()) < STATUS_LIMIT / 20


def test_what_is_not_cbor_raises_a_status_error_on_the_way_out() -> None:
    """A value of the wrong type is our own error, with the documented name."""
    with pytest.raises(StatusError, match="complex"):
        replace(swarm_of(0), uptime=1j).to_bytes()  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(statuses())
def test_the_json_is_json(status: NodeStatus) -> None:
    """Scripts get strict JSON, without NaN."""
    assert json.loads(json.dumps(status.to_json(), allow_nan=False))["peer"] == status.peer


def test_the_json_of_a_small_status() -> None:
    """Names are the fields' names; rejects are a map."""
    status = NodeStatus(
        version="0.1.0",
        peer="12D3KooW",
        swarm="main",
        task="mnist",
        shard="0/3",
        public="",
        listening="0.0.0.0:6000",
        reachability="unknown",
        uptime=1.5,
        trackers=(TrackerStatus("t:5555", "connected", "", 2),),
        history=(EpochStatus(1, Scores(0.5, 0.9), Scores(0.4, None), 2, 3.0),),
        peers=(PeerStatus("12D3KooX", "connecting", "connecting"),),
        transfers=(TransferStatus("12D3KooX", "in", 1, 10, 5, 2.0),),
        rejects=(("bad signature", 3),),
    )
    found = status.to_json()
    assert found["trackers"] == [
        {"address": "t:5555", "state": "connected", "detail": "", "peers": 2}
    ]
    assert found["history"][0]["before"] == {"loss": 0.5, "accuracy": 0.9}
    assert found["history"][0]["after"] == {"loss": 0.4, "accuracy": None}
    assert found["peers"][0]["round_trip"] is None
    assert found["rejects"] == {"bad signature": 3}
    assert found["mailbox"] == {"models": 0, "bytes": 0, "limit_models": 0, "waiting": 0}


def test_the_reference_page_shows_every_field() -> None:
    """docs/reference/status.md holds a whole status, as it is printed."""
    (block,) = re.findall(r"```json\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
    assert _shape(json.loads(block)) == _shape(swarm_of(1).to_json())


def _shape(value: Any) -> Any:
    """Keys alone, of maps that are values of ours; the first item stands for a list."""
    if isinstance(value, dict):
        return {key: key == "rejects" or _shape(item) for key, item in value.items()}
    return [_shape(item) for item in value[:1]] if isinstance(value, list) else None


def test_the_core_needs_no_clock_and_no_network() -> None:
    """The screen of another machine's node must read it without trio, pynng or torch."""
    source = Path(module.__file__).read_text()
    assert not re.search(r"^(import|from) (trio|pynng|torch|time)\b", source, re.MULTILINE)
