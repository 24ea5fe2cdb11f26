"""Models between peers: each goes whole, verified, and only to whoever asked for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from fellows import CHUNK, Fellow, fellows, foreign, host_of, noise, rogue, virtual
from models import NOW

from lab import Lab
from p2pnode.transport import admission
from p2pnode.transport.exchange import WANT_LIMIT
from p2pnode.transport.link import Link
from p2pnode.transport.manifest import EXPIRY
from p2pnode.transport.messages import Hello, Offer, Want, to_bytes
from p2pnode.transport.transfer import WINDOW

# A message takes so long where a test looks at what happens in between.
SLOW = 1.0


@pytest.fixture(params=["lab", "tcp"])
def anywhere(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Run a test over the laboratory in virtual time, and over TCP and NNG as it is."""
    if request.param == "tcp":
        return lambda main: trio.run(main, None)
    request.getfixturevalue("inline_threads")
    return lambda main: virtual(main, Lab())


def test_a_model_goes_over_whole(tmp_path: Path, anywhere: Callable[..., None]) -> None:
    """Who has a model offers it; the other fetches, verifies and files it; both know."""

    async def main(lab: Lab | None) -> None:
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            model = alice.publish(1)
            await bob.dial(alice)
            await bob.until(lambda: bob.holds(model))
            await alice.until(lambda: alice.delivered_to == [bob.me])
            assert bob.filed_models == [model.id]
            assert bob.mailbox.newest(alice.me) == 1
            assert not bob.rejects
            assert not alice.rejects

    anywhere(main)


@pytest.mark.usefixtures("inline_threads")
def test_a_model_goes_only_to_who_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who can't read an encoding is offered no such model, asked or not, and we hear of it once."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 3) as (alice, bob, carol):
            monkeypatch.setattr(bob.exchange, "hello", lambda: hello_of(bob, "raw", "new"))
            await bob.dial(alice)
            await carol.dial(alice)
            packed = alice.publish(1, encoding="int8+zstd")
            assert alice.exchange.announce(packed) == {alice.session(carol)}
            await carol.until(lambda: carol.holds(packed))
            bob.exchange.want()
            for number in (2, 3):
                plain = alice.publish(number, noise(number), encoding="raw")
                alice.exchange.announce(plain)
                await bob.until(lambda plain=plain: bob.holds(plain))  # type: ignore[misc]
            assert packed.id not in bob.filed_models
            ((reason, peer, detail),) = alice.refusals
            assert (reason, peer) == (admission.ENCODING, bob.me)
            assert detail.endswith("can't read the encoding int8+zstd")

    virtual(main)


async def hello_of(fellow: Fellow, *encodings: str) -> Hello:
    """The hello of one that reads these encodings."""
    return Hello(fellow.run, 0, encodings)


@pytest.mark.usefixtures("inline_threads")
@pytest.mark.parametrize("chunks", [1 / CHUNK, 1.0, 1 + 1 / CHUNK, WINDOW, 3 * WINDOW + 0.5])
def test_models_of_any_size(tmp_path: Path, chunks: float) -> None:
    """One byte, a whole number of chunks, more than the first credit: byte for byte."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2) as (alice, bob):
            model = alice.publish(1, noise(1, chunks))
            await bob.dial(alice)
            await bob.until(lambda: bob.holds(model))

    virtual(main)


def test_each_model_goes_to_exactly_the_peers_that_asked(
    tmp_path: Path, anywhere: Callable[..., None]
) -> None:
    """All know all and all send at once: each gets each model once and nothing else. (With one
    socket for all peers, the prototype sent 27 of 28 models to the wrong one.)"""

    async def main(lab: Lab | None) -> None:
        async with fellows(lab, tmp_path, 6) as everyone:
            for number, fellow in enumerate(everyone):
                for other in everyone[:number]:
                    await fellow.dial(other)
            models = {fellow.me: fellow.publish(fellow.number) for fellow in everyone}
            for fellow in everyone:
                fellow.exchange.announce(models[fellow.me])
            for fellow in everyone:
                others = [model for peer, model in models.items() if peer != fellow.me]
                await fellow.until(lambda f=fellow, o=others: all(map(f.holds, o)))  # type: ignore[misc]
                await fellow.until(lambda f=fellow: len(f.delivered_to) == 5)  # type: ignore[misc]
                assert sorted(fellow.filed_models) == sorted(model.id for model in others)
                assert sorted(fellow.delivered_to) == sorted(set(models) - {fellow.me})
                assert not fellow.rejects

    anywhere(main)


@pytest.mark.usefixtures("inline_threads")
def test_a_model_is_offered_to_some(tmp_path: Path) -> None:
    """`announce` says to whom: `fan_out` of the peers, and they alone get it."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 6, fan_out=2) as everyone:
            alice, *others = everyone
            for other in others:
                await other.dial(alice)
            chosen = {s.peer for s in alice.exchange.announce(alice.publish(1))}
            await alice.until(lambda: len(alice.delivered_to) == 2)
            assert chosen == set(alice.delivered_to)
            assert [bool(o.filed_models) for o in others] == [o.me in chosen for o in others]

    virtual(main)


@pytest.mark.usefixtures("inline_threads")
def test_a_newcomer_gets_the_newest_of_all(tmp_path: Path) -> None:
    """`want` is answered with the newest models that are here, the peer's own first."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2) as (alice, bob):
            made = {
                n: alice.stock(
                    foreign(10 + n, 1, tmp_path, created=NOW - n, expires=NOW + EXPIRY - n)
                )
                for n in range(12)
            }
            own = alice.publish(1)
            await bob.dial(alice)
            bob.exchange.want()
            expected = [own, *(made[n] for n in range(WANT_LIMIT - 1))]
            await bob.until(lambda: all(map(bob.holds, expected)))
            await alice.until(lambda: not alice.session(bob).outgoing.open)
            assert len(bob.filed_models) == WANT_LIMIT
            assert not bob.rejects

    virtual(main)


@pytest.mark.usefixtures("inline_threads")
def test_nobody_is_offered_its_own_model(tmp_path: Path) -> None:
    """`want` isn't answered with the asker's model; who gets its own back refuses it."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2) as (alice, bob):
            model = alice.stock(foreign(bob.number, 1, tmp_path))
            await bob.dial(alice)
            bob.exchange.want()
            alice.session(bob).offer(model)
            await alice.until(lambda: bool(alice.refusals))
            assert alice.refusals == [(admission.STALE, bob.me, "a model of my own")]
            assert bob.counts == {admission.STALE: 1}

    virtual(main)


@pytest.mark.usefixtures("inline_threads")
@pytest.mark.parametrize("expired", [False, True])
def test_an_expired_model_is_not_offered(tmp_path: Path, expired: bool) -> None:
    """What an earlier run left days ago is no news: nobody is told of it, nor waits for it."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            made = NOW - 2 * EXPIRY if expired else NOW
            fields = {"epoch": 4, "created": made, "expires": made + EXPIRY}
            own = alice.publish(1, **fields)
            alice.stock(foreign(9, 1, tmp_path, **fields))
            await bob.dial(alice)
            bob.exchange.want()
            if not expired:
                await bob.until(lambda: len(bob.filed_models) == 2 and bob.holds(own))
            await trio.sleep(10)
            hello = bob.session(alice).hello
            assert hello is not None and hello.epoch == (0 if expired else 4)
            assert not bob.rejects and not alice.refusals

    virtual(main)


@pytest.mark.usefixtures("inline_threads")
def test_what_is_here_is_not_fetched_again(tmp_path: Path) -> None:
    """The same model offered again is answered with `done`."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2) as (alice, bob):
            model = alice.publish(1)
            await bob.dial(alice)
            await alice.until(lambda: alice.delivered_to == [bob.me])
            received = bob.session(alice).bytes_in
            alice.exchange.announce(model)
            await alice.until(lambda: alice.delivered_to == [bob.me] * 2)
            assert bob.session(alice).bytes_in - received < CHUNK
            assert bob.filed_models == [model.id]

    virtual(main)


@pytest.mark.usefixtures("inline_threads")
def test_a_broken_transfer_goes_on_from_what_is_on_disk(tmp_path: Path) -> None:
    """After the line is back only what wasn't verified is sent again: at most the credit."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            model = alice.publish(1, noise(1, 60))
            with lab.slow(SLOW):
                await bob.dial(alice)
                await trio.sleep(45 * SLOW)
            session, here = bob.session(alice), bob.exchange.incoming[model.id].download.bytes_here
            assert here > 10 * CHUNK
            with lab.cut(host_of(lab, 1)):
                await bob.until(lambda: alice.me not in bob.exchange.sessions)
            await alice.until(lambda: bob.me not in alice.exchange.sessions)
            first = session.bytes_in
            await bob.dial(alice)
            await bob.until(lambda: bob.holds(model))
            second = bob.session(alice).bytes_in
            assert second <= model.manifest.size - here + 8192
            assert first + second <= model.manifest.size + WINDOW * CHUNK + 2 * 8192
            assert not bob.rejects

    virtual(main)


@pytest.mark.usefixtures("inline_threads")
@pytest.mark.parametrize("flood", [Offer(b"garbage"), Want()])
def test_a_flood_of_offers_ends_the_session(tmp_path: Path, flood: Offer | Want) -> None:
    """More offers, or requests for some, than any node makes: counted once, told, and over;
    other peers notice nothing."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            model = bob.publish(1)
            mallory = await rogue(lab, 9, alice)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drown, mallory.link, flood)
                assert await mallory.farewell() == "too many offers"
                nursery.cancel_scope.cancel()
            await alice.until(lambda: alice.ends == ["too many offers"])
            assert alice.counts[admission.FLOOD] == 1
            await alice.dial(bob)
            await alice.until(lambda: alice.holds(model))

    virtual(main)


async def drown(link: Link, message: Offer | Want) -> None:
    """Say the same for ever."""

    while True:
        await link.send(to_bytes(message))


@pytest.mark.usefixtures("inline_threads")
def test_offers_at_a_human_pace_are_no_flood(tmp_path: Path) -> None:
    """Four a second may go on for ever."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 1) as (alice,):
            mallory = await rogue(lab, 9, alice)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mallory.farewell)
                for _ in range(400):
                    await mallory.say(Want())
                    await trio.sleep(0.25)
                assert alice.rejects == []
                nursery.cancel_scope.cancel()

    virtual(main)


@pytest.mark.usefixtures("inline_threads")
def test_sessions_from_an_address_that_is_gone_end_at_once(tmp_path: Path) -> None:
    """No waiting for the kernel to find out; those from other addresses go on."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2) as (alice, bob):
            await bob.dial(alice)
            await bob.until(lambda: len(bob.exchange.met()) == 1)
            (session,) = bob.exchange.met()
            bob.exchange.drop_from({"10.99.99.99"})
            assert bob.exchange.met() == [session]
            bob.exchange.drop_from({session.link.local.host})
            assert "address" in session.ending
            await bob.until(lambda: not bob.exchange.sessions)

    virtual(main)
