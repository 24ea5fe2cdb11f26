"""I/O: whether others can reach this node: it lets its trackers dial it back.

Each tracker is asked for the announced addresses one after another: when they change, and every few
minutes. A proof needs two things: the tracker says that it reached us, and the nonce that we gave
it came in at our door. So a tracker that only says so proves nothing.

The links on which trackers say nonces are no sessions; `met` takes them out of the stream of those
that come in. A tracker that doesn't know the question, or won't answer it now, leaves the answer
open: "not checked", and why.
"""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import trio

from ..tracker.checks import price
from ..tracker.client import TrackerClient
from ..tracker.errors import Reason, Refused, TrackerError
from ..tracker.verdict import NONCE_MOST, Outcome
from ..transport.address import Address, is_name, is_public
from ..transport.errors import LinkClosed, TransportError
from ..transport.link import Link
from ..transport.nat.reach import Claim, Confidence

# Routers are restarted and leases change: what was found is checked anew this often.
CHECK_SECONDS = 300.0
# A tracker that would not check just now (too many ask, the announce is still on its way).
RETRY_SECONDS = 60.0
# A finding holds until the second check after it has failed to come.
HOLD_SECONDS = 2.5 * CHECK_SECONDS
# Addresses are asked for once they have been the same at two looks: at the start, and in another
# Wi-Fi, several change within a second.
LOOK_SECONDS = 2.0
# Addresses that one tracker is asked for: more of a machine aren't announced without port mappings.
ASKED_LIMIT = 4
# How long a link from a tracker waits for the nonce: it is sent with the handshake's end.
NONCE_SECONDS = 5.0


@dataclass(slots=True)
class _Check:
    """One dial-back that we have asked for."""

    tracker: str  # its peer ID
    nonce: bytes
    heard: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """What one tracker found at one address; `outcome` is None where it was not checked."""

    tracker: Address
    address: Address
    outcome: Outcome | None
    why: str
    until: float


class Reachability:
    """The checks of all trackers, and what is known from them."""

    def __init__(
        self,
        addresses: Callable[[], tuple[Address, ...]],
        *,
        clock: Callable[[], float],
        chance: random.Random,
        log: Callable[[str, str], None],
        news: Callable[[], None],
    ) -> None:
        self._addresses, self._news = addresses, news
        self._clock, self._chance, self._log = clock, chance, log
        self._open: list[_Check] = []
        self._findings: dict[tuple[Address, Address], Finding] = {}
        self._said = ""

    # -- the node's side -----------------------------------------------------------------------

    async def watch(self, client: TrackerClient) -> None:
        """Let one tracker check us, for ever."""
        checked, seen_last, due = frozenset[Address](), frozenset[Address](), 0.0
        while True:
            await trio.sleep(LOOK_SECONDS)
            now = frozenset(self._addresses())
            settled, seen_last = now == seen_last, now
            if client.state.status != "connected" or not (now and settled):
                continue
            if now != checked or self._clock() >= due:
                answered = await self._round(client)
                pause = CHECK_SECONDS if answered else RETRY_SECONDS
                checked, due = now, self._clock() + pause * self._chance.uniform(0.8, 1.0)

    async def met(self, link: Link) -> bool:
        """Take a nonce, if this link comes from a tracker that we have asked; else False."""
        checks = [check for check in self._open if check.tracker == link.peer]
        with trio.move_on_after(NONCE_SECONDS), contextlib.suppress(LinkClosed):
            nonce = await link.receive() if checks else b""
            for check in checks:
                check.heard |= nonce == check.nonce
        return bool(checks)

    def text(self, came: str) -> str:
        """What is known, for people; `came` tells of the peers that have come in."""
        best = self._best()
        if best is None:
            return came
        at, tracker = best.address, f"(checked by tracker {best.tracker})"
        if best.outcome is Outcome.REACHABLE:
            return f"reachable {'from outside' if _from_outside(at) else f'at {at}'} {tracker}"
        if best.outcome is None:
            return f"{came}, not checked ({best.why})"
        return f"not reachable at {at}: {best.why}; others can't dial it"

    def judged(self, claim: Claim) -> Claim:
        """A claim in the light of what was found: one success counts more than any failure.

        Where a tracker came through it is proved for a while; where none did, it is a guess.
        """
        found = [f for f in self._valid() if f.address == claim.address and f.outcome is not None]
        proofs = [f.until for f in found if f.outcome is Outcome.REACHABLE]
        if proofs:
            return replace(claim, confidence=Confidence.PROVED, until=min(claim.until, max(proofs)))
        return replace(claim, confidence=Confidence.GUESSED) if found else claim

    def changed(self) -> None:
        """What was found is about the network from before."""
        self._findings.clear()

    # -- checking ------------------------------------------------------------------------------

    async def _round(self, client: TrackerClient) -> bool:
        """Ask for each address; whether every question got an answer."""
        seen, asked = client.state.seen, True
        for address in self._addresses()[:ASKED_LIMIT]:
            if seen is not None and price(address.host, seen.host) is not None:
                finding = await self._ask(client, address)
                self._learn(finding)
                asked = asked and finding.outcome is not None
        return asked

    async def _ask(self, client: TrackerClient, address: Address) -> Finding:
        check = _Check(client.tracker, secrets.token_bytes(NONCE_MOST))
        self._open.append(check)
        try:
            outcome, why = _judge(await client.dial_back(address, check.nonce), check.heard)
        except Refused as error:
            outcome, why = None, _REFUSALS.get(error.reason, _sentence(error))
        except (TrackerError, TransportError) as error:
            outcome, why = None, _sentence(error)
        finally:
            self._open.remove(check)
        until = self._clock() + HOLD_SECONDS
        return Finding(client.state.address, address, outcome, why, until)

    def _learn(self, finding: Finding) -> None:
        """Keep it for the status, tell the way in, and say it once."""
        key, now = (finding.tracker, finding.address), self._clock()
        self._findings = {k: f for k, f in self._findings.items() if f.until > now and k != key}
        before = self._addresses()
        self._findings[key] = finding
        if self._addresses() != before:
            self._news()
        self._say()

    def _say(self) -> None:
        best, text = self._best(), self.text("reachability")
        if text != self._said and best is not None:
            self._said = text
            failed = best.outcome not in (None, Outcome.REACHABLE)
            self._log("warning" if failed else "info", text)

    def _best(self) -> Finding | None:
        """What says most about the addresses that are announced now."""
        announced = self._addresses()
        valid = [f for f in self._valid() if f.address in announced]
        return min(valid, key=lambda f: _rank(f, announced), default=None)

    def _valid(self) -> list[Finding]:
        now = self._clock()
        return [finding for finding in self._findings.values() if finding.until > now]


def _rank(finding: Finding, announced: Iterable[Address]) -> tuple[int, bool, int]:
    """Success before failure before neither; public before private; as announced."""
    known = 2 if finding.outcome is None else int(finding.outcome is not Outcome.REACHABLE)
    return known, not _from_outside(finding.address), list(announced).index(finding.address)


def _from_outside(address: Address) -> bool:
    """Whether who reaches us here may be anywhere."""
    return is_name(address.host) or is_public(address.host)


def _judge(word: str, heard: bool) -> tuple[Outcome | None, str]:
    """A tracker's verdict, in the light of whether its nonce came in."""
    if word not in set(Outcome):
        return None, f"the tracker says {word}"
    outcome = Outcome(word)
    if outcome is Outcome.REACHABLE and not heard:
        return None, "the tracker says that it came, and did not"
    return outcome, outcome.sentence


_REFUSALS = {str(Reason.MALFORMED): "the tracker is an older one"}


def _sentence(error: Exception) -> str:
    """An error inside brackets."""
    text = str(error).rstrip(".")
    return text[:1].lower() + text[1:]
