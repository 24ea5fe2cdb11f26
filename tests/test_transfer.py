"""One model on its way: states, credit and resume, with no socket and no file."""

from __future__ import annotations

import random
import re
from collections import deque
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import manifest

from p2pnode.transport import transfer
from p2pnode.transport.errors import TransferError
from p2pnode.transport.link import PIECE_LIMIT
from p2pnode.transport.manifest import CHUNK_LEAST, Manifest, chunk_size_for
from p2pnode.transport.transfer import (
    RENEW,
    WINDOW,
    Ask,
    Chunk,
    Download,
    Upload,
    bits,
    ranges_of,
)

PAGE = Path(__file__).parent.parent / "docs/protocol/messages.md"


def small(chunks: int, last: int = CHUNK_LEAST) -> Manifest:
    """A model of so many chunks of 64 KiB, the last of so many bytes."""
    return manifest(bytes((chunks - 1) * CHUNK_LEAST + last))


def large(chunks: int, size: int) -> Manifest:
    """A model whose chunks are larger than a piece: only numbers, no bytes."""
    chunk_size = chunk_size_for(size)
    assert -(-size // chunk_size) == chunks
    return manifest(b"x", size=size, chunk_size=chunk_size, digests=bytes(32 * chunks))


HUGE = large(4097, 8 * 2**30 + 5)  # chunks of 2 MiB, the last of 5 bytes


def asked(download: Download, chunks: int | None = None) -> Ask:
    """Ask for these chunks, or all that are missing, with the first credit."""
    ask = download.ask(download.missing if chunks is None else chunks)
    ask.grant()
    return ask


def come(download: Download, ask: Ask, *chunks: int) -> None:
    """These chunks come and are verified."""
    for chunk in chunks:
        ask.piece(chunk, 0, download.manifest.chunk_length(chunk))
        assert download.takes(ask, chunk)
        download.whole(chunk)
        download.verified(chunk)


@given(st.sets(st.integers(0, 7679)))
def test_sets_of_chunks_are_ranges(chunks: set[int]) -> None:
    """The same set, in the fewest ranges, in order."""
    ranges = list(ranges_of(sum(1 << chunk for chunk in chunks)))
    assert [c for first, count in ranges for c in range(first, first + count)] == sorted(chunks)
    assert all(a + n < b for (a, n), (b, _) in pairwise(ranges))
    assert bits(ranges) == sum(1 << chunk for chunk in chunks)


def test_the_smallest_model() -> None:
    """One chunk of one byte: asked for, arrived, verified, done."""
    download = Download(small(1, 1))
    ask = asked(download)
    assert ask.ranges == ((0, 1),)
    assert ask.piece(0, 0, 1) == (0, True)
    download.whole(0)
    assert not download.done
    download.verified(0)
    assert download.done
    assert download.bytes_here == 1


def test_ask_names_the_gaps() -> None:
    """What an earlier try left isn't asked for again."""
    download = Download(small(10))
    for chunk in (0, 3, 4, 9):
        download.found(chunk)
    assert asked(download).ranges == ((1, 2), (5, 4))
    assert download.bytes_here == 4 * CHUNK_LEAST


def test_nothing_missing_asks_for_nothing() -> None:
    """A model that is whole on disk needs no source."""
    download = Download(small(2))
    download.found(0)
    download.found(1)
    assert download.done
    assert not download.missing


def test_the_last_chunk_may_be_short() -> None:
    """Bytes count as they are, wherever the short chunk comes in the order."""
    download = Download(small(3, 100))
    ask = asked(download)
    assert ask.piece(2, 0, 100) == (2 * CHUNK_LEAST, True)
    download.whole(2)
    download.verified(2)
    assert download.bytes_here == 100


def test_large_chunks_come_in_pieces() -> None:
    """A chunk of 2 MiB is two pieces, in order; chunks may come in any order."""
    ask = asked(Download(HUGE))
    assert ask.piece(5, 0, PIECE_LIMIT) == (5 * 2 * PIECE_LIMIT, False)
    assert ask.piece(2, 0, PIECE_LIMIT) == (2 * 2 * PIECE_LIMIT, False)
    assert ask.piece(5, PIECE_LIMIT, PIECE_LIMIT) == (11 * PIECE_LIMIT, True)


@pytest.mark.parametrize(
    ("chunk", "offset", "length", "problem"),
    [
        (1, 0, CHUNK_LEAST, "not asked for"),  # here already
        (7, 0, CHUNK_LEAST, "not asked for"),  # no such chunk
        (2**32 - 1, 0, 1, "not asked for"),
        (0, 1, CHUNK_LEAST - 1, "out of order"),
        (0, 0, CHUNK_LEAST + 1, "too long"),
        (0, 0, CHUNK_LEAST - 1, "a full one was due"),
        (2, 0, CHUNK_LEAST, "too long"),  # the last is short
    ],
)
def test_pieces_that_are_not_due(chunk: int, offset: int, length: int, problem: str) -> None:
    """A piece of the wrong chunk, place or length is refused and changes nothing."""
    download = Download(small(3, 100))
    download.found(1)
    ask = asked(download)
    with pytest.raises(TransferError, match=problem):
        ask.piece(chunk, offset, length)
    assert list(ask.coming) == [0, 2]


def test_pieces_out_of_order_within_a_chunk() -> None:
    """The second piece of a chunk before, or twice after, the first."""
    ask = asked(Download(HUGE))
    with pytest.raises(TransferError, match="out of order"):
        ask.piece(0, PIECE_LIMIT, PIECE_LIMIT)
    ask.piece(0, 0, PIECE_LIMIT)
    with pytest.raises(TransferError, match="out of order"):
        ask.piece(0, 0, PIECE_LIMIT)


def test_a_chunk_comes_once() -> None:
    """A chunk that has arrived isn't due again, before its digest is checked or after."""
    download = Download(small(3))
    ask = asked(download)
    come(download, ask, 0)
    with pytest.raises(TransferError, match="not asked for"):
        ask.piece(0, 0, CHUNK_LEAST)


def test_credit_bounds_what_may_come() -> None:
    """At first WINDOW pieces; each RENEW that are dealt with allow RENEW more."""
    ask = asked(Download(small(30)))
    for chunk in range(WINDOW):
        ask.piece(chunk, 0, CHUNK_LEAST)
    with pytest.raises(TransferError, match="credit"):
        ask.piece(WINDOW, 0, CHUNK_LEAST)
    assert [ask.renew() for _ in range(RENEW)] == [0] * (RENEW - 1) + [RENEW]
    for chunk in range(WINDOW, WINDOW + RENEW):
        ask.piece(chunk, 0, CHUNK_LEAST)
    with pytest.raises(TransferError, match="credit"):
        ask.piece(WINDOW + RENEW, 0, CHUNK_LEAST)


def test_a_fetch_is_never_granted_more_than_it_asks_for() -> None:
    """A short one needs no renewal."""
    ask = asked(Download(small(WINDOW + 1)))
    assert ask.outstanding == WINDOW
    assert [ask.renew() for _ in range(WINDOW)] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert ask.left == 1
    assert asked(Download(small(3))).outstanding == 3


def test_a_refuted_chunk_is_missing_again() -> None:
    """A wrong digest costs that chunk, and the next ask names it."""
    download = Download(small(2))
    ask = asked(download)
    ask.piece(0, 0, CHUNK_LEAST)
    download.whole(0)
    download.refuted(0)
    download.give_up(ask)
    assert asked(download).ranges == ((0, 2),)


def test_giving_up_keeps_what_is_here() -> None:
    """When a source is gone, verified chunks stay and all others are missing, also halves."""
    download = Download(HUGE)
    ask = asked(download)
    for offset in (0, PIECE_LIMIT):
        ask.piece(0, offset, PIECE_LIMIT)
    download.whole(0)
    download.verified(0)
    ask.piece(2, 0, PIECE_LIMIT)
    download.give_up(ask)
    again = asked(download)
    assert again.ranges == ((1, 4096),)
    assert again.piece(2, 0, PIECE_LIMIT) == (4 * PIECE_LIMIT, False)


def test_a_chunk_of_one_piece_is_taken_from_whoever_is_first() -> None:
    """Asked of a second source, as the first is late; the other's piece is then of no use."""
    download = Download(small(3))
    late = asked(download, 0b11)
    second = asked(download, 0b01)
    come(download, late, 0)
    assert not download.takes(second, 0)
    download.give_up(late)
    assert download.missing == 0b110


def test_a_chunk_of_several_pieces_is_taken_from_one() -> None:
    """The one that was asked last: else two would write one chunk."""
    download = Download(HUGE)
    late = asked(download, 0b11)
    second = asked(download, 0b01)
    assert download.takes(second, 0)
    assert not download.takes(late, 0)
    assert download.takes(late, 1)
    download.give_up(late)
    assert download.asked(0) is second
    assert download.state[1] is Chunk.MISSING


def test_the_docs_have_the_table() -> None:
    """The table of chunk states in docs/protocol/messages.md is the code's."""
    rows = re.findall(r"\| `(\w+)` \| (\w+) → (\w+) \|", PAGE.read_text())
    assert {(Chunk(a), event): Chunk(b) for event, a, b in rows} == transfer._NEXT


# ── the sender's side ────────────────────────────────────────────────────────────────────────


def test_an_upload_sends_what_was_asked_for() -> None:
    """Pieces in the order of the ranges, each at most PIECE_LIMIT, as far as credit goes."""
    upload = Upload(1, HUGE, ((4096, 1), (1, 1)), 2)
    assert upload.take() == (4096, 0, 5)
    assert upload.take() == (1, 0, PIECE_LIMIT)
    assert not upload.ready
    with pytest.raises(TransferError, match="no piece"):
        upload.take()
    upload.grant(1)
    assert upload.take() == (1, PIECE_LIMIT, PIECE_LIMIT)
    assert upload.done
    assert not upload.ready
    assert upload.sent == 2 * PIECE_LIMIT + 5


def test_credit_is_never_thrown_away() -> None:
    """What the receiver allows is kept, however much it is: it counts on it."""
    upload = Upload(1, small(100), ((0, 100),), 60)
    upload.grant(40)
    for _ in range(100):
        upload.take()
    assert upload.done


@pytest.mark.parametrize("ranges", [((0, 0),), ((0, 4),), ((3, 1),), ((0, 1), (2**32 - 1, 1))])
def test_chunks_that_a_model_lacks_can_t_be_asked_for(ranges: tuple[tuple[int, int], ...]) -> None:
    """A request beyond the model, or for nothing, is refused as a whole."""
    with pytest.raises(TransferError, match="of 3"):
        Upload(1, small(3), ranges, 8)


# ── both together ────────────────────────────────────────────────────────────────────────────


@given(st.integers(1, 40), st.integers(1, CHUNK_LEAST), st.integers(0, 2**32))
def test_both_sides_always_come_to_an_end(chunks: int, last: int, seed: int) -> None:
    """Whatever order, losses, wrong bytes and new sources come, the model ends whole, what is in
    flight stays within the credit, and each verified chunk comes just once."""
    chance = random.Random(seed)
    download = Download(small(chunks, last))
    for chunk in range(chunks):
        if chance.random() < 0.2:
            download.found(chunk)
    verified: list[int] = [c for c in range(chunks) if download.state[c] is Chunk.HERE]
    tries = 0
    while not download.done:
        tries += 1
        one_source(download, chance, verified, losses=0.05 if tries < 20 else 0.0)
    assert sorted(verified) == list(range(chunks))
    assert download.bytes_here == download.manifest.size


def one_source(
    download: Download, chance: random.Random, verified: list[int], losses: float
) -> None:
    """One source until it is done or lost: its pieces and our credit cross in any order."""
    ask = asked(download)
    upload = Upload(1, download.manifest, ask.ranges, ask.outstanding)
    wanted = set(ask.coming)
    network: deque[tuple[int, int, int]] = deque()
    credit: deque[int] = deque()
    queue: deque[tuple[int, bool]] = deque()
    while not download.done:
        steps = [upload.ready, bool(network), bool(credit), bool(queue)]
        assert any(steps), "both sides wait for each other"
        match chance.choice([n for n, possible in enumerate(steps) if possible]):
            case 0:
                network.append(upload.take())
            case 1:
                chunk, offset, length = network.popleft()
                assert chunk in wanted
                position, whole = ask.piece(chunk, offset, length)
                assert download.takes(ask, chunk)
                if whole:
                    download.whole(chunk)
                assert position == chunk * CHUNK_LEAST + offset
                queue.append((chunk, whole))
            case 2:
                upload.grant(credit.popleft())
            case 3:
                chunk, whole = queue.popleft()
                if chance.random() < losses:
                    if whole:
                        download.refuted(chunk)
                    break
                if whole:
                    download.verified(chunk)
                    verified.append(chunk)
                if more := ask.renew():
                    credit.append(more)
        assert len(network) + len(queue) <= WINDOW
        if chance.random() < losses:
            break
    while queue:
        chunk, whole = queue.popleft()
        if whole and download.state[chunk] is Chunk.ARRIVED:
            download.refuted(chunk)
    download.give_up(ask)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(-1, 2)), max_size=60))
def test_any_pieces_leave_a_sound_download(
    pieces: list[tuple[int, int, int]],
) -> None:
    """Whatever a peer sends, nothing but asked chunks in order is taken, within the credit."""
    download = Download(small(5, 10))
    download.found(2)
    ask = asked(download)
    taken = 0
    for chunk, offset, change in pieces:
        length = (10 if chunk == 4 else CHUNK_LEAST) + change
        try:
            position, whole = ask.piece(chunk, offset * CHUNK_LEAST, length)
        except TransferError:
            continue
        assert (position, whole) == (chunk * CHUNK_LEAST, True)
        assert chunk in (0, 1, 3, 4)
        taken += 1
    assert taken <= 4
    assert download.state[2] is Chunk.HERE
