"""Who is asked for what: shares, rarity, patience and what is late, in numbers alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import manifest

from p2pnode.transport import sources
from p2pnode.transport.manifest import CHUNK_LEAST, chunk_size_for
from p2pnode.transport.sources import LONE_MOST, QUICK, Sources
from p2pnode.transport.transfer import RENEW, Chunk, Download

CHUNKS = 100
MODEL = bytes(32)
ALL = (1 << CHUNKS) - 1


def made(chunks: int = CHUNKS, me: str = "me", seed: int = 1) -> Sources[str]:
    """The sources of a model of so many chunks: none."""
    download = Download(manifest(bytes(chunks * CHUNK_LEAST)))
    return Sources(download, MODEL, me, random.Random(seed))


def asked(found: Sources[str], now: float = 0.0) -> dict[str, int]:
    """What is asked now of each."""
    chunks: dict[str, int] = {}
    for who, ask in found.asks(now):
        ask.grant()
        chunks[who] = chunks.get(who, 0) | ask.chunks
    return chunks


def answer(found: Sources[str], who: str, now: float) -> None:
    """All that it was asked for comes and is verified."""
    source = found.all[who]
    for ask in list(source.asks):
        for chunk in list(ask.coming):
            if found._download.takes(ask, chunk):
                found._download.whole(chunk)
                found._download.verified(chunk)
        ask.left = 0
        found.answered(source, ask, now)
    source.heard = now


def test_a_small_model_comes_from_one_source() -> None:
    """All of it in one fetch; who only tells is no source; the next one goes on."""
    found = made(sources.FEW)
    found.offered("author", "author", 0, spared=True)
    found.offered("bob", "bob", 0, spared=False)
    found.told("carol", "carol", 7, 0)
    assert asked(found) == {"author": (1 << sources.FEW) - 1}
    assert asked(found) == {}
    found.lapsed("author")
    assert asked(found) == {"bob": (1 << sources.FEW) - 1}


def test_one_alone_is_asked_for_more_the_quicker_it_is() -> None:
    """Twice as much after each quick answer, up to a limit; a slow one starts anew."""
    found = made()
    found.offered("author", "author", 0, spared=True)
    sizes = []
    for now in (0.0, 0.0, 0.0, QUICK):
        sizes.append(max(ask.left for _, ask in found.asks(0.0)))
        assert asked(found) == {}
        answer(found, "author", now)
    assert sizes == [RENEW, 4 * RENEW, LONE_MOST, LONE_MOST]
    assert found.all["author"].step == RENEW


def test_what_others_have_is_asked_of_them() -> None:
    """The author is left in peace, until it has been idle for long enough."""
    found = made()
    found.offered("author", "author", 0, spared=True)
    found.told("bob", "bob", ALL, 0)
    chunks = asked(found)
    assert set(chunks) == {"bob"}
    assert found.due() == sources.PATIENCE_LEAST
    assert asked(found, sources.PATIENCE_LEAST / 2) == {}
    later = asked(found, sources.PATIENCE_LEAST)
    assert set(later) == {"author"}
    assert not later["author"] & chunks["bob"]


def test_the_author_is_asked_for_our_share() -> None:
    """Those who fetch the same model ask it for different chunks, and together for all."""
    peers = ["alice", "bob", "carol"]
    shares = []
    for me in peers:
        found = made(me=me)
        shares.append(found._share(frozenset(set(peers) - {me})))
    assert shares[0] | shares[1] | shares[2] == ALL
    assert not shares[0] & shares[1] and not shares[1] & shares[2] and not shares[0] & shares[2]
    assert all(20 < share.bit_count() < 50 for share in shares)
    found = made(me="alice")
    found.offered("author", "author", 0, spared=True)
    for other in ("bob", "carol"):
        found.told(other, other, 0, 0)
    assert not asked(found)["author"] & ~shares[0]


def test_who_brings_nothing_has_no_share() -> None:
    """A peer that says it fetches and then nothing more: its chunks are ours after a while."""
    found = made()
    found.offered("author", "author", 0, spared=True)
    found.told("liar", "liar", 0, 0)
    ours = found._share(frozenset({"liar"}))
    assert not asked(found)["author"] & ~ours
    now = 0.0
    while found._download.missing & ours:
        answer(found, "author", now)
        asked(found, now)
    answer(found, "author", now)
    assert asked(found, now) == {}
    assert asked(found, sources.STANDING + 0.1)["author"] & ~ours


def test_the_rarest_chunks_come_first() -> None:
    """Of what a source has, what the fewest others have."""
    found = made()
    rare = 0b11 << 40
    for name, has in (("bob", ALL), ("carol", ALL & ~rare), ("dave", ALL & ~rare)):
        found.told(name, name, has, 0)
    chunks = asked(found)
    assert chunks["bob"] == rare
    assert not chunks["carol"] & chunks["dave"]


def test_of_a_helper_only_what_it_has_is_asked() -> None:
    """And more as soon as it tells."""
    found = made()
    found.told("bob", "bob", 0, 0)
    assert asked(found) == {}
    found.told("bob", "bob", 0b100, 1)
    assert asked(found, 1) == {"bob": 0b100}


def test_chunks_beyond_the_model_are_nobodys() -> None:
    """A peer may tell of more than there is."""
    found = made()
    found.told("bob", "bob", 1 << 7000 | 1 << CHUNKS, 0)
    assert found.all["bob"].has == 0


def test_what_is_late_is_asked_of_another_once() -> None:
    """The last chunks don't wait for a slow source; a chunk is never asked of three."""
    found = made()
    found.told("slow", "slow", ALL, 0)
    (late,) = asked(found).values()
    for chunk in range(CHUNKS):
        if found._download.state[chunk] is Chunk.MISSING:
            found._download.found(chunk)
    for name in ("bob", "carol"):
        found.told(name, name, ALL, 0)
    assert asked(found) == {}
    assert found.due() == sources.PATIENCE_LEAST
    again = asked(found, sources.PATIENCE_LEAST)
    first, second = again.get("bob", 0), again.get("carol", 0)
    assert (first | second) & ~late == 0 and not first & second
    assert asked(found, 5.0).keys() <= {"bob", "carol"}
    times = [chunk for s in found.all.values() for ask in s.asks for chunk in ask.coming]
    assert max(times.count(chunk) for chunk in times) == 2


def test_who_sends_nothing_is_given_up() -> None:
    """A helper soon, who offers the model after a minute; a helper that was dropped stays out."""
    found = made()
    found.offered("author", "author", 0, spared=True)
    found.told("bob", "bob", ALL >> 50, 0)
    asked(found)
    assert found.stalled(sources.HELPER_SECONDS - 0.1) == []
    assert found.stalled(sources.HELPER_SECONDS) == ["bob"]
    assert found.stalled(sources.STALL_SECONDS) == ["author", "bob"]
    found.drop("bob")
    found.told("bob", "bob", ALL, 11)
    assert set(found.all) == {"author"}
    found.offered("bob", "bob", 12, spared=False)
    assert set(found.all) == {"author", "bob"}


def test_who_says_that_it_has_and_has_not_is_given_up() -> None:
    """A few times it may be a file that has moved."""
    found = made()
    for number in range(10):
        found.told("bob", "bob", ALL, number)
        if number < sources.LAPSES:
            assert asked(found, number)
        found.lapsed("bob")
    assert found.all == {}
    assert found._download.missing == ALL


def test_helpers_share_a_pool() -> None:
    """However many they are, no more pieces are under way than the pool has twice over."""
    found = made()
    for number in range(30):
        found.told(str(number), str(number), ALL, 0)
        found.all[str(number)].proved = True
    asked(found)
    assert sum(s.load for s in found.all.values()) <= 2 * sources.POOL


@pytest.mark.parametrize("mebibytes", [2, 16])
def test_large_chunks_come_one_at_a_time(mebibytes: int) -> None:
    """Each is a step and more."""
    size = mebibytes * 7000 << 20
    chunk_size = chunk_size_for(size)
    count = -(-size // chunk_size)
    described = manifest(b"x", size=size, chunk_size=chunk_size, digests=bytes(32 * count))
    found = Sources[str](Download(described), MODEL, "me", random.Random(1))
    found.told("bob", "bob", 3, 0)
    asks = [ask for _, ask in found.asks(0)]
    assert [ask.chunks.bit_count() for ask in asks][:1] == [1 if mebibytes > 2 else 2]


@given(st.integers(0, 2**32), st.integers(2, 6))
def test_whatever_sources_do_the_model_comes(seed: int, count: int) -> None:
    """Some are slow, some go, some lie: each chunk comes, and no source is asked for too much."""
    chance = random.Random(seed)
    found = made(seed=seed)
    found.offered("author", "author", 0, spared=True)
    now = 0.0
    while not found._download.done:
        now += chance.choice([0.01, 0.1, 1.0])
        for number in range(count):
            if chance.random() < 0.3:
                found.told(str(number), str(number), chance.getrandbits(CHUNKS), now)
        for who in found.stalled(now):
            found.drop(who)
        if "author" not in found.all:
            found.offered("author", "author", now, spared=True)
        asked(found, now)
        for who, source in list(found.all.items()):
            assert source.load <= LONE_MOST + RENEW
            match chance.random():
                case x if x < 0.05 and who != "author":
                    found.lapsed(who)
                case x if x < (0.9 if who == "author" else 0.4):
                    answer(found, who, now)
        assert now < 1000


def test_shares_are_as_the_docs_say() -> None:
    """The numbers that all compute alike (docs/protocol/messages.md)."""
    assert sources._scores(bytes(32), "12D3KooW", 3) == (2088602443, 625350103, 1553767590)
