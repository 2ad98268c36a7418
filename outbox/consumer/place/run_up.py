"""Before a moved partition is read, rebuild its marks from the records before it, and call no handler.

With the marks it had, everything read again would be a repeat; with none, an old repeat would be news. So the
marks are what a reader would have who came from an hour before. The row says that they are being rebuilt and
how far that is: whoever owns the partition next goes on from there, and no record is applied before.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaException
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from outbox import hooks
from outbox.consumer import backoff
from outbox.consumer.assignment import describe
from outbox.consumer.claim import Claim
from outbox.consumer.database import Database, LoopEnded
from outbox.consumer.foreign.refill import Refill
from outbox.consumer.identity import Identities, TopicIdentity
from outbox.consumer.outcome import brief
from outbox.consumer.partition import Partition
from outbox.consumer.place.scout import Scout, scouting
from outbox.consumer.record import Polled
from outbox.consumer.watermark import Marks

log = logging.getLogger(__name__)

SPAN = timedelta(hours=1)
"""How far back a run-up begins, by the records' own times: as old a repeat is known for one."""

MARGIN = 10_000
"""Offsets that it goes back at least: records of one backlog carry times from long before they were sent."""

STORE = 2.0
"""Seconds between two stored stages; what one is worth after a crash."""

LEAVE = 2.0
"""Seconds that leaving waits for a run-up to end; its thread does not keep the process."""

# Promise: only the owner under this epoch says how far the marks are, and only for the offset they lead to.
# Served by the primary key.
STAGE = text("""
UPDATE consumer_offset
SET sources = CAST(:sources AS jsonb), run_up = :run_up, updated_at = clock_timestamp()
WHERE grp = :grp AND topic = :topic AND partition = :partition
  AND owner_epoch = :epoch AND next_offset = :expected AND run_up IS NOT NULL
  AND set_config('idle_in_transaction_session_timeout', :idle, true) IS NOT NULL
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunUps:
    """What the run-ups of one member need. span: how far back they begin at least."""

    database: Database
    properties: Mapping[str, Any]
    identities: Callable[[], Identities]
    idle: str
    refill: Refill
    new_client: Callable[[dict[str, Any]], KafkaConsumer] = KafkaConsumer
    span: timedelta = SPAN


@dataclass(slots=True, eq=False)
class _Task:
    """One partition's run-up in a thread of its own, so that the other partitions go on.

    marks: whole once `ended`; None if somebody else owns the partition, or the topic is another.
    """

    setup: RunUps
    claim: Claim
    reached: int = -1
    marks: Marks | None = None
    trouble: str | None = None
    identities: Identities | None = None
    canceled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        failures = 0
        try:
            while not self.canceled.is_set():
                try:
                    self.marks = self._rebuild()
                except (SQLAlchemyError, KafkaException, LoopEnded) as error:
                    failures += 1
                    self.trouble = describe(error) if isinstance(error, KafkaException) else brief(error)
                    log.warning("%s[%s]: the run-up rests: %s", *self._key, self.trouble)
                    self.canceled.wait(backoff.seconds(backoff.FAILURE, failures))
                else:
                    return
        finally:
            self.ended.set()

    @property
    def _key(self) -> tuple[str, int]:
        return self.claim.topic, self.claim.partition

    def _rebuild(self) -> Marks | None:
        """None when it is not ours to finish."""
        claim, marks = self.claim, self.claim.marks.copy()
        remember = self.setup.refill.span(claim.topic) is not None
        if remember:
            self.setup.database.transact(lambda: self.setup.refill.prepare(claim))
        with scouting(self.setup.properties, self.setup.new_client) as scout:
            oldest = scout.bounds(*self._key).oldest
            begun = claim.run_up if claim.run_up is not None and claim.run_up >= 0 else self._begin(scout)
            at = max(begun, oldest)
            stored, unstored = time.monotonic(), list[Polled]()
            for chunk in scout.read(*self._key, at, claim.next_offset):
                if self.canceled.is_set():
                    return None
                marks.pass_by(chunk.records)
                self.reached = chunk.reached
                if remember:
                    unstored += chunk.records
                due = time.monotonic() - stored > STORE or bool(unstored)
                if due and chunk.reached < claim.next_offset:
                    # Marks of another topic's records, once stored, would pass for what was applied.
                    if not (self._same() and self._store(marks, chunk.reached, unstored)):
                        return None
                    stored, unstored = time.monotonic(), []
        return marks if self._same() and self._store(marks, None, unstored) else None

    def _same(self) -> bool:
        """Asked after records were read: is this still the topic that was claimed?"""
        topic, claimed = self.claim.topic, self.claim.identity
        if self.identities is None:
            self.identities = self.setup.identities()
        identity = self.identities.look([topic]).get(topic)
        return isinstance(identity, TopicIdentity) and identity.agrees(claimed)

    def _begin(self, scout: Scout) -> int:
        """The offset to begin at."""
        target = self.claim.next_offset
        now = int(time.time() * 1000)
        moment = scout.time_of(*self._key, target)
        span = max(self.setup.span, self.setup.refill.span(self.claim.topic) or SPAN)
        since = (now if moment is None else min(moment, now)) - int(span.total_seconds() * 1000)
        found = scout.at(*self._key, since)
        return max(0, min(target - MARGIN, target if found is None else found))

    def _store(self, marks: Marks, reached: int | None, records: Sequence[Polled]) -> bool:
        """One stage, or with None the end. False: the row is not ours any more."""
        claim = self.claim
        values = {
            "grp": claim.group,
            "topic": claim.topic,
            "partition": claim.partition,
            "epoch": claim.epoch,
            "expected": claim.next_offset,
            "run_up": reached,
            "sources": marks.dump(),
            "idle": self.setup.idle,
        }

        def store() -> bool:
            with self.setup.database.engine.begin() as connection:
                if connection.execute(STAGE, values).rowcount != 1:
                    return False
                if records:
                    self.setup.refill.add(connection, claim, records)
                return True

        if not self.setup.database.transact(store):
            return False
        hooks.fire(
            "consumer.run_up",
            group=claim.group,
            topic=claim.topic,
            partition=claim.partition,
            reached=reached,
            target=claim.next_offset,
        )
        return True


class RunUp:
    """Rebuilds the marks of one member's moved partitions, one after the other. Belongs to its thread."""

    def __init__(self, setup: RunUps) -> None:
        self._setup = setup
        self._task: _Task | None = None
        self._thread: threading.Thread | None = None

    def run_once(self, partitions: Iterable[Partition]) -> list[Partition]:
        """Look after it, without waiting; returns the partitions that may be read now."""
        waiting = [p for p in partitions if p.claim is not None and p.run_up is not None and not p.stopped]
        task = self._task
        done = []
        if task is not None:
            mine = next((p for p in waiting if p.claim is task.claim), None)
            if mine is None:
                task.canceled.set()
                self._task = None
            elif task.ended.is_set():
                self._task = None
                if task.marks is None:
                    mine.fenced = True
                else:
                    mine.whole(task.marks)
                    done.append(mine)
                waiting.remove(mine)
            else:
                mine.reason = task.trouble or (
                    f"rebuilding its marks without calling a handler: at offset {max(0, task.reached)} of "
                    f"{task.claim.next_offset}"
                )
        if self._task is None and waiting:
            claim = waiting[0].claim
            assert claim is not None
            self._task = _Task(self._setup, claim)
            name = f"run-up-{claim.topic}-{claim.partition}"
            self._thread = threading.Thread(target=self._task.run, name=name, daemon=True)
            self._thread.start()
        return done

    def close(self) -> None:
        """Stop it where it is; whoever owns the partition next goes on from the last stored stage."""
        if self._task is not None:
            self._task.canceled.set()
            self._task = None
        if self._thread is not None:
            self._thread.join(LEAVE)
            self._thread = None
