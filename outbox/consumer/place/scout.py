"""Look into a topic without being a member of anything: bounds, times, and a stretch of records in order."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Consumer as KafkaConsumer

from outbox.consumer.record import Polled

TIMEOUT = 10.0
"""Seconds for one question to the brokers."""

CHUNK = 2_000
"""Records in memory at once."""

SLICE = 0.2
"""Seconds that one read waits for records, so that whoever reads can be told to stop."""

_MEMBERS_ONLY = (
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "partition.assignment.strategy",
)


class Bounds(NamedTuple):
    """oldest: the first offset that Kafka still has. end: the offset of the next record to be written."""

    oldest: int
    end: int


class Chunk(NamedTuple):
    """records, in order; reached: the offset up to which all is read."""

    records: list[Polled]
    reached: int


class Scout:
    """One Kafka client that assigns partitions to itself and commits nothing. Belongs to one thread."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        new_client: Callable[[dict[str, Any]], KafkaConsumer] = KafkaConsumer,
    ) -> None:
        own = {name: value for name, value in properties.items() if name not in _MEMBERS_ONLY}
        self._client = new_client({**own, "enable.partition.eof": True})

    def close(self) -> None:
        self._client.close()

    def partitions(self, topic: str) -> list[int]:
        """The topic's partitions. Raises KafkaException, also for a topic that does not exist."""
        found = self._client.list_topics(topic, timeout=TIMEOUT).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return sorted(found.partitions)

    def bounds(self, topic: str, partition: int) -> Bounds:
        """Where the partition begins and ends now. Raises KafkaException."""
        found = self._client.get_watermark_offsets(
            TopicPartition(topic, partition), timeout=TIMEOUT, cached=False
        )
        if found is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return Bounds(*found)

    def at(self, topic: str, partition: int, milliseconds: int) -> int | None:
        """The first offset whose record has this time or a later one; None if there is none."""
        place = TopicPartition(topic, partition, milliseconds)
        (found,) = self._client.offsets_for_times([place], timeout=TIMEOUT)
        if found.error is not None:
            raise KafkaException(found.error)
        return None if found.offset < 0 else found.offset

    def first(self, topic: str, partition: int, offset: int, end: int) -> Polled | None:
        """The first record of [offset, end); None: there is none. Raises KafkaException."""
        latest = time.monotonic() + TIMEOUT
        for chunk in self.read(topic, partition, offset, end, size=1):
            if chunk.records:
                return chunk.records[0]
            if time.monotonic() > latest:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return None

    def time_of(self, topic: str, partition: int, offset: int) -> int | None:
        """The time, in milliseconds, of the first record from `offset` on; None: there is none yet."""
        record = self.first(topic, partition, offset, self.bounds(topic, partition).end)
        if record is None:
            return None
        kind, found = record.timestamp()
        return None if kind == TIMESTAMP_NOT_AVAILABLE else found

    def last(self, topic: str, partition: int, bounds: Bounds) -> int:
        """The offset behind the newest record that a reader gets; the end may lie behind markers that only
        Kafka's transactions need. Raises KafkaException."""
        reach = 1
        while True:
            start = max(bounds.oldest, bounds.end - reach)
            found = start
            for chunk in self.read(topic, partition, start, bounds.end):
                if chunk.records:
                    found = (chunk.records[-1].offset() or 0) + 1
            if found > start or start == bounds.oldest:
                return found
            reach *= 8

    def fork(self, topic: str, partition: int, epoch: int, before: int) -> int | None:
        """The first offset whose record is of a later leader than `epoch`, if one below `before` is."""
        low, high = self.bounds(topic, partition).oldest, before
        while low < high:
            middle = (low + high) // 2
            record = self.first(topic, partition, middle, before)
            offset = None if record is None else record.offset()
            if record is None or offset is None or (record.leader_epoch() or 0) > epoch:
                high = middle
            else:
                low = offset + 1
        return low if low < before else None

    def read(
        self, topic: str, partition: int, first: int, last: int, *, size: int = CHUNK
    ) -> Iterator[Chunk]:
        """The records of [first, last) in order, in chunks, some of them empty while the brokers say nothing.

        Ends where `last` or the end of the log is reached. A new leader may not know for a moment how far
        records are safe, and shows an end before `last`: it is asked, and does not answer until it knows.
        Raises KafkaException for what the brokers refuse, among it a `first` that they do not have.
        """
        reached, doubted = first, first
        if reached < last:
            self._client.assign([TopicPartition(topic, partition, first)])
        while reached < last:
            records: list[Polled] = []
            ended = False
            for message in self._client.consume(size, SLICE):
                error, offset = message.error(), message.offset()
                if error is not None:
                    ended = ended or (
                        _ends(error) and ((offset or 0) >= last or self.bounds(topic, partition).end < last)
                    )
                elif offset is None:
                    continue
                elif reached == first and offset not in {first, doubted}:
                    # A first record beyond the position may come from a wrong one; believed the second time.
                    doubted = offset
                    self._client.assign([TopicPartition(topic, partition, first)])
                    break
                elif offset >= last:
                    ended = True
                    break
                else:
                    records.append(message)
                    reached = offset + 1
            reached = last if ended else reached
            yield Chunk(records, reached)


def milliseconds(when: datetime) -> int:
    """As Kafka counts time."""
    return int(when.timestamp() * 1000)


@contextmanager
def scouting(
    properties: Mapping[str, Any], new_client: Callable[[dict[str, Any]], KafkaConsumer] = KafkaConsumer
) -> Iterator[Scout]:
    """A scout while inside."""
    scout = Scout(properties, new_client)
    try:
        yield scout
    finally:
        scout.close()


def _ends(error: KafkaError) -> bool:
    """Is this the end of the log? Raises KafkaException for what time does not mend."""
    if error.code() == KafkaError._PARTITION_EOF:
        return True
    if error.code() == KafkaError._AUTO_OFFSET_RESET or error.fatal():
        raise KafkaException(error)
    return False
