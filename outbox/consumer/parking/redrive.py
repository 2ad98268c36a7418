"""Run parked records again, in the order of their key, once a person has released what they wait behind.

The commands only note a wish; whoever owns the partition carries it out, in a transaction that its epoch
fences like a batch. A key's first record that failed waits for its release; what queued behind it follows by
itself.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from outbox import hooks
from outbox.consumer import backoff
from outbox.consumer.batch import NOTE_TRY, TAKE_BACK, check_still_open, roll_back
from outbox.consumer.database import Database
from outbox.consumer.handlers import Run
from outbox.consumer.outcome import ProcessDied, Wait, brief, judge, outcome_is_unknown
from outbox.consumer.parking import parked
from outbox.consumer.partition import Partition
from outbox.consumer.sift import Sieve
from outbox.consumer.time_limit import TimeLimit
from outbox.errors import Retry

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two looks for wishes, while anything is parked."""

AT_ONCE = 50
"""Parked records of one partition in a row, before newly read ones have their turn."""

# Promise: only the owner under this epoch changes what is parked, one record at a time, and the offset stays.
# The row stays locked until the end, so a claim waits. Served by the primary key.
FENCE = text("""
UPDATE consumer_offset SET parked = parked - 1, updated_at = clock_timestamp()
WHERE grp = :grp AND topic = :topic AND partition = :partition AND owner_epoch = :epoch
  AND next_offset = :expected AND parked > 0
  AND set_config('idle_in_transaction_session_timeout', :idle, true) IS NOT NULL
""")

# Promise: never a record before an earlier one of its key. Served by the primary key and by index
# consumer_parked_key; max_parked bounds what is walked.
_NEXT = """
SELECT * FROM consumer_parked p
WHERE grp = :grp AND topic = :topic AND partition = :partition AND state <> 'discarded'
  AND (wish = 'discard'
    OR ((state = 'queued' OR wish = 'release')
      AND (key IS NULL OR NOT EXISTS (
        SELECT FROM consumer_parked q
        WHERE q.grp = p.grp AND q.topic = p.topic AND q.partition = p.partition AND q.key = p.key
          AND q.state <> 'discarded' AND q.record_offset < p.record_offset))))
ORDER BY record_offset LIMIT 1
"""
NEXT = text(_NEXT)
TAKE = text(f"{_NEXT} FOR UPDATE")

DONE = text("""
DELETE FROM consumer_parked
WHERE grp = :grp AND topic = :topic AND partition = :partition AND record_offset = :record_offset
""")

DISCARD = text("""
UPDATE consumer_parked SET state = 'discarded', wish = NULL
WHERE grp = :grp AND topic = :topic AND partition = :partition AND record_offset = :record_offset
""")

# Promise: what a former owner learnt of its last try changes nothing.
FAILED_AGAIN = text("""
UPDATE consumer_parked p SET state = 'failed', wish = NULL, error = :error, attempts = attempts + 1
WHERE grp = :grp AND topic = :topic AND partition = :partition AND record_offset = :record_offset
  AND EXISTS (SELECT FROM consumer_offset o WHERE o.grp = p.grp AND o.topic = p.topic
      AND o.partition = p.partition AND o.owner_epoch = :epoch FOR UPDATE)
""")

# Promise: the next release begins to count anew. Served by the primary key.
FORGET_TRIES = text("""
UPDATE consumer_offset SET tries = 0, tried_offset = NULL
WHERE grp = :grp AND topic = :topic AND partition = :partition AND tried_offset = :record_offset
  AND owner_epoch = :epoch
""")


@dataclass(slots=True)
class Redrive:
    """Carries out wishes for one member's partitions. Belongs to the member's thread.

    applied, discarded: how many records left the parking because a handler took them, and because nobody
    wants them.
    """

    database: Database
    sieve: Sieve
    limit: TimeLimit
    idle: str
    attempts: int
    applied: int = 0
    discarded: int = 0
    _due: float = 0.0
    _failures: int = 0
    _rests: dict[tuple[str, int], float] = field(default_factory=dict)
    _noted: dict[tuple[str, int], int] = field(default_factory=dict)

    def run_once(self, partitions: Iterable[Partition]) -> int:
        """Run or discard what may be; returns how many records left the parking."""
        now = time.monotonic()
        # Stopped ones too: what stops them may be that too many wait.
        ours = [p for p in partitions if p.claim is not None and p.run_up is None]
        waiting = [p for p in ours if p.parked and self._rests.get(p.key, 0.0) <= now]
        if not waiting or now < self._due:
            return 0
        done = 0
        self._due = now + EVERY
        try:
            for partition in waiting:
                for _ in range(AT_ONCE):
                    if not self.database.transact(partial(self._step, partition)):
                        break
                    done += 1
                else:
                    self._due = 0.0
            self._failures = 0
        except (SQLAlchemyError, psycopg.Error) as error:
            self._failures += 1
            wait = backoff.seconds(backoff.FAILURE, self._failures)
            self._due = time.monotonic() + wait
            log.warning("parked records wait: %s; again in %.1f s", brief(error), wait)
        return done

    def _step(self, partition: Partition) -> bool:
        """One record. False when there is none that may go on, or it failed."""
        assert partition.claim is not None
        with self.database.connect() as connection:
            row = connection.execute(NEXT, parked.place(partition.claim)).one_or_none()
            connection.rollback()
            if row is None or (row.wish != "discard" and not self._survivable(connection, partition, row)):
                return False
            return self._move(connection, partition)

    def _survivable(self, connection: Connection, partition: Partition, row: Any) -> bool:
        """Store the try first: a record that ends its process would be run anew by whoever owns it next, for
        ever. After one too many it counts as failed again."""
        claim = partition.claim
        assert claim is not None
        noted = self._noted.get(partition.key) == row.record_offset
        one = parked.place(claim) | {"epoch": claim.epoch, "expected": partition.expected}
        values = one | {"offset": row.record_offset, "more": int(not noted)}
        with connection.begin():
            tries = connection.execute(NOTE_TRY, values).scalar_one_or_none()
        if tries is None:
            partition.fenced = True
            return False
        self._noted[partition.key] = row.record_offset
        if tries <= self.attempts:
            return True
        died = ProcessDied(f"the process ended {tries - 1} times while it was handled")
        self._failed(connection, one | {"record_offset": row.record_offset}, died)
        return False

    def _move(self, connection: Connection, partition: Partition) -> bool:
        claim = partition.claim
        assert claim is not None
        one = parked.place(claim)
        fence = {"epoch": claim.epoch, "expected": partition.expected, "idle": self.idle}
        committing = False
        try:
            transaction = connection.begin()
            if connection.execute(FENCE, one | fence).rowcount != 1:
                transaction.rollback()
                partition.fenced = True
                return False
            # Asked again, and held: what was wished may have changed since the look.
            row = connection.execute(TAKE, one).one_or_none()
            if row is None:
                transaction.rollback()
                return False
            one["record_offset"] = row.record_offset
            if row.wish == "discard":
                connection.execute(DISCARD, one)
            else:
                runs = self._runs(claim.topic, partition.number, row)
                self.database.handle(connection, runs, self.limit)
                connection.execute(DONE, one)
            check_still_open(connection, transaction)
            committing = True
            transaction.commit()
        except Exception as error:
            if committing and outcome_is_unknown(error):
                connection.invalidate(error)
                partition.fenced = True
                return False
            roll_back(connection)
            if "record_offset" not in one:
                raise
            self._failed(connection, one | fence, error)
            return False
        partition.parked -= 1
        discarded = row.wish == "discard"
        self.discarded += discarded
        self.applied += not discarded
        point = "consumer.discarded" if discarded else "consumer.released"
        hooks.fire(
            point, group=claim.group, topic=claim.topic, partition=partition.number, offset=row.record_offset
        )
        return True

    def _runs(self, topic: str, partition: int, row: Any) -> list[Run]:
        message = parked.stored(topic, partition, row)
        run = self.sieve.route(topic, message)
        return [] if run is None else [run]

    def _failed(self, connection: Connection, one: dict[str, Any], error: Exception) -> None:
        """A record that fails again stays first of its key, and waits for another release."""
        verdict = judge(error)
        if isinstance(verdict, Wait):
            with connection.begin():
                connection.execute(TAKE_BACK, one | {"offset": one["record_offset"]})
            self._noted.pop((one["topic"], one["partition"]), None)
            if not isinstance(error, Retry):
                raise error
            rest = verdict.at_least.total_seconds()
            self._rests[one["topic"], one["partition"]] = time.monotonic() + rest
            return
        with connection.begin():
            connection.execute(FAILED_AGAIN, one | {"error": brief(error)})
            connection.execute(FORGET_TRIES, one)
        log.warning(
            "%s[%s]: the parked record at offset %s failed again: %s",
            one["topic"],
            one["partition"],
            one["record_offset"],
            brief(error),
        )
        hooks.fire(
            "consumer.failed_again",
            group=one["grp"],
            topic=one["topic"],
            partition=one["partition"],
            offset=one["record_offset"],
            error=brief(error),
        )
