"""Which links become sessions: one a peer, of the same run, as long as there is room."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from fellows import RUN, Fellow, fellows, host_of, make, rogue, virtual
from models import SCHEMA

from lab import Lab
from p2pnode.transport import admission
from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.exchange import LEFT
from p2pnode.transport.messages import Done, Run

pytestmark = pytest.mark.usefixtures("inline_threads")


def check_both_dial(folder: Path, schedule: int) -> Callable[[Lab | None], Awaitable[None]]:
    """Two links cross: one session stays on both sides, over the same link, and it works."""

    async def main(lab: Lab | None) -> None:
        async with fellows(lab, folder, 2) as (alice, bob):
            pairs = [(alice, bob), (bob, alice)]
            async with trio.open_nursery() as nursery:
                for n, (me, other) in enumerate(pairs):
                    nursery.start_soon(dial_later, me, other, schedule * n % 5)
            for me, other in pairs:
                await me.until(lambda m=me, o=other: m.agreed_with(o))  # type: ignore[misc]
                await me.until(lambda m=me: len(m.ends) == 1)  # type: ignore[misc]
            model = alice.publish(1)
            alice.exchange.announce(model)
            await bob.until(lambda: bob.holds(model))
            await alice.until(lambda: alice.delivered_to == [bob.me])
            assert alice.session(bob).link.dialled != bob.session(alice).link.dialled
            assert {*alice.ends, *bob.ends} <= {"connected anew", "already connected"}

    return main


@pytest.mark.parametrize("schedule", range(25))
def test_both_dial_at_once(tmp_path: Path, schedule: int) -> None:
    """In whatever order things happen exactly one session stays."""
    virtual(check_both_dial(tmp_path, schedule), Lab(), schedule=schedule)


def test_both_dial_at_once_over_tcp(tmp_path: Path) -> None:
    """The same over real sockets."""
    trio.run(check_both_dial(tmp_path, 0), None)


async def dial_later(me: Fellow, other: Fellow, checkpoints: int) -> None:
    """Dial without waiting for the outcome."""
    for _ in range(checkpoints):
        await trio.lowlevel.checkpoint()
    link = await me.network.dial(other.address, "peer", other.me)
    me.nursery.start_soon(me._serve, link)


def test_a_peer_that_comes_anew_is_served(tmp_path: Path) -> None:
    """A second link that the same side dialled takes the place of the first: it restarted."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 1) as (alice,):
            before = await rogue(lab, 9, alice)
            after = await rogue(lab, 9, alice)
            with pytest.raises(LinkClosed):
                await before.hear(Done)
            assert alice.ends == ["connected anew"]
            assert alice.exchange.sessions[after.me].agreed

    virtual(main)


def test_our_own_address_is_told(tmp_path: Path) -> None:
    """A node that dials itself says so and goes on."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 1) as (alice,):
            await alice.dial_only(alice)
            await trio.sleep(2)
            assert alice.ends == ["this is our own address"] * 2
            assert alice.exchange.sessions == {}

    virtual(main)


def test_a_full_node_turns_peers_away(tmp_path: Path) -> None:
    """Who finds no room is told; when somebody leaves there is room again."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 1, max_peers=2) as (alice,):
            one, _two = await rogue(lab, 8, alice), await rogue(lab, 9, alice)
            three = await rogue(lab, 10, alice, greets=False)
            assert await three.farewell() == "no room for more peers"
            await one.link.aclose()
            await alice.until(lambda: len(alice.exchange.sessions) == 1)
            four = await rogue(lab, 10, alice)
            assert four.me in alice.exchange.sessions

    virtual(main)


@pytest.mark.parametrize(
    ("theirs", "mine_says", "theirs_say"),
    [
        (
            Run("cifar", "mnist", SCHEMA, 1000, RUN.tensors),
            "swarm: mine 'main', theirs 'cifar'",
            "swarm: mine 'cifar', theirs 'main'",
        ),
        (
            Run("main", "resnet", bytes([1]) * 32, 7, ("weight float32 [7]",)),
            "task: mine 'mnist', theirs 'resnet'; model: mine 1,000 parameters, theirs 7;"
            " only mine has weight float32 [10,100]; only theirs has weight float32 [7]",
            "task: mine 'resnet', theirs 'mnist'; model: mine 7 parameters, theirs 1,000;"
            " only mine has weight float32 [7]; only theirs has weight float32 [10,100]",
        ),
    ],
)
def test_another_run_is_told_on_both_sides(
    tmp_path: Path, theirs: Run, mine_says: str, theirs_say: str
) -> None:
    """Peers that train something else part, and each side reads the difference from its view."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 1) as (alice,), trio.open_nursery() as nursery:
            bob = make(lab, tmp_path, 2, nursery, run=theirs)
            await bob.start(host_of(lab, 2))
            await bob.dial_only(alice)
            await alice.until(lambda: bool(alice.ends))
            await bob.until(lambda: bool(bob.ends))
            assert alice.rejects == [(admission.RUN, bob.me, mine_says)]
            assert bob.rejects == [(admission.RUN, alice.me, theirs_say)]
            assert alice.ends == [f"another run: {mine_says}"]
            assert bob.ends == [f"another run: {theirs_say}"]
            assert not alice.met_with
            assert not bob.met_with
            nursery.cancel_scope.cancel()

    virtual(main)


def test_peers_meet_once_both_have_their_model(tmp_path: Path) -> None:
    """A peer that still builds its model is waited for; then both meet and exchange."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 1) as (alice,), trio.open_nursery() as nursery:
            bob = make(lab, tmp_path, 2, nursery)
            await bob.start(host_of(lab, 2), agreed=False)
            model = alice.publish(1)
            await bob.dial_only(alice)
            await trio.sleep(60)
            assert not alice.met_with
            assert not bob.met_with
            bob.agree()
            await bob.until(lambda: bob.holds(model))
            nursery.cancel_scope.cancel()

    virtual(main)


async def check_leaving(lab: Lab | None, folder: Path) -> None:
    """Who leaves tells all peers why and is gone at once; nobody is let in any more."""
    async with fellows(lab, folder, 3) as (alice, bob, carol):
        for other in (bob, carol):
            await other.dial(alice)
        with trio.fail_after(1):
            await alice.exchange.leave()
        for other in (bob, carol):
            await other.until(lambda o=other: o.ends == [LEFT])  # type: ignore[misc]
        await bob.dial_only(alice)
        await bob.until(lambda: len(bob.ends) == 2)
        assert bob.ends[1] == "this node is stopping"


def test_leaving_is_told_and_soon_over(tmp_path: Path) -> None:
    """Who leaves tells all peers why and is gone at once; nobody is let in any more."""
    virtual(check_leaving, Lab(), tmp_path)


def test_leaving_over_tcp(tmp_path: Path) -> None:
    """The same over real sockets."""
    trio.run(check_leaving, None, tmp_path)


def test_leaving_waits_for_nobody(tmp_path: Path) -> None:
    """A peer that doesn't close is left alone after a second."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 1) as (alice,):
            await rogue(lab, 9, alice)
            began = trio.current_time()
            await alice.exchange.leave()
            assert trio.current_time() - began < 1.5

    virtual(main)
