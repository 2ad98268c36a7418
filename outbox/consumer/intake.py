"""Poll, and judge what comes before anybody may act on it: records by their offset, errors by their name."""

import logging
import time
from collections.abc import Callable, Sequence

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException

from outbox import hooks
from outbox.consumer.assignment import Assignment, Key, describe
from outbox.consumer.notice import Notice
from outbox.consumer.partition import Arrival, Partition
from outbox.consumer.record import Polled
from outbox.consumer.vigil import Vigil
from outbox.errors import ConfigurationError

log = logging.getLogger(__name__)

_MISSING = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
_FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
_UNSUPPORTED = {KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION}


class ClientDied(Exception):
    """The Kafka client cannot go on; a new one can."""


class Intake:
    """What one member hears from its Kafka client. size, room: records and bytes of a full batch."""

    def __init__(
        self,
        client: KafkaConsumer,
        assignment: Assignment,
        vigil: Vigil,
        group: str,
        *,
        size: int,
        room: int,
    ) -> None:
        self._client = client
        self._assignment = assignment
        self._vigil = vigil
        self._group = group
        self._size = size
        self._room = room
        self.notice = Notice()

    def claim_due(self, claim: Callable[[Sequence[Partition]], None]) -> None:
        """Have those claimed that are due, and read the ones that are."""
        now = time.monotonic()
        waiting = [
            partition
            for partition in self._assignment.partitions.values()
            if partition.claim is None and not partition.stopped and partition.due <= now
        ]
        if not waiting:
            return
        claim(waiting)
        for partition in waiting:
            if partition.stopped:
                self._assignment.stop(partition, partition.reason or "")
            elif partition.claim is not None:
                self.reposition(partition)

    def full(self, partition: Partition) -> bool:
        """Does a whole batch wait?"""
        return partition.full(self._size, self._room)

    def poll(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for records, take what is there; True if there was no more.

        While a full batch waits to be run, more would only pile up: one record at most, so that the client
        lives.

        Raises ClientDied; ConfigurationError when another process has our place in the group.
        """
        now = time.monotonic()
        more = not any(
            self.full(partition) and partition.runnable(now)
            for partition in self._assignment.partitions.values()
        )
        messages = self._read(lambda: self._client.poll(timeout))
        if messages and more:
            messages += self._read(lambda: self._client.consume(self._size - 1, 0))
        if others := self._vigil.changed():
            messages = [message for message in messages if message.topic() not in others]
        if not messages:
            return True
        hooks.fire("consumer.polled", group=self._group, records=len(messages))
        self._sort(messages)
        return more and len(messages) < self._size

    def _read(self, call: Callable[[], Polled | list[Polled] | None]) -> list[Polled]:
        try:
            got = call()
        except KafkaException as error:
            if not isinstance(error.args[0], KafkaError):
                raise ClientDied(str(error)) from error
            self._report(error.args[0], None)
            return []
        # A tombstone is falsy: compare with None.
        if got is None:
            return []
        return got if isinstance(got, list) else [got]

    def _sort(self, messages: list[Polled]) -> None:
        partitions = self._assignment.partitions
        astray: dict[Key, Partition] = {}
        for message in messages:
            error = message.error()
            if error is not None:
                self._report(error, message)
                continue
            key = (message.topic(), message.partition())
            partition = partitions.get(key)  # type: ignore[arg-type]
            offset = message.offset()
            if partition is None or offset is None or key in astray:
                continue
            position, doubted = partition.position, partition.doubted
            arrival = partition.arrive(message, offset)
            if arrival is Arrival.FORK:
                self._vigil.forked(partition, message)
            elif arrival is Arrival.JUMP:
                astray[partition.key] = partition
            elif doubted is not None and arrival is Arrival.TAKE:
                partition.doubted = None
                self._jump(partition, position, offset, believed=offset == doubted)
        for partition in astray.values():
            assert partition.doubted is not None
            self._jump(partition, partition.position, partition.doubted, believed=False)
            self.reposition(partition)

    def reposition(self, partition: Partition) -> None:
        """Fetch afresh; if the client refuses, claim again later."""
        try:
            self._assignment.reposition(partition)
        except KafkaException as error:
            log.info("%s[%s]: cannot be positioned: %s", *partition.key, describe(error))
            partition.release("the Kafka client refused a position", 0.2)

    def _jump(self, partition: Partition, expected: int, seen: int, *, believed: bool) -> None:
        log.info(
            "%s[%s]: the first record after positioning has offset %s instead of %s; %s",
            *partition.key,
            seen,
            expected,
            "believed" if believed or seen == expected else "fetching again",
        )
        hooks.fire(
            "consumer.jump",
            group=self._group,
            topic=partition.topic,
            partition=partition.number,
            expected=expected,
            seen=seen,
            believed=believed,
        )

    def _report(self, error: KafkaError, message: Polled | None) -> None:
        code = error.code()
        topic = message.topic() if message is not None else None
        _raise_if_over(error)
        if code == KafkaError._PARTITION_EOF:
            return
        if code == KafkaError._AUTO_OFFSET_RESET and message is not None:
            partition = self._assignment.partitions.get((topic or "", message.partition() or 0))
            if partition is not None:
                self._vigil.out_of_range(partition, error.str())
            return
        if code == KafkaError._MAX_POLL_EXCEEDED:
            self.notice.trouble(
                "a batch took longer than max.poll.interval.ms, so Kafka gave our partitions away; "
                "lower batch_size or raise max.poll.interval.ms"
            )
            return
        self._vigil.suspect()
        if code in _MISSING:
            self.notice.trouble(f"topic {topic or '?'} does not exist (any more): {error.str()}")
        elif code == KafkaError.INCONSISTENT_GROUP_PROTOCOL:
            self.notice.trouble(
                "the group has another kind of partition.assignment.strategy (eager, cooperative); "
                "end them, or give all group.protocol=consumer first"
            )
        elif code in _FORBIDDEN:
            self.notice.trouble(
                f"Kafka refuses access: {error.str()}; allow READ on the topics and on group {self._group}"
            )
        else:
            self.notice.trouble(f"Kafka reports {error.name()}: {error.str()}")


def _raise_if_over(error: KafkaError) -> None:
    """Does this end the client, or the consumer? A fatal error comes as _FATAL: only its words tell which."""
    code, words = error.code(), error.str()
    if code == KafkaError.FENCED_INSTANCE_ID or (_fatal(error) and "fenced by other consumer" in words):
        raise ConfigurationError(
            f"another process has this member's group.instance.id ({words}); give each process its own"
        )
    if not _fatal(error):
        return
    if code in _UNSUPPORTED or "not supported by broker" in words:
        raise ConfigurationError(f"these brokers cannot do what is configured: {words}")
    if "still used by another member" in words:
        raise ClientDied(
            "the brokers keep its group.instance.id for another process, which died less than a session "
            f"time-out ago, or lives ({words}); give each process its own"
        )
    if "group id does not exist" in words:
        raise ClientDied(
            "the brokers cannot take the group over to KIP-848 while it has classic members whose strategy "
            f"keeps data of its own, as cooperative-sticky does; joining once those have ended ({words})"
        )
    raise ClientDied(words)


def _fatal(error: KafkaError) -> bool:
    return bool(error.fatal()) or error.code() == KafkaError._FATAL
