"""Peer records for the tracker's tests, signed by the keys of `lab.identity`."""

from lab import identity
from p2pnode.tracker.record import PeerRecord, SignedRecord, open_record
from p2pnode.transport.address import Address
from p2pnode.transport.envelope import Kind, seal


def record(seq: int = 1, *, swarm: str = "main", port: int = 6000) -> PeerRecord:
    """A record with one address, which `port` tells apart."""
    address = Address("1.2.3.4", port)
    return PeerRecord(swarm=swarm, seq=seq, addresses=(address,), created=1_800_000_000.0)


def sealed(number: int, seq: int = 1, *, swarm: str = "main", port: int = 6000) -> bytes:
    """That record, signed by key `number`."""
    payload = record(seq, swarm=swarm, port=port).to_bytes()
    return seal(identity(number), Kind.PEER_RECORD, payload)


def signed(number: int, seq: int = 1, *, swarm: str = "main", port: int = 6000) -> SignedRecord:
    """The same, opened."""
    return open_record(sealed(number, seq, swarm=swarm, port=port))


def peer(number: int) -> str:
    """The peer ID of key `number`."""
    return identity(number).peer_id
