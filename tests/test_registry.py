"""The registry: who is in which swarm, and news for watchers, against a simple model."""

import struct
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from records import peer, sealed, signed

from p2pnode.tracker import registry as module
from p2pnode.tracker.errors import Reason, Refused
from p2pnode.tracker.protocol import REPLY_LIMIT, Events, to_bytes
from p2pnode.tracker.record import SignedRecord, open_record
from p2pnode.tracker.registry import PEERS_PER_HOST, TTL, Changes, Registry

HOST = "1.2.3.4"


def new(instance: bytes = b"instance") -> Registry:
    """An empty registry."""
    return Registry(instance)


def refused(registry: Registry, record: SignedRecord, host: str = HOST) -> str:
    """The reason why this record is not taken."""
    with pytest.raises(Refused) as caught:
        registry.announce(record, host, 0.0)
    return caught.value.reason


def everyone(registry: Registry, swarm: str = "main", cursor: bytes = b"") -> set[str]:
    """Who is on the whole list, page after page."""
    there: set[str] = set()
    page = registry.changes(swarm, cursor)
    assert page.fresh
    while page:
        there |= {open_record(data).peer for data in page.joined}
        assert not page.left
        page = registry.changes(swarm, page.cursor)
    return there


def test_joins_and_leaves_are_news_once() -> None:
    """A watcher hears of a join and of a leave, and of nothing else after its cursor."""
    registry = new()
    start = registry.changes("main", b"")
    assert start.fresh
    assert registry.announce(signed(1), HOST, 0.0)
    first = registry.changes("main", registry.changes("main", b"").cursor)
    assert not first
    assert registry.announce(signed(2), HOST, 0.0)
    second = registry.changes("main", first.cursor)
    assert (second.joined, second.left, second.fresh) == ((sealed(2),), (), False)
    assert registry.leave("main", peer(1))
    third = registry.changes("main", second.cursor)
    assert (third.joined, third.left) == ((), (peer(1),))
    assert not registry.changes("main", third.cursor)


def test_a_sign_of_life_is_no_news_and_moving_is() -> None:
    """The same addresses only renew the TTL; new ones are told to the watchers."""
    registry = new()
    registry.announce(signed(1), HOST, 0.0)
    cursor = registry.changes("main", b"").cursor
    assert not registry.announce(signed(1, seq=2), HOST, 0.0)
    assert not registry.changes("main", cursor)
    assert registry.changes("main", b"").joined == (sealed(1, seq=2),)
    assert registry.announce(signed(1, seq=3, port=7000), HOST, 0.0)
    assert registry.changes("main", cursor).joined == (sealed(1, seq=3, port=7000),)


def test_records_live_for_the_ttl_of_the_given_clock() -> None:
    """Only `now` decides: kept up to the TTL since the last announce, gone at it."""
    registry = new()
    registry.announce(signed(1), HOST, 100.0)
    registry.announce(signed(2), HOST, 105.0)
    registry.announce(signed(1, seq=2), HOST, 110.0)
    assert registry.expire(100.0 + TTL) == []
    assert registry.expire(105.0 + TTL) == [("main", peer(2))]
    assert registry.peers == 1
    assert registry.expire(1e9) == [("main", peer(1))]
    assert (registry.peers, registry.swarms) == (0, 0)


def test_an_older_or_equal_seq_is_stale() -> None:
    """A replayed record changes nothing, not even the deadline; after a leave it may come."""
    registry = new()
    registry.announce(signed(1, seq=5), HOST, 0.0)
    assert refused(registry, signed(1, seq=5)) == Reason.STALE
    assert refused(registry, signed(1, seq=4)) == Reason.STALE
    assert registry.changes("main", b"").joined == (sealed(1, seq=5),)
    registry.leave("main", peer(1))
    assert registry.announce(signed(1, seq=4), HOST, 0.0)


def test_swarms_know_nothing_of_each_other() -> None:
    """A peer is listed in its swarm only; leaving one swarm is not leaving another."""
    registry = new()
    registry.announce(signed(1, swarm="red"), HOST, 0.0)
    registry.announce(signed(1, swarm="blue"), HOST, 0.0)
    registry.announce(signed(2, swarm="blue"), HOST, 0.0)
    cursor = registry.changes("red", b"").cursor
    registry.leave("blue", peer(1))
    assert not registry.changes("red", cursor)
    assert everyone(registry, "red") == {peer(1)}
    assert everyone(registry, "blue") == {peer(2)}
    assert (registry.members("red"), registry.members("green")) == (1, 0)


def test_leaving_twice_or_never_come_is_nothing() -> None:
    """Only a member can leave."""
    registry = new()
    assert not registry.leave("main", peer(1))
    registry.announce(signed(1), HOST, 0.0)
    assert not registry.leave("main", peer(2))
    assert registry.leave("main", peer(1))
    assert not registry.leave("main", peer(1))


@pytest.mark.parametrize(
    "cursor",
    [
        b"",
        b"garbage",
        b"x" * 24,
        b"x" * 32,
        b"instance" + b"\xff" * 16,
        struct.pack(">8sQQ", b"instance", 2, 10**9),
        struct.pack(">8sQQ", b"another.", 1, 1),
    ],
)
def test_a_cursor_that_is_not_ours_gets_the_whole_list(cursor: bytes) -> None:
    """Empty, garbage, forged, of another life: everyone is listed, and it goes on from there."""
    registry = new()
    registry.announce(signed(1), HOST, 0.0)
    registry.announce(signed(2), HOST, 0.0)
    assert everyone(registry, cursor=cursor) == {peer(1), peer(2)}


def test_a_registry_started_anew_gives_the_whole_list() -> None:
    """A cursor of the life before is not taken for one of this life."""
    before, after = new(b"before.."), new(b"after...")
    for registry in (before, after):
        registry.announce(signed(1), HOST, 0.0)
    page = after.changes("main", before.changes("main", b"").cursor)
    assert page.fresh
    assert page.joined == (sealed(1),)


def test_missed_departures_give_the_whole_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher that missed more departures than are remembered starts over."""
    monkeypatch.setattr(module, "DEPARTURES", 2)
    registry = new()
    for number in range(1, 6):
        registry.announce(signed(number), HOST, 0.0)
    cursor = registry.changes("main", b"").cursor
    for number in (1, 2):
        registry.leave("main", peer(number))
    assert registry.changes("main", cursor).left == (peer(1), peer(2))
    registry.leave("main", peer(3))
    assert everyone(registry, cursor=cursor) == {peer(4), peer(5)}


def test_a_swarm_that_was_empty_in_between_gives_the_whole_list() -> None:
    """Nothing is kept for empty swarms, so what left while nobody was there is told as a list."""
    registry = new()
    registry.announce(signed(1), HOST, 0.0)
    cursor = registry.changes("main", b"").cursor
    registry.leave("main", peer(1))
    assert registry.changes("main", cursor).fresh
    registry.announce(signed(2), HOST, 0.0)
    assert everyone(registry, cursor=cursor) == {peer(2)}


def test_long_news_comes_in_pages_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page stays under its bytes, nobody is missed, and changes in between are told."""
    monkeypatch.setattr(module, "PAGE_BYTES", 1000)
    registry = new()
    for number in range(20):
        registry.announce(signed(number), HOST, 0.0)
    there: set[str] = set()
    page, pages = registry.changes("main", b""), 0
    while page:
        assert sum(map(len, page.joined)) <= 1000
        there -= set(page.left)
        there |= {open_record(data).peer for data in page.joined}
        pages += 1
        if pages == 2:
            registry.leave("main", peer(0))  # on an earlier page
            registry.leave("main", peer(19))  # would have been on a later one
            registry.announce(signed(30), HOST, 0.0)
        page = registry.changes("main", page.cursor)
    assert pages == 4
    assert there == {peer(n) for n in (*range(1, 19), 30)}


def test_a_long_list_does_not_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Departures from before the list began don't matter to it, though its pages are as old."""
    monkeypatch.setattr(module, "PAGE_BYTES", 500)
    monkeypatch.setattr(module, "DEPARTURES", 2)
    registry = new()
    for number in range(12):
        registry.announce(signed(number), HOST, 0.0)
    for number in range(8, 12):
        registry.leave("main", peer(number))
    page, pages = registry.changes("main", b""), 0
    while page:
        assert page.fresh == (pages == 0)
        page, pages = registry.changes("main", page.cursor), pages + 1
    assert pages == 4


def test_the_fullest_page_fits_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """PAGE_BYTES and PAGE_ITEMS leave room for the CBOR around the items."""
    monkeypatch.setattr(module, "PEERS_PER_HOST", 10**6)
    registry = new()
    template = signed(1)
    size = len(template.data)
    for number in range(1500):
        data = number.to_bytes(2) * (size // 2)
        registry.announce(SignedRecord(data, f"{number:052}", template.record), HOST, 0.0)
    registry_page = registry.changes("main", b"")
    assert len(registry_page.joined) > 900
    assert len(encode(registry_page)) <= REPLY_LIMIT


def encode(page: Changes) -> bytes:
    """The answer that carries a page."""
    return to_bytes(Events(2**63 - 1, page.cursor, page.fresh, page.joined, page.left))


def test_one_host_can_not_fill_the_tracker() -> None:
    """An IPv4 address or IPv6 /64 has a quota; renewing is always possible, and leaving frees."""
    registry = new()
    template = signed(1).record
    for number in range(PEERS_PER_HOST):
        host = f"2001:db8::{number:x}"
        registry.announce(SignedRecord(b"x", f"peer {number}", template), host, 0.0)
    assert refused(registry, signed(1), "2001:db8::ffff:1") == Reason.HOST_FULL
    assert registry.announce(signed(1), "2001:db8:0:1::1", 0.0)
    moving = signed(1, seq=2, port=7)
    assert refused(registry, moving, "2001:db8::1") == Reason.HOST_FULL
    registry.leave("main", "peer 0")
    assert registry.announce(moving, "2001:db8::1", 0.0)
    assert refused(registry, signed(2), "2001:db8::1") == Reason.HOST_FULL
    again = SignedRecord(b"x", "peer 1", signed(1, seq=9).record)
    assert not registry.announce(again, "2001:db8::1", 0.0)


def test_swarms_and_the_tracker_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers of a swarm, swarms, and peers in all have limits; members can still renew."""
    monkeypatch.setattr(module, "PEERS_PER_SWARM", 2)
    monkeypatch.setattr(module, "SWARMS", 2)
    monkeypatch.setattr(module, "PEERS", 3)
    registry = new()
    registry.announce(signed(1), HOST, 0.0)
    registry.announce(signed(2), HOST, 0.0)
    assert refused(registry, signed(3)) == Reason.SWARM_FULL
    assert refused(registry, signed(3, swarm="two")) == Reason.TRACKER_FULL, "not one host alone"
    registry.announce(signed(3, swarm="two"), "10.9.9.9", 0.0)
    assert refused(registry, signed(4, swarm="three")) == Reason.TRACKER_FULL
    assert refused(registry, signed(4, swarm="two")) == Reason.TRACKER_FULL
    assert not registry.announce(signed(1, seq=2), HOST, 0.0)
    registry.leave("main", peer(1))
    assert registry.announce(signed(4, swarm="two"), HOST, 0.0)


def test_hosts_are_forgotten_with_their_peers() -> None:
    """Nothing of a peer stays after it left: names of hosts would fill the memory."""
    registry = new()
    for number in range(9):
        registry.announce(signed(number), f"10.0.0.{number}", 0.0)
        registry.announce(signed(number, seq=2), f"10.0.1.{number}", 0.0)
    registry.expire(TTL)
    assert not registry._hosts
    assert not registry._swarms


def test_our_own_mistakes_are_told() -> None:
    """An instance of another length, a TTL that no peer accepts."""
    with pytest.raises(ValueError, match="8 bytes"):
        Registry(b"short")
    with pytest.raises(ValueError, match="ttl must be"):
        Registry(b"instance", ttl=0.1)


NUMBERS = st.integers(1, 6)
SWARMS = st.sampled_from(["red", "blue"])


class AgainstAModel(RuleBasedStateMachine):
    """The registry and a dict (swarm, peer) → (seq, port, deadline) do the same.

    Watchers, each with an old cursor and an old set of peers, catch up page by page and must then
    know exactly the members. Pages and the departure log are tiny, so that both overflow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "PAGE_BYTES", 500)
        self.patch.setattr(module, "DEPARTURES", 3)
        self.registry = new()
        self.model: dict[tuple[str, str], tuple[int, int, float]] = {}
        self.now = 0.0
        self.watchers: list[tuple[str, bytes, dict[str, int]]] = []

    def teardown(self) -> None:
        self.patch.undo()

    @rule(number=NUMBERS, swarm=SWARMS, seq=st.integers(0, 9), port=st.integers(1, 2))
    def announce(self, number: int, swarm: str, seq: int, port: int) -> None:
        key = (swarm, peer(number))
        record = signed(number, seq, swarm=swarm, port=port)
        old = self.model.get(key)
        if old is not None and seq <= old[0]:
            assert refused(self.registry, record) == Reason.STALE
            return
        news = self.registry.announce(record, HOST, self.now)
        assert news == (old is None or old[1] != port)
        self.model[key] = (seq, port, self.now + TTL)

    @rule(number=NUMBERS, swarm=SWARMS)
    def leave(self, number: int, swarm: str) -> None:
        was_there = self.model.pop((swarm, peer(number)), None) is not None
        assert self.registry.leave(swarm, peer(number)) == was_there

    @rule(seconds=st.sampled_from([0.0, 1.0, 10.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        over = {key for key, (_, _, deadline) in self.model.items() if deadline <= self.now}
        for key in over:
            del self.model[key]
        assert set(self.registry.expire(self.now)) == over

    @precondition(lambda self: len(self.watchers) < 4)
    @rule(swarm=SWARMS, cursor=st.binary(max_size=32))
    def watcher_comes(self, swarm: str, cursor: bytes) -> None:
        self.watchers.append((swarm, cursor, {}))

    @precondition(lambda self: self.watchers)
    @rule(which=st.integers(0, 3))
    def watcher_reads_a_page(self, which: int) -> None:
        which %= len(self.watchers)
        self.watchers[which] = self.read(*self.watchers[which])

    @precondition(lambda self: self.watchers)
    @rule(which=st.integers(0, 3))
    def watcher_catches_up(self, which: int) -> None:
        which %= len(self.watchers)
        swarm, cursor, known = self.watchers[which]
        for _ in range(20):
            swarm, cursor, known = self.read(swarm, cursor, known)
        assert known == {p: port for (s, p), (_, port, _) in self.model.items() if s == swarm}
        self.watchers[which] = (swarm, cursor, known)

    def read(self, swarm: str, cursor: bytes, known: dict[str, int]) -> Any:
        page = self.registry.changes(swarm, cursor)
        known = {} if page.fresh else dict(known)
        for gone in page.left:
            known.pop(gone, None)
        for data in page.joined:
            opened = open_record(data)
            known[opened.peer] = opened.record.addresses[0].port
        return swarm, page.cursor, known

    @invariant()
    def counts_agree(self) -> None:
        assert self.registry.peers == len(self.model)
        assert self.registry.swarms == len({swarm for swarm, _ in self.model})


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(
    deadline=None, derandomize=True, max_examples=60, stateful_step_count=40
)
