"""The conversation with one peer: every mistake is counted by reason and told, and stays its own.

(transport/session.py and sender.py; test_session.py is for node/session.py.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from fellows import CHUNK, RUN, Fellow, Rogue, fellows, noise, rogue, virtual
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import NOW, manifest, sealed

from lab import BUFFER, Lab, identity
from p2pnode.transport import admission, messages, wire
from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.link import Piece
from p2pnode.transport.manifest import EXPIRY
from p2pnode.transport.messages import (
    Bye,
    Credit,
    Done,
    Fetch,
    Gone,
    Hello,
    Message,
    Offer,
    Ping,
    Pong,
    Reject,
    Stop,
    Want,
)
from p2pnode.transport.outgoing import UPLOADS_LIMIT
from p2pnode.transport.sender import QUEUE_LIMIT
from p2pnode.transport.session import (
    GARBAGE_LIMIT,
    HELLO_SECONDS,
    MESSAGES_BURST,
    MESSAGES_PER_SECOND,
    PART_SECONDS,
    PING_SECONDS,
    SILENCE_SECONDS,
)
from p2pnode.transport.transfer import WINDOW

pytestmark = pytest.mark.usefixtures("inline_threads")

Test = Callable[[Fellow, Rogue], Awaitable[None]]
DATA = noise(9, 20)
MODEL = sealed(9, manifest(DATA, seq=1))  # the rogue's own model
ID = admission.identify(MODEL)


def against(folder: Path, test: Test, *, greets: bool = True) -> None:
    """Run a test with a rogue that is connected to a peer; another peer notices nothing of it."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, folder, 2) as (alice, bob):
            await bob.dial(alice)
            await test(alice, await rogue(lab, 9, alice, greets=greets))
            model = bob.publish(1)
            bob.exchange.announce(model)
            await alice.until(lambda: alice.holds(model))
            assert not bob.rejects
            assert len(bob.met_with) == 1

    virtual(main)


async def ended(alice: Fellow, mallory: Rogue, reason: str, told: str) -> None:
    """The peer was told why, this reason was counted once, and the session is over."""
    assert told in await mallory.farewell()
    await alice.until(lambda: bool(alice.ends))
    assert [(r, peer) for r, peer, _ in alice.rejects] == [(reason, mallory.me)]
    assert told in alice.ends[0]


# ── hello ────────────────────────────────────────────────────────────────────────────────────

OLD_HELLO = wire.encode(
    {"t": "hello", "version": 2, "run": {}, "epoch": 0},
)


@pytest.mark.parametrize(
    ("said", "reason", "told"),
    [
        (b"\xff", admission.GARBAGE, "not a message that p2pnode understands"),
        (wire.encode({"t": "dance"}), admission.GARBAGE, "unknown kind of message: 'dance'"),
        (OLD_HELLO, admission.GARBAGE, "the peer speaks version 2, this node version 1"),
        (Want(), admission.PROTOCOL, "before both sides have said hello"),
        (Offer(MODEL), admission.PROTOCOL, "before both sides have said hello"),
        (Fetch(1, ID, ((0, 1),), 1), admission.PROTOCOL, "before both sides have said hello"),
        (Piece(1, 0, 0, b"x"), admission.PROTOCOL, "transfer 1, which is not open"),
    ],
)
def test_who_can_t_say_hello_is_sent_away(
    tmp_path: Path, said: Message | bytes | Piece, reason: str, told: str
) -> None:
    """The first message decides: anything but a hello of our version ends it."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        await mallory.say(said)
        await ended(alice, mallory, reason, told)

    against(tmp_path, test, greets=False)


def test_a_second_hello_ends_it(tmp_path: Path) -> None:
    """A run can't change while a session lasts."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        await mallory.say(Hello(RUN, 1))
        await ended(alice, mallory, admission.PROTOCOL, "a second hello")

    against(tmp_path, test)


def test_who_never_says_hello_is_sent_away(tmp_path: Path) -> None:
    """A peer may take minutes to build its model, but not for ever."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        began = trio.current_time()
        await ended(alice, mallory, admission.SLOW, f"no hello for {HELLO_SECONDS:.0f} s")
        assert trio.current_time() - began <= HELLO_SECONDS + PART_SECONDS

    against(tmp_path, test, greets=False)


# ── offers ───────────────────────────────────────────────────────────────────────────────────


def own(**fields: Any) -> bytes:
    """An envelope of the rogue's."""
    return sealed(9, manifest(DATA, **{"seq": 2} | fields))


FORGED = bytearray(own())
FORGED[-1] ^= 1


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (b"garbage", admission.GARBAGE),
        (own(swarm="other"), admission.SWARM),
        (own(schema=bytes([1]) * 32), admission.SCHEMA),
        (own(size=2**40, chunk_size=2**28, digests=bytes(32 * 2**12)), admission.MANIFEST),
        (own(seq=0), admission.STALE),
        (own(created=NOW - 2 * EXPIRY, expires=NOW - EXPIRY), admission.EXPIRED),
        (bytes(FORGED), admission.SIGNATURE),
    ],
)
def test_wrong_offers_are_told_why(tmp_path: Path, envelope: bytes, reason: str) -> None:
    """Each is counted by reason and answered; nothing is fetched; good offers are still taken."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        await mallory.say(Offer(MODEL))
        await serve(mallory, 1)
        await mallory.hear(Done)
        await mallory.say(Offer(envelope))
        reject = await mallory.hear(Reject)
        assert (reject.model, reject.reason) == (admission.identify(envelope), reason)
        assert reject.detail
        assert alice.rejects == [(reason, mallory.me, reject.detail)]
        assert alice.exchange.incoming == {}
        better = own(seq=3)
        await mallory.say(Offer(better))
        await serve(mallory, 2)
        assert (await mallory.hear(Done)).model == admission.identify(better)

    against(tmp_path, test)


async def serve(mallory: Rogue, transfer: int) -> None:
    """Send the whole model as an honest peer does, a piece for each that is allowed."""
    fetch = await mallory.hear(Fetch)
    assert fetch.transfer == transfer
    assert fetch.ranges == ((0, 20),)
    credit = fetch.credit
    for chunk in range(20):
        while not credit:
            credit += (await mallory.hear(Credit)).pieces
        await mallory.say(piece(transfer, chunk))
        credit -= 1


def piece(transfer: int, chunk: int) -> Piece:
    """A chunk of the rogue's model."""
    return Piece(transfer, chunk, 0, DATA[chunk * CHUNK : (chunk + 1) * CHUNK])


def test_a_replayed_offer_is_no_news(tmp_path: Path) -> None:
    """The same envelope again costs nothing, from whomever it comes."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        for _ in range(2):
            await mallory.say(Offer(MODEL))
        await serve(mallory, 1)
        await mallory.hear(Done)
        for _ in range(2):
            await mallory.say(Offer(MODEL))
            assert (await mallory.hear(Done)).model == ID
        assert not alice.rejects

    against(tmp_path, test)


# ── pieces ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ([Piece(2, 0, 0, b"x")], "transfer 2, which is not open"),
        ([Piece(1, 20, 0, b"x")], "chunk 20 was not asked for"),
        ([piece(1, 3), piece(1, 3)], "chunk 3 was not asked for"),
        ([Piece(1, 0, 1, b"x")], "chunk 0 came out of order or too long"),
        ([Piece(1, 0, 0, bytes(CHUNK + 1))], "chunk 0 came out of order or too long"),
        ([Piece(1, 0, 0, b"x")], "a piece of 1 bytes where a full one was due"),
    ],
)
def test_pieces_that_are_not_due_end_it(tmp_path: Path, pieces: list[Piece], told: str) -> None:
    """Not asked for, twice, out of order, too long, too short."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        await mallory.say(Offer(MODEL))
        await mallory.hear(Fetch)
        await mallory.say(*pieces)
        await ended(alice, mallory, admission.PROTOCOL, told)
        await trio.testing.wait_all_tasks_blocked()
        assert alice.mailbox.models() == []
        assert alice.exchange.incoming == {}

    against(tmp_path, test)


def test_more_pieces_than_the_credit_allows_end_it(tmp_path: Path) -> None:
    """A sender that doesn't wait for credit, while the disk is slow, is sent away."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        await mallory.say(Offer(MODEL))
        await mallory.hear(Fetch)
        (lane,) = alice.exchange.incoming[ID]._lanes.values()
        lane.ask.outstanding = 2  # as if the disk had not yet taken the pieces before
        await mallory.say(*(piece(1, chunk) for chunk in range(3)))
        await ended(alice, mallory, admission.PROTOCOL, "more pieces than the credit allows")

    against(tmp_path, test)


def test_pieces_that_cross_our_stop_are_dropped(tmp_path: Path) -> None:
    """What was under way when we stopped is nobody's mistake; what goes on and on is."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        await mallory.say(Offer(sealed(8, manifest(DATA, seq=1))))
        await mallory.hear(Fetch)
        # Newer, and the first one is only passed on, so it is stopped.
        await mallory.say(Offer(sealed(8, manifest(DATA, seq=2))))
        assert (await mallory.hear(Stop)).transfer == 1
        await mallory.say(*(piece(1, chunk) for chunk in range(WINDOW)))
        await serve(mallory, 2)
        await mallory.hear(Done)
        assert not alice.rejects
        await mallory.say(piece(1, 0))
        await ended(alice, mallory, admission.PROTOCOL, "transfer 1, which is not open")

    against(tmp_path, test)


# ── requests ─────────────────────────────────────────────────────────────────────────────────


async def offered(alice: Fellow, mallory: Rogue, data: bytes = DATA) -> bytes:
    """Alice has a model, and has offered it: its ID."""
    held = alice.publish(1, data)
    alice.exchange.sessions[mallory.me].offer(held)
    await mallory.hear(Offer)
    return held.id


async def pieces(mallory: Rogue) -> list[tuple[int, int]]:
    """All pieces that come by themselves: (transfer, chunk)."""
    heard = []
    with trio.move_on_after(1):
        while True:
            frame = await mallory.link.receive_any()
            if isinstance(frame, Piece):
                heard.append((frame.transfer, frame.chunk))
    return heard


def test_pieces_are_sent_as_far_as_credit_goes(tmp_path: Path) -> None:
    """Credit is counted in pieces; `stop` ends a transfer; two take turns."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        model = await offered(alice, mallory)
        await mallory.say(Fetch(5, model, ((4, 10),), 2))
        assert await pieces(mallory) == [(5, 4), (5, 5)]
        await mallory.say(Credit(5, 1))
        assert await pieces(mallory) == [(5, 6)]
        await mallory.say(Fetch(6, model, ((0, 1), (2, 1)), 8), Credit(5, 2))
        assert sorted(await pieces(mallory)) == [(5, 7), (5, 8), (6, 0), (6, 2)]
        await mallory.say(Stop(5), Credit(5, 8))
        assert await pieces(mallory) == []
        assert not alice.rejects

    against(tmp_path, test)


def test_files_are_closed_when_a_model_is_through(tmp_path: Path) -> None:
    """All fetches of a model share a file, which stays open between them until the peer has the
    model, goes on to the next one, or is gone."""

    def descriptors() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    async def test(alice: Fellow, mallory: Rogue) -> None:
        model = await offered(alice, mallory)
        before = descriptors()
        await mallory.say(Fetch(1, model, ((0, 20),), 1), Fetch(2, model, ((0, 1),), 1))
        await mallory.say(Fetch(3, model, ((0, 2),), 1))
        assert len(await pieces(mallory)) == 3
        assert descriptors() == before + 1
        await mallory.say(Stop(1), Stop(3))
        await pieces(mallory)
        assert descriptors() == before + 1
        await mallory.say(Done(model))
        await trio.testing.wait_all_tasks_blocked()
        assert descriptors() == before
        await mallory.say(Fetch(4, model, ((0, 1),), 1))
        await pieces(mallory)
        newer = alice.publish(9)
        await mallory.say(Fetch(5, newer.id, ((0, 1),), 1))
        await pieces(mallory)
        assert descriptors() == before + 1
        await mallory.link.aclose()
        await alice.until(lambda: bool(alice.ends))
        assert descriptors() == before

    against(tmp_path, test)


def test_what_isn_t_here_is_gone(tmp_path: Path) -> None:
    """A model that we don't hold, a transfer number twice, and more transfers than we serve."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        model = await offered(alice, mallory)
        await mallory.say(Fetch(1, bytes(32), ((0, 1),), 8))
        assert await mallory.hear(Gone) == Gone(1)
        for transfer in range(2, 2 + UPLOADS_LIMIT):
            await mallory.say(Fetch(transfer, model, ((0, 20),), 1))
        await pieces(mallory)
        for transfer in (2, 99):
            await mallory.say(Fetch(transfer, model, ((0, 1),), 1))
            assert await mallory.hear(Gone) == Gone(transfer)
        assert not alice.rejects

    against(tmp_path, test)


@pytest.mark.parametrize("ranges", [((0, 0),), ((19, 2),), ((20, 1),), ((2**32 - 1, 2**32 - 1),)])
def test_chunks_that_a_model_lacks_end_it(tmp_path: Path, ranges: Any) -> None:
    """Who asks for chunks that aren't in the manifest doesn't read it."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        model = await offered(alice, mallory)
        await mallory.say(Fetch(1, model, ranges, 8))
        await ended(alice, mallory, admission.PROTOCOL, "of 20")

    against(tmp_path, test)


def test_an_offer_overtakes_model_bytes(tmp_path: Path) -> None:
    """Under a full transfer an offer waits for what the network has and one piece, no more."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        model = await offered(alice, mallory)
        await mallory.say(Fetch(1, model, ((0, 20),), 1000))
        await trio.testing.wait_all_tasks_blocked()
        alice.exchange.announce(alice.publish(2))
        before = 0
        while True:
            frame = await mallory.link.receive_any()
            if isinstance(frame, Piece):
                before += 1
            elif isinstance(messages.from_bytes(frame), Offer):
                break
        assert before <= BUFFER + 1

    against(tmp_path, test)


# ── answers ──────────────────────────────────────────────────────────────────────────────────


def test_answers_count_once_and_for_what_was_offered(tmp_path: Path) -> None:
    """`done` and `reject` for what we never offered, or again and again, are ignored."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        model = await offered(alice, mallory)
        await mallory.say(*[Done(ID)] * 3, *[Reject(ID, "digest", "no")] * 3)
        await mallory.say(*[Done(model)] * 3, *[Reject(model, "disk", "full")] * 3, Ping(1))
        await mallory.hear(Pong)
        assert alice.delivered_to == [mallory.me]
        assert alice.refusals == []
        await offered(alice, mallory)
        await mallory.say(*[Reject(model, "disk", "full")] * 3, Done(model), Ping(1))
        await mallory.hear(Pong)
        assert alice.delivered_to == [mallory.me]
        assert alice.refusals == [("disk", mallory.me, "full")]

    against(tmp_path, test)


def test_what_was_offered_is_remembered_within_bounds(tmp_path: Path) -> None:
    """A peer that never answers costs no memory that grows."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        session = alice.exchange.sessions[mallory.me]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mallory.farewell)
            for seq in range(1, 100):
                session.offer(alice.publish(seq, b"x"))
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        assert len(session._unanswered) == 64

    against(tmp_path, test)


def test_pings_are_answered_and_measured(tmp_path: Path) -> None:
    """Each side sees the round trip; an answer to no question of ours measures nothing."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            await bob.dial(alice)
            with lab.slow(0.25):
                await trio.sleep(2 * PING_SECONDS)
            assert alice.session(bob).round_trip == pytest.approx(0.5)
            mallory = await rogue(lab, 9, alice)
            await mallory.say(Pong(12345), Ping(7))
            assert await mallory.hear(Pong) == Pong(7)
            assert not alice.rejects

    virtual(main)


# ── garbage, silence, deafness ───────────────────────────────────────────────────────────────


def test_a_flood_of_messages_is_read_slowly(tmp_path: Path) -> None:
    """It fills the sender's buffers and takes no core from the training."""

    async def test(_alice: Fellow, mallory: Rogue) -> None:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mallory.farewell)
            for number in range(3 * MESSAGES_BURST):
                await mallory.say(Ping(number))
            nursery.cancel_scope.cancel()
        sent = 3 * MESSAGES_BURST - BUFFER
        assert trio.current_time() - began >= (sent - MESSAGES_BURST) / MESSAGES_PER_SECOND - 0.1

    against(tmp_path, test)


def test_some_garbage_is_borne(tmp_path: Path) -> None:
    """A few messages that we can't read are counted and no more (a newer version may send some);
    then it is enough."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        for number in range(GARBAGE_LIMIT):
            await mallory.say(wire.encode({"t": "dance"}), Ping(number))
            await mallory.hear(Pong)
        assert alice.counts == {admission.GARBAGE: GARBAGE_LIMIT}
        await mallory.say(b"garbage")
        assert "not a message" in await mallory.farewell()
        assert alice.counts == {admission.GARBAGE: GARBAGE_LIMIT + 1}

    against(tmp_path, test)


def test_a_silent_peer_is_given_up(tmp_path: Path) -> None:
    """Nothing at all for a minute and a half: counted, and the link is closed."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 3) as (alice, bob, carol):
            await bob.dial(alice)
            await carol.dial(alice)
            began = trio.current_time()
            with lab.silent("10.0.0.2"):
                await alice.until(lambda: bool(alice.ends))
            assert trio.current_time() - began < SILENCE_SECONDS + PING_SECONDS + PART_SECONDS + 1
            assert alice.rejects == [(admission.SLOW, bob.me, "silent for 90 s")]
            assert alice.session(carol).agreed

    virtual(main)


async def babble(mallory: Rogue) -> None:
    """Say something now and then, and read nothing."""
    while True:
        await trio.sleep(1)
        await mallory.say(Pong(1))


def test_a_peer_that_reads_nothing_is_given_up(tmp_path: Path) -> None:
    """Whatever it says itself: after a minute and a half in which nothing could be sent."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(babble, mallory)
            began = trio.current_time()
            await alice.until(lambda: bool(alice.ends))
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began < SILENCE_SECONDS + (BUFFER + 3) * PING_SECONDS
        assert alice.rejects == [(admission.SLOW, mallory.me, "messages not read for 90 s")]

    against(tmp_path, test)


def test_answers_that_nobody_reads_don_t_pile_up(tmp_path: Path) -> None:
    """Who asks and asks and reads no answer is cut off: what is queued is bounded."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        with pytest.raises(LinkClosed):
            for number in range(10 * QUEUE_LIMIT):
                await mallory.say(Ping(number))
                await trio.lowlevel.checkpoint()
        await alice.until(lambda: bool(alice.ends))
        assert alice.rejects == [(admission.SLOW, mallory.me, "too many messages not read")]

    against(tmp_path, test)


# ── the end ──────────────────────────────────────────────────────────────────────────────────


def test_a_bye_ends_it_at_once(tmp_path: Path) -> None:
    """Why a peer leaves is what we show; it is no mistake."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        began = trio.current_time()
        await mallory.say(Bye("gone fishing"))
        await alice.until(lambda: bool(alice.ends))
        assert alice.ends == ["gone fishing"]
        assert trio.current_time() == began
        assert not alice.rejects

    against(tmp_path, test)


def test_the_last_word_is_heard_although_the_link_is_closed(tmp_path: Path) -> None:
    """A bye that arrived before the close counts, also where a message of ours could not go."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        await mallory.say(Bye("gone fishing"))
        await mallory.link.aclose()
        alice.exchange.sessions[mallory.me].say(Ping(1))
        await alice.until(lambda: bool(alice.ends))
        assert alice.ends == ["gone fishing"]

    against(tmp_path, test)


def test_after_a_bye_nothing_counts(tmp_path: Path) -> None:
    """A peer that is being sent away can't make us do or count any more."""

    async def test(alice: Fellow, mallory: Rogue) -> None:
        await mallory.say(Hello(RUN, 1), Hello(RUN, 1), Offer(MODEL), b"garbage", piece(1, 1))
        await ended(alice, mallory, admission.PROTOCOL, "a second hello")
        assert alice.exchange.incoming == {}

    against(tmp_path, test)


FRAMES = st.one_of(
    st.binary(max_size=100),
    st.builds(
        Piece,
        st.integers(0, 3),
        st.integers(0, 21),
        st.sampled_from([0, 1, CHUNK]),
        st.sampled_from([b"x", bytes(CHUNK)]),
    ),
    st.sampled_from(
        [
            *(Hello(RUN, 1), Want(), Offer(MODEL), Offer(own()), Offer(b"x"), Ping(1), Pong(1)),
            *(Credit(1, 8), Stop(1), Gone(1), Done(ID), Reject(ID, "disk", "full")),
            *(Fetch(1, ID, ((0, 1),), 8), Fetch(2, bytes(32), ((0, 1),), 8)),
        ]
    ),
)


@given(st.lists(FRAMES, max_size=12), st.booleans(), st.integers(0, 2**16))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_frames_leave_the_others_unharmed(
    tmp_path_factory: pytest.TempPathFactory,
    inline_threads: None,
    frames: list[bytes | Piece | Message],
    greets: bool,
    schedule: int,
) -> None:
    """Whatever a peer says in whatever order: nothing is raised, what is wrong is counted as one
    of the known reasons, no model is filed that isn't whole, and other peers get theirs."""
    known = {admission.GARBAGE, admission.PROTOCOL, admission.STALE}

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path_factory.mktemp("any"), 2) as (alice, bob):
            await bob.dial(alice)
            mallory = await rogue(lab, 9, alice, greets=greets)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, mallory)
                with contextlib.suppress(LinkClosed):
                    await mallory.say(*frames)
                model = bob.publish(1)
                bob.exchange.announce(model)
                await alice.until(lambda: alice.holds(model))
                nursery.cancel_scope.cancel()
            assert set(alice.counts) <= known
            assert {held.peer for held in alice.mailbox.models()} == {bob.me}
            assert not bob.rejects

    virtual(main, schedule=schedule)


async def listen(mallory: Rogue) -> None:
    """Read to the end."""
    await mallory.farewell()


def test_the_rogue_is_who_the_envelopes_say() -> None:
    """The tests above rest on it."""
    assert admission.identify(MODEL) == ID
    assert identity(9).public_key in MODEL
