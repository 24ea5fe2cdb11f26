"""What holds for all tests.

Strategy: the suite gives the same result in every run. Hypothesis draws the same examples each
time and knows no deadline, so a busy machine fails nothing. Tests in virtual time (MockClock) can
ask for `inline_threads`: a clock that jumps when all tasks wait would jump while a thread works.
What needs root and minutes (the NAT laboratory) runs only when it is asked for: `-m lab`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import settings
from natlab import NatLab, missing

T = TypeVar("T")

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the laboratory's tests out, unless a marker expression names them."""
    if "lab" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("lab")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def inline_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would run in a thread runs at once, so that no virtual time passes meanwhile."""

    async def run_sync(work: Callable[..., T], *args: Any, **_options: Any) -> T:
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.fixture
def lab() -> Iterator[NatLab]:
    """A laboratory with nothing but the internet in it; skips where there can be none."""
    if reason := missing():
        pytest.skip(reason)
    with NatLab() as lab:
        yield lab
