"""One model from its sources: wrong bytes, stalls, losses and full disks cost it nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import trio
from fellows import CHUNK, fellows, host_of, make, rogue, virtual

from lab import Lab
from p2pnode.node.mailbox import Mailbox
from p2pnode.transport import admission
from p2pnode.transport.admission import Offered, Refusal
from p2pnode.transport.messages import Fetch, Offer
from p2pnode.transport.parts import PartFile

pytestmark = pytest.mark.usefixtures("inline_threads")

# A message takes so long where a test looks at what happens in between.
SLOW = 1.0


def test_wrong_bytes_are_counted_told_and_never_filed(tmp_path: Path) -> None:
    """A source whose chunks don't match is dropped; another that has them right finishes it."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 3) as (alice, bob, carol):
            model = alice.publish(1)
            await carol.dial(alice)
            await carol.until(lambda: carol.holds(model))
            with lab.corrupt(host_of(lab, 1)):
                await bob.dial(alice)
                await alice.until(lambda: bool(alice.refusals))
            assert bob.counts == {admission.DIGEST: 1}
            assert "doesn't match its digest" in alice.refusals[0][2]
            assert bob.filed_models == []
            assert bob.session(alice).agreed
            await bob.dial(carol)
            bob.exchange.want()
            await bob.until(lambda: bob.holds(model))
            assert bob.counts == {admission.DIGEST: 1}

    virtual(main)


def test_another_source_goes_on_where_one_is_lost(tmp_path: Path) -> None:
    """When the source goes in the middle, the next one sends only what is missing."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 3) as (alice, bob, carol):
            model = alice.publish(1)
            for other in (bob, carol):
                await other.dial(alice)
            await carol.until(lambda: carol.holds(model))
            bob.mailbox.newest(alice.me)
            await bob.dial(carol)
            newer = alice.publish(2)
            stocked = carol.exchange.find(model.id)
            assert stocked is not None
            with lab.slow(SLOW):
                alice.session(bob).offer(newer)
                await trio.sleep(16 * SLOW)
                coming = bob.exchange.incoming[newer.id]
                here = coming.download.bytes_here
                assert 4 * CHUNK <= here < model.manifest.size
                carols = carol.stock(newer)
                carol.session(bob).offer(carols)
                await trio.sleep(2 * SLOW)
                before = bob.session(carol).bytes_in
                with lab.cut(host_of(lab, 1)):
                    await bob.until(lambda: bob.holds(newer))
            sent = bob.session(carol).bytes_in - before
            assert sent <= newer.manifest.size - here + 4096

    virtual(main)


def test_a_source_that_stalls_is_given_up(tmp_path: Path) -> None:
    """No piece for a minute: counted, told, and another source is asked."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 2) as (alice, bob):
            model = alice.publish(1)
            await bob.dial(alice)
            await bob.until(lambda: bob.holds(model))
            mallory = await rogue(lab, 9, bob)
            newer = alice.publish(2)
            await mallory.say(Offer(newer.envelope))
            await mallory.hear(Fetch)  # and nothing is sent
            alice.exchange.announce(newer)
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mallory.farewell)
                await bob.until(lambda: bob.holds(newer))
                nursery.cancel_scope.cancel()
            assert trio.current_time() - began < 70
            assert bob.rejects == [(admission.SLOW, mallory.me, "no piece came for 60 s")]

    virtual(main)


def test_a_model_that_is_gone_ends_its_download(tmp_path: Path) -> None:
    """Who is asked for a model it no longer holds says so; nothing stalls, nobody is blamed."""

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2) as (alice, bob):
            await bob.dial(alice)
            old = alice.publish(1)
            alice.session(bob).offer(old)
            new = alice.publish(2)
            await trio.sleep(1)
            assert bob.exchange.incoming == {}
            alice.exchange.announce(new)
            await bob.until(lambda: bob.holds(new))
            assert bob.filed_models == [new.id]
            assert not bob.rejects

    virtual(main)


@pytest.mark.parametrize("damage", ["shorter", "unreadable"])
def test_a_model_that_can_t_be_read_ends_its_upload(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own disk's fault is told as `gone`; nobody is blamed and the session goes on."""

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2) as (alice, bob):
            await bob.dial(alice)
            model = alice.publish(1)
            with monkeypatch.context() as patch:
                if damage == "shorter":
                    model.path.write_bytes(b"short")
                else:
                    patch.setattr("p2pnode.transport.outgoing.os.preadv", broken)
                alice.exchange.announce(model)
                await trio.sleep(1)
                assert bob.exchange.incoming == {}
            newer = alice.publish(2)
            alice.exchange.announce(newer)
            await bob.until(lambda: bob.holds(newer))
            assert not alice.rejects
            assert not bob.rejects

    virtual(main)


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells what it has in memory")
@pytest.mark.parametrize(
    "cached", [1000, BlockingIOError(), OSError(errno.EOPNOTSUPP, "Operation not supported")]
)
def test_a_model_that_isn_t_in_memory_is_read_by_a_thread(
    tmp_path: Path, cached: int | OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel would have to wait for the disk, the sending task doesn't; nor where the
    file system can't tell whether it would (tmpfs, overlayfs)."""
    read = os.preadv
    waited: list[int] = []

    def preadv(file: int, buffers: list[memoryview], position: int, flags: int = 0) -> int:
        if not flags:
            waited.append(position)
            return read(file, buffers, position)
        if isinstance(cached, OSError):
            raise cached
        return read(file, [buffer[:cached] for buffer in buffers], position, flags)

    async def main() -> None:
        async with fellows(Lab(), tmp_path, 2) as (alice, bob):
            await bob.dial(alice)
            model = alice.publish(1)
            monkeypatch.setattr("p2pnode.transport.outgoing.os.preadv", preadv)
            alice.exchange.announce(model)
            await bob.until(lambda: bob.holds(model))
            assert len(waited) == model.manifest.chunks

    virtual(main)


# ── the disk ─────────────────────────────────────────────────────────────────────────────────────

FULL = OSError(errno.ENOSPC, "No space left on device")


class NoRoom(Mailbox):
    """The library sees in time that a model doesn't fit."""

    def part(self, offered: Offered) -> PartFile:
        if offered.manifest.seq == 1:
            raise Refusal(admission.DISK, "it doesn't fit")
        return super().part(offered)


class NoPart(Mailbox):
    """No part file can be opened."""

    def part(self, offered: Offered) -> PartFile:
        if offered.manifest.seq == 1:
            raise FULL
        return super().part(offered)


class FullPart(PartFile):
    """The disk is full after some chunks."""

    writes = 0

    def write(self, arrivals: Any) -> list[bool | None]:
        self.writes += 1
        if self.writes > 2:
            raise FULL
        return super().write(arrivals)


class NoSpace(Mailbox):
    """The disk is full in the middle."""

    def part(self, offered: Offered) -> PartFile:
        part = super().part(offered)
        if offered.manifest.seq > 1:
            return part
        part.close()
        return FullPart(part.path, offered.manifest)


class NoRename(Mailbox):
    """The disk is full at the very end."""

    def file(self, offered: Offered, part: Path) -> None:
        if offered.manifest.seq == 1:
            raise FULL
        super().file(offered, part)


@pytest.mark.parametrize("library", [NoRoom, NoPart, NoSpace, NoRename])
def test_a_full_disk_rejects_and_goes_on(tmp_path: Path, library: type[Mailbox]) -> None:
    """Wherever the disk is full: counted, told, nothing half filed; the next model comes in."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 1) as (alice,), trio.open_nursery() as nursery:
            bob = make(lab, tmp_path, 2, nursery, library=library)
            await bob.start(host_of(lab, 2))
            alice.publish(1)
            await bob.dial(alice)
            await alice.until(lambda: bool(alice.refusals))
            assert alice.refusals[0][:2] == (admission.DISK, bob.me)
            assert bob.counts == {admission.DISK: 1}
            assert bob.filed_models == []
            newer = alice.publish(2)
            alice.exchange.announce(newer)
            await bob.until(lambda: bob.holds(newer))
            nursery.cancel_scope.cancel()

    virtual(main)


def test_a_part_that_filled_the_disk_is_removed(tmp_path: Path) -> None:
    """What the disk has no room for doesn't go on taking it."""

    async def main() -> None:
        lab = Lab()
        async with fellows(lab, tmp_path, 1) as (alice,), trio.open_nursery() as nursery:
            bob = make(lab, tmp_path, 2, nursery, library=NoSpace)
            await bob.start(host_of(lab, 2))
            alice.publish(1)
            await bob.dial(alice)
            await bob.until(lambda: bool(bob.rejects))
            assert list((bob.folder / "mailbox" / "part").iterdir()) == []
            nursery.cancel_scope.cancel()

    virtual(main)
