"""The limits on model bytes, against what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from fellows import fellows, host_of, noise, virtual
from hypothesis import given
from hypothesis import strategies as st
from relaying import NUMBER, Place

from lab import Lab, identity
from p2pnode.transport.link import PIECE_LIMIT
from p2pnode.transport.pace import SLACK_SECONDS, Limits, Pace
from p2pnode.transport.session import PING_SECONDS

RATE = 1_000_000.0


def test_without_a_limit_nothing_waits() -> None:
    """The default: any number of bytes at once."""
    for pace in (Limits().up, Limits().down):
        assert not pace.limited
        assert [pace.wait(PIECE_LIMIT, 5.0) for _ in range(1000)] == [0.0] * 1000


def test_what_comes_at_once_waits_its_time() -> None:
    """Pieces follow each other at the rate; what is idle saves up a moment's bytes."""
    pace = Pace(RATE)
    piece = PIECE_LIMIT / RATE
    waits = [pace.wait(PIECE_LIMIT, 1000.0) for _ in range(4)]
    assert pace.limited
    assert waits == pytest.approx([n * piece - SLACK_SECONDS for n in (1, 2, 3, 4)])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, PIECE_LIMIT)), min_size=1))
def test_the_rate_holds_whatever_the_sizes(steps: list[tuple[int, int]]) -> None:
    """Whoever waits as told never passes more than a moment's bytes and rate × time."""
    pace, now, passed = Pace(RATE), 0.0, 0
    for pause, size in steps:
        now += pause
        now += pace.wait(size, now)
        passed += size
        assert passed <= RATE * (SLACK_SECONDS + now) + 1e-3


def test_sessions_move_on_in_turn() -> None:
    """Each waits for its own piece before it counts in the next: all get the same."""
    pace, due, passed = Pace(RATE), dict.fromkeys("abc", 0.0), dict.fromkeys("abc", 0)
    for _ in range(60):
        session = min(due, key=due.__getitem__)
        due[session] += pace.wait(PIECE_LIMIT, due[session])
        passed[session] += 1
    assert set(passed.values()) == {20}


# ── held by whole exchanges ──────────────────────────────────────────────────────────────────

MODEL = noise(1, 32)  # 2 MiB in chunks of 64 KiB


@pytest.mark.usefixtures("inline_threads")
def test_what_goes_out_is_held_over_all_sessions(tmp_path: Path) -> None:
    """Two peers take a model each: both get half of the limit."""

    async def main() -> None:
        lab, limits = Lab(), Limits(up=Pace(RATE))
        async with fellows(lab, tmp_path, 3, limits=limits) as (alice, bob, carol):
            for other in (bob, carol):
                await other.dial(alice)
            began = trio.current_time()
            model = alice.publish(1, MODEL)
            alice.exchange.announce(model)
            await bob.until(lambda: bob.holds(model))
            half = trio.current_time() - began
            await carol.until(lambda: carol.holds(model))
            assert _rate(2 * len(MODEL), began) == pytest.approx(RATE, rel=0.1)
            assert half > 0.9 * (trio.current_time() - began)

    virtual(main)


@pytest.mark.usefixtures("inline_threads")
def test_a_ping_goes_before_what_waits(tmp_path: Path) -> None:
    """While pieces wait for their time, a ping is answered at once."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2, limits=Limits(up=Pace(RATE))) as (alice, bob):
            await bob.dial(alice)
            model = alice.publish(1, noise(1, 32 * 8))
            alice.exchange.announce(model)
            await trio.sleep(2.5 * PING_SECONDS)
            assert not bob.holds(model)
            for session in (alice.session(bob), bob.session(alice)):
                assert session.round_trip == 0
            await bob.until(lambda: bob.holds(model))

    virtual(main)


@pytest.mark.usefixtures("inline_threads")
def test_what_comes_in_is_held_over_all_sessions(tmp_path: Path) -> None:
    """Models of two peers come in at the limit, both together."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 3, limits=Limits(down=Pace(RATE))) as (
            alice,
            bob,
            carol,
        ):
            for other in (bob, carol):
                await other.dial(alice)
            began = trio.current_time()
            models = [other.publish(1, MODEL) for other in (bob, carol)]
            for other, model in zip((bob, carol), models, strict=True):
                other.exchange.announce(model)
            await alice.until(lambda: all(alice.holds(model) for model in models))
            assert _rate(2 * len(MODEL), began) == pytest.approx(RATE, rel=0.1)

    virtual(main)


@pytest.mark.usefixtures("inline_threads")
def test_a_relay_shares_the_limits(tmp_path: Path) -> None:
    """What a node's own relay takes and hands on counts, too."""

    async def main() -> None:
        lab, limits = Lab(), Limits(Pace(RATE), Pace(RATE))
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            network = lab.network(identity(NUMBER), host_of(lab, NUMBER))
            relay = Place(network, tmp_path / "relay", alice.nursery, limits=limits)
            await relay.start(host_of(lab, NUMBER))
            for fellow in (alice, bob):
                await relay.join(fellow)
            began = trio.current_time()
            model = alice.publish(1, MODEL)
            alice.exchange.announce(model)
            await alice.until(lambda: (relay.me, model.id) in alice.stored_at)
            assert _rate(len(MODEL), began) == pytest.approx(RATE, rel=0.1)
            began = trio.current_time()
            await bob.until(lambda: bob.holds(model))
            assert _rate(len(MODEL), began) == pytest.approx(RATE, rel=0.1)

    virtual(main)


def _rate(size: int, began: float) -> float:
    return size / (trio.current_time() - began)
