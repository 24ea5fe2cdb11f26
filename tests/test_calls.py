"""Calls: nobody can forge, repeat or misuse one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from golden import golden
from hypothesis import given
from hypothesis import strategies as st

from lab import identity
from p2pnode.tracker import protocol
from p2pnode.transport import wire
from p2pnode.transport.address import Address
from p2pnode.transport.admission import CLOCK_SKEW
from p2pnode.transport.envelope import ENVELOPE_LIMIT, Kind, seal
from p2pnode.transport.errors import CallError
from p2pnode.transport.nat.calls import (
    A_HOST,
    ADDRESSES,
    CALL_LIMIT,
    HEARD,
    LIFETIME,
    Call,
    Ear,
    Step,
    is_target,
    targets,
)

ALICE, BOB, EVE = identity(1), identity(2), identity(3)
NOW = 1_800_000_000.0
CALL = Call(
    swarm="main",
    to=BOB.peer_id,
    step=Step.CALL,
    nonce=bytes(range(16)),
    addresses=(Address("198.51.100.7", 6000), Address("2001:db8::7", 6000)),
    created=NOW,
    expires=NOW + LIFETIME,
)
ANSWER = replace(
    CALL, to=ALICE.peer_id, step=Step.ANSWER, addresses=(Address("203.0.113.9", 40123),)
)
GO = replace(CALL, step=Step.GO, addresses=(), created=NOW + 0.25)
FIELDS: dict[str, Any] = dict(wire.decode(CALL.to_bytes(), limit=CALL_LIMIT))  # type: ignore[arg-type]


def ear() -> Ear:
    """Bob's."""
    return Ear(BOB.peer_id, "main")


# ── the bytes ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "call"), [("punch-call", CALL), ("punch-answer", ANSWER), ("punch-go", GO)]
)
def test_golden_calls(name: str, call: Call) -> None:
    """Each step has the golden bytes, both ways."""
    assert call.to_bytes() == golden(name)
    assert Call.from_bytes(golden(name)) == call


def test_golden_signed_call() -> None:
    """Alice's signed call is the golden one, and Bob hears it."""
    assert CALL.sealed(ALICE) == golden("punch-signed-call")
    assert ear().hear(golden("punch-signed-call"), NOW) == (ALICE.peer_id, CALL)


def test_the_longest_call_fits() -> None:
    """Four IPv6 addresses, the longest name of a swarm: trackers hand it on."""
    longest = replace(
        CALL,
        swarm="水" * 64,
        step=Step.ANSWER,
        addresses=(Address("2001:db8:1111:2222:3333:4444:5555:6666", 65535),) * ADDRESSES,
    )
    assert len(longest.sealed(ALICE)) <= min(CALL_LIMIT, protocol.CALL_LIMIT)
    assert Call.from_bytes(longest.to_bytes()) == longest


def test_unknown_fields_do_no_harm() -> None:
    """A newer peer may say more."""
    assert Call.from_bytes(wire.encode({**FIELDS, "later": 1})) == CALL


WRONG: list[dict[str, Any]] = [
    {"version": 2},
    {"version": None},
    {"swarm": ""},
    {"swarm": "x" * 65},
    {"swarm": "a\nb"},
    {"to": "nobody"},
    {"to": 7},
    {"step": "hello"},
    {"step": "CALL"},
    {"nonce": bytes(15)},
    {"nonce": bytes(17)},
    {"nonce": "sixteen bytes!!!"},
    {"addresses": ["1.2.3.4:6000"] * (ADDRESSES + 1)},
    {"addresses": ["name.example:6000"]},
    {"addresses": ["1.2.3.4:0"]},
    {"addresses": ["1.2.3.4"]},
    {"addresses": [7]},
    {"addresses": "1.2.3.4:6000"},
    {"created": "now"},
    {"expires": NOW},
    {"expires": NOW + LIFETIME + 0.1},
]


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_wrong_calls_are_refused(fields: dict[str, Any]) -> None:
    """Every field has its bounds; a name is never looked up for a stranger."""
    with pytest.raises(CallError):
        Call.from_bytes(wire.encode({**FIELDS, **fields}))


def test_wrong_calls_can_t_be_made() -> None:
    """The same bounds hold for our own."""
    for wrong in ({"created": float("nan")}, {"expires": float("inf")}, {"nonce": b""}):
        with pytest.raises(CallError):
            replace(CALL, **wrong)  # type: ignore[arg-type]


HOSTS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
PLACES = st.builds(Address, HOSTS, st.integers(1, 65535))


@given(
    st.sampled_from(Step),
    st.binary(min_size=16, max_size=16),
    st.lists(PLACES, max_size=ADDRESSES),
    st.floats(0, 4e9),
    st.floats(0.001, LIFETIME - 0.001),
)
def test_calls_survive_the_wire(
    step: Step, nonce: bytes, places: list[Address], created: float, lasts: float
) -> None:
    """Whatever may be said is read as it was meant."""
    call = replace(
        CALL,
        step=step,
        nonce=nonce,
        addresses=tuple(places),
        created=created,
        expires=created + lasts,
    )
    assert Call.from_bytes(call.to_bytes()) == call


@given(st.binary(max_size=CALL_LIMIT + 10))
def test_any_bytes_fail_with_the_documented_error(data: bytes) -> None:
    """Whatever a tracker or a stranger hands us is a CallError."""
    with pytest.raises(CallError):
        Call.from_bytes(data)
    with pytest.raises(CallError):
        ear().hear(data, NOW)


@given(st.binary(max_size=300))
def test_any_payload_that_somebody_signed_fails_alike(payload: bytes) -> None:
    """A good signature makes no call of anything else."""
    with pytest.raises(CallError):
        ear().hear(seal(ALICE, Kind.CALL, payload), NOW)


@given(st.integers(0, len(CALL.sealed(ALICE)) - 1), st.integers(1, 255))
def test_any_altered_byte_is_noticed(at: int, by: int) -> None:
    """Trackers can drop a call, and do nothing else with it."""
    data = bytearray(CALL.sealed(ALICE))
    data[at] ^= by
    with pytest.raises(CallError):
        ear().hear(bytes(data), NOW)


# ── what is heeded ───────────────────────────────────────────────────────────────────────────


def test_what_was_signed_as_something_else_is_no_call() -> None:
    """A record or manifest with the same bytes inside."""
    for kind in (Kind.MANIFEST, Kind.PEER_RECORD):
        with pytest.raises(CallError, match="did not sign this call"):
            ear().hear(seal(ALICE, kind, CALL.to_bytes()), NOW)


@pytest.mark.parametrize(
    ("call", "who"),
    [
        (replace(CALL, to=EVE.peer_id), ALICE),
        (replace(CALL, swarm="other"), ALICE),
        (CALL, BOB),
    ],
)
def test_what_is_for_somebody_else_is_not_heeded(call: Call, who: Any) -> None:
    """Another peer, another swarm, or our own call come back."""
    with pytest.raises(CallError, match="for somebody else"):
        ear().hear(call.sealed(who), NOW)


@pytest.mark.parametrize("wrong_by", [-CLOCK_SKEW, -60.0, 0.0, 60.0, CLOCK_SKEW])
def test_clocks_may_be_wrong_by_minutes(wrong_by: float) -> None:
    """As with models."""
    assert ear().hear(CALL.sealed(ALICE), NOW + wrong_by)[0] == ALICE.peer_id


@pytest.mark.parametrize("wrong_by", [-CLOCK_SKEW - 1, CLOCK_SKEW + LIFETIME + 1, 1e8])
def test_expired_and_future_calls_are_not_heeded(wrong_by: float) -> None:
    """What is kept back long enough is worth nothing."""
    with pytest.raises(CallError, match="by this machine's clock"):
        ear().hear(CALL.sealed(ALICE), NOW + wrong_by)


def test_each_call_is_heard_once() -> None:
    """Two trackers bring the same one; who recorded it can't say it again, nor an older one."""
    bobs = ear()
    earlier = replace(CALL, created=NOW - 1, expires=NOW + 20, nonce=bytes(16))
    assert bobs.hear(CALL.sealed(ALICE), NOW)
    for again in (CALL, earlier, replace(CALL, nonce=bytes(16))):
        with pytest.raises(CallError, match="heard before"):
            bobs.hear(again.sealed(ALICE), NOW + 1)
    assert bobs.hear(GO.sealed(ALICE), NOW + 1) == (ALICE.peer_id, GO)
    assert bobs.hear(CALL.sealed(EVE), NOW + 1)[0] == EVE.peer_id  # each peer has its own clock


def test_an_unsigned_call_hides_no_later_one() -> None:
    """Only a call that its peer has signed counts as heard."""
    bobs = ear()
    later = bytearray(replace(CALL, created=NOW + 5).sealed(ALICE))
    later[-1] ^= 1
    with pytest.raises(CallError):
        bobs.hear(bytes(later), NOW)
    assert bobs.hear(CALL.sealed(ALICE), NOW)


def test_what_is_remembered_is_bounded() -> None:
    """Strangers in any number: those heard last are remembered."""
    bobs = ear()
    for number in range(HEARD + 10):
        bobs._note(f"peer {number}", NOW)
    assert len(bobs._newest) == HEARD
    assert f"peer {HEARD + 9}" in bobs._newest


def test_what_is_far_too_long_is_not_even_read() -> None:
    """More than a tracker hands on."""
    with pytest.raises(CallError):
        ear().hear(bytes(ENVELOPE_LIMIT), NOW)


# ── where we connect to because somebody says so ─────────────────────────────────────────────

INSIDE = """
    10.0.0.2 192.168.0.1 172.16.0.1 100.64.0.1 127.0.0.1 169.254.169.254 224.0.0.1 0.0.0.0
    255.255.255.255 ::1 :: fe80::1 fc00::1 ff02::1 ::ffff:10.0.0.2 64:ff9b::a00:2 2002:a00:2::1
    2001::a00:2 fec0::1 localhost name.example
"""


@pytest.mark.parametrize("host", INSIDE.split())
def test_what_lies_inside_a_network_is_no_target(host: str) -> None:
    """A call is no way to knock at the doors of our LAN, or of this machine."""
    assert not is_target(Address(host, 1).host)
    assert targets((Address(host, 6000),), ()) == ()


@pytest.mark.parametrize("host", ["8.8.8.8", "2001:4860::1", "198.51.100.7", "2001:db8::7"])
def test_public_hosts_are_targets(host: str) -> None:
    """And the addresses of documentation, where nobody is."""
    assert is_target(host)


def test_our_own_addresses_are_no_targets() -> None:
    """Two at home see each other there; nobody connects to itself."""
    ours, theirs = Address("8.8.8.8", 6000), Address("8.8.8.8", 6001)
    assert targets((ours, theirs), (ours,)) == (theirs,)


def test_few_ports_of_one_host_are_targets() -> None:
    """A call is no port scanner."""
    many = tuple(Address("8.8.8.8", port) for port in range(1, 5))
    assert targets(many, ()) == many[:A_HOST]
    assert targets(many[:1] * 4, ()) == many[:1]
