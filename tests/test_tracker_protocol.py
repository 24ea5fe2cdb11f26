"""Tracker messages: the bytes of docs/protocol/tracker.md, and nothing else."""

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from records import peer, record, sealed, signed

from lab import identity
from p2pnode.tracker import protocol, registry, server, sessions, verdict
from p2pnode.tracker import record as peer_record
from p2pnode.tracker.errors import SENTENCES, ProtocolError, Reason, RecordError, Refused
from p2pnode.tracker.protocol import (
    Announce,
    Bye,
    Call,
    Called,
    Events,
    Leave,
    Message,
    Refusal,
    Reply,
    Request,
    Watch,
    Welcome,
    parse_reply,
    parse_request,
    to_bytes,
)
from p2pnode.tracker.record import PeerRecord, open_record
from p2pnode.tracker.verdict import DialBack, Outcome, Verdict
from p2pnode.transport import wire
from p2pnode.transport.address import Address
from p2pnode.transport.envelope import Kind, seal
from p2pnode.transport.identity import Identity
from p2pnode.transport.link import CONTROL_LIMIT
from p2pnode.transport.peer_address import PeerAddress

STEADY = settings(deadline=None, derandomize=True)
"""The same examples in every run, however busy the machine is."""

# libp2p's published test key, as in the other golden vectors.
SIGNER = Identity.from_seed(
    bytes.fromhex("7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d")
)
RECORD = PeerRecord(
    swarm="main",
    seq=1_800_000_000_123,
    addresses=(
        Address("2.2.2.2", 6000),
        Address("2001:db8::1", 6000),
        Address("name.example", 6000),
    ),
    created=1_800_000_000.5,
)
RELAYED = replace(
    RECORD,
    seq=RECORD.seq + 1,
    relays=(PeerAddress(peer(1), Address("2.2.2.9", 6000)),),
    relay=True,
)
ENVELOPE = seal(SIGNER, Kind.PEER_RECORD, RECORD.to_bytes())
CURSOR = bytes(range(24))

REQUESTS: dict[str, Request] = {
    "tracker-announce": Announce(1, ENVELOPE),
    "tracker-watch-first": Watch(2),
    "tracker-watch": Watch(3, CURSOR),
    "tracker-leave": Leave(4),
    "tracker-dialback": DialBack(6, Address("2.2.2.2", 6000), bytes(range(32))),
    "tracker-call": Call(7, peer(1), b"sealed"),
}
REPLIES: dict[str, Reply] = {
    "tracker-welcome": Welcome(1, 30.0, Address("2.2.2.2", 40001)),
    "tracker-events": Events(2, CURSOR, True, (ENVELOPE,), (peer(1),)),
    "tracker-bye": Bye(4),
    "tracker-error": Refusal(5, "stale"),
    "tracker-verdict": Verdict(6, "timed-out"),
    "tracker-welcome-offers": Welcome(
        1, 30.0, Address("2.2.2.2", 40001), relay=True, stun=3478, time=1_800_000_000.5
    ),
    "tracker-events-calls": Events(2, CURSOR, False, (), (), (b"sealed",)),
    "tracker-called": Called(7),
}
MESSAGES: dict[str, Message] = {**REQUESTS, **REPLIES}


def parse(name: str, data: bytes) -> Message:
    """Read a golden message in its direction."""
    return parse_request(data) if name in REQUESTS else parse_reply(data)


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_messages(name: str) -> None:
    """Each message has the golden bytes, and the golden bytes are that message."""
    assert to_bytes(MESSAGES[name]) == golden(name)
    assert parse(name, golden(name)) == MESSAGES[name]


def test_golden_record() -> None:
    """The golden record and its envelope, signed by libp2p's test key, open again."""
    assert RECORD.to_bytes() == golden("tracker-record")
    assert golden("tracker-signed-record") == ENVELOPE
    opened = open_record(ENVELOPE, signer=SIGNER.peer_id)
    assert (opened.data, opened.peer, opened.record) == (ENVELOPE, SIGNER.peer_id, RECORD)
    assert RELAYED.to_bytes() == golden("tracker-record-relays")
    assert PeerRecord.from_bytes(golden("tracker-record-relays")) == RELAYED


def test_the_docs_tell_every_reason_and_limit() -> None:
    """docs/protocol/tracker.md has each reason with its sentence, and the numbers of the code."""
    page = (Path(__file__).parent.parent / "docs/protocol/tracker.md").read_text()
    for reason in Reason:
        assert f"| `{reason}` | {SENTENCES[reason]} |" in page
    for outcome in Outcome:
        assert f"| `{outcome}` | {outcome.sentence} |" in page
    told = dict(re.findall(r"\| `([A-Z_]+)` \| ([0-9.]+) \|", page))
    assert told
    assert {name: float(value) for name, value in told.items()} == {
        name: float(getattr(module, name))
        for name in told
        for module in (protocol, peer_record, registry, server, sessions, verdict)
        if hasattr(module, name)
    }


def test_answers_fit_a_control_message() -> None:
    """The largest answer that is read is no larger than what every link carries."""
    assert protocol.REPLY_LIMIT <= CONTROL_LIMIT


def test_unknown_fields_are_ignored() -> None:
    """A newer peer's extra fields do no harm."""
    data = wire.encode({"t": "leave", "id": 4, "why": "tired"})
    assert parse_request(data) == Leave(4)


def test_an_empty_page_needs_no_lists() -> None:
    """Lists may be left out where they are empty."""
    data = wire.encode({"t": "events", "id": 1, "cursor": b"", "fresh": False})
    assert parse_reply(data) == Events(1, b"", False, (), ())


@pytest.mark.parametrize(
    ("late", "early"),
    [
        ("tracker-welcome-offers", Welcome(1, 30.0, Address("2.2.2.2", 40001))),
        ("tracker-events-calls", Events(2, CURSOR, False, (), ())),
    ],
)
def test_an_older_peer_reads_what_it_knows(late: str, early: Reply) -> None:
    """Without the later keys it is the message of before, and that one never has those keys."""
    value = wire.decode(golden(late), limit=1000)
    assert isinstance(value, dict)
    old = {key: item for key, item in value.items() if key not in LATER}
    assert old != value
    assert parse_reply(wire.encode(old)) == early
    assert to_bytes(early) == wire.encode(old)


LATER = {"relay", "stun", "time", "calls"}
GOOD: dict[str, dict[str, Any]] = {
    "announce": {"envelope": b"x"},
    "watch": {"cursor": b""},
    "leave": {},
    "call": {"peer": peer(1), "envelope": b"x"},
    "called": {},
    "welcome": {"ttl": 30.0, "seen": "1.2.3.4:5"},
    "events": {"cursor": b"", "fresh": True, "joined": [b"x"], "left": [peer(1)]},
    "bye": {},
    "error": {"reason": "stale"},
}
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("announce", {"envelope": b""}),
    ("announce", {"envelope": b"x" * 4097}),
    ("announce", {"envelope": "text"}),
    ("announce", {"id": 0}),
    ("announce", {"id": -1}),
    ("announce", {"id": 2**63}),
    ("announce", {"id": "1"}),
    ("announce", {"t": "shout"}),
    ("announce", {"t": 1}),
    ("announce", {"t": None}),
    ("watch", {"cursor": b"x" * 33}),
    ("watch", {"cursor": 7}),
    ("welcome", {"ttl": 0.5}),
    ("welcome", {"ttl": 3601.0}),
    ("welcome", {"ttl": float("nan")}),
    ("welcome", {"seen": "nowhere"}),
    ("welcome", {"seen": "1.2.3.4:99999"}),
    ("events", {"fresh": 1}),
    ("events", {"joined": [b""]}),
    ("events", {"joined": ["x"]}),
    ("events", {"joined": b"x"}),
    ("events", {"joined": [b"x"] * 2049}),
    ("events", {"left": ["12D3KooWnobody"]}),
    ("events", {"left": [peer(1)[:-1] + "0"]}),
    ("events", {"calls": [b""]}),
    ("events", {"calls": [b"x" * 1025]}),
    ("events", {"calls": [b"x"] * 9}),
    ("events", {"calls": b"x"}),
    ("welcome", {"relay": 1}),
    ("welcome", {"stun": -1}),
    ("welcome", {"stun": 65536}),
    ("welcome", {"stun": 3478.0}),
    ("welcome", {"time": float("inf")}),
    ("welcome", {"time": "noon"}),
    ("call", {"peer": "12D3KooWnobody"}),
    ("call", {"peer": None}),
    ("call", {"envelope": b""}),
    ("call", {"envelope": b"x" * 1025}),
    ("error", {"reason": ""}),
    ("error", {"reason": "\x1b[2J"}),
    ("error", {"reason": "Stale"}),
    ("error", {"reason": "a" * 33}),
]


@pytest.mark.parametrize(("kind", "change"), WRONG)
def test_wrong_fields_are_refused(kind: str, change: dict[str, Any]) -> None:
    """A field of another type, size or form is a ProtocolError that names it."""
    read = parse_request if kind in ("announce", "watch", "leave", "call") else parse_reply
    right: dict[str, Any] = {"t": kind, "id": 1, **GOOD[kind]}
    assert read(wire.encode(right))
    with pytest.raises(ProtocolError, match=re.escape(next(iter(change)))):
        read(wire.encode(right | change))


def test_the_id_of_a_wrong_question_is_known_where_it_can_be_read() -> None:
    """So that the error answers the question it belongs to; 0 stands for unreadable."""
    with pytest.raises(ProtocolError) as caught:
        parse_request(wire.encode({"t": "shout", "id": 77}))
    assert caught.value.id == 77
    with pytest.raises(ProtocolError) as caught:
        parse_request(b"\xff")
    assert caught.value.id == 0


def test_questions_and_answers_are_not_confused() -> None:
    """An answer is no question, and the other way round."""
    for name, message in MESSAGES.items():
        other = parse_reply if name in REQUESTS else parse_request
        with pytest.raises(ProtocolError):
            other(to_bytes(message))


def test_oversize_is_refused_before_decoding() -> None:
    """More bytes than a message may have are never parsed."""
    with pytest.raises(ProtocolError, match="at most"):
        parse_request(to_bytes(Announce(1, b"x" * 4097)) + b"x" * protocol.REQUEST_LIMIT)
    with pytest.raises(ProtocolError, match="at most"):
        parse_reply(b"x" * (protocol.REPLY_LIMIT + 1))


RELAY = f"{peer(2)}@1.2.3.4:1"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"swarm": ""},
        {"swarm": "x" * 65},
        {"swarm": "two\nlines"},
        {"seq": -1},
        {"seq": 1.0},
        {"created": float("inf")},
        {"created": "now"},
        {"addresses": ["1.2.3.4:0"]},
        {"addresses": ["1.2.3.4"]},
        {"addresses": ["\x1b[2J:1"]},
        {"addresses": ["1.2.3.4:1"] * 9},
        {"addresses": "1.2.3.4:1"},
        {"addresses": [7]},
        {"relays": [RELAY] * 2},
        {"relays": [RELAY, f"{peer(3)}@1.2.3.5:1", f"{peer(4)}@1.2.3.5:1"]},
        {"relays": [RELAY.replace(":1", ":0")]},
        {"relays": ["1.2.3.4:1"]},
        {"relays": [f"{peer(2)}@"]},
        {"relays": [RELAY.encode()]},
        {"relays": RELAY},
        {"relay": 1},
        {"relay": True, "addresses": []},
    ],
)
def test_wrong_records_are_refused(change: dict[str, Any]) -> None:
    """A record with a wrong field is a RecordError, and a tracker refuses its envelope."""
    good = {"version": 1, "swarm": "main", "seq": 1, "created": 1.0, "addresses": ["1.2.3.4:1"]}
    PeerRecord.from_bytes(wire.encode(good))
    payload = wire.encode(good | change)
    with pytest.raises(RecordError):
        PeerRecord.from_bytes(payload)
    with pytest.raises(Refused) as caught:
        open_record(seal(identity(1), Kind.PEER_RECORD, payload))
    assert caught.value.reason == Reason.MALFORMED


def test_nobody_is_their_own_relay() -> None:
    """A record that names its own peer as a relay would send others in a circle."""
    relayed = replace(record(), relays=(PeerAddress.parse(RELAY),))
    data = relayed.to_bytes()
    assert open_record(seal(identity(1), Kind.PEER_RECORD, data)).record == relayed
    with pytest.raises(Refused) as caught:
        open_record(seal(identity(2), Kind.PEER_RECORD, data))
    assert caught.value.reason == Reason.MALFORMED


def test_every_way_in_counts_as_news() -> None:
    """A record whose addresses, relays or offer to relay change says something new; seq doesn't."""
    first = record()
    assert replace(first, seq=2, created=7.0).ways == first.ways
    for change in ({"addresses": ()}, {"relays": RELAYED.relays}, {"relay": True}):
        assert replace(first, **change).ways != first.ways


def test_a_peer_without_addresses_has_a_record() -> None:
    """Who can't be dialled is still in the swarm: it dials the others."""
    alone = PeerRecord(swarm="main", seq=1, addresses=(), created=0.0)
    assert PeerRecord.from_bytes(alone.to_bytes()) == alone


def test_the_largest_record_fits() -> None:
    """Addresses and relays with the longest names stay under the limit of a signed record."""
    name = ".".join(["x" * 61] * 4)[:253]
    addresses = tuple(Address(name, 65535 - i) for i in range(8))
    largest = PeerRecord(
        swarm="水" * 64,
        seq=2**63 - 1,
        addresses=addresses,
        created=1.1,
        relays=tuple(PeerAddress(peer(2 + i), addresses[i]) for i in range(2)),
        relay=True,
    )
    data = seal(identity(1), Kind.PEER_RECORD, largest.to_bytes())
    assert open_record(data).record == largest
    assert parse_request(to_bytes(Announce(2**63 - 1, data)))


def test_a_foreign_key_is_refused_before_its_signature() -> None:
    """A record of another peer is FOREIGN_KEY, whether its signature is right or not."""
    for data in (sealed(2), sealed(2)[:-1] + b"\x00"):
        with pytest.raises(Refused) as caught:
            open_record(data, signer=peer(1))
        assert caught.value.reason == Reason.FOREIGN_KEY


def test_a_wrong_signature_is_refused() -> None:
    """One altered bit of the signature, or the signature of another kind, is BAD_SIGNATURE."""
    altered = bytearray(sealed(1))
    altered[-1] ^= 1
    manifest = seal(identity(1), Kind.MANIFEST, record().to_bytes())
    for data in (bytes(altered), manifest):
        with pytest.raises(Refused) as caught:
            open_record(data)
        assert caught.value.reason == Reason.BAD_SIGNATURE


def test_no_byte_of_a_signed_record_can_be_altered() -> None:
    """Whatever byte a tracker alters, the record doesn't open any more."""
    data = sealed(1)
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 1
        with pytest.raises(Refused):
            open_record(bytes(altered), signer=peer(1))


ADDRESSES = st.builds(
    Address,
    st.ip_addresses().map(str) | st.from_regex(r"[a-z]{1,20}\.example", fullmatch=True),
    st.integers(1, 65535),
)
PEERS = st.integers(0, 255).map(peer)
RELAYS = st.builds(PeerAddress, PEERS, ADDRESSES)
RECORDS = st.builds(
    PeerRecord,
    swarm=st.text(st.characters(codec="utf-8"), min_size=1, max_size=64).filter(str.isprintable),
    seq=st.integers(0, 2**63 - 1),
    addresses=st.lists(ADDRESSES, max_size=8).map(tuple),
    created=st.floats(allow_nan=False, allow_infinity=False),
    relays=st.lists(RELAYS, max_size=2, unique_by=lambda relay: relay.peer).map(tuple),
)
IDS = st.integers(1, 2**63 - 1)
ENVELOPES = st.binary(min_size=1, max_size=4096)
CALLS = st.binary(min_size=1, max_size=1024)
ANY_REQUEST = (
    st.builds(Announce, IDS, ENVELOPES)
    | st.builds(Watch, IDS, st.binary(max_size=32))
    | st.builds(Leave, IDS)
    | st.builds(
        DialBack,
        IDS,
        ADDRESSES,
        st.binary(min_size=16, max_size=32),
        st.sampled_from([b"", bytes(verdict.PAYMENT)]),
    )
    | st.builds(Call, IDS, PEERS, CALLS)
)
ANY_REPLY = (
    st.builds(
        Welcome,
        IDS,
        st.floats(1, 3600),
        ADDRESSES,
        st.booleans(),
        st.integers(0, 65535),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
    )
    | st.builds(
        Events,
        IDS,
        st.binary(max_size=32),
        st.booleans(),
        st.lists(ENVELOPES, max_size=9).map(tuple),
        st.lists(PEERS, max_size=9).map(tuple),
        st.lists(CALLS, max_size=8).map(tuple),
    )
    | st.builds(Called, IDS)
    | st.builds(Bye, IDS)
    | st.builds(Refusal, IDS, st.sampled_from([*map(str, Reason), "something-new"]))
    | st.builds(Verdict, IDS, st.sampled_from([*map(str, Outcome), "something-new"]))
)


@STEADY
@given(RECORDS)
def test_records_come_back(value: PeerRecord) -> None:
    """Every record is read back from its bytes."""
    assert PeerRecord.from_bytes(value.to_bytes()) == value


@STEADY
@given(ANY_REQUEST, ANY_REPLY)
def test_messages_come_back(request: Request, reply: Reply) -> None:
    """Every message is read back from its bytes."""
    assert parse_request(to_bytes(request)) == request
    assert parse_reply(to_bytes(reply)) == reply


WIRE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "t",
        "id",
        "envelope",
        "cursor",
        "ttl",
        "seen",
        "fresh",
        "joined",
        "left",
        "reason",
        "address",
        "nonce",
        "payment",
        "outcome",
        "version",
        "swarm",
        "seq",
        "addresses",
        "relays",
        "relay",
        "stun",
        "time",
        "calls",
        "peer",
    ]
)
NEARLY = st.dictionaries(KEYS, WIRE | st.sampled_from(list(GOOD))).map(wire.encode)


@STEADY
@given(st.binary(max_size=300) | NEARLY)
def test_any_bytes_give_a_value_or_the_documented_error(data: bytes) -> None:
    """The fuzz sentence: a message, or ProtocolError; a record, or RecordError, or Refused."""
    for parser, error in (
        (parse_request, ProtocolError),
        (parse_reply, ProtocolError),
        (PeerRecord.from_bytes, RecordError),
        (open_record, Refused),
    ):
        with contextlib.suppress(error):
            assert parser(data)


@STEADY
@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_altered_messages_give_a_value_or_the_documented_error(name: str, data: Any) -> None:
    """Cut, altered and lengthened golden messages are read or refused, never worse."""
    good = bytearray(golden(name))
    place = data.draw(st.integers(0, len(good) - 1))
    good[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        parse(name, bytes(good))
    except ProtocolError as error:
        assert "\n" not in str(error)


def test_signed_helper_is_what_sealed_opens_to() -> None:
    """The tests' helper and the wire agree."""
    assert signed(1, 7).record == record(7)
