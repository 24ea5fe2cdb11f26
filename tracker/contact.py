"""I/O: questions and answers on one link to a tracker.

Strategy: each question gets a number and waits; one task reads the link and hands each answer to
the question of its number. An answer to no question ends the contact, and the end of the contact
is an error for every question that still waits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final, TypeVar

import trio

from ..transport.errors import LinkClosed
from ..transport.link import Link
from .errors import ProtocolError, Reason, Refused, Silent
from .protocol import Refusal, Reply, Request, parse_reply, to_bytes

R = TypeVar("R", bound=Reply)

REPLY_SECONDS: Final = 10.0
"""An answer takes a round trip; with the TCP link alive, a slower tracker is stuck."""


@dataclass(eq=False, slots=True)
class _Question:
    """One that waits for its answer; None where the link ends before."""

    answered: trio.Event
    reply: Reply | None = None


class Contact:
    """Questions and answers on one link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.local = link.local
        self._ids = count(1)
        self._open: dict[int, _Question] = {}
        self._unknown = set[str]()  # the answers that this tracker can't give
        self._sending = trio.Lock()

    async def listen(self) -> None:
        """Hand out answers until the link ends. Raises LinkClosed, ProtocolError, Refused."""
        try:
            while True:
                self._hand_out(parse_reply(await self._link.receive()))
        finally:
            for question in self._open.values():
                question.answered.set()

    def _hand_out(self, reply: Reply) -> None:
        question = self._open.pop(reply.id, None)
        if question is not None:
            question.reply = reply
            question.answered.set()
        elif isinstance(reply, Refusal):
            raise Refused(reply.reason)  # of the whole connection
        else:
            raise ProtocolError(f"a {reply.TYPE} that answers no question")

    async def ask(self, make: Callable[[int], Request], wanted: type[R], seconds: float) -> R:
        """The answer to `make(id)`. Raises Silent, Refused, ProtocolError, LinkClosed."""
        id = next(self._ids)
        question = self._open[id] = _Question(trio.Event())
        try:
            with trio.fail_after(seconds):
                async with self._sending:
                    await self._link.send(to_bytes(make(id)))
                await question.answered.wait()
        except trio.TooSlowError:
            raise Silent(f"no {wanted.TYPE} in {seconds:.0f} s") from None
        finally:
            self._open.pop(id, None)
        return _expect(question.reply, wanted)

    async def try_ask(self, make: Callable[[int], Request], wanted: type[R], seconds: float) -> R:
        """Ask what an older tracker may not know: it is asked once, as its no counts against us.

        Raises as `ask` does: Refused MALFORMED for such a tracker.
        """
        if wanted.TYPE in self._unknown:
            raise Refused(Reason.MALFORMED)
        try:
            return await self.ask(make, wanted, seconds)
        except Refused as error:
            if error.reason == Reason.MALFORMED:
                self._unknown.add(wanted.TYPE)
            raise


def _expect(reply: Reply | None, wanted: type[R]) -> R:
    if isinstance(reply, wanted):
        return reply
    if isinstance(reply, Refusal):
        raise Refused(reply.reason)
    if reply is None:
        raise LinkClosed
    raise ProtocolError(f"a {reply.TYPE} where a {wanted.TYPE} was due")
