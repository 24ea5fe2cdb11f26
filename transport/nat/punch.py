"""CORE: one attempt to punch a hole, as a table: what is due, what is said, when to connect.

    caller  CALLING ──answer/go──▶ WAITING ──due──▶ PUNCHING ──due──▶ MISSED
               └──due──▶ UNHEARD
    callee  ANSWERED ──go──▶ PUNCHING ──due──▶ MISSED
               └──due──▶ UNHEARD

The caller measures the round trip from `call` to `answer` and waits half of it after `go`: that is
how long `go` takes to the callee, which connects at once. So both first packets leave at about the
same moment (DCUtR; Ford, Srisuresh, Kegel 2005, section 4). Nobody has to be exact: what comes too
early opens no hole, but has opened its own NAT.

Time is passed in as `now`, seconds of one clock that never goes back.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, Self

from ..address import Address
from .calls import Call, Step

ANSWER_SECONDS: Final = 4.0
"""So long an answer is waited for, and go after it: three hops and a slow tracker take one."""

PUNCH_SECONDS: Final = 2.5
"""So long both connect: the kernel's second SYN, after a second, and its answer are in it."""

HALF_MOST: Final = 2.0
"""Half a round trip is at most half of what was waited for."""


class State(Enum):
    """Where an attempt is."""

    CALLING = auto()
    WAITING = auto()
    ANSWERED = auto()
    PUNCHING = auto()
    UNHEARD = auto()
    MISSED = auto()


class _Event(Enum):
    ANSWER = auto()
    GO = auto()
    DUE = auto()


OVER: Final = frozenset({State.UNHEARD, State.MISSED})

_TABLE: Final[dict[tuple[State, _Event], State]] = {
    (State.CALLING, _Event.ANSWER): State.WAITING,
    (State.CALLING, _Event.DUE): State.UNHEARD,
    (State.WAITING, _Event.DUE): State.PUNCHING,
    (State.ANSWERED, _Event.GO): State.PUNCHING,
    (State.ANSWERED, _Event.DUE): State.UNHEARD,
    (State.PUNCHING, _Event.DUE): State.MISSED,
}
_EVENTS: Final = {Step.ANSWER: _Event.ANSWER, Step.GO: _Event.GO}


def prevails(me: str, peer: str) -> bool:
    """Whether my call stands where both have called at once: the lower peer ID's does."""
    return me < peer


class Attempt:
    """One attempt. `targets` are what the other side has named, `due` is when to call `time`."""

    def __init__(self, state: State, nonce: bytes, now: float) -> None:
        self.state, self.nonce = state, nonce
        self.targets: tuple[Address, ...] = ()
        self.due = now + ANSWER_SECONDS
        self._began, self._calls = now, state is State.CALLING

    @classmethod
    def calling(cls, nonce: bytes, now: float) -> Self:
        """We have said `call`."""
        return cls(State.CALLING, nonce, now)

    @classmethod
    def answering(cls, call: Call, now: float) -> Self:
        """We have heard `call`, and say `answer`."""
        attempt = cls(State.ANSWERED, call.nonce, now)
        attempt.targets = call.addresses
        return attempt

    @property
    def calls(self) -> bool:
        """Whether it is us who called."""
        return self._calls

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.state in OVER

    def hear(self, call: Call, now: float) -> Step | None:
        """The other side speaks; what to say to that at once. What isn't due is nothing."""
        event = _EVENTS.get(call.step) if call.nonce == self.nonce else None
        after = _TABLE.get((self.state, event)) if event else None
        if after is None:
            return None
        self.targets = call.addresses or self.targets
        self._enter(after, now)
        return Step.GO if after is State.WAITING else None

    def time(self, now: float) -> None:
        """What was due is due."""
        if now >= self.due and not self.over:
            self._enter(_TABLE[self.state, _Event.DUE], now)

    def _enter(self, state: State, now: float) -> None:
        half = min((now - self._began) / 2, HALF_MOST)
        lasts = {State.WAITING: half, State.PUNCHING: PUNCH_SECONDS}
        self.state, self.due = state, now + lasts.get(state, 0.0)
