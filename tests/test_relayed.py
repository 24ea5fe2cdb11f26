"""A node's side of relays: its own model goes there, and those of others come from there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from fellows import Fellow, Rogue, fellows, foreign, noise, virtual
from models import manifest, sealed
from relaying import Place, scene

from lab import Lab, identity
from p2pnode.transport import admission, downloads
from p2pnode.transport.address import Address
from p2pnode.transport.link import Link
from p2pnode.transport.messages import (
    RELAY_RUN,
    Done,
    Fetch,
    Gone,
    Offer,
    Reject,
    Want,
)

pytestmark = pytest.mark.usefixtures("inline_threads")


def test_a_model_is_stored_where_the_node_says(tmp_path: Path) -> None:
    """Not before `stores`; then `store` offers it, once."""

    async def check(_lab: Lab, relay: Place, alice: Fellow) -> None:
        alice.storing = False
        model = alice.publish(1)
        session = await relay.join(alice)
        assert alice.exchange.announce(model) == set()
        alice.exchange.store()
        await trio.sleep(10)
        assert not relay.holds(model)
        alice.storing = True
        alice.exchange.store()
        await alice.until(lambda: alice.stored_at == [(relay.me, model.id)])
        said = session.bytes_out
        alice.exchange.store()
        await trio.sleep(1)
        assert session.bytes_out - said < 100
        assert alice.stored_at == [(relay.me, model.id)]

    scene(tmp_path, check, 1)


def test_a_relay_is_no_peer(tmp_path: Path) -> None:
    """It takes no peer's place, isn't met, and gets only our own model."""

    async def check(lab: Lab, relay: Place, alice: Fellow, bob: Fellow) -> None:
        alice.exchange._max_peers = 1
        model = alice.stock(foreign(9, 1, relay.folder.parent))
        await relay.join(alice)
        await alice.dial(bob)
        assert alice.exchange.full
        assert [s.peer for s in alice.exchange.met()] == [bob.me]
        assert alice.met_with == [bob.me]
        await trio.sleep(10)
        assert not relay.holds(model)

    scene(tmp_path, check, 2)


def test_leaving_parts_from_relays_too(tmp_path: Path) -> None:
    """They are told, and `leave` returns when the links are closed."""

    async def check(_lab: Lab, relay: Place, alice: Fellow) -> None:
        await relay.join(alice)
        await alice.exchange.leave()
        assert not alice.exchange.relays
        assert relay.relay.status.clients == 0
        await relay.dial(alice)
        await alice.until(lambda: alice.ends[-1:] == ["this node is stopping"])

    scene(tmp_path, check, 1)


def test_who_is_no_relay_is_left(tmp_path: Path) -> None:
    """A peer that says hello with a run of its own is told, and counted."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            link = await alice.network.dial(bob.address, "peer", bob.me)
            assert await alice.exchange.serve_relay(link) == "this is no relay"
            assert alice.counts == {admission.RUN: 1}
            own = await alice.network.dial(alice.address, "peer", alice.me)
            assert await alice.exchange.serve_relay(own) == "this is our own address"

    virtual(main)


@asynccontextmanager
async def false_relay(lab: Lab, fellow: Fellow) -> AsyncIterator[Rogue]:
    """A relay of the test's own making, which this peer uses."""
    doors, links = trio.open_memory_channel[Link](1)
    network = lab.network(identity(66), "10.0.0.66")

    async def welcome(link: Link) -> None:
        await doors.send(link)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        where = await nursery.start(network.listen, Address("10.0.0.66", 0), {"relay": welcome})
        link = await fellow.network.dial(where, "relay")
        nursery.start_soon(fellow.exchange.serve_relay, link)
        made = Rogue(66, await links.receive())
        await made.greet(RELAY_RUN)
        await made.hear(Want)
        yield made
        nursery.cancel_scope.cancel()


def test_a_relay_gets_nothing_but_our_own_model(tmp_path: Path) -> None:
    """Asked for more, or for another's, a node says no; `want` gets its own offered again."""

    async def check(lab: Lab, _relay: Place, alice: Fellow) -> None:
        other = alice.stock(foreign(9, 1, alice.folder))
        own = alice.publish(1)
        async with false_relay(lab, alice) as mallory:
            await mallory.say(Want())
            assert (await mallory.hear(Offer)).envelope == own.envelope
            await mallory.say(Fetch(1, other.id, ((0, 1),), 1))
            assert (await mallory.hear(Gone)).transfer == 1
            await mallory.say(Done(own.id), Done(other.id), Reject(other.id, "x", "y"))
            await alice.until(lambda: len(alice.stored_at) == 1)
            for _ in range(70):
                await mallory.say(Want())
            assert await mallory.farewell() == "too many offers"
        assert alice.refusals == []

    scene(tmp_path, check, 1)


def test_what_one_relay_offers_waits_within_limits(tmp_path: Path) -> None:
    """More than a peer may offer, and places stay for those of others."""

    async def check(lab: Lab, _relay: Place, alice: Fellow, bob: Fellow) -> None:
        async with false_relay(lab, alice) as mallory, trio.open_nursery() as nursery:
            most = downloads.DOWNLOADS_A_PEER + downloads.WAITING_A_RELAY
            for author in range(100, 100 + most):
                await mallory.say(Offer(sealed(author, manifest(noise(author, 3)))))
            await trio.sleep(1)
            assert len(alice.exchange.incoming) == downloads.DOWNLOADS_A_PEER
            assert not alice.rejects
            await mallory.say(Offer(sealed(99, manifest(noise(99, 3)))))
            await alice.until(lambda: alice.counts == {admission.FLOOD: 1})
            nursery.start_soon(mallory.farewell)
            model = bob.publish(1)
            await alice.dial(bob)
            await alice.until(lambda: alice.holds(model))
            nursery.cancel_scope.cancel()

    scene(tmp_path, check, 2)
