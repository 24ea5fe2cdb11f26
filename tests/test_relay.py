"""A relay: models between peers that can't reach each other, or are never there together."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from fellows import CHUNK, RUN, Fellow, Rogue, fellows, host_of, noise, virtual
from golden import golden
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import NOW, manifest, sealed
from relaying import Place, leave, place, scene, store

from lab import Lab, identity
from p2pnode.transport import admission, checker, downloads, shelf
from p2pnode.transport import relay as module
from p2pnode.transport.bucket import Bucket
from p2pnode.transport.downloads import DOWNLOADS_A_HOST, DOWNLOADS_LIMIT
from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.link import Piece
from p2pnode.transport.manifest import EXPIRY
from p2pnode.transport.messages import (
    RELAY_RUN,
    Credit,
    Done,
    Fetch,
    Gone,
    Hello,
    Message,
    Offer,
    Ping,
    Reject,
    Run,
    Stop,
    Want,
    to_bytes,
)
from p2pnode.transport.session import OFFERS_BURST, OFFERS_PER_SECOND
from p2pnode.transport.transfer import WINDOW

pytestmark = pytest.mark.usefixtures("inline_threads")

RUN_SYNC = trio.to_thread.run_sync  # the real one
# A message takes so long where a test looks at what happens in between.
SLOW = 1.0
PAGE = Path(__file__).parent.parent / "docs/protocol/relay.md"


def test_the_docs_tell_every_limit() -> None:
    """The numbers of docs/protocol/relay.md are those of the code."""
    modules = (module, shelf, checker, downloads)
    told = dict(re.findall(r"\| `([A-Z_]+)` \| ([0-9.]+) \|", PAGE.read_text()))
    code = {n: float(getattr(m, n)) for n in told for m in modules if hasattr(m, n)}
    assert {name: float(value) for name, value in told.items()} == code
    assert len(code) > 10
    assert module.WANT_LIMIT == downloads.WAITING_A_RELAY


def test_the_golden_hello() -> None:
    """What a relay says of itself has the bytes of docs/protocol/relay.md."""
    assert to_bytes(Hello(RELAY_RUN, 0)) == golden("relay-hello")


@pytest.fixture(params=["lab", "tcp"])
def anywhere(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Run a test over the laboratory in virtual time, and over TCP and NNG as it is."""
    if request.param == "tcp":
        monkeypatch.setattr(trio.to_thread, "run_sync", RUN_SYNC)
        return lambda main: trio.run(main, None)
    return lambda main: virtual(main, Lab())


def test_two_peers_that_are_never_online_together(
    tmp_path: Path, anywhere: Callable[..., None]
) -> None:
    """The author stores its model and goes; who comes later gets it, byte for byte."""

    async def main(lab: Lab | None) -> None:
        async with place(lab, tmp_path) as relay, fellows(lab, tmp_path, 2) as (alice, bob):
            model = alice.publish(1)
            await relay.join(alice)
            await alice.until(lambda: alice.stored_at == [(relay.me, model.id)])
            leave(relay, alice)
            await alice.until(lambda: not alice.exchange.relays)
            await relay.until(lambda: relay.relay.status.clients == 0)
            await relay.join(bob)
            await bob.until(lambda: bob.holds(model))
            assert bob.relays_met == [relay.me]
            assert not bob.met_with and not bob.exchange.met()
            assert not alice.rejects and not bob.rejects and not relay.rejects

    anywhere(main)


def test_a_new_model_reaches_the_others_at_once(
    tmp_path: Path, anywhere: Callable[..., None]
) -> None:
    """`announce` offers to peers and relays; the relay offers to the others of the run."""

    async def main(lab: Lab | None) -> None:
        async with place(lab, tmp_path) as relay, fellows(lab, tmp_path, 3) as everyone:
            alice, bob, carol = everyone
            for fellow in everyone:
                await relay.join(fellow)
            for seq in (1, 2):
                model = alice.publish(seq)
                assert alice.exchange.announce(model) == {relay.of(alice)}
                for other in (bob, carol):
                    await other.until(lambda o=other, m=model: o.holds(m))  # type: ignore[misc]
                await alice.until(lambda m=model: (relay.me, m.id) in alice.stored_at)  # type: ignore[misc]
            assert alice.exchange.in_use() == {relay.of(alice)}
            assert not any(fellow.rejects or fellow.refusals for fellow in everyone)
            assert relay.relay.status.models == 1

    anywhere(main)


# ── who may store what ───────────────────────────────────────────────────────────────────────


def test_only_an_author_stores_its_model(tmp_path: Path) -> None:
    """Another's envelope is refused, however well it is signed."""

    async def check(lab: Lab, relay: Place, alice: Fellow) -> None:
        mallory = await relay.rogue(lab, 9)
        await mallory.say(Offer(alice.publish(1).envelope))
        assert (await mallory.hear(Reject)).reason == admission.AUTHOR
        assert relay.rejects == {admission.AUTHOR: 1}
        own = sealed(9, manifest(noise(9)))
        await mallory.say(Offer(own))
        assert (await mallory.hear(Fetch)).model == admission.identify(own)

    scene(tmp_path, check, 1)


def test_members_only(tmp_path: Path) -> None:
    """Who isn't a member of the swarm is told, and parted from; who is none any more stores no
    model."""

    async def check(lab: Lab, relay: Place, alice: Fellow) -> None:
        relay.strangers.add((alice.me, "main"))
        await relay.dial(alice)
        await alice.until(lambda: len(alice.ends) == 1)
        assert alice.ends == [
            "this relay doesn't serve you in swarm 'main': it serves members only"
        ]
        assert relay.rejects == {admission.MEMBER: 1}
        relay.strangers.clear()
        session = await relay.join(alice)
        relay.strangers.add((alice.me, "main"))
        alice.exchange.announce(alice.publish(1))
        await alice.until(lambda: len(alice.refusals) == 1)
        assert alice.refusals[0][:2] == (admission.MEMBER, relay.me)
        assert session.agreed and not session.ending

    scene(tmp_path, check, 1)


def test_relays_don_t_serve_relays(tmp_path: Path) -> None:
    """Its run is none that anybody could be a member of."""

    async def check(lab: Lab, relay: Place) -> None:
        other = await relay.rogue(lab, 9, greets=False)
        await other.say(Hello(RELAY_RUN, 0))
        assert (await other.hear(Hello)).run == RELAY_RUN
        assert "members only" in await other.farewell()

    scene(tmp_path, check, 0)


@pytest.mark.parametrize("other", ["swarm", "schema"])
def test_runs_are_kept_apart(tmp_path: Path, other: str) -> None:
    """A client gets no model of another run, asks as it may; and stores none."""
    run = Run(
        "other" if other == "swarm" else "main", "mnist", bytes([other == "schema"]) * 32, 9, ()
    )

    async def check(lab: Lab, relay: Place, alice: Fellow, bob: Fellow) -> None:
        model = await store(relay, alice)
        mallory = await relay.rogue(lab, 9, greets=False)
        await mallory.greet(run)
        await mallory.say(Want(), Fetch(1, model.id, ((0, 1),), WINDOW))
        assert (await mallory.hear(Gone)).transfer == 1
        alice.exchange.announce(newer := alice.publish(2))
        await alice.until(lambda: (relay.me, newer.id) in alice.stored_at)
        await mallory.say(Offer(sealed(9, manifest(noise(9)))))
        assert (await mallory.hear(Reject)).reason == other
        await relay.join(bob)
        await bob.until(lambda: bob.holds(newer))

    scene(tmp_path, check, 2)


@pytest.mark.parametrize("what", ["large", "padded", "future", "stale", "garbage", "forged"])
def test_what_is_not_taken(tmp_path: Path, what: str) -> None:
    """As a peer checks offers, against the client's own run and the relay's quota."""

    async def check(lab: Lab, relay: Place) -> None:
        mallory = await relay.rogue(lab, 9)
        data = noise(9, 2)
        await mallory.say(Offer(sealed(9, manifest(data, seq=5))))
        fetch = await mallory.hear(Fetch)
        offers = {
            "large": sealed(9, manifest(noise(9, 26), seq=6)),
            "padded": sealed(9, manifest(data, seq=6, parents=(bytes(32),) * 256)),
            "future": sealed(9, manifest(data, seq=6, created=NOW + 1e4, expires=NOW + 2e4)),
            "stale": sealed(9, manifest(data, seq=4)),
            "garbage": b"garbage",
            "forged": sealed(9, manifest(data, seq=6))[:-1] + b"x",
        }
        reasons = {
            "large": admission.MANIFEST,
            "padded": admission.MANIFEST,
            "future": admission.EXPIRED,
            "stale": admission.STALE,
            "garbage": admission.GARBAGE,
            "forged": admission.SIGNATURE,
        }
        await mallory.say(Offer(offers[what]))
        answer = await mallory.hear(Reject)
        assert answer == Reject(admission.identify(offers[what]), reasons[what], answer.detail)
        assert fetch.transfer == 1 and list(relay.relay._intake.incoming) == [fetch.model]

    if what == "padded":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "PADDING", 4096)
            scene(tmp_path, check, 0)
    else:
        scene(tmp_path, check, 0, space=100 * CHUNK)


def test_the_same_model_again(tmp_path: Path) -> None:
    """It is here: done, without a byte."""

    async def check(lab: Lab, relay: Place, alice: Fellow) -> None:
        model = await store(relay, alice)
        received = relay.relay.status.bytes_in
        leave(relay, alice)
        await alice.until(lambda: not alice.exchange.relays)
        await relay.join(alice)
        await alice.until(lambda: alice.stored_at == [(relay.me, model.id)] * 2)
        assert relay.relay.status.bytes_in - received < CHUNK

    scene(tmp_path, check, 1)


# ── what is offered to whom ──────────────────────────────────────────────────────────────────


def test_a_new_model_is_offered_to_some(tmp_path: Path) -> None:
    """FAN_OUT of the others, chosen anew each time; who asks gets it, too; nobody its own."""

    async def check(_lab: Lab, relay: Place, alice: Fellow, *others: Fellow) -> None:
        for fellow in (alice, *others):
            await relay.join(fellow)
        groups = set()
        for seq in (1, 2, 3):
            model = await store(relay, alice, seq)
            await trio.sleep(60)
            got = {fellow.number for fellow in others if fellow.holds(model)}
            assert len(got) == module.FAN_OUT
            groups.add(frozenset(got))
        assert len(groups) == 3
        late = next(fellow for fellow in others if not fellow.holds(model))
        relay.of(late).say(Want())
        await late.until(lambda: late.holds(model))
        relay.of(alice).say(Want())
        await trio.sleep(10)
        assert not relay.rejects and not alice.rejects

    scene(tmp_path, check, 12)


def test_a_newcomer_gets_the_newest_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once up to WANT_LIMIT, the newest; they find room in its queue."""
    monkeypatch.setattr(module, "WANT_LIMIT", 8)

    async def check(_lab: Lab, relay: Place, bob: Fellow, *authors: Fellow) -> None:
        for author in authors:
            relay.now += 1
            await store(relay, author)
            leave(relay, author)
        await relay.join(bob)
        await bob.until(lambda: len(bob.filed_models) == 8)
        await trio.sleep(60)
        assert {held.peer for held in bob.mailbox.models()} == {a.me for a in authors[-8:]}
        assert not bob.rejects

    scene(tmp_path, check, 12)


def test_offers_keep_the_pace_that_clients_bear(tmp_path: Path) -> None:
    """However many models come in, a client is told of each author's newest, and never floods."""

    async def check(lab: Lab, relay: Place, *authors: Fellow) -> None:
        mallory = await relay.rogue(lab, 200)
        bears, heard = Bucket(OFFERS_PER_SECOND, OFFERS_BURST), 0
        for author in authors:
            await relay.join(author)
        async with trio.open_nursery() as nursery:

            async def train(author: Fellow) -> None:
                for seq in range(1, 30):
                    await store(relay, author, seq, data=noise(seq, 1))
                    await trio.sleep(0.5)

            for author in authors:
                nursery.start_soon(train, author)
            with trio.move_on_after(60):
                while True:
                    await mallory.hear(Offer)
                    assert not bears.wait(trio.current_time())
                    heard += 1
            nursery.cancel_scope.cancel()
        assert 60 < heard <= 48 + 60 * 3
        assert not any(author.rejects for author in authors)

    scene(tmp_path, check, 8)


# ── many, slow and hostile clients ───────────────────────────────────────────────────────────


def test_many_store_at_once(tmp_path: Path) -> None:
    """More than come in at the same time wait, and none is refused; those of one host, who may all
    be one, leave places to others."""

    async def check(lab: Lab, relay: Place, alice: Fellow) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(100, 190):
                host = "10.9.9.9" if number < 150 else host_of(lab, number)
                network = lab.network(identity(number), host)
                author = Rogue(number, await network.dial(relay.address, "relay"))
                await author.greet()
                await author.say(Offer(sealed(number, manifest(noise(number, 1)))))
                nursery.start_soon(author.farewell)
                if number == 149:
                    await trio.sleep(0.1)
                    assert len(relay.relay._intake.incoming) == DOWNLOADS_A_HOST
                    await store(relay, alice)
            await trio.sleep(0.1)
            assert len(relay.relay._intake.incoming) == DOWNLOADS_LIMIT
            assert not relay.rejects
            assert relay.relay.status.clients == 91
            nursery.cancel_scope.cancel()

    scene(tmp_path, check, 1)


@pytest.mark.parametrize("limit", ["CLIENTS", "CLIENTS_A_HOST"])
def test_clients_are_few(tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all, and from one host; who is turned away is told why. Who comes again has a place."""
    monkeypatch.setattr(module, limit, 2)

    async def check(lab: Lab, relay: Place, alice: Fellow, bob: Fellow) -> None:
        def from_host(number: int) -> Any:
            return lab.network(identity(number), "10.0.0.2" if limit == "CLIENTS_A_HOST" else "x.y")

        await relay.join(bob)
        await from_host(20).dial(relay.address, "relay")
        third = await from_host(21).dial(relay.address, "relay")
        assert b"no room for more clients" in await third.receive()
        await relay.until(lambda: relay.rejects == {admission.FLOOD: 1})
        await relay.dial(bob)
        await bob.until(lambda: bob.ends == ["connected anew"])
        await relay.until(lambda: relay.relay.status.clients == 2)
        if limit == "CLIENTS_A_HOST":
            await relay.join(alice)

    scene(tmp_path, check, 2)


@pytest.mark.parametrize(("flood", "reason"), [(Offer(b"x"), "flood"), (Want(), "flood")])
def test_a_flood_ends_the_session(tmp_path: Path, flood: Any, reason: str) -> None:
    """Counted, told, over; others notice nothing, and the log isn't flooded either."""

    async def check(lab: Lab, relay: Place, alice: Fellow) -> None:
        for number in range(5):
            mallory = await relay.rogue(lab, 20 + number)
            await mallory.say(*[flood] * 70)
            assert await mallory.farewell() == "too many offers"
        assert relay.rejects[reason] == 5
        assert len(relay.lines) <= module.LINES_BURST + 1
        await store(relay, alice)

    scene(tmp_path, check, 1)


def test_garbage_ends_the_session(tmp_path: Path) -> None:
    """Before hello at once."""

    async def check(lab: Lab, relay: Place, alice: Fellow) -> None:
        mallory = await relay.rogue(lab, 9, greets=False)
        await mallory.say(b"\xff\x00")
        await mallory.farewell()
        assert relay.rejects == {admission.GARBAGE: 1}
        early = await relay.rogue(lab, 10, greets=False)
        await early.say(Want())
        assert "before both sides" in await early.farewell()
        await store(relay, alice)

    scene(tmp_path, check, 1)


def test_a_slow_reader_hurts_only_itself(tmp_path: Path) -> None:
    """One asks for a model and reads nothing: the others get it meanwhile."""

    async def check(lab: Lab, relay: Place, alice: Fellow, bob: Fellow) -> None:
        model = await store(relay, alice)
        mallory = await relay.rogue(lab, 9)
        for transfer in range(1, 9):
            await mallory.say(Fetch(transfer, model.id, ((0, 20),), 1000))
        began = trio.current_time()
        await relay.join(bob)
        await bob.until(lambda: bob.holds(model))
        assert trio.current_time() - began < 5
        assert "slow" not in relay.rejects
        await trio.sleep(200)
        assert relay.rejects == {admission.SLOW: 1}

    scene(tmp_path, check, 2)


# ── what lasts ───────────────────────────────────────────────────────────────────────────────


def test_a_slow_line_gets_models_of_a_fast_trainer(tmp_path: Path) -> None:
    """The author replaces its model faster than the line to the other carries it: the relay goes on
    with the one that was begun, and the other doesn't break it off."""

    async def check(lab: Lab, relay: Place, alice: Fellow, bob: Fellow) -> None:
        await relay.join(alice)
        await relay.join(bob)
        models = []
        with lab.slow(SLOW):
            for seq in range(1, 25):
                models.append(alice.publish(seq))
                alice.exchange.announce(models[-1])
                await trio.sleep(10 * SLOW)
            assert len(bob.filed_models) >= 4
            await bob.until(lambda: bob.holds(models[-1]))
        assert not bob.rejects and not relay.rejects
        await trio.sleep(10)
        assert relay.shelf.taken == models[-1].manifest.size

    scene(tmp_path, check, 2)


def test_a_relay_that_dawdles_gives_way_to_the_author(tmp_path: Path) -> None:
    """It can hold a model back only from those who get it nowhere else."""

    async def check(lab: Lab, relay: Place, alice: Fellow, bob: Fellow) -> None:
        old = await store(relay, alice)
        new = alice.publish(2)
        with lab.slow(SLOW):
            await relay.join(bob)
            await trio.sleep(10 * SLOW)
            assert old.id in bob.exchange.incoming
            await bob.dial(alice)
            await bob.until(lambda: bob.holds(new))
        assert bob.filed_models == [new.id]
        assert not bob.rejects

    scene(tmp_path, check, 2)


def test_a_restart(tmp_path: Path) -> None:
    """Everything is there again."""

    async def check(_lab: Lab, relay: Place, alice: Fellow, bob: Fellow) -> None:
        model = await store(relay, alice)
        relay.stop()
        await alice.until(lambda: not alice.exchange.relays)
        await relay.start(host_of(Lab(), relay.number))
        assert relay.relay.status.models == 1
        await relay.join(bob)
        await bob.until(lambda: bob.holds(model))
        assert not relay.lines

    scene(tmp_path, check, 2)


def test_a_lost_relay_costs_what_was_not_verified(tmp_path: Path) -> None:
    """Both ways: what the relay has of an author, and what a peer has of the relay, needn't come
    again."""

    async def check(lab: Lab, relay: Place, alice: Fellow, bob: Fellow) -> None:
        model = alice.publish(1, noise(1, 60))
        with lab.slow(SLOW):
            await relay.join(alice)
            await trio.sleep(45 * SLOW)
            (coming,) = relay.relay._intake.incoming.values()
            here = coming.download.bytes_here
            assert here > 10 * CHUNK
            with lab.cut(host_of(lab, alice.number)):
                await alice.until(lambda: not alice.exchange.relays)
            await relay.until(lambda: not relay.relay.status.clients)
        await relay.join(alice)
        await alice.until(lambda: bool(alice.stored_at))
        assert relay.of(alice).bytes_out <= model.manifest.size - here + 8192
        with lab.slow(SLOW):
            await relay.join(bob)
            await trio.sleep(45 * SLOW)
            here = bob.exchange.incoming[model.id].download.bytes_here
            assert here > 10 * CHUNK
            with lab.cut(host_of(lab, relay.number)):
                await bob.until(lambda: not bob.exchange.relays)
            await relay.until(lambda: not relay.relay.status.clients)
        session = await relay.join(bob)
        await bob.until(lambda: bob.holds(model))
        assert session.bytes_in <= model.manifest.size - here + 8192
        assert not bob.rejects and not alice.rejects and not relay.rejects

    scene(tmp_path, check, 2)


def test_a_folder_that_can_t_be_tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and the relay goes on."""

    def tidy(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shelf.Shelf, "tidy", tidy)

    async def check(_lab: Lab, relay: Place, alice: Fellow) -> None:
        await trio.sleep(module.TIDY_SECONDS)
        await relay.until(lambda: bool(relay.lines))
        assert relay.lines[0] == "relay: can't tidy the folder: Permission denied"
        await store(relay, alice)

    scene(tmp_path, check, 1)


@pytest.mark.parametrize("why", ["expired", "full"])
def test_who_reads_a_model_that_goes_is_told(tmp_path: Path, why: str) -> None:
    """It has expired, or was replaced and its room is needed."""

    async def check(lab: Lab, relay: Place, alice: Fellow, bob: Fellow, carol: Fellow) -> None:
        model = await store(relay, alice)
        mallory = await relay.rogue(lab, 9)
        await mallory.say(Fetch(3, model.id, ((0, 5),), 1))
        if why == "expired":
            relay.now = NOW + EXPIRY + 1
        else:
            for fellow in (alice, bob, carol):
                await store(relay, fellow, 2)
                assert relay.shelf.taken <= relay.space
            assert relay.shelf.find(model.id) is None
            await store(relay, bob, 3)
        assert (await mallory.hear(Gone)).transfer == 3

    scene(tmp_path, check, 3, space=88 * CHUNK)


DATA = noise(9, 2)
MODEL = sealed(9, manifest(DATA, seq=1))
ID = admission.identify(MODEL)
FRAMES = st.one_of(
    st.binary(max_size=100),
    st.builds(Piece, st.integers(0, 2), st.integers(0, 2), st.just(0), st.just(DATA[:CHUNK])),
    st.sampled_from(
        [
            *(Hello(RUN, 1), Want(), Offer(MODEL), Offer(b"x"), Ping(1), Credit(1, 8), Stop(1)),
            *(Offer(sealed(9, manifest(noise(9, 1), seq=2))), Gone(1), Done(ID)),
            *(Reject(ID, "digest", "x"), Fetch(1, ID, ((0, 1),), 8), Fetch(2, ID, ((9, 9),), 8)),
        ]
    ),
)


@given(st.lists(FRAMES, max_size=12), st.booleans(), st.integers(0, 2**16))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_frames_leave_the_others_unharmed(
    tmp_path_factory: pytest.TempPathFactory,
    frames: list[bytes | Piece | Message],
    greets: bool,
    schedule: int,
) -> None:
    """Whatever a client says in whatever order: nothing is raised, what lies there is whole, and
    other clients exchange their models."""

    async def check(lab: Lab, relay: Place, alice: Fellow, bob: Fellow) -> None:
        mallory = await relay.rogue(lab, 9, greets=greets)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mallory.farewell)
            with suppress(LinkClosed):
                await mallory.say(*frames)
            model = await store(relay, alice)
            await relay.join(bob)
            await bob.until(lambda: bob.holds(model))
            nursery.cancel_scope.cancel()
        assert all(shelf.intact(held) for held in relay.shelf.held())
        assert {held.peer for held in relay.shelf.held()} <= {alice.me, identity(9).peer_id}

    scene(tmp_path_factory.mktemp("any"), check, 2, schedule=schedule)
