"""Show lag tools where the group stands: offsets copied to Kafka now and then, never read back."""

import logging
import time
from collections.abc import Iterable
from datetime import timedelta

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaException, TopicPartition

from outbox.consumer.assignment import Key, describe
from outbox.consumer.partition import Partition

log = logging.getLogger(__name__)


class Mirror:
    """Commits the database's offsets to the group, asynchronously."""

    def __init__(self, client: KafkaConsumer, every: timedelta) -> None:
        self._client = client
        self._every = every.total_seconds()
        self._next = 0.0
        self._shown: dict[Key, int] = {}

    def tick(self, partitions: Iterable[Partition]) -> None:
        """Copy what moved, at most every so often."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every
        moved = [p for p in partitions if p.claim is not None and self._shown.get(p.key) != p.expected]
        if not moved:
            return
        try:
            self._client.commit(
                offsets=[TopicPartition(p.topic, p.number, p.expected) for p in moved], asynchronous=True
            )
        except KafkaException as error:
            log.debug("offsets are not copied to Kafka: %s", describe(error))
            return
        self._shown.update({p.key: p.expected for p in moved})
