"""Run what was polled, and decide what a failure means for its partition alone."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import assert_never

from sqlalchemy.exc import SQLAlchemyError

from outbox import hooks
from outbox.consumer import backoff
from outbox.consumer.assignment import Assignment
from outbox.consumer.batch import Batch, BatchRunner
from outbox.consumer.outcome import (
    Committed,
    Failed,
    GiveUp,
    Halt,
    Outcome,
    Overtaken,
    ProcessDied,
    Try,
    Unknown,
    Wait,
    brief,
    judge,
)
from outbox.consumer.partition import Partition
from outbox.consumer.settings import Settings
from outbox.errors import Retry

log = logging.getLogger(__name__)


WHOLE = 4
"""Times in a row that a batch is tried whole while the database fails; then one of its records may be why."""


class Work:
    """Batches of one member."""

    def __init__(
        self,
        assignment: Assignment,
        runner: BatchRunner,
        group: str,
        *,
        settings: Settings,
        batch_time: float,
        by_hand: bool = False,
    ) -> None:
        self._assignment = assignment
        self._runner = runner
        self._group = group
        self._size = settings.batch_size
        self._volume = settings.batch_bytes
        self._time = batch_time
        self._attempts = settings.attempts
        self._poison_policy = settings.poison
        self._by_hand = by_hand
        self.applied = 0

    def run(self, partitions: Iterable[Partition]) -> int:
        """Try a batch of each; returns how many records are done with.

        Those that waited longest come first, and after `batch_time` the others wait for the next round, so
        that the Kafka client is polled in time.
        Small ones share a transaction. If it fails, each is tried alone, so that a failure means the same
        for its partition as ever, and nothing for the others.
        """
        done = 0
        end = time.monotonic() + self._time
        waiting = sorted(partitions, key=lambda partition: -partition.rounds)
        for together in _groups(waiting, self._size, self._volume):
            if time.monotonic() >= end:
                break
            if together[0].wary and not self._survivable(together[0]):
                continue  # alone, as it is run record by record
            batches = [self._batch(partition) for partition in together]
            outcomes = self._runner.run(batches)
            if len(together) > 1 and not _hold_for_all(outcomes):
                outcomes = [outcome for batch in batches for outcome in self._runner.run([batch])]
            for partition, batch, outcome in zip(together, batches, outcomes, strict=True):
                if partition.noted and not isinstance(outcome, Committed):
                    self._lived(partition, batch)
                done += self._conclude(partition, batch, outcome)
        return done

    def _batch(self, partition: Partition) -> Batch:
        return partition.batch(self._size, self._volume)

    def _survivable(self, partition: Partition) -> bool:
        """Where a record may kill its process, the try is stored first; one try too many parks the record."""
        batch = self._batch(partition)
        try:
            tries = self._runner.note_try(batch, noted=partition.noted)
        except SQLAlchemyError as error:
            self._rest(partition, brief(error), 0.0)
            return False
        if tries is None:
            self._overtaken(partition, batch)
            return False
        partition.noted = True
        if tries <= self._attempts:
            return True
        died = ProcessDied(f"the process ended {tries - 1} times while it was handled")
        partition.tries = tries - 1
        self._poison(partition, batch, died, f"the record at offset {batch.next - 1} failed: {died}")
        return False

    def _lived(self, partition: Partition, batch: Batch) -> None:
        """The try failed and ended nobody: left in its row, those of a record that is tried again without
        limit would look like deaths. If it cannot be taken back now, it counts for the next one."""
        try:
            self._runner.take_back(batch)
            partition.noted = False
        except SQLAlchemyError as error:
            log.info("%s[%s]: a try still counts: %s", *partition.key, brief(error))

    def _conclude(self, partition: Partition, batch: Batch, outcome: Outcome) -> int:
        match outcome:
            case Committed():
                partition.committed(outcome)
                self.applied += outcome.applied
                if not partition.polled:
                    self._assignment.resume(partition)
                return outcome.records
            case Overtaken():
                self._overtaken(partition, batch)
            case Unknown(error):
                self._leave(
                    partition, f"the answer to COMMIT was lost ({brief(error)}); the database will tell", 0.0
                )
            case Failed(error):
                self._failed(partition, batch, error)
            case _:
                assert_never(outcome)
        return 0

    def give_back(self, partitions: Iterable[Partition]) -> None:
        """Claim again what turned out to be somebody else's, or whose row is unknown."""
        for partition in partitions:
            if partition.fenced and partition.claim is not None:
                self._leave(partition, "its row is not as we knew it", self._wait_for_owner(partition))

    def _overtaken(self, partition: Partition, batch: Batch) -> None:
        hooks.fire(
            "consumer.fenced",
            group=self._group,
            topic=partition.topic,
            partition=partition.number,
            epoch=batch.claim.epoch,
            expected=batch.expected,
        )
        wait = self._wait_for_owner(partition)
        self._leave(partition, f"somebody else claimed it; waiting {wait:.1f} s", wait)

    def _wait_for_owner(self, partition: Partition) -> float:
        """Seconds before it is claimed back from whoever claimed it."""
        if not self._by_hand:
            # If Kafka took the partition from us, we hear so before the wait is over. If it did not, the
            # other was a sleeper who claimed late, and without us nobody would go on.
            return backoff.seconds(backoff.FENCED, 1)
        # No group says whose it is. Two who were given the same one take turns, ever more rarely; if the
        # other dies, we go on.
        partition.dispute()
        log.error("%s[%s]: another process was given it too (partitions=); give it to one", *partition.key)
        return backoff.seconds(backoff.DISPUTED, partition.disputes)

    def _leave(self, partition: Partition, reason: str, wait: float) -> None:
        log.warning("%s[%s]: %s; claiming it again", partition.topic, partition.number, reason)
        # Also one that stood still: without a claim nobody would carry out what is wished for its parked
        # records. What stopped it stops it again, if it is still there.
        partition.stopped = False
        partition.release(reason, wait)
        self._assignment.pause(partition)

    def _failed(self, partition: Partition, batch: Batch, error: Exception) -> None:
        verdict = judge(error)
        whole = _database_failed(error) and partition.failures < WHOLE
        if len(batch.messages) > 1 and not whole:
            # Once more, each alone: those before the culprit are applied, and the culprit is known.
            log.info(
                "%s[%s]: %s; running %s records one by one",
                *partition.key,
                brief(error),
                len(batch.messages),
            )
            partition.singly = len(batch.messages)
            # Each takes a round, and each round may poll a whole batch: they would pile up in memory.
            self._assignment.pause(partition)
            return
        offset = batch.expected if len(batch.messages) > 1 else batch.next - 1
        what = f"the record at offset {offset} failed: {brief(error)}"
        match verdict:
            case Halt():
                self._assignment.stop(partition, what)
            case GiveUp():
                self._poison(partition, batch, error, what)
            case Wait(at_least):
                self._rest(partition, what, at_least.total_seconds())
            case Try():
                partition.tries += 1
                if partition.tries >= self._attempts:
                    log.error("%s[%s]: %s", *partition.key, what, exc_info=error)
                    self._poison(partition, batch, error, f"{what} ({partition.tries} attempts)")
                else:
                    self._rest(partition, what, 0.0)
            case _:
                assert_never(verdict)

    def _poison(self, partition: Partition, batch: Batch, error: Exception, what: str) -> None:
        """The record can never succeed as it is: out of the way of all but its own key."""
        if self._poison_policy == "stop":
            self._assignment.stop(partition, what)
            return
        outcome = self._runner.park(batch, brief(error), max(1, partition.tries))
        match outcome:
            case Failed(refused):
                if isinstance(judge(refused), Halt):
                    self._assignment.stop(partition, brief(refused))
                else:
                    self._rest(partition, f"{what}; it could not be parked: {brief(refused)}", 0.0)
            case _:
                self._conclude(partition, batch, outcome)
        if isinstance(outcome, Committed) and outcome.parked:
            log.error(
                "%s[%s]: %s; it is parked with all later records of its key, everything else goes on; see "
                "outbox-relay consumers parked list",
                *partition.key,
                what,
            )

    def _rest(self, partition: Partition, reason: str, at_least: float) -> None:
        wait = max(at_least, backoff.seconds(backoff.FAILURE, partition.failures + 1))
        log.warning("%s[%s]: %s; again in %.1f s", *partition.key, reason, wait)
        partition.rest(reason, wait)
        self._assignment.pause(partition)
        hooks.fire(
            "consumer.retrying",
            group=self._group,
            topic=partition.topic,
            partition=partition.number,
            offset=partition.expected,
            wait=wait,
            reason=reason,
        )


def _groups(partitions: Iterable[Partition], size: int, volume: int) -> Iterator[list[Partition]]:
    """Neighbours with `size` records and `volume` bytes at most between them; whoever failed lately is
    alone."""
    group: list[Partition] = []
    records = held = 0
    for partition in partitions:
        alone = bool(partition.failures or partition.singly)
        records += len(partition.polled)
        held += partition.held
        if group and (alone or records > size or held > volume):
            yield group
            group, records, held = [], len(partition.polled), partition.held
        if alone:
            yield [partition]
            records = held = 0
        else:
            group.append(partition)
    if group:
        yield group


def _hold_for_all(outcomes: Sequence[Outcome]) -> bool:
    """Does what became of a shared transaction concern each of its batches, or is one of them to blame?"""
    match outcomes[0]:
        case Committed() | Unknown():
            return True
        case Overtaken():
            return False
        case Failed(error):
            return _database_failed(error)
        case never:
            assert_never(never)


def _database_failed(error: Exception) -> bool:
    """It may pass, and no handler asked for it."""
    return isinstance(judge(error), Wait) and not isinstance(error, Retry)
