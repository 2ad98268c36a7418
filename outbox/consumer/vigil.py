"""Stop a partition before a record is applied at an offset that was never meant for it.

A name can come to mean another topic while it is read: deleted and made again, it goes on silently at the
old offset. Only its id tells. The client says by which id it fetches, and that it changed before a record of
the new topic is polled (`told`): while that is the id of the topic that was claimed, records may be applied.
If it does not say (brokers without ids), the brokers are asked, each time, after the records were polled.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaException, TopicPartition
from sqlalchemy.exc import SQLAlchemyError

from outbox.consumer.assignment import Assignment, describe
from outbox.consumer.identity import Identities, TopicIdentity, TopicMissing
from outbox.consumer.notice import Notice
from outbox.consumer.outcome import brief
from outbox.consumer.partition import Partition
from outbox.consumer.place.beginning import TIMEOUT
from outbox.consumer.place.mend import Mender, Problem
from outbox.consumer.place.scout import Scout
from outbox.consumer.record import Polled
from outbox.consumer.told import Told

log = logging.getLogger(__name__)

_TRUNCATED, _FORK = "truncation detected", re.compile(r"broker end offset is (-?\d+)")
"""How librdkafka words it; no other way tells."""

AGAIN = 0.5
"""Seconds before brokers are asked again that gave no answer, or another one than the client."""


class Vigil:
    """Watches over the positions of one member."""

    def __init__(
        self,
        client: KafkaConsumer,
        assignment: Assignment,
        identities: Identities,
        mender: Mender,
        scouting: Callable[[], AbstractContextManager[Scout]],
        told: Told,
        every: timedelta,
    ) -> None:
        self._client = client
        self._assignment = assignment
        self._identities = identities
        self._mender = mender
        self._scouting = scouting
        self._told = told
        self._every = every.total_seconds()
        self._asked = 0.0
        self._suspicion = False
        self.notice = Notice()

    def changed(self) -> set[str]:
        """Topics of which the client has begun to read another under the same name: what it returned since
        may be of either. Their partitions are claimed again, which compares with the row."""
        changed = self._told.changed()
        if changed:
            for partition in list(self._assignment.partitions.values()):
                if partition.topic in changed and partition.claim is not None and not partition.stopped:
                    partition.release("the client reads another topic under its name", 0.0)
                    self._assignment.pause(partition)
        return changed

    def verify(self, partitions: Sequence[Partition]) -> None:
        """Make sure, after their records were polled, that these are still the topics that were claimed."""
        doubtful = [partition for partition in partitions if not self._certain(partition)]
        if not doubtful:
            return
        try:
            found = self._identities.look(partition.topic for partition in doubtful)
        except KafkaException as error:
            self.notice.trouble(f"the brokers do not say which topics these are: {describe(error)}")
            found = {}
        else:
            self.notice.over("the brokers answer again")
        self._compare(self._assignment.partitions.values(), found)
        for partition in doubtful:
            # Whatever the brokers say of a topic that the client does not read: its records are another's.
            partition.verified = (
                partition.reads() and partition.topic in found and not self._reads_another(partition)
            )
            if not partition.verified and partition.reads():
                partition.due = time.monotonic() + AGAIN

    def _certain(self, partition: Partition) -> bool:
        """Does the client read the topic that was claimed? Without ids there is nothing to compare."""
        if not partition.reads() or partition.claim is None:
            return False
        claimed, told = partition.claim.identity.topic_id, self._told.reads(partition.topic)
        if claimed is not None:
            partition.verified = told == claimed
        return partition.verified

    def _reads_another(self, partition: Partition) -> bool:
        """By what the client says; nothing, or an id where the claim has none (a mock's), is no sign."""
        claimed = None if partition.claim is None else partition.claim.identity.topic_id
        told = self._told.reads(partition.topic)
        return claimed is not None and told is not None and told != claimed

    def tick(self) -> bool:
        """Ask from time to time, never wait for the answer; True if one came."""
        partitions = self._assignment.partitions.values()
        answers = self._identities.answers()
        if answers:
            self._compare(partitions, answers)
        now = time.monotonic()
        due = now - self._asked >= (AGAIN if self._suspicion else self._every)
        if partitions and due and self._identities.ask(partition.topic for partition in partitions):
            self._asked = now
            self._suspicion = False
        return bool(answers)

    def suspect(self) -> None:
        """The client reported something odd: ask soon which topics there are."""
        self._suspicion = True

    def out_of_range(self, partition: Partition, said: str) -> None:
        """The brokers have no record at our position. Stop or go on elsewhere, as `positions` says, unless
        they were wrong for a moment."""
        if not partition.reads():
            return
        if partition.probing:
            # The record before our position may be gone while ours is there.
            partition.probing = False
            self._assignment.reposition(partition)
            return
        partition.verified = False
        self.verify([partition])
        if not partition.reads():
            return
        found = self._problem(partition, said)
        if found is None:
            partition.release("the brokers refused a position they have", AGAIN)
            self._assignment.pause(partition)
        else:
            self._mend(partition, *found)

    def forked(self, partition: Partition, message: Polled) -> None:
        """The record before our position is not the one that was applied: the log was cut off and has grown.

        Stop or go on elsewhere, as `positions` says.
        """
        partition.verified = False
        self.verify([partition])
        epoch = partition.leader_epoch
        if not partition.reads() or epoch is None:
            return
        at = None
        try:
            if (message.leader_epoch() or 0) > epoch:
                with self._scouting() as scout:
                    at = scout.fork(*partition.key, epoch, partition.position)
        except KafkaException as error:
            log.info("the brokers do not tell where %s was cut off: %s", partition.topic, describe(error))
        goal = "beginning" if at is None else str(at)
        self._mend(partition, self._mender.truncated(partition.position, at), goal)

    def _mend(self, partition: Partition, problem: Problem, goal: str) -> None:
        position = partition.position
        if problem.to is None:
            self._assignment.stop(partition, self._mender.remedy(problem, partition, goal))
            return
        # What was polled and not applied yet comes again, unless it is gone, too: the claim shows.
        expected = partition.expected
        try:
            wait = 0.0 if position != expected or self._mender.go_on(partition, problem) else AGAIN
        except SQLAlchemyError as error:
            log.warning("%s[%s]: cannot be moved yet: %s", *partition.key, brief(error))
            wait = AGAIN
        partition.release(problem.what, wait)
        self._assignment.pause(partition)

    def _problem(self, partition: Partition, said: str) -> tuple[Problem, str] | None:
        """What is wrong, and the goal to propose; None if nothing is."""
        position = partition.position
        if _TRUNCATED in said:
            fork = _FORK.search(said)
            at = int(fork[1]) if fork is not None and int(fork[1]) >= 0 else None
            return self._mender.truncated(position, at), "beginning" if at is None else str(at)
        place = TopicPartition(partition.topic, partition.number)
        try:
            bounds = self._client.get_watermark_offsets(place, timeout=TIMEOUT, cached=False)
        except KafkaException as error:
            log.info("the brokers do not tell the offsets of %s: %s", partition.topic, describe(error))
            return None
        if position < bounds[0]:
            return self._mender.below(position, bounds[0]), "beginning"
        if position > bounds[1]:
            return self._mender.above(position, bounds[1]), "end"
        return None

    def _compare(
        self, partitions: Iterable[Partition], found: dict[str, TopicIdentity | TopicMissing]
    ) -> None:
        for partition in list(partitions):
            if partition.claim is None or partition.stopped or partition.topic not in found:
                continue
            answer, claimed = found[partition.topic], partition.claim.identity
            if isinstance(answer, TopicMissing):
                partition.release(f"{answer} any more", AGAIN)
                self._assignment.pause(partition)
            elif not answer.agrees(claimed) and self._mender.database is None:
                known = {"cluster_id": claimed.cluster_id, "topic_id": claimed.topic_id}
                difference = answer.difference(partition.topic, **known)
                self._assignment.stop(partition, f"{difference} Its stored offset means other records")
            elif not answer.agrees(claimed):
                # The claim compares with the row, and stops it or goes on as `positions` says.
                partition.release("another topic has its name", 0.0)
                self._assignment.pause(partition)
