"""A stand-in for a way in: it has whatever address the test gives it, as long as it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import trio

from p2pnode.transport.address import Address
from p2pnode.transport.nat.reach import Claim, Confidence


@dataclass
class StandIn:
    """A `Reach` that is at `door` from one second after its start, or after a change."""

    door: Address | None = None
    confidence: Confidence = Confidence.GIVEN
    lasting: float = 60.0
    relay: str = ""
    name: str = "stand-in"
    looks: int = 0
    _claims: tuple[Claim, ...] = ()
    _change: trio.Event = field(default_factory=trio.Event)

    @property
    def detail(self) -> str:
        return f"at {self._claims[0].address}" if self._claims else ""

    def claims(self, now: float) -> tuple[Claim, ...]:
        return tuple(claim for claim in self._claims if claim.until > now)

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        try:
            while True:
                await trio.sleep(1)
                self._look()
                with trio.move_on_after(self.lasting / 2):
                    await self._change.wait()
        finally:
            self._claims = ()

    def changed(self) -> None:
        self._change.set()

    def _look(self) -> None:
        self.looks += 1
        self._change = trio.Event()
        until = trio.current_time() + self.lasting
        at = (self.door,) if self.door else ()
        self._claims = tuple(Claim(a, self.confidence, until, self.relay) for a in at)
