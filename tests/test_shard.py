"""node/shard.py: which part of the data is ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.node.errors import ShardError
from p2pnode.node.shard import SHARDS_LIMIT, Shard


@given(count=st.integers(1, 200), extra=st.integers(0, 5000))
def test_shards_cover_all_samples_once(count: int, extra: int) -> None:
    """The n shards are contiguous, in order, disjoint, complete, and equal but for one sample."""
    samples = count + extra
    parts = [Shard(index, count).of(samples) for index in range(count)]
    rows = [row for part in parts for row in range(samples)[part]]
    assert rows == list(range(samples))
    sizes = {part.stop - part.start for part in parts}
    assert max(sizes) - min(sizes) <= 1


@given(index=st.integers(0, 50), more=st.integers(1, 50))
def test_text_round_trips(index: int, more: int) -> None:
    """A shard reads back what it prints."""
    shard = Shard(index, index + more)
    assert Shard.parse(str(shard)) == shard


@pytest.mark.parametrize("text", ["", "0", "a/b", "3/3", "-1/3", "0/0", "1/2/3", "0 /3", "٣/٤"])
def test_wrong_text_says_how_to_write_it(text: str) -> None:
    """Whatever isn't a shard is refused with the form that is right."""
    with pytest.raises(ShardError, match=r"write --shard I/N with 0 ≤ I < N"):
        Shard.parse(text)


def test_more_shards_than_samples_are_refused() -> None:
    """A shard that would be empty is an error, not an empty training."""
    with pytest.raises(ShardError, match="N can be at most 5"):
        Shard(0, 6).of(5)
    with pytest.raises(ShardError):
        Shard(0, SHARDS_LIMIT + 1)


@given(st.text(max_size=24))
def test_any_text_gives_a_shard_or_the_error(text: str) -> None:
    """Any text gives a shard or ShardError."""
    try:
        assert Shard.parse(text).count >= 1
    except ShardError as error:
        assert "\n" not in str(error) or "\n" in text
