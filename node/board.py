"""What the node has to show: counts, events and results as they come, and a NodeStatus of them.

One board a node. The daemon writes on it; `snapshot` is pure reading, so the screen, the control
socket and the log can each look as often as they like.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

from ..transport.exchange import Exchange
from ..transport.session import Session
from . import orders
from .mailbox import Mailbox
from .peers import KNOWN_LIMIT, Known, Peers
from .status import (
    EVENTS_LIMIT,
    HISTORY_LIMIT,
    EpochStatus,
    Event,
    MailboxStatus,
    NodeStatus,
    PeerStatus,
    TrackerStatus,
    TrainingStatus,
    TransferStatus,
    WayStatus,
)

# Reasons are our own words, but a refusal's reason may come from the worker: keep the table small.
REASONS_LIMIT = 32
# Transfers shown: more than the tallest screen has lines for.
TRANSFERS_LIMIT = 64
# Rates are means over about this long: shorter jumps about, longer lags behind.
RATE_SECONDS = 1.0


class Rate:
    """Bytes a second of a growing count, looked at now and then."""

    def __init__(self) -> None:
        self._then: float | None = None
        self._count = 0
        self._rate = 0.0

    def look(self, count: int, now: float) -> float:
        """The rate over the last second or more."""
        if self._then is None:
            self._then, self._count = now, count
        elif now - self._then >= RATE_SECONDS:
            self._rate = max(0, count - self._count) / (now - self._then)
            self._then, self._count = now, count
        return self._rate


@dataclass(frozen=True, slots=True)
class Facts:
    """What doesn't change while a node runs."""

    version: str
    peer: str
    swarm: str
    task: str
    shard: str
    epochs: int
    mailbox_models: int


class Board:
    """Everything that happened and is worth showing."""

    def __init__(self, facts: Facts, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._facts, self._clock, self._wall = facts, clock, wall
        self._began = clock()
        self.training = TrainingStatus(epochs=facts.epochs)
        self.history: deque[EpochStatus] = deque(maxlen=HISTORY_LIMIT)
        self.events: deque[Event] = deque(maxlen=EVENTS_LIMIT)
        self.rejects: Counter[str] = Counter()
        self.weights: dict[str, float] = {}
        self.age = 0.0
        self._seen: dict[str, int] = {}  # peer → the model of it that the worker looked at last
        self._dialled_in: set[str] = set()
        self._totals: Counter[tuple[str, str]] = Counter()  # bytes of sessions that are over
        self._relay_in = self._relay_out = 0  # the same with relays
        self._rates: dict[tuple[str, str], Rate] = {}
        self._rates_before: dict[tuple[str, str], Rate] = {}

    # -- writing -----------------------------------------------------------------------------

    def event(self, level: str, text: str) -> None:
        """Something happened."""
        self.events.append(Event(self._wall(), level, text))

    def reject(self, reason: str) -> None:
        """Something was refused."""
        if reason in self.rejects or len(self.rejects) < REASONS_LIMIT:
            self.rejects[reason] += 1
        else:
            self.rejects["other"] += 1

    def met(self, session: Session) -> None:
        """A peer is there; one that dialled us shows that we can be reached."""
        link = session.link
        if not (link.dialled or link.punched) and len(self._dialled_in) < KNOWN_LIMIT:
            self._dialled_in.add(session.peer)

    def parted(self, session: Session) -> None:
        """Keep the byte counts of a session that is over."""
        if len(self._totals) > 2 * KNOWN_LIMIT:
            self._totals.clear()
        self._totals[session.peer, "in"] += session.bytes_in
        self._totals[session.peer, "out"] += session.bytes_out

    def relay_parted(self, session: Session) -> None:
        """Keep the byte counts of a session with a relay that is over."""
        self._relay_in += session.bytes_in
        self._relay_out += session.bytes_out

    def ready(self, report: orders.Ready) -> None:
        """The worker has loaded model and data."""
        self.training = replace(
            self.training,
            device=report.device,
            threads=report.threads,
            parameters=report.parameters,
            epoch=report.epoch,
        )
        self.age = report.age

    def state(self, report: orders.State) -> None:
        """What the worker does now."""
        eta = None if report.state == "finished" else self.training.eta
        self.training = replace(self.training, state=report.state, detail=report.detail, eta=eta)

    def progress(self, report: orders.Progress) -> None:
        """The worker is so far."""
        left = (report.batches - report.batch) / max(report.batches, 1)
        epochs_left = max(self._facts.epochs - report.epoch, 0) if self._facts.epochs else 0
        per_epoch = self.history[-1].seconds if self.history else None
        eta = None if per_epoch is None else per_epoch * (left + epochs_left)
        self.training = replace(
            self.training,
            epoch=report.epoch,
            batch=report.batch,
            batches=report.batches,
            samples_per_second=report.samples_per_second,
            loss=report.loss,
            eta=eta,
        )

    def epoch(self, report: orders.Epoch) -> None:
        """An epoch is done."""
        self.weights = {a.peer: a.weight for a in report.averaged}
        if len(self._seen) > KNOWN_LIMIT:
            self._seen.clear()
        self._seen |= {a.peer: a.seq for a in report.averaged}
        self._seen |= {r.peer: r.seq for r in report.refused}
        self.history.append(
            EpochStatus(
                report.epoch, report.before, report.after, len(report.averaged), report.seconds
            )
        )

    # -- reading -----------------------------------------------------------------------------

    def came_in(self) -> str:
        """How many peers have dialled us, for people."""
        count = len(self._dialled_in)
        return f"reached by {count} peer{'s' * (count != 1)}" if count else "nobody came in yet"

    def snapshot(
        self,
        *,
        public: str,
        listening: str,
        reachability: str,
        trackers: Iterable[TrackerStatus],
        ways: Iterable[WayStatus],
        peers: Peers,
        exchange: Exchange,
        mailbox: Mailbox,
    ) -> NodeStatus:
        """The node now."""
        now = self._clock()
        self._rates, self._rates_before = {}, self._rates  # what is gone is forgotten
        return NodeStatus(
            version=self._facts.version,
            peer=self._facts.peer,
            swarm=self._facts.swarm,
            task=self._facts.task,
            shard=self._facts.shard,
            public=public,
            listening=listening,
            reachability=reachability,
            uptime=now - self._began,
            trackers=tuple(trackers),
            ways=tuple(ways),
            training=self.training,
            history=tuple(self.history),
            peers=tuple(self._peers(peers, exchange, mailbox, now)),
            mailbox=self._mailbox(mailbox),
            transfers=tuple(islice(self._transfers(exchange, now), TRANSFERS_LIMIT)),
            events=tuple(self.events),
            rejects=tuple(sorted(self.rejects.items())),
            relay_in=self._relay_in + sum(s.bytes_in for s in exchange.relays.values()),
            relay_out=self._relay_out + sum(s.bytes_out for s in exchange.relays.values()),
        )

    def _peers(
        self, peers: Peers, exchange: Exchange, mailbox: Mailbox, now: float
    ) -> Iterable[PeerStatus]:
        models = {held.peer: held.manifest for held in mailbox.models()}
        order = {"connected": 0, "relayed": 1, "connecting": 2, "lost": 3}
        for known in sorted(peers.known.values(), key=lambda k: (order[k.state], k.peer)):
            session = exchange.sessions.get(known.peer)
            base = self._peer(known, session, now)
            manifest = models.get(known.peer)
            if manifest is not None:
                behind = self.age - manifest.age
                base = replace(base, epoch=manifest.epoch, behind=behind)
            yield base

    def _peer(self, known: Known, session: Session | None, now: float) -> PeerStatus:
        received = self._totals[known.peer, "in"] + (session.bytes_in if session else 0)
        sent = self._totals[known.peer, "out"] + (session.bytes_out if session else 0)
        return PeerStatus(
            peer=known.peer,
            path=known.path,
            state=known.state,
            round_trip=session.round_trip if session else None,
            weight=self.weights.get(known.peer),
            bytes_in=received,
            bytes_out=sent,
            rate_in=self._rate((known.peer, "in"), received, now),
            rate_out=self._rate((known.peer, "out"), sent, now),
            silent=now - (session.heard if session else known.heard),
        )

    def _rate(self, key: tuple[str, str], count: int, now: float) -> float:
        self._rates[key] = rate = self._rates_before.get(key) or Rate()
        return rate.look(count, now)

    def _mailbox(self, mailbox: Mailbox) -> MailboxStatus:
        held = mailbox.models()
        waiting = sum(h.manifest.seq > self._seen.get(h.peer, -1) for h in held)
        size = sum(h.manifest.size for h in held)
        return MailboxStatus(len(held), size, self._facts.mailbox_models, waiting)

    def _transfers(self, exchange: Exchange, now: float) -> Iterable[TransferStatus]:
        for model in exchange.incoming.values():
            manifest, done = model.offered.manifest, model.download.bytes_here
            rate = self._rate(("in", model.model.hex()), done, now)
            yield TransferStatus(model.author, "in", manifest.epoch, manifest.size, done, rate)
        for session in (*exchange.sessions.values(), *exchange.relays.values()):
            for going in session.outgoing.models.values():
                manifest, sent = going.held.manifest, going.sent
                rate = self._rate((session.peer, going.held.id.hex()), sent, now)
                yield TransferStatus(session.peer, "out", manifest.epoch, manifest.size, sent, rate)
