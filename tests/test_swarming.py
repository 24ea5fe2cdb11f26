"""One model from several sources at once: the author is spared, and nobody can hold it back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from operator import or_
from pathlib import Path

import pytest
import trio
from fellows import CHUNK, Fellow, Rogue, fellows, host_of, noise, rogue, virtual

from lab import Lab
from p2pnode.transport import admission, haves, messages, sources
from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.link import Piece
from p2pnode.transport.messages import Fetch, Gone, Have
from p2pnode.transport.outgoing import Held
from p2pnode.transport.transfer import ranges_of

pytestmark = pytest.mark.usefixtures("inline_threads")

CHUNKS = 200
# A piece takes a host's uplink so long, all its sessions together.
SLOW = 0.1


@contextmanager
def uplinks(lab: Lab, count: int) -> Iterator[None]:
    """All these peers have slow uplinks."""
    with ExitStack() as stack:
        for number in range(1, count + 1):
            stack.enter_context(lab.uplink(host_of(lab, number), SLOW))
        yield


async def know_each_other(everyone: Sequence[Fellow]) -> None:
    """All have sessions with all."""
    for number, fellow in enumerate(everyone):
        for other in everyone[:number]:
            await fellow.dial(other)


async def all_hold(some: Sequence[Fellow], model: Held) -> None:
    """Wait until these have it, verified and filed."""
    for fellow in some:
        await fellow.until(lambda fellow=fellow: fellow.holds(model))  # type: ignore[misc]


def large(author: Fellow, seq: int = 1) -> Held:
    """A model that is worth several sources."""
    return author.publish(seq, noise(seq, CHUNKS - 0.5))


def pieces_from(author: Fellow, others: Sequence[Fellow]) -> float:
    """Copies of a large model that the author has sent to these."""
    sent = sum(author.session(other).bytes_out for other in others)
    return sent / (CHUNKS * CHUNK)


def test_the_author_sends_about_one_copy(tmp_path: Path) -> None:
    """Ten peers get the model, verified, and have most of it from one another."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 11, fan_out=10) as (alice, *others):
            await know_each_other([alice, *others])
            model = large(alice)
            with uplinks(lab, 11):
                alice.exchange.announce(model)
                await all_hold(others, model)
            copies = pieces_from(alice, others)
            assert 1 <= copies <= 2
            assert not any(fellow.rejects for fellow in [alice, *others])

    virtual(main)


def test_the_author_may_leave_once_every_chunk_is_out(tmp_path: Path) -> None:
    """The others finish among themselves."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 6) as (alice, *others):
            await know_each_other([alice, *others])
            model = large(alice)
            alice.exchange.announce(model)
            with uplinks(lab, 6):
                await trio.sleep(SLOW)
                coming = [other.exchange.incoming[model.id].download for other in others]
                while reduce(or_, (download.here for download in coming)) != coming[0].all:
                    await trio.sleep(SLOW / 10)
                assert not all(download.done for download in coming)
                with lab.cut(host_of(lab, 1)):
                    await all_hold(others, model)
            assert not any(other.rejects for other in others)

    virtual(main)


def test_a_model_whose_rest_nobody_has_is_given_up(tmp_path: Path) -> None:
    """Its place is free after a minute, and its part is there for the next try."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 3) as (alice, bob, carol):
            await know_each_other([alice, bob, carol])
            model = large(alice)
            alice.exchange.announce(model)
            with uplinks(lab, 3):
                await trio.sleep(30 * SLOW)
                with lab.cut(host_of(lab, 1)):
                    await trio.sleep(2 * sources.STALL_SECONDS)
                    assert not bob.exchange.incoming
                    assert not carol.exchange.incoming
                await bob.until(lambda: alice.me not in bob.exchange.sessions)
                await bob.dial(alice)
                await bob.until(lambda: bob.holds(model))
            assert alice.session(bob).bytes_out < 0.95 * CHUNKS * CHUNK

    virtual(main)


def test_a_newcomer_has_it_from_all(tmp_path: Path) -> None:
    """Who comes last gets it faster than one line could carry it, and hardly from the author."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 6, fan_out=4) as (alice, *others):
            await know_each_other([alice, *others[:-1]])
            model = large(alice)
            alice.exchange.announce(model)
            await all_hold(others[:-1], model)
            with uplinks(lab, 6):
                for other in others[:-1]:
                    await others[-1].dial(other)
                began = trio.current_time()
                await others[-1].dial(alice)
                await all_hold(others[-1:], model)
                assert trio.current_time() - began < CHUNKS * SLOW / 2.5
            assert pieces_from(alice, others[-1:]) < 0.3

    virtual(main)


def test_a_restart_goes_on_with_what_is_there(tmp_path: Path) -> None:
    """Chunks in the part file are found again, and told to the others."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 3) as (alice, bob, carol):
            await know_each_other([alice, bob, carol])
            model = large(alice)
            with uplinks(lab, 3):
                alice.exchange.announce(model)
                await trio.sleep(60 * SLOW)
                here = bob.exchange.incoming[model.id].download.bytes_here
                assert here > 20 * CHUNK
                with lab.cut(host_of(lab, 2)):
                    await bob.until(lambda: not bob.exchange.sessions)
                    await trio.sleep(1)
                    assert not bob.exchange.incoming
                for other in (alice, carol):
                    await other.until(lambda other=other: bob.me not in other.exchange.sessions)  # type: ignore[misc]
                    await bob.dial(other)
                await bob.until(lambda: bob.holds(model))
            got = sum(bob.session(other).bytes_in for other in (alice, carol))
            assert got < model.manifest.size - here + 20 * CHUNK
            assert not bob.rejects

    virtual(main)


def test_a_fast_trainer_does_not_starve_a_large_model(tmp_path: Path) -> None:
    """What the author has begun to send is finished, however many newer ones it has by then."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            await bob.dial(alice)
            with uplinks(lab, 2):
                models = []
                for seq in range(1, 7):
                    models.append(large(alice, seq))
                    alice.exchange.announce(models[-1])
                    await trio.sleep(50 * SLOW)
                assert bob.filed_models == [models[0].id]
                await bob.until(lambda: bob.holds(models[-1]))
            assert not bob.rejects
            await alice.until(lambda: bool(alice.delivered_to))
            await trio.sleep(10)
            assert not alice.session(bob).outgoing.models

    virtual(main)


# ── helpers that don't help ──────────────────────────────────────────────────────────────────────


def test_wrong_chunks_are_charged_to_the_helper_alone(tmp_path: Path) -> None:
    """Nothing wrong is filed, the author stays a source, and the model comes in."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 4, fan_out=2) as (alice, bob, carol, dave):
            await know_each_other([alice, bob, carol])
            model = large(alice)
            alice.exchange.announce(model)
            await all_hold([bob, carol], model)
            with uplinks(lab, 4), lab.corrupt(host_of(lab, 2)):
                for other in (bob, carol, alice):
                    await dave.dial(other)
                await dave.until(lambda: dave.holds(model))
            assert [(reason, peer) for reason, peer, _ in dave.rejects] == [
                (admission.DIGEST, bob.me)
            ]
            assert dave.agreed_with(bob)

    virtual(main)


def test_a_slow_helper_holds_nothing_back(tmp_path: Path) -> None:
    """One that needs a hundred times as long for a piece costs next to no time."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 3, fan_out=1) as (alice, bob, carol):
            await bob.dial(alice)
            model = large(alice)
            alice.exchange.announce(model)
            await all_hold([bob], model)
            with lab.uplink(host_of(lab, 1), SLOW), lab.uplink(host_of(lab, 2), 100 * SLOW):
                await carol.dial(bob)
                began = trio.current_time()
                await carol.dial(alice)
                await all_hold([carol], model)
                took = trio.current_time() - began
            assert not carol.rejects
            assert took < 6 * CHUNKS * SLOW

    virtual(main)


def test_a_helper_that_vanishes(tmp_path: Path) -> None:
    """What it was asked for is asked of others."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 4, fan_out=2) as (alice, bob, carol, dave):
            await know_each_other([alice, bob, carol])
            model = large(alice)
            alice.exchange.announce(model)
            await all_hold([bob, carol], model)
            with uplinks(lab, 4):
                for other in (bob, carol, alice):
                    await dave.dial(other)
                await trio.sleep(10 * SLOW)
                with lab.cut(host_of(lab, 2)):
                    await dave.until(lambda: dave.holds(model))
            assert not dave.rejects

    virtual(main)


async def listen(mallory: Rogue, asked: list[Fetch], *, answer: bool = False) -> None:
    """Note what it is asked for, and send nothing, or say that it isn't there."""
    with pytest.raises(LinkClosed):
        while True:
            frame = await mallory.link.receive_any()
            message = None if isinstance(frame, Piece) else messages.from_bytes(frame)
            if isinstance(message, Fetch):
                asked.append(message)
                if answer:
                    await mallory.say(Gone(message.transfer), Have(message.model, ((0, 1),)))
            elif isinstance(message, messages.Ping):
                await mallory.say(messages.Pong(message.number))


@pytest.mark.parametrize("answer", [False, True])
def test_a_helper_that_only_claims(tmp_path: Path, answer: bool) -> None:
    """Who says that it has everything and sends nothing is asked for a handful of chunks; all the
    others get the model in little more than the usual time."""

    async def main() -> None:
        lab = Lab()
        asked: list[Fetch] = []
        async with fellows(lab, tmp_path, 3) as (alice, bob, carol), trio.open_nursery() as nursery:
            await know_each_other([alice, bob, carol])
            mallory = await rogue(lab, 9, bob)
            nursery.start_soon(lambda: listen(mallory, asked, answer=answer))
            model = large(alice)
            await mallory.say(Have(model.id, ((0, CHUNKS),)))
            with uplinks(lab, 3):
                began = trio.current_time()
                alice.exchange.announce(model)
                await all_hold([bob, carol], model)
                assert trio.current_time() - began < 2.5 * CHUNKS * SLOW
            assert 1 <= len(asked) <= 2 * sources.LAPSES
            assert not bob.rejects
            nursery.cancel_scope.cancel()

    virtual(main)


# ── have ─────────────────────────────────────────────────────────────────────────────────────────


def test_small_models_come_from_one_source(tmp_path: Path) -> None:
    """Nobody is told, and each asks the author for all of it at once."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 3) as (alice, bob, carol):
            await know_each_other([alice, bob, carol])
            model = alice.publish(1, noise(1, sources.FEW))
            alice.exchange.announce(model)
            await all_hold([bob, carol], model)
            assert not bob.session(carol).haves.heard
            assert not carol.session(bob).haves.heard

    virtual(main)


def test_only_what_is_verified_is_served(tmp_path: Path) -> None:
    """Of a model on its way a peer sends what it has, and says of the rest that it isn't there."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob), trio.open_nursery() as nursery:
            await bob.dial(alice)
            mallory = await rogue(lab, 9, bob)
            model = large(alice)
            with uplinks(lab, 2):
                alice.exchange.announce(model)
                await trio.sleep(40 * SLOW)
                download = bob.exchange.incoming[model.id].download
                (here, _), *_ = ranges_of(download.here)
                (there, _), *_ = ranges_of(download.missing)
                await mallory.say(Fetch(1, model.id, ((there, 1),), 1))
                assert (await mallory.hear(Gone)).transfer == 1
                await mallory.say(Fetch(2, model.id, ((here, 1),), 1))
                while not isinstance(piece := await mallory.link.receive_any(), Piece):
                    pass
                assert (piece.transfer, piece.chunk) == (2, here)
                content = model.path.read_bytes()
                assert bytes(piece.body) == content[here * CHUNK : (here + 1) * CHUNK]
            nursery.cancel_scope.cancel()

    virtual(main)


def test_who_holds_a_model_tells_who_fetches_it(tmp_path: Path) -> None:
    """A peer that says it fetches a model hears what is here of it: once."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            await bob.dial(alice)
            model = large(alice)
            alice.exchange.announce(model)
            await all_hold([bob], model)
            mallory = await rogue(lab, 9, bob)
            await mallory.say(Have(model.id, ()))
            assert await mallory.hear(Have) == Have(model.id, ((0, CHUNKS),))
            await mallory.say(Have(model.id, ()), Fetch(1, model.id, ((CHUNKS - 1, 1),), 1))
            assert isinstance(await mallory.link.receive_any(), Piece | bytes)
            assert not bob.rejects

    virtual(main)


def test_tellings_of_no_use_are_bounded(tmp_path: Path) -> None:
    """Of models that nobody offers, only the last few are remembered; a flood ends the session."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 1) as (bob,), trio.open_nursery() as nursery:
            mallory = await rogue(lab, 9, bob)
            nursery.start_soon(flood, mallory)
            await bob.until(lambda: bool(bob.ends))
            assert bob.counts == {admission.FLOOD: 1}
            assert not bob.exchange.incoming

    async def flood(mallory: Rogue) -> None:
        with pytest.raises(LinkClosed):
            for number in range(10**6):
                await mallory.say(Have(number.to_bytes(32, "big"), ((0, messages.CHUNKS_LIMIT),)))

    virtual(main)


def test_a_few_models_are_remembered_of_each_peer() -> None:
    """The last that it told of."""
    known = haves.Haves()
    for number in range(100):
        known.hear(Have(bytes([number]) * 32, ((number, 2),)))
        list(known.tell(bytes([number]) * 32, 1))
    assert len(known.heard) == len(known.told) == haves.MODELS_A_PEER
    assert known.heard[bytes([99]) * 32] == 3 << 99


def test_news_are_told_once() -> None:
    """First whatever is here, if only that it is fetched; then what is new, in bounded messages."""
    known, model = haves.Haves(), bytes(32)
    assert list(known.tell(model, 0)) == [Have(model, ())]
    assert list(known.tell(model, 0)) == []
    assert list(known.tell(model, 0b1101)) == [Have(model, ((0, 1), (2, 2)))]
    gaps = sum(1 << n for n in range(1, 2 * messages.HAVE_LIMIT + 5, 2))
    told = list(known.tell(model, gaps | 0b1101))
    assert [len(have.ranges) for have in told] == [messages.HAVE_LIMIT, 1]
