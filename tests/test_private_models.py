"""Models of a private swarm between members, and through a relay that can't read them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from fellows import MOST, Fellow, fellows, noise, virtual
from models import manifest, sealed
from relaying import Place, scene
from sealing import OLD, SECRETS

from lab import Lab
from p2pnode.transport import admission
from p2pnode.transport.exchange import Terms
from p2pnode.transport.membership.secrets import SwarmSecrets
from p2pnode.transport.messages import Run
from p2pnode.transport.outgoing import Held
from p2pnode.transport.veil import unveil, veil

pytestmark = pytest.mark.usefixtures("inline_threads")

SCHEMA = bytes([7]) * 32


def join(*members: Fellow, secrets: SwarmSecrets = SECRETS) -> None:
    """These are in the private swarm, as a node arranges it."""
    schema = secrets.blind(SCHEMA)
    for fellow in members:
        fellow.run = Run(secrets.id, "mnist", schema, 1000, ("a F32 10",))
        relayed = Run(secrets.id, "private", schema, 0, ())
        opened = partial(unveil, secrets=secrets)
        fellow.mailbox._unveil = opened
        fellow.exchange.agree(Terms(fellow.run, MOST, relayed, opened))


def publish(author: Fellow, seq: int, secrets: SwarmSecrets = SECRETS, **fields: Any) -> Held:
    """A model of a member; its bytes stand for sealed ones."""
    path = author.folder / "outbox" / f"{seq}.safetensors"
    path.write_bytes(noise(seq))
    known = {"seq": seq, "swarm": SECRETS.id, "schema": SCHEMA, "epoch": 3, "age": 2.5}
    true = manifest(noise(seq), **known | fields)
    return author.mailbox.publish(path, sealed(author.number, veil(true, secrets)))


def test_members_read_what_they_exchange(tmp_path: Path) -> None:
    """The manifest in the mailbox is the true one, the envelope as it was signed."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2) as (alice, bob):
            join(alice, bob)
            model = publish(alice, 1)
            assert (model.manifest.epoch, model.manifest.schema) == (3, SCHEMA)
            await bob.dial(alice)
            await bob.until(lambda: bob.holds(model))
            (held,) = bob.mailbox.models()
            assert held.manifest == model.manifest
            assert held.envelope == model.envelope
            assert not bob.rejects

    virtual(main)


def test_a_generation_that_is_not_here_yet_is_said(tmp_path: Path) -> None:
    """Who hasn't heard of a rotation refuses the model, with the reason; the session goes on."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2) as (alice, bob):
            join(alice)
            join(bob, secrets=OLD)
            publish(alice, 1)
            await bob.dial(alice)
            await bob.until(lambda: bool(bob.rejects))
            ((reason, _, detail),) = bob.rejects
            assert reason == admission.SEALED
            assert "number 2; the newest here is 1" in detail
            assert bob.agreed_with(alice)

    virtual(main)


def test_a_plain_model_is_none_of_a_private_swarm(tmp_path: Path) -> None:
    """Whoever offers one is refused."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2) as (alice, bob):
            join(alice, bob)
            alice.mailbox._unveil = lambda m: m
            plain = {"swarm": SECRETS.id, "schema": SECRETS.blind(SCHEMA)}
            alice.publish(1, noise(1), **plain)
            await bob.dial(alice)
            await bob.until(lambda: bool(bob.rejects))
            assert bob.rejects[0][0] == admission.SEALED
            assert not bob.mailbox.models()

    virtual(main)


def test_models_for_a_few_go_to_them_only(tmp_path: Path) -> None:
    """Who isn't named is offered none, by the author or others, and nobody counts a mistake."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 3) as (alice, bob, carol):
            join(alice, bob, carol)
            await bob.dial(alice)
            await carol.dial(alice)
            await carol.dial(bob)
            model = publish(alice, 1, recipients=(alice.me, bob.me))
            assert alice.exchange.announce(model) == {alice.session(bob)}
            await bob.until(lambda: bob.holds(model))
            carol.exchange.want()
            await trio.sleep(5)
            assert not carol.mailbox.models()
            assert not alice.rejects + bob.rejects + carol.rejects
            assert not alice.refusals + bob.refusals

    virtual(main)


def test_a_relay_carries_what_it_can_not_read(tmp_path: Path) -> None:
    """It hears an opaque name and a blinded schema, holds the model, and hands it to a member."""

    async def check(_lab: Lab, relay: Place, alice: Fellow, bob: Fellow) -> None:
        join(alice, bob)
        model = publish(alice, 1)
        await relay.join(alice)
        await alice.until(lambda: alice.stored_at == [(relay.me, model.id)])
        (client,) = relay.relay._clients.values()
        heard = client.session.hello
        assert heard is not None
        assert heard.run == Run(SECRETS.id, "private", SECRETS.blind(SCHEMA), 0, ())
        assert heard.epoch == 0
        kept = relay.relay._shelf.find(model.id)
        assert kept is not None
        assert (kept.manifest.epoch, kept.manifest.age, kept.manifest.samples) == (0, 0.0, 0)
        assert SCHEMA not in kept.envelope
        await relay.join(bob)
        await bob.until(lambda: bob.holds(model))
        (held,) = bob.mailbox.models()
        assert held.manifest.epoch == 3

    scene(tmp_path, check, 2)


def test_a_relay_may_offer_what_is_for_others(tmp_path: Path) -> None:
    """It can't know; the member doesn't fetch, and counts no mistake of the relay's."""

    async def check(_lab: Lab, relay: Place, alice: Fellow, bob: Fellow) -> None:
        join(alice, bob)
        model = publish(alice, 1, recipients=(alice.me,))
        await relay.join(alice)
        await alice.until(lambda: alice.stored_at == [(relay.me, model.id)])
        await relay.join(bob)
        await trio.sleep(10)
        assert not bob.mailbox.models()
        assert not bob.rejects

    scene(tmp_path, check, 2)
