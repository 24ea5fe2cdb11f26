"""One attempt to punch a hole: the table, and the moment at which both connect."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_calls import ANSWER, CALL, GO

from lab import identity
from p2pnode.transport.nat.calls import Call, Step
from p2pnode.transport.nat.punch import (
    _EVENTS,
    _TABLE,
    ANSWER_SECONDS,
    HALF_MOST,
    OVER,
    PUNCH_SECONDS,
    Attempt,
    State,
    _Event,
    prevails,
)

NONCE = CALL.nonce


def caller(now: float = 0.0) -> Attempt:
    """Who has called."""
    return Attempt.calling(NONCE, now)


def callee(now: float = 0.0) -> Attempt:
    """Who was called."""
    return Attempt.answering(CALL, now)


def test_both_connect_at_the_same_moment() -> None:
    """The caller waits half the round trip that it has measured; the callee has just heard go."""
    one_way = 0.2
    there, here = callee(now=one_way), caller(now=0.0)
    assert here.hear(ANSWER, 2 * one_way) is Step.GO
    assert there.hear(GO, 3 * one_way) is None
    assert there.state is State.PUNCHING
    assert here.due == pytest.approx(3 * one_way)
    here.time(here.due)
    assert here.state is State.PUNCHING
    assert here.due == pytest.approx(there.due) == pytest.approx(3 * one_way + PUNCH_SECONDS)


def test_each_learns_where_the_other_is_seen() -> None:
    """The callee from the call, the caller from the answer; go needn't say it again."""
    here, there = caller(), callee()
    here.hear(ANSWER, 0.1)
    there.hear(GO, 0.1)
    assert (here.targets, there.targets) == (ANSWER.addresses, CALL.addresses)
    assert (here.calls, there.calls) == (True, False)


def test_who_moves_in_between_says_so() -> None:
    """What go names counts for more than what the call did."""
    there = callee()
    there.hear(replace(GO, addresses=ANSWER.addresses), 0.1)
    assert there.targets == ANSWER.addresses


@pytest.mark.parametrize("attempt", [caller, callee])
def test_silence_ends_it(attempt: type[Attempt]) -> None:
    """No answer, or no go: after a few seconds nothing more comes of it."""
    waiting = attempt(now=5.0)  # type: ignore[call-arg]
    waiting.time(5.0 + ANSWER_SECONDS - 0.01)
    assert not waiting.over
    waiting.time(5.0 + ANSWER_SECONDS)
    assert (waiting.state, waiting.over) == (State.UNHEARD, True)


def test_connecting_is_bounded() -> None:
    """When the time is over it has missed, and stays so."""
    there = callee()
    there.hear(GO, 1.0)
    there.time(1.0 + PUNCH_SECONDS)
    assert (there.state, there.over) == (State.MISSED, True)
    there.time(99.0)
    assert there.hear(GO, 99.0) is None
    assert there.state is State.MISSED


def test_a_slow_tracker_makes_nobody_wait_for_long() -> None:
    """Half a round trip is bounded by what an answer may take."""
    here = caller()
    here.hear(ANSWER, ANSWER_SECONDS)
    assert here.due - ANSWER_SECONDS <= HALF_MOST


@pytest.mark.parametrize(
    "call", [replace(ANSWER, nonce=bytes(16)), CALL, GO], ids=["another's nonce", "call", "go"]
)
def test_what_isn_t_due_changes_nothing(call: Call) -> None:
    """The caller waits for one thing, the answer to its own call."""
    here = caller()
    assert here.hear(call, 0.1) is None
    assert (here.state, here.targets) == (State.CALLING, ())


def test_an_answer_counts_once() -> None:
    """The second one, through another tracker, makes us say nothing and wait no longer."""
    here = caller()
    assert here.hear(ANSWER, 0.2) is Step.GO
    due = here.due
    assert here.hear(ANSWER, 0.25) is None
    assert here.due == due


def test_of_two_that_call_at_once_one_prevails() -> None:
    """The lower peer ID's call stands, and both know it."""
    one, two = identity(1).peer_id, identity(2).peer_id
    assert prevails(one, two) != prevails(two, one)
    assert prevails(*sorted((one, two)))


def test_the_table_leaves_nothing_open() -> None:
    """From every state that isn't an end time leads on, and every chain of events ends."""
    for state in State:
        assert ((state, _Event.DUE) in _TABLE) == (state not in OVER)
    assert {state for state, _ in _TABLE} | set(_TABLE.values()) == set(State)
    for state in State:
        for _ in State:
            state = _TABLE.get((state, _Event.DUE), state)
        assert state in OVER


EVENTS = st.one_of(st.sampled_from([CALL, ANSWER, GO]), st.floats(0, 5))


@given(st.booleans(), st.lists(EVENTS, max_size=30))
def test_whatever_comes_it_ends_in_time(calls: bool, events: list[Call | float]) -> None:
    """Any calls in any order, at any time: the table holds, `go` is said at most once, and in less
    than a dozen seconds it is over."""
    attempt, now, said = caller() if calls else callee(), 0.0, 0
    for event in events:
        before = attempt.state
        if isinstance(event, float):
            now += event
            attempt.time(now)
        else:
            said += attempt.hear(event, now) is Step.GO
            step = _EVENTS.get(event.step)
            expected = _TABLE.get((before, step), before) if step else before
            assert attempt.state is expected
    assert said <= calls
    for _ in State:
        if not attempt.over:
            now = max(now, attempt.due)
            attempt.time(now)
    assert attempt.over
    assert attempt.due - sum(e for e in events if isinstance(e, float)) < 12
