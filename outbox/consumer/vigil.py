"""Stop a partition before a record is applied at an offset that was never meant for it.

A name can come to mean another topic while it is read: deleted and made again, it goes on silently at the old
offset. Only its id tells, so the id is asked when a partition is claimed, after its first records since it
was positioned were polled, and again and again while records flow. An answer holds for TRUST seconds: when a
topic is deleted, the client's fetches fail, and pause for fetch.error.backoff.ms (500 ms) before they can
succeed in a new one.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaException, TopicPartition

from outbox.consumer.assignment import Assignment, describe
from outbox.consumer.beginning import TIMEOUT
from outbox.consumer.identity import Identities, TopicIdentity, TopicMissing
from outbox.consumer.notice import Notice
from outbox.consumer.partition import Partition

log = logging.getLogger(__name__)

AGAIN = 0.5
"""Seconds before brokers that gave no answer are asked again."""

TRUST = 0.4
"""Seconds for which a topic that was seen to be the right one is taken for it."""

AHEAD = 0.2
"""Seconds after which the next question is asked without waiting, so that a flow of records never waits."""


class Vigil:
    """Watches over the positions of one member."""

    def __init__(
        self, client: KafkaConsumer, assignment: Assignment, identities: Identities, every: timedelta
    ) -> None:
        self._client = client
        self._assignment = assignment
        self._identities = identities
        self._every = every.total_seconds()
        self._asked = 0.0
        self.notice = Notice()
        self._flowed = False
        self._seen: dict[str, float] = {}

    def verify(self, partitions: Sequence[Partition]) -> None:
        """Make sure, after their records were polled, that these are still the topics that were claimed."""
        now = time.monotonic()
        self._flowed = True
        doubtful = [p for p in partitions if not p.verified or now - self._seen.get(p.topic, 0.0) > TRUST]
        if not doubtful:
            return
        try:
            found = self._identities.look(partition.topic for partition in doubtful)
        except KafkaException as error:
            self.notice.trouble(f"the brokers do not say which topics these are: {describe(error)}")
            found = {}
        else:
            self.notice.over("the brokers answer again")
        self._compare(self._assignment.partitions.values(), found, now)
        for partition in doubtful:
            partition.verified = partition.reads() and partition.topic in found
            if not partition.verified and partition.reads():
                partition.due = time.monotonic() + AGAIN

    def tick(self) -> bool:
        """Ask from time to time, never wait for the answer; True if one came."""
        partitions = self._assignment.partitions.values()
        answers = self._identities.answers()
        if answers:
            self._compare(partitions, answers, self._asked)
        now = time.monotonic()
        due = now - self._asked >= (AHEAD if self._flowed else self._every)
        if partitions and due and self._identities.ask(partition.topic for partition in partitions):
            self._asked = now
            self._flowed = False
        return bool(answers)

    def suspect(self, topic: str | None) -> None:
        """The client reported something odd: believe nothing of this topic (None: of any) before asking."""
        if topic is None:
            self._seen.clear()
        else:
            self._seen.pop(topic, None)

    def out_of_range(self, partition: Partition) -> None:
        """The brokers have no record at our position. Stop, unless they were wrong for a moment."""
        if not partition.reads():
            return
        partition.verified = False
        self.verify([partition])
        if not partition.reads():
            return
        place = TopicPartition(partition.topic, partition.number)
        try:
            bounds = self._client.get_watermark_offsets(place, timeout=TIMEOUT, cached=False)
        except KafkaException as error:
            bounds = None
            log.info("the brokers do not tell the offsets of %s: %s", partition.topic, describe(error))
        position = partition.position
        if bounds is not None and position < bounds[0]:
            reason = (
                f"offset {position} is gone, the oldest that Kafka still has is {bounds[0]}: retention "
                f"deleted {bounds[0] - position} offsets before this group read them. To go on without them, "
                f"stop the group and set next_offset = {bounds[0]} in consumer_offset"
            )
        elif bounds is not None and position > bounds[1]:
            reason = (
                f"offset {position} is beyond the end {bounds[1]}: the log was truncated, or the topic was "
                "made again. Find out which records are there before you set next_offset in consumer_offset"
            )
        else:
            partition.release("the brokers refused a position they have", AGAIN)
            self._assignment.pause(partition)
            return
        self._assignment.stop(partition, reason)

    def _compare(
        self, partitions: Iterable[Partition], found: dict[str, TopicIdentity | TopicMissing], asked: float
    ) -> None:
        for topic, identity in found.items():
            if isinstance(identity, TopicIdentity):
                self._seen[topic] = max(asked, self._seen.get(topic, 0.0))
        for partition in list(partitions):
            if partition.claim is None or partition.stopped or partition.topic not in found:
                continue
            answer, claimed = found[partition.topic], partition.claim.identity
            if isinstance(answer, TopicMissing):
                partition.release(f"{answer} any more", AGAIN)
                self._assignment.pause(partition)
            elif not answer.agrees(claimed):
                self._assignment.stop(
                    partition,
                    answer.difference(
                        partition.topic, cluster_id=claimed.cluster_id, topic_id=claimed.topic_id
                    )
                    + " Its stored offset means other records",
                )
