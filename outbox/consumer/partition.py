"""What one member knows about one partition that Kafka gave it: a value with rules, no I/O."""

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from outbox.consumer.batch import Batch
from outbox.consumer.claim import Claim
from outbox.consumer.outcome import Committed
from outbox.consumer.record import Polled, headers_of
from outbox.consumer.watermark import Marks

WARY = 1_000
"""How many records are run one by one, each try stored first, once one is suspected to end processes."""


HEADERS = 1024
"""Bytes of headers that one is taken to have, until a batch comes near its limit and all are counted."""

PEACE = 120.0
"""Seconds without another's claim after which nobody is thought to dispute a partition."""


class Arrival(enum.Enum):
    """What to do with a record that was just polled."""

    TAKE = enum.auto()
    DROP = enum.auto()
    JUMP = enum.auto()
    FORK = enum.auto()


class Status(enum.StrEnum):
    """What a partition is doing, for people."""

    CLAIMING = "claiming"
    READING = "reading"
    RUN_UP = "run-up"
    RETRYING = "retrying"
    STOPPED = "stopped"


@dataclass(slots=True)
class Partition:
    """One assigned partition.

    claim: our right to move its offset; None until claimed (again). expected: the row's next_offset.
    leader_epoch: of the record before it, None if unknown. probing: that record is fetched once more, because
    a log that was cut off and has grown since has another one there, of another leader.
    parked: records of it that wait in the database; nobody else changes that while the claim holds.
    run_up: how far its marks were rebuilt, None when they are whole: nothing is polled before. moves: how
    often its offset had been moved on purpose when we looked at its row, None: there was no row.
    position: the offset the next polled record should have. fresh: nothing was polled since it was
    positioned. fenced: its row is not as we knew it, claim it again. doubted: the offset a first record had
    beyond `position`, not believed yet. verified: its topic was seen to be the claimed one after records were
    polled there. polled: records not run yet; held: bytes of their values; rounds: for how many rounds they
    wait; since: monotonic time at which the first of them came. singly: how many records
    are to be run one by one; wary: how many of these only once the try is stored; noted: a try of the first
    record that was lived through still counts there. tries: of the first record.
    failures: in a row, for the backoff. disputes: how often others claimed it from us in a row;
    undisputed: monotonic time after which the next one counts as the first. due: monotonic time before which
    it rests. reason: why it does not read. end: of what can be read, as last seen; complete: all before it is
    applied. applied: records done with; applied_at: when, last (seconds since 1970). progressed: monotonic
    time of that, or of having had nothing to do.
    """

    topic: str
    number: int
    claim: Claim | None = None
    marks: Marks = field(default_factory=Marks)
    expected: int = 0
    leader_epoch: int | None = None
    probing: bool = False
    parked: int = 0
    run_up: int | None = None
    moves: int | None = None
    position: int = 0
    fresh: bool = True
    doubted: int | None = None
    fenced: bool = False
    verified: bool = False
    polled: list[Polled] = field(default_factory=list)
    held: int = 0
    rounds: int = 0
    since: float = 0.0
    singly: int = 0
    wary: int = 0
    noted: bool = False
    tries: int = 0
    failures: int = 0
    disputes: int = 0
    undisputed: float = 0.0
    due: float = 0.0
    reason: str | None = None
    stopped: bool = False
    end: int | None = None
    complete: bool = False
    applied: int = 0
    applied_at: float | None = None
    progressed: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> tuple[str, int]:
        return self.topic, self.number

    def reads(self) -> bool:
        """Is it claimed, not stopped, and are its marks whole?"""
        return self.claim is not None and not self.stopped and self.run_up is None

    @property
    def lag(self) -> int | None:
        """How many offsets lie between ours and the end; None while either is not known."""
        if self.claim is None or self.end is None:
            return None
        return 0 if self.complete else max(0, self.end - self.expected)

    def measured(self, end: int, *, complete: bool) -> None:
        """The log was seen to go so far, and (complete) all of it to be applied."""
        self.end, self.complete = end, complete
        if self.lag == 0 and not self.polled:
            self.progressed = time.monotonic()

    @property
    def status(self) -> Status:
        if self.stopped:
            return Status.STOPPED
        if self.claim is None:
            return Status.CLAIMING
        if self.run_up is not None:
            return Status.RUN_UP
        return Status.RETRYING if self.failures else Status.READING

    def begin(self, claim: Claim) -> None:
        """Believe the row: read on from its offset with its marks."""
        self.claim = claim
        self.marks = claim.marks
        self.expected = claim.next_offset
        self.leader_epoch = claim.leader_epoch
        self.probing = claim.leader_epoch is not None and claim.next_offset > 0
        self.parked = claim.parked
        self.run_up = claim.run_up
        self.moves = claim.moves
        self.singly = self.wary = WARY if claim.suspect else 0
        self.tries = self.failures = 0
        self.due = 0.0
        self.reason = None
        self.doubted = None
        self.noted = self.fenced = self.complete = False
        self.rewind()

    def rewind(self) -> None:
        """Forget what was polled; the Kafka client is about to be positioned at `position`."""
        self._forget()
        self.position = self.expected
        self.fresh = True
        self.verified = False
        self.rounds = 0

    def release(self, reason: str, wait: float) -> None:
        """Own it no longer; claim it again after `wait` seconds."""
        self.claim = None
        self.verified = False
        self._forget()
        self.reason = reason
        self.due = time.monotonic() + wait

    def dispute(self) -> None:
        """Somebody claimed it from us; long after the last time it counts as the first."""
        now = time.monotonic()
        self.disputes = 1 if now > self.undisputed else self.disputes + 1
        self.undisputed = now + PEACE

    def call_back(self, reason: str) -> None:
        """Somebody moved its offset: claim it now, also if it stood still."""
        self.stopped = False
        self.failures = 0
        self.release(reason, 0.0)

    def whole(self, marks: Marks) -> None:
        """Its marks are rebuilt; the Kafka client is about to be positioned."""
        self.marks = marks
        self.run_up = None
        self.reason = None

    def rest(self, reason: str, wait: float) -> None:
        """Keep the records and try them again after `wait` seconds."""
        self.reason = reason
        self.failures += 1
        self.due = time.monotonic() + wait

    def stop(self, reason: str) -> None:
        """Stand still, nothing skipped, until somebody claims it anew."""
        self.stopped = True
        self.verified = False
        self._forget()
        self.reason = reason

    def arrive(self, message: Polled, offset: int) -> Arrival:
        """Judge a polled record by its offset.

        An offset below `position` is a redelivery. One beyond it is normal later (compacted or aborted
        records, control records); but the first after positioning may come from a wrong position, which no
        later check would notice, so it counts only when a second, fresh fetch begins with the same one.
        """
        if not self.reads() or offset < self.position:
            return self._probe(message, offset)
        if offset > self.position and self.fresh and offset != self.doubted:
            self.doubted = offset
            return Arrival.JUMP
        self.fresh = self.probing = False
        self.position = offset + 1
        if not self.polled:
            self.since = time.monotonic()
        self.polled.append(message)
        self.held += len(message)
        return Arrival.TAKE

    def _probe(self, message: Polled, offset: int) -> Arrival:
        """Is the record before our position the one that was applied?"""
        if not (self.reads() and self.probing and offset == self.position - 1):
            return Arrival.DROP
        self.probing = False
        epoch = message.leader_epoch()
        return Arrival.DROP if epoch in {None, self.leader_epoch} else Arrival.FORK

    def runnable(self, now: float) -> bool:
        """Are there records that may be run now?"""
        return self.reads() and bool(self.polled) and self.due <= now

    def full(self, size: int, volume: int) -> bool:
        """Is there as much as one transaction may hold?"""
        return len(self.polled) >= size or self.held >= volume

    def batch(self, size: int, volume: int) -> Batch:
        """The next records to run in one transaction: `size` and `volume` bytes at most, but one at least."""
        assert self.claim is not None
        messages: Sequence[Polled] = self.polled[: 1 if self.singly else size]
        if self.held + len(messages) * HEADERS > volume:
            messages = messages[: _fitting(messages, volume)]
        last = messages[-1].offset()
        assert last is not None
        return Batch(
            claim=self.claim,
            marks=self.marks,
            parked=self.parked,
            expected=self.expected,
            leader_epoch=self.leader_epoch,
            next=last + 1,
            messages=messages,
        )

    def committed(self, outcome: Committed) -> None:
        """The row stands where the batch wanted it."""
        done = outcome.records
        if not done:
            return
        self.leader_epoch = self.polled[done - 1].leader_epoch()
        if done == len(self.polled):
            self._forget()
        else:
            self.held -= sum(len(message) for message in self.polled[:done])
            del self.polled[:done]
        self.marks = outcome.marks
        self.expected = outcome.next_offset
        self.parked += outcome.parked
        self.singly = max(0, self.singly - done)
        self.wary = max(0, self.wary - done)
        self.tries = self.failures = self.rounds = 0
        self.due = 0.0
        self.reason = None
        self.noted = False
        self.applied += done
        self.applied_at = time.time()
        self.progressed = time.monotonic()

    def _forget(self) -> None:
        self.polled.clear()
        self.held = 0


def _fitting(messages: Sequence[Polled], volume: int) -> int:
    """How many of the first fit into `volume` bytes; one at least."""
    total = 0
    for count, message in enumerate(messages):
        total += len(message) + sum(len(name) + len(value or b"") for name, value in headers_of(message))
        if total > volume:
            return max(1, count)
    return len(messages)
