"""Where a Pipe goes on: at the offset that Kafka committed with its results, with the marks beside it.

An offset's metadata holds the topic's id and the marks, so they move with it or not at all. The brokers are
asked for stable offsets only (isolation.level=read_committed): while a former owner's transaction could still
move one, there is no answer, and the partition waits.

Kafka deletes a topic's offsets with the topic. So what a name meant is also kept in memory, by all threads of
a pipe together: a topic made again while it runs stops, instead of beginning like one that was never read.
"""

import json
import logging
from collections.abc import Sequence
from typing import Literal

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaException, TopicPartition

from outbox import hooks
from outbox.consumer import backoff
from outbox.consumer.assignment import Key, describe
from outbox.consumer.claim import Claim
from outbox.consumer.identity import Identities, TopicIdentity, TopicMissing
from outbox.consumer.notice import Notice
from outbox.consumer.partition import Partition
from outbox.consumer.watermark import Marks

log = logging.getLogger(__name__)

TIMEOUT = 2.0
"""Seconds a question to the brokers may take: it is asked between two polls."""


def stamp(topic_id: str | None, marks: Marks) -> str:
    """What is kept beside an offset."""
    return f'{{"topic":{json.dumps(topic_id)},"marks":{marks.dump()}}}'


def read(metadata: str | None) -> tuple[str | None, Marks]:
    """Topic id and marks. Whatever we did not write (a tool that reset the offset) says nothing."""
    try:
        found = json.loads(metadata or "")
        return found["topic"], Marks.load(json.dumps(found["marks"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None, Marks()


class CommittedOffsets:
    """Claims for one member. `unrecorded`: partitions whose first offset is not committed yet.

    known: which topic each name meant when it was first claimed; shared with the other members.
    """

    def __init__(
        self,
        client: KafkaConsumer,
        group: str,
        identities: Identities,
        start: Literal["earliest", "latest"],
        known: dict[str, TopicIdentity],
    ) -> None:
        self._client = client
        self._group = group
        self._identities = identities
        self._start = start
        self._known = known
        self.unrecorded: set[Key] = set()
        self.notice = Notice()

    def claim(self, partitions: Sequence[Partition]) -> None:
        """Afterwards each is claimed, stopped, or due for another try. Does not position the client."""
        if not partitions:
            return
        try:
            found = self._identities.look(partition.topic for partition in partitions)
            places = [TopicPartition(*partition.key) for partition in partitions]
            offsets = self._client.committed(places, timeout=TIMEOUT)
        except KafkaException as error:
            self._later(
                partitions,
                "the brokers do not tell the committed offsets (a former owner's transaction may be open): "
                + describe(error),
            )
            return
        for partition, place in zip(partitions, offsets, strict=True):
            identity = found.get(partition.topic)
            if not isinstance(identity, TopicIdentity):
                missing = (
                    identity if isinstance(identity, TopicMissing) else f"{partition.topic} is not shown"
                )
                self._later([partition], f"{missing}; create it, or allow DESCRIBE")
            elif place.error is not None:
                self._later([partition], f"no committed offset yet: {place.error.str()}")
            else:
                self._one(partition, identity, place)
        if all(partition.claim is not None for partition in partitions):
            self.notice.over("the brokers tell the committed offsets again")

    def _one(self, partition: Partition, identity: TopicIdentity, place: TopicPartition) -> None:
        topic_id, marks = read(place.metadata)
        offset = place.offset
        known = self._known.get(partition.topic)
        if known is not None and not identity.agrees(known):
            partition.stop(
                identity.difference(partition.topic, cluster_id=known.cluster_id, topic_id=known.topic_id)
                + " Its offsets meant other records. Restarted, the group reads the topic there is now, from "
                f"start={self._start!r} if no offset of it is committed"
            )
            return
        if offset < 0:
            try:
                first, end = self._client.get_watermark_offsets(
                    TopicPartition(*partition.key), timeout=TIMEOUT, cached=False
                )
            except KafkaException as error:
                self._later([partition], f"the brokers do not tell the offsets: {describe(error)}")
                return
            offset = first if self._start == "earliest" else end
            self.unrecorded.add(partition.key)
        partition.begin(
            Claim(
                group=self._group,
                topic=partition.topic,
                partition=partition.number,
                epoch=0,
                next_offset=offset,
                marks=marks,
                parked=0,
                suspect=False,
                identity=identity,
            )
        )
        if topic_id is not None and not identity.agrees(TopicIdentity(None, topic_id)):
            partition.stop(
                identity.difference(partition.topic, cluster_id=None, topic_id=topic_id)
                + f" The committed offset {offset} means other records; stop the group and reset it with "
                "kafka-consumer-groups.sh --reset-offsets"
            )
            return
        if known is None or known.topic_id is None:
            self._known[partition.topic] = identity
        hooks.fire(
            "pipe.claimed",
            group=self._group,
            topic=partition.topic,
            partition=partition.number,
            next_offset=offset,
        )

    def _later(self, partitions: Sequence[Partition], reason: str) -> None:
        self.notice.trouble(f"{reason}; trying again")
        for partition in partitions:
            partition.failures += 1
            partition.release(reason, min(2.0, backoff.seconds(backoff.FAILURE, partition.failures)))
