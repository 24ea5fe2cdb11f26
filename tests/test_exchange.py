"""Models between peers: whole, verified, to whoever asked; mistakes counted, told and survived."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from fellows import Fellow, fellows, noise, virtual

from lab import Lab

pytestmark = pytest.mark.usefixtures("inline_threads")


def test_a_model_goes_over_whole(tmp_path: Path) -> None:
    """Who has a model offers it; the other fetches, verifies and files it; both know."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2) as (alice, bob):
            model = alice.publish(1)
            await bob.dial(alice)
            await bob.until(lambda: bob.holds(model))
            await alice.until(lambda: alice.delivered_to == [bob.me])
            assert bob.filed_models == [model.id]
            assert not bob.rejects and not alice.rejects

    virtual(main)
