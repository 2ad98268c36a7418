"""Show lag tools where the group stands: offsets copied to Kafka now and then, never read back.

Beside the offset stands who wrote it, for whoever looks there. The copy is made under every protocol, and for
partitions given by hand as well, unless members of that group make Kafka refuse it.
"""

import logging
import time
from collections.abc import Iterable
from datetime import timedelta

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from outbox.consumer.assignment import Key, describe
from outbox.consumer.partition import Partition

log = logging.getLogger(__name__)


class Mirror:
    """Commits the database's offsets to the group, asynchronously."""

    def __init__(self, client: KafkaConsumer, every: timedelta, owner: str) -> None:
        self._client = client
        self._every = every.total_seconds()
        self._owner = owner
        self._next = 0.0
        self._shown: dict[Key, tuple[int, int]] = {}

    def tick(self, partitions: Iterable[Partition]) -> None:
        """Copy what moved, at most every so often."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every
        self.show(partitions)

    def show(self, partitions: Iterable[Partition]) -> None:
        """Copy what moved since it was last shown, or was claimed since."""
        moved = {
            partition.key: (partition.claim.epoch, partition.expected)
            for partition in partitions
            if partition.claim is not None
        }
        moved = {key: place for key, place in moved.items() if self._shown.get(key) != place}
        if not moved:
            return
        epochs = {p.key: -1 if p.leader_epoch is None else p.leader_epoch for p in partitions}
        try:
            self._client.commit(
                offsets=[
                    TopicPartition(*key, offset, f"{self._owner} epoch {epoch}", epochs[key])
                    for key, (epoch, offset) in moved.items()
                ],
                asynchronous=True,
            )
        except KafkaException as error:
            log.debug("offsets are not copied to Kafka: %s", describe(error))
            return
        self._shown.update(moved)

    def answered(self, error: KafkaError | None, places: Iterable[TopicPartition]) -> None:
        """The brokers answered: what they refused (amid a rebalance, say) is copied again."""
        for place in places:
            refused = error or place.error
            if refused is not None:
                log.debug("the offset of %s[%s] is not copied: %s", place.topic, place.partition, refused)
                self._shown.pop((place.topic, place.partition), None)
