"""Keep the Kafka client reading at the database's offsets, whatever the group protocol.

Positions are given by assign() alone, always as numbers: seek() can be overridden by a look-up that is still
under way, and a partition parked at a logical offset may start anywhere. The client's pause flag survives
revoke and assign, so it is tracked here and set or lifted explicitly.
"""

import logging
import time
from collections.abc import Iterable

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaException, TopicPartition

from outbox import hooks
from outbox.consumer.partition import Partition

log = logging.getLogger(__name__)

Key = tuple[str, int]

SLEEP = 1.0
"""Seconds that a thread of librdkafka sleeps at most if nothing wakes it."""


class Assignment:
    """The partitions a member holds, and their place and pause in its Kafka client.

    credentials: the user and password that the client was made with, "" for none.
    """

    def __init__(
        self, client: KafkaConsumer, group: str, *, incremental: bool, credentials: tuple[str, str]
    ) -> None:
        self._group = group
        self.partitions: dict[Key, Partition] = {}
        self._client = client
        self._incremental = incremental
        self._paused: set[Key] = set()
        self._credentials = credentials
        self._resumed = False
        self._moved = -SLEEP

    def add(self, added: Iterable[Partition]) -> None:
        """Answer an assignment: those claimed are read from their offset, the others stand paused."""
        self._moved = time.monotonic()
        given = list(added)
        for partition in given:
            self.partitions[partition.key] = partition
        if self._incremental:
            self._client.incremental_assign([_place(partition) for partition in given])
        else:
            self._client.assign([_place(partition) for partition in self.partitions.values()])
        for partition in given:
            self._settle(partition)

    def remove(self, keys: Iterable[Key]) -> list[Partition]:
        """Forget what was revoked or lost; the client's own default takes it from its assignment."""
        self._moved = time.monotonic()
        gone = [self.partitions.pop(key) for key in list(keys) if key in self.partitions]
        for partition in gone:
            self._lift(partition)
        return gone

    def reposition(self, partition: Partition) -> None:
        """Fetch afresh from the partition's position. Raises KafkaException; then nothing may be believed."""
        self._moved = time.monotonic()
        partition.rewind()
        self._lift(partition)
        if self._incremental:
            self._client.incremental_unassign([_place(partition)])
            self._client.incremental_assign([_place(partition)])
        else:
            others = [other for other in self.partitions.values() if other is not partition]
            for other in others:
                # One that rests keeps its records, and with them its pause: lifting that is what follows
                # when they are applied. It is assigned behind them.
                if other.key not in self._paused:
                    other.rewind()
            self._client.assign([_place(other) for other in others])
            self._client.assign([_place(other) for other in self.partitions.values()])
        self._settle(partition)

    def stop(self, partition: Partition, reason: str) -> None:
        """Alarm: it stands still, its offset unchanged, nothing skipped, until it is claimed anew."""
        partition.stop(reason)
        self.pause(partition)
        log.error(
            "group %s stopped %s[%s]%s: %s. Nothing was skipped. Mend the cause, or let the handler return "
            "for this record, and restart the consumer",
            self._group,
            partition.topic,
            partition.number,
            "" if partition.claim is None else f" at offset {partition.expected}",
            reason.rstrip("."),
        )
        hooks.fire(
            "consumer.stopped",
            group=self._group,
            topic=partition.topic,
            partition=partition.number,
            offset=partition.expected,
            reason=reason,
        )

    def pause(self, partition: Partition) -> None:
        """Stop fetching it. Idempotent."""
        self._client.pause([TopicPartition(*partition.key)])
        self._paused.add(partition.key)

    def resume(self, partition: Partition) -> None:
        """Fetch it again, from where the last polled record ended. Never resumes what is not paused: the
        client would throw away what it has fetched and go on behind it."""
        if partition.key in self._paused:
            self._client.resume([TopicPartition(*partition.key)])
            self._paused.discard(partition.key)
            self._resumed = True
            partition.fresh = True  # the client positions itself anew

    def wake(self) -> None:
        """Let the client fetch at once what was resumed, by us or by itself after a rebalance.

        During a rebalance librdkafka (2.16) pauses all partitions, also those that stay. If its fetch under
        way ends meanwhile, the thread that talks to that broker goes to sleep, for a second if nothing wakes
        it; resuming does not. Being given credentials does, the same as before: no broker is asked, so
        nothing waits behind a fetch at rest, and no time-out cuts a connection. Resuming waits until the
        client has done it, so that one call is enough; it does not say when a rebalance is over, so each
        round of the next second wakes it.
        """
        if self._resumed or time.monotonic() < self._moved + SLEEP:
            self._resumed = False
            self._client.set_sasl_credentials(*self._credentials)

    def _settle(self, partition: Partition) -> None:
        if partition.stopped:
            self.stop(partition, partition.reason or "")
        elif partition.claim is None or partition.run_up is not None:
            self.pause(partition)
        else:
            self.resume(partition)

    def _lift(self, partition: Partition) -> None:
        """Nothing leaves the assignment paused."""
        try:
            self.resume(partition)
        except KafkaException as error:
            log.debug("cannot resume %s[%s]: %s", partition.topic, partition.number, describe(error))


def _place(partition: Partition) -> TopicPartition:
    # The client could have the brokers check the leader epoch that it is given, but while it does, another
    # assign() makes it stand still (librdkafka 2.16, eager groups): so we look at the record ourselves.
    return TopicPartition(partition.topic, partition.number, partition.position - int(partition.probing))


def keys_of(places: Iterable[TopicPartition]) -> list[Key]:
    return [(place.topic, place.partition) for place in places]


def describe(error: KafkaException) -> str:
    """The client's words, without the exception's wrapping."""
    cause = error.args[0] if error.args else error
    return cause.str() if hasattr(cause, "str") else str(cause)
