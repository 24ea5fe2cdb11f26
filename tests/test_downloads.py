"""Which models are fetched, in what order, and from whom when there are several who hold them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from fellows import Rogue, fellows, host_of, make, noise, rogue, virtual
from models import manifest, sealed

from lab import Lab, identity
from p2pnode.transport import admission, downloads
from p2pnode.transport.messages import Offer

pytestmark = pytest.mark.usefixtures("inline_threads")

# A message takes so long where a test looks at what happens in between.
SLOW = 1.0


def test_a_fast_trainer_does_not_starve_a_slow_line(tmp_path: Path) -> None:
    """Models come four times as fast as the line carries them: each that has begun arrives."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            with lab.slow(SLOW):
                await bob.dial(alice)
                models = []
                for seq in range(1, 13):
                    models.append(alice.publish(seq))
                    alice.exchange.announce(models[-1])
                    await trio.sleep(10 * SLOW)
                assert len(bob.filed_models) >= 2
                await bob.until(lambda: bob.holds(models[-1]))
            assert bob.exchange.incoming == {}
            await alice.until(lambda: not alice.session(bob).outgoing.open)
            assert not bob.rejects

    virtual(main)


def test_a_newer_model_replaces_one_that_another_passes_on(tmp_path: Path) -> None:
    """Who passes on an old model slowly can't keep its author's newer one out."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 3) as (alice, bob, carol):
            old = alice.publish(1)
            await bob.dial(alice)
            await bob.until(lambda: bob.holds(old))
            new = alice.publish(2)
            await carol.dial(bob)
            with lab.slow(SLOW):
                bob.session(carol).offer(old)
                await trio.sleep(10 * SLOW)
                assert old.id in carol.exchange.incoming
                await carol.dial(alice)
                await carol.until(lambda: carol.holds(new))
            assert carol.filed_models == [new.id]
            await bob.until(lambda: not bob.session(carol).outgoing.open)
            assert not carol.rejects

    virtual(main)


def test_of_models_that_wait_only_the_newest_is_fetched(tmp_path: Path) -> None:
    """Numbers 2, 3 and 4 come while 1 is on its way: 1 and 4 arrive."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            with lab.slow(SLOW):
                await bob.dial(alice)
                models = [alice.publish(1)]
                alice.exchange.announce(models[0])
                await trio.sleep(30 * SLOW)
                for seq in (2, 3, 4):
                    models.append(alice.publish(seq))
                    alice.exchange.announce(models[-1])
                await bob.until(lambda: bob.holds(models[-1]))
            assert bob.filed_models == [models[0].id, models[3].id]

    virtual(main)


def test_an_older_model_than_the_one_on_its_way_is_stale(tmp_path: Path) -> None:
    """What is on its way counts like what is here."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 3) as (alice, bob, carol):
            old = alice.publish(1)
            await carol.dial(alice)
            await carol.until(lambda: carol.holds(old))
            await carol.dial(bob)
            new = alice.publish(2)
            with lab.slow(SLOW):
                await bob.dial(alice)
                await trio.sleep(5)
                assert new.id in bob.exchange.incoming
                carol.session(bob).offer(carol.have(old.id))
                await carol.until(lambda: bool(carol.refusals))
            assert carol.refusals == [(admission.STALE, bob.me, "number 1 when 2 is on its way")]

    virtual(main)


def test_all_who_offered_hear_that_it_is_here(tmp_path: Path) -> None:
    """Also who offered a model and wasn't asked for it; others don't."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 4) as (alice, bob, carol, dave):
            model = alice.publish(1)
            for other in (bob, carol, dave):
                other.stock(model)
            for other in (bob, carol, dave):
                await other.dial(alice)
            async with trio.open_nursery() as nursery:
                eve = make(lab, tmp_path, 5, nursery)
                await eve.start(host_of(lab, 5))
                for other in (bob, carol, dave):
                    await eve.dial(other)
                with lab.slow(SLOW):
                    for other in (bob, carol):
                        other.session(eve).offer(model)
                    await eve.until(lambda: eve.holds(model))
                    for other in (bob, carol):
                        await other.until(lambda o=other: o.delivered_to == [eve.me])  # type: ignore[misc]
                await trio.sleep(10)
                assert dave.delivered_to == []
                nursery.cancel_scope.cancel()

    virtual(main)


def test_a_source_that_left_while_it_waited_costs_nothing(tmp_path: Path) -> None:
    """Of two that offered, the first is gone before its turn: the other is asked at once."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 3) as (alice, bob, carol):
            one = alice.publish(1)
            await bob.dial(alice)
            await carol.dial(bob)
            await bob.until(lambda: bob.holds(one))
            with lab.slow(SLOW):
                two = alice.publish(2)
                alice.exchange.announce(two)
                await trio.sleep(25 * SLOW)  # more than half of it is here
                assert bob.exchange.incoming[two.id].download.bytes_here * 2 > two.manifest.size
                three = alice.publish(3)
                alice.exchange.announce(three)
                await trio.sleep(2 * SLOW)
                carol.session(bob).offer(carol.stock(three))
                await trio.sleep(3 * SLOW)
                carol.exchange.sessions[bob.me].close("gone")
                await bob.until(lambda: bob.holds(three))
            assert not bob.rejects

    virtual(main)


def test_many_downloads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty peers send at once: sixteen at a time, and all arrive."""
    most = watch_downloads(monkeypatch)

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 21) as (bob, *others):
            for other in others:
                await other.dial(bob)
            models = [other.publish(other.number) for other in others]
            with lab.slow(SLOW):
                for other, model in zip(others, models, strict=True):
                    other.session(bob).offer(model)
                await bob.until(lambda: all(map(bob.holds, models)))
            assert not bob.rejects

    virtual(main)
    assert max(most) == downloads.DOWNLOADS_LIMIT


def test_one_peer_doesn_t_keep_the_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that offers many models and sends none of them holds only a few places."""
    most = watch_downloads(monkeypatch)

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            await bob.dial(alice)
            mallory = await rogue(lab, 9, bob)
            for author in range(20, 60):
                await mallory.say(Offer(sealed(author, manifest(noise(author, 3)))))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mallory.farewell)
                await trio.sleep(1)
                assert len(bob.exchange.incoming) == downloads.DOWNLOADS_A_PEER
                model = alice.publish(1)
                alice.exchange.announce(model)
                began = trio.current_time()
                await bob.until(lambda: bob.holds(model))
                assert trio.current_time() - began < 1
                nursery.cancel_scope.cancel()

    virtual(main)
    assert max(most) == downloads.DOWNLOADS_A_PEER + 1


def test_one_host_doesn_t_keep_the_others_out(tmp_path: Path) -> None:
    """Many peers behind one address, who may all be one, leave places to others."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob), trio.open_nursery() as nursery:
            await bob.dial(alice)
            for number in range(20, 40):
                network = lab.network(identity(number), "10.9.9.9")
                mallory = Rogue(number, await network.dial(bob.address, "peer", bob.me))
                await mallory.greet()
                await mallory.say(Offer(sealed(number, manifest(noise(number, 3)))))
                nursery.start_soon(mallory.farewell)
            await trio.sleep(1)
            assert len(bob.exchange.incoming) == downloads.DOWNLOADS_A_HOST
            model = alice.publish(1)
            alice.exchange.announce(model)
            await bob.until(lambda: bob.holds(model))
            nursery.cancel_scope.cancel()

    virtual(main)


def watch_downloads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models were on their way, whenever one began."""
    counts: list[int] = []
    begin = downloads.Downloads._begin

    def watched(self: downloads.Downloads) -> None:
        begin(self)
        counts.append(len(self.incoming))

    monkeypatch.setattr(downloads.Downloads, "_begin", watched)
    return counts


@pytest.mark.parametrize(("most", "rogues"), [(downloads.WAITING_LIMIT, 1), (10, 2)])
def test_too_many_waiting_models_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, rogues: int
) -> None:
    """What waits is bounded, for one peer and in all; the peer is told."""
    monkeypatch.setattr(downloads, "WAITING_LIMIT", most)

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 1) as (bob,), trio.open_nursery() as nursery:
            author, left = 20, most
            for number in range(rogues):
                mallory = await rogue(lab, 9 + number, bob)
                nursery.start_soon(mallory.farewell)
                waiting = min(left, downloads.WAITING_A_PEER)
                left -= waiting
                for _ in range(downloads.DOWNLOADS_A_PEER + waiting):
                    await mallory.say(Offer(sealed(author, manifest(noise(author, 3)))))
                    await trio.sleep(0.3)
                    author += 1
            assert not bob.rejects
            await mallory.say(Offer(sealed(250, manifest(noise(250, 3)))))
            await bob.until(lambda: bool(bob.rejects))
            assert bob.counts == {admission.FLOOD: 1}
            nursery.cancel_scope.cancel()

    virtual(main)
