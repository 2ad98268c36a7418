"""One transaction: offsets move and the results and emitted events are stored, or nothing happens.

Batches of several partitions may share one: while little arrives, a commit for each would cost more than the
work (p50 of 29 instead of 12 ms at 600 events/s over six partitions on a busy machine).

Hook points, each with group, topic, partition, first, next and epoch: `consumer.batch.begin` (nothing done),
`consumer.batch.advanced` (the row is locked by this batch), `consumer.batch.cut` (its time is over: `next` is
nearer than it was), `consumer.batch.before_commit`, `consumer.batch.committed`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import takewhile

from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Transaction, text

from outbox import hooks
from outbox.consumer.claim import Claim
from outbox.consumer.database import Database
from outbox.consumer.foreign.inbox import Ids, Inbox, without
from outbox.consumer.handlers import Run
from outbox.consumer.outcome import Committed, Failed, Outcome, Overtaken, Unknown, outcome_is_unknown
from outbox.consumer.parking import parked
from outbox.consumer.parking.parked import State, TooManyParked
from outbox.consumer.record import Polled
from outbox.consumer.sift import Sieve, Sifted
from outbox.consumer.time_limit import TimeLimit
from outbox.consumer.watermark import Marks
from outbox.errors import OutboxError

# Promise: at most one transaction ever moves the offset away from :expected, and only while nobody claimed
# the partition after us. It locks the row until the end, so a claim waits for results or rollback. The
# time-out ends the transaction of a process that froze in it. Served by the primary key; heap-only (no index
# on what changes).
ADVANCE = text("""
UPDATE consumer_offset
SET next_offset = :next, leader_epoch = :leader_epoch, sources = CAST(:sources AS jsonb), owner = :owner,
    backend_pid = pg_backend_pid(), updated_at = clock_timestamp()
WHERE grp = :grp AND topic = :topic AND partition = :partition
  AND next_offset = :expected AND owner_epoch = :epoch
  AND set_config('idle_in_transaction_session_timeout', :idle, true) IS NOT NULL
""")

# Promise: a try is counted before it is made, so that a process that dies of it cannot make it for ever.
# Served by the primary key; used only for partitions that were claimed again and again at one offset.
NOTE_TRY = text("""
UPDATE consumer_offset
SET tries = CASE WHEN tried_offset = :offset THEN tries + :more ELSE 1 END, tried_offset = :offset
WHERE grp = :grp AND topic = :topic AND partition = :partition
  AND next_offset = :expected AND owner_epoch = :epoch
  AND set_config('synchronous_commit', 'on', true) = 'on'
RETURNING tries
""")

# Promise: a try that ended without ending its process does not count. Served by the primary key.
TAKE_BACK = text("""
UPDATE consumer_offset SET tries = greatest(tries - 1, 0)
WHERE grp = :grp AND topic = :topic AND partition = :partition AND tried_offset = :offset
  AND next_offset = :expected AND owner_epoch = :epoch
""")


Facts = dict[str, object]
"""What the hook points tell about a batch."""


class TransactionSpoiled(OutboxError):
    """A handler left the batch's transaction in a state in which nothing of it would be stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Neighbouring records of one partition, with the claim they were polled under.

    marks: what was applied before. parked: how many records of the partition wait in the database.
    expected: where the row's offset must stand; leader_epoch: of the record before it, None if unknown.
    next: where it stands afterwards.
    """

    claim: Claim
    marks: Marks
    parked: int
    expected: int
    leader_epoch: int | None = None
    next: int
    messages: Sequence[Polled]


@dataclass(frozen=True, slots=True)
class Attempt:
    """Batches that share a transaction, and what became of each: their runs, how many of their records wait
    behind parked ones, how many a foreign producer sent again. A batch whose time is over is shorter here.
    """

    batches: list[Batch]
    sifted: list[Sifted]
    queued: list[int]
    again: list[int]
    facts: list[Facts]

    def committed(self, number: int) -> Committed:
        """What is in the database now."""
        batch, done, waiting = self.batches[number], self.sifted[number], self.queued[number]
        repeats = done.repeats + self.again[number]
        applied = done.applied - waiting - self.again[number]
        if batch.messages:
            hooks.fire("consumer.batch.committed", **self.facts[number], applied=applied, repeats=repeats)
        return Committed(batch.next, done.marks, len(batch.messages), applied, repeats, done.skipped, waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRunner:
    """Runs batches against one database."""

    database: Database
    sieve: Sieve
    inbox: Inbox
    owner: str
    idle_timeout: timedelta
    max_parked: int
    limit: TimeLimit

    def run(self, batches: Sequence[Batch]) -> list[Outcome]:
        """Try them once, in one transaction: all are committed or none is. Returns an outcome each.

        Where the handlers' time is over before the last record, all is committed as far as it got.
        """
        return self.database.transact(lambda: self._run(batches))

    def _run(self, batches: Sequence[Batch]) -> list[Outcome]:
        facts = [_facts(batch) for batch in batches]
        _fire("consumer.batch.begin", facts)
        try:
            sifted = [self._sift(each) for each in batches]
            self.inbox.prepare(each.claim for each, done in zip(batches, sifted, strict=True) if done.ids)
            connection = self.database.connect()
        except Exception as error:
            return [Failed(error)] * len(batches)
        attempt = Attempt(list(batches), sifted, [0] * len(batches), [0] * len(batches), facts)
        with connection:
            failure = self._transact(
                connection,
                batches,
                [each.marks for each in sifted],
                facts,
                lambda: self._apply(connection, attempt),
            )
        if failure is not None:
            return [failure] * len(batches)
        return [attempt.committed(number) for number in range(len(batches))]

    def note_try(self, batch: Batch, *, noted: bool) -> int | None:
        """Store that the batch's one record is about to be tried; returns the how manieth try it is.

        noted: one that this process lived through still counts, and now stands for this one.
        None when somebody else owns the partition.
        """

        def note() -> int | None:
            with self.database.engine.begin() as connection:
                values = _tried(batch) | {"more": int(not noted)}
                return connection.execute(NOTE_TRY, values).scalar_one_or_none()

        return self.database.transact(note)

    def take_back(self, batch: Batch) -> None:
        """The try that was noted has ended, and this process lives: it does not count."""

        def forget() -> None:
            with self.database.engine.begin() as connection:
                connection.execute(TAKE_BACK, _tried(batch))

        self.database.transact(forget)

    def park(self, batch: Batch, error: str, attempts: int) -> Outcome:
        """Store the batch's one record as failed and move the offset past it, in one transaction."""
        if batch.parked >= self.max_parked:
            return Failed(
                TooManyParked(
                    f"{batch.parked} records are parked already, as many as max_parked allows; release or "
                    f"discard them first: outbox-relay consumers parked list; {error}"
                )
            )
        return self.database.transact(lambda: self._park(batch, error, attempts))

    def _park(self, batch: Batch, error: str, attempts: int) -> Outcome:
        marks = batch.marks.copy()
        marks.pass_by(batch.messages)
        facts = [_facts(batch)]
        ids = self.sieve.ids(batch.claim.topic, batch.messages)
        again = 0
        try:
            self.inbox.prepare([batch.claim] if ids else ())
            connection = self.database.connect()
        except Exception as unreachable:
            return Failed(unreachable)

        def store() -> None:
            nonlocal again
            again = len(Inbox.admit(connection, [Ids(batch.claim, ids)]))
            if not again:
                where = (connection, batch.claim, batch.messages)
                parked.park(*where, State.FAILED, error=error, attempts=attempts)

        with connection:
            failure = self._transact(connection, [batch], [marks], facts, store)
        if failure is not None:
            return failure
        if again:
            return Committed(batch.next, marks, 1, 0, again, 0)
        hooks.fire("consumer.parked", **facts[0], error=error)
        return Committed(batch.next, marks, 1, 0, 0, 0, parked=1)

    def _sift(self, batch: Batch) -> Sifted:
        claim = batch.claim
        return self.sieve.sift(claim.topic, batch.messages, batch.marks, claim.discarded)

    def _transact(
        self,
        connection: Connection,
        batches: Sequence[Batch],
        marks: Sequence[Marks],
        facts: list[Facts],
        work: Callable[[], None],
    ) -> Overtaken | Unknown | Failed | None:
        """Move the offsets, do the work, commit. None when it is committed."""
        committing = False
        try:
            transaction = connection.begin()
            if not self._advance(connection, batches, marks):
                transaction.rollback()
                return Overtaken()
            _fire("consumer.batch.advanced", facts)
            work()
            check_still_open(connection, transaction)
            _fire("consumer.batch.before_commit", facts)
            committing = True
            transaction.commit()
        except Exception as error:
            if committing and outcome_is_unknown(error):
                connection.invalidate(error)
                return Unknown(error)
            roll_back(connection)
            return Failed(error)
        return None

    def _apply(self, connection: Connection, attempt: Attempt) -> None:
        """Call the handlers, except for what a foreign producer sent again and what waits behind parked
        records."""
        runs: list[Run] = []
        pairs = list(zip(attempt.batches, attempt.sifted, strict=True))
        repeats = Inbox.admit(connection, [Ids(batch.claim, done.ids) for batch, done in pairs])
        for number, (batch, done) in enumerate(pairs):
            free, attempt.again[number] = without(done.runs, repeats)
            if batch.parked:
                room = self.max_parked - batch.parked
                free, attempt.queued[number] = parked.queue(connection, batch.claim, free, room=room)
            runs += free
        left = self.database.handle(connection, runs, self.limit)
        if left is not None:
            self._cut(connection, attempt, left, repeats)

    def _cut(
        self, connection: Connection, attempt: Attempt, left: Polled, repeats: set[tuple[str, int, int]]
    ) -> None:
        """Set the offsets back to before `left`, the first record that was not handled.

        The rows are locked by this transaction, which alone has seen them further on. Ids that were stored
        for records behind it stay: at its own offset no record is a repeat of itself.
        """
        place = (left.topic(), left.partition())
        ahead: list[Batch] = []
        shorter: list[Batch] = []
        for number, batch in enumerate(attempt.batches):
            here = (batch.claim.topic, batch.claim.partition) == place
            if not here and not shorter:
                continue
            kept = [*takewhile(lambda message: message is not left, batch.messages)] if here else []
            end = kept[-1].offset() if kept else None
            cut = replace(batch, messages=kept, next=batch.expected if end is None else end + 1)
            if attempt.queued[number]:
                attempt.queued[number] -= parked.unqueue(connection, batch.claim, cut.next)
            attempt.batches[number] = cut
            attempt.sifted[number] = done = self._sift(cut)
            attempt.again[number] = without(done.runs, repeats)[1]
            attempt.facts[number]["next"] = cut.next
            hooks.fire("consumer.batch.cut", **attempt.facts[number])
            ahead.append(replace(cut, expected=batch.next))
            shorter.append(cut)
        moved = self._advance(connection, ahead, [each.marks for each in attempt.sifted[-len(ahead) :]])
        assert moved, "only this transaction could have changed the rows that it holds"

    def _advance(self, connection: Connection, batches: Sequence[Batch], marks: Sequence[Marks]) -> bool:
        """Several statements travel in one pipeline."""
        changed = connection.execute(
            ADVANCE,
            [
                {
                    "grp": batch.claim.group,
                    "topic": batch.claim.topic,
                    "partition": batch.claim.partition,
                    "expected": batch.expected,
                    "next": batch.next,
                    "leader_epoch": (
                        batch.messages[-1].leader_epoch() if batch.messages else batch.leader_epoch
                    ),
                    "epoch": batch.claim.epoch,
                    "sources": known.dump(),
                    "owner": self.owner,
                    "idle": str(int(self.idle_timeout.total_seconds() * 1000)),
                }
                for batch, known in zip(batches, marks, strict=True)
            ],
        )
        return changed.rowcount == len(batches)


def _facts(batch: Batch) -> Facts:
    return {
        "group": batch.claim.group,
        "topic": batch.claim.topic,
        "partition": batch.claim.partition,
        "first": batch.expected,
        "next": batch.next,
        "epoch": batch.claim.epoch,
    }


def _tried(batch: Batch) -> dict[str, object]:
    fence = {"expected": batch.expected, "epoch": batch.claim.epoch}
    return parked.place(batch.claim) | fence | {"offset": batch.next - 1}


def _fire(point: str, facts: list[Facts]) -> None:
    for known in facts:
        hooks.fire(point, **known)


def check_still_open(connection: Connection, transaction: Transaction) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with ROLLBACK and no error, so look before."""
    if not transaction.is_active:
        raise TransactionSpoiled(
            "a handler rolled its session back and returned; raise an exception instead, or use "
            "session.begin_nested() round a part that may fail"
        )
    info = getattr(connection.connection.driver_connection, "info", None)
    if info is not None and info.transaction_status == TransactionStatus.INERROR:
        raise TransactionSpoiled(
            "a handler caught a database error and returned, but PostgreSQL has given up the whole "
            "transaction; let the error out, or use session.begin_nested() round a part that may fail"
        )


def roll_back(connection: Connection) -> None:
    try:
        connection.rollback()
    except Exception as error:
        connection.invalidate(error)
