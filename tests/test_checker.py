"""A model that a relay's disk has spoilt: noticed by whoever fetches it, and dropped."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio
from fellows import Fellow, host_of
from relaying import Place, leave, scene, store

from lab import Lab
from p2pnode.transport import admission
from p2pnode.transport.checker import CHECK_SECONDS
from p2pnode.transport.messages import (
    Offer,
    Reject,
    Want,
)

pytestmark = pytest.mark.usefixtures("inline_threads")


def test_what_the_disk_has_spoilt_is_not_offered_after_a_restart(
    tmp_path: Path,
) -> None:
    """Each model is read once, and the author asked for it again."""

    async def check(_lab: Lab, relay: Place, alice: Fellow) -> None:
        model = await store(relay, alice)
        relay.stop()
        await alice.until(lambda: not alice.exchange.relays)
        (held,) = relay.shelf.held()
        held.path.write_bytes(bytes(model.manifest.size))
        await relay.start(host_of(Lab(), relay.number))
        await relay.until(lambda: not relay.holds(model))
        await relay.join(alice)
        await relay.until(lambda: relay.holds(model))

    scene(tmp_path, check, 1)


def test_what_the_disk_spoils_is_noticed_by_who_fetches_it(tmp_path: Path) -> None:
    """It refuses; the relay looks, drops the model, and gets it anew from its author."""

    async def check(_lab: Lab, relay: Place, alice: Fellow, bob: Fellow) -> None:
        model = await store(relay, alice)
        (held,) = relay.shelf.held()
        held.path.write_bytes(bytes(model.manifest.size))
        await relay.join(bob)
        await bob.until(lambda: bool(bob.rejects))
        assert bob.counts == {admission.DIGEST: 1}
        await bob.until(lambda: bob.holds(model))
        assert len(relay.lines) == 1 and "spoilt on our disk" in relay.lines[0]

    scene(tmp_path, check, 2)


def test_a_disk_that_spoils_models_and_takes_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mounted read-only after its errors, as disks are: the model is offered no more."""

    def broken(_model: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    async def check(_lab: Lab, relay: Place, alice: Fellow) -> None:
        model = await store(relay, alice)
        (held,) = relay.shelf.held()
        held.path.write_bytes(bytes(model.manifest.size))
        monkeypatch.setattr("p2pnode.transport.shelf.remove", broken)
        leave(relay, alice)
        relay.relay._checker.suspect(model.id)
        await relay.until(lambda: not relay.holds(model))
        await trio.sleep(1)
        assert any("spoilt on our disk" in line for line in relay.lines)

    scene(tmp_path, check, 1)


def test_a_lie_about_a_digest_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model stays, and its file is read once an hour, whatever is said of it."""
    looked: list[float] = []

    def look(_held: object) -> bool:
        looked.append(trio.current_time())
        return True

    monkeypatch.setattr("p2pnode.transport.checker.intact", look)

    async def check(lab: Lab, relay: Place, alice: Fellow) -> None:
        model = await store(relay, alice)
        mallory = await relay.rogue(lab, 9)
        for _ in range(10):
            await mallory.say(Want())
            assert (await mallory.hear(Offer)).envelope == model.envelope
            await mallory.say(Reject(model.id, admission.DIGEST, "a lie"))
        await mallory.say(Reject(bytes(32), admission.DIGEST, "of no model"))
        await trio.sleep(1)
        assert len(looked) == 1 and relay.holds(model)
        await mallory.link.aclose()
        await trio.sleep(CHECK_SECONDS)
        relay.relay._checker.suspect(model.id)
        await trio.sleep(1)
        assert len(looked) == 2

    scene(tmp_path, check, 1)
