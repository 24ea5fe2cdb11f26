"""A leaky bucket, against what it promises."""

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.transport.bucket import Bucket


def test_a_burst_then_the_rate() -> None:
    """Four at once, then one each half second; after a pause there is a burst again."""
    bucket = Bucket(2.0, 4)
    assert [bucket.wait(10.0) for _ in range(6)] == [0, 0, 0, 0, 0.5, 1.0]
    assert bucket.wait(11.0) == 0.5
    assert [bucket.wait(99.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]


@given(st.lists(st.integers(0, 20)))
def test_free_tells_what_wait_would_say(pauses: list[int]) -> None:
    """Free is exactly: the next one needs not wait; idle: a whole burst needn't."""
    bucket, now = Bucket(4.0, 8), 0.0
    for pause in pauses:
        now += pause / 8
        idle, free = bucket.idle(now), bucket.free(now)
        assert free or not idle
        assert free == (bucket.wait(now) == 0)
        if idle:
            assert [bucket.wait(now) for _ in range(7)] == [0] * 7
            assert not bucket.free(now)


@given(st.lists(st.integers(0, 20)))
def test_who_waits_keeps_to_the_rate(pauses: list[int]) -> None:
    """Whoever deals with each when it is due never exceeds burst plus rate × time."""
    bucket, now = Bucket(4.0, 8), 0.0
    for dealt, pause in enumerate(pauses, 1):
        now += pause / 8
        now += bucket.wait(now)
        assert dealt <= 8 + 4.0 * now
