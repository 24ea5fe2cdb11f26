"""What can go wrong between a peer and a tracker, as one tree.

    TrackerError
    ├── ProtocolError   bytes that are no tracker message; `id` is the question's, where readable
    ├── RecordError     a peer record that contradicts itself
    ├── Refused         the tracker's no; `reason` is what travels and what is counted
    └── Silent          the tracker took too long

A class's docstring is the sentence that a person reads; str() adds the specifics.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a tracker says no: the word on the wire. `sentence` is for people."""

    MALFORMED = "malformed"
    FOREIGN_KEY = "foreign-key"
    BAD_SIGNATURE = "bad-signature"
    OTHER_SWARM = "other-swarm"
    STALE = "stale"
    UNANNOUNCED = "unannounced"
    BUSY = "busy"
    HOST_FULL = "host-full"
    SWARM_FULL = "swarm-full"
    TRACKER_FULL = "tracker-full"
    NOT_ANNOUNCED = "not-announced"
    PRIVATE_ADDRESS = "private-address"
    UNPAID = "unpaid"
    NO_ROUTE = "no-route"
    TOO_OFTEN = "too-often"
    ABSENT = "absent"

    @property
    def sentence(self) -> str:
        """The same for people."""
        return SENTENCES[self]


SENTENCES = {
    Reason.MALFORMED: "the message can't be read (another version of p2pnode?)",
    Reason.FOREIGN_KEY: "the record is signed by another key than the connection's",
    Reason.BAD_SIGNATURE: "the record's signature doesn't match",
    Reason.OTHER_SWARM: "one connection serves one swarm",
    Reason.STALE: "a newer record of this peer is known (does another node use this key?)",
    Reason.UNANNOUNCED: "announce comes before any other question",
    Reason.BUSY: "one watch at a time on a connection",
    Reason.HOST_FULL: "too many peers from this host",
    Reason.SWARM_FULL: "the swarm has no room for another peer",
    Reason.TRACKER_FULL: "the tracker has no room for another peer",
    Reason.NOT_ANNOUNCED: "only an announced address is dialled back",
    Reason.PRIVATE_ADDRESS: "the tracker sees this peer outside of that address's network",
    Reason.UNPAID: "dialling another host than the asking one costs a payment",
    Reason.NO_ROUTE: "the tracker has no way to that address",
    Reason.TOO_OFTEN: "the tracker has been asked for too much of this",
    Reason.ABSENT: "no such other peer is connected to this tracker",
}

NO_ROOM = frozenset({Reason.HOST_FULL, Reason.SWARM_FULL, Reason.TRACKER_FULL})
NO_MISTAKE = NO_ROOM | {
    Reason.NOT_ANNOUNCED,
    Reason.PRIVATE_ADDRESS,
    Reason.NO_ROUTE,
    Reason.TOO_OFTEN,
    Reason.ABSENT,
}
"""The refusals that are nobody's mistake: no room, or what a peer couldn't know when it asked."""


class TrackerError(Exception):
    """Something between this peer and a tracker went wrong."""

    def __str__(self) -> str:
        sentence = (type(self).__doc__ or type(self).__name__).partition("\n")[0].rstrip(".")
        detail = super().__str__()
        return f"{sentence}: {detail}" if detail else f"{sentence}."


class ProtocolError(TrackerError):
    """This is not a tracker message."""

    def __init__(self, detail: str, id: int = 0) -> None:
        super().__init__(detail)
        self.id = id


class RecordError(TrackerError):
    """This is not a peer record."""


class Refused(TrackerError):
    """The tracker refused."""

    def __init__(self, reason: str) -> None:
        super().__init__(Reason(reason).sentence if reason in set(Reason) else reason)
        self.reason = str(reason)  # plain text, whoever counts it


class Silent(TrackerError):
    """The tracker does not answer."""
