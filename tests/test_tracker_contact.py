"""Questions and answers on one link: each answer finds its question, no question waits for ever."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from lab import Lab, identity
from p2pnode.tracker.contact import Contact
from p2pnode.tracker.errors import ProtocolError, Refused, Silent
from p2pnode.tracker.protocol import (
    Announce,
    Bye,
    Leave,
    Refusal,
    Request,
    Watch,
    Welcome,
    parse_request,
    to_bytes,
)
from p2pnode.transport.address import Address
from p2pnode.transport.errors import LinkClosed
from p2pnode.transport.link import Link

TRACKER = Address("10.0.0.1", 5555)
SEEN = Address("9.9.9.9", 9)
HELLO = partial(Announce, envelope=b"x")


async def request(link: Link) -> Request:
    """The next question at the tracker's end."""
    return parse_request(await link.receive())


def play(scene: Callable[[Contact, Link], Awaitable[None]]) -> None:
    """Run a scene with a listening contact and the tracker's end of its link."""

    async def main() -> None:
        lab = Lab()
        ends: list[Link] = []

        async def handler(link: Link) -> None:
            ends.append(link)
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            await nursery.start(lab.network(identity(9)).listen, TRACKER, {"tracker": handler})
            contact = Contact(await lab.network(identity(1)).dial(TRACKER, "tracker"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(contact.listen)
            await scene(contact, ends[0])
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_answers_find_their_questions_in_any_order() -> None:
    """A watch may wait while an announce is answered."""

    async def scene(contact: Contact, tracker: Link) -> None:
        order: list[str] = []

        async def ask(make: Callable[[int], Request], wanted: type[Welcome] | type[Bye]) -> None:
            order.append((await contact.ask(make, wanted, 10)).TYPE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, Leave, Bye)
            leave = await request(tracker)
            nursery.start_soon(ask, HELLO, Welcome)
            announce = await request(tracker)
            await tracker.send(to_bytes(Welcome(announce.id, 30.0, SEEN)))
            await trio.testing.wait_all_tasks_blocked()
            await tracker.send(to_bytes(Bye(leave.id)))
        assert order == ["welcome", "bye"]
        assert announce.id != leave.id

    play(scene)


def test_no_answer_in_time_is_silent() -> None:
    """The question gives up after its seconds."""

    async def scene(contact: Contact, _tracker: Link) -> None:
        with pytest.raises(Silent, match=r"does not answer: no bye in 7 s"):
            await contact.ask(Leave, Bye, 7)
        assert trio.current_time() == 7

    play(scene)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Refusal(1, "stale"), Refused),
        (Refusal(1, "unheard-of"), Refused),
        (Welcome(1, 30.0, SEEN), ProtocolError),
    ],
)
def test_a_no_and_a_wrong_answer_raise_at_the_question(
    answer: Refusal | Welcome, error: type[Exception]
) -> None:
    """The task that asked learns what came instead."""

    async def scene(contact: Contact, tracker: Link) -> None:
        async def reply() -> None:
            await request(tracker)
            await tracker.send(to_bytes(answer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reply)
            with pytest.raises(error):
                await contact.ask(partial(Watch, cursor=b""), Bye, 10)

    play(scene)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\xff", ProtocolError),
        (to_bytes(Bye(5)), ProtocolError),
        (to_bytes(Refusal(0, "tracker-full")), Refused),
        (None, LinkClosed),
    ],
)
def test_what_ends_the_contact_ends_every_question(
    data: bytes | None, error: type[Exception]
) -> None:
    """Garbage, an answer to no question, a refused connection, a lost link."""

    async def scene(contact: Contact, tracker: Link) -> None:
        async def spoil() -> None:
            await request(tracker)
            await (tracker.aclose() if data is None else tracker.send(data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(spoil)
            with pytest.raises(LinkClosed):
                await contact.ask(Leave, Bye, 10)
            assert trio.current_time() == 0
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        play(scene)
    assert caught.group_contains(error)
