"""Read every record of some topics with a plain Kafka consumer, from the first one to the last.

Deliberately shares no code with the framework: what this reads is what any reader would.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Iterator

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from relay.demo.evidence import Record
from relay.demo.failure import DemoFailed

PATIENCE = 30.0
"""Seconds without any record before the topics count as unreadable."""

ANSWER = 10.0


def read(bootstrap: str, topics: Iterable[str], check: Callable[[], None] = lambda: None) -> list[Record]:
    """All records up to the present end of each partition. `check` is called now and then, and may raise.

    Raises DemoFailed when records that were there are gone, or the broker does not answer.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"outbox-demo-reader-{uuid.uuid4().hex[:8]}",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "log_level": 3,
        }
    )
    try:
        return list(_records(consumer, list(topics), check))
    except KafkaException as error:
        raise DemoFailed(f"the topics cannot be read: {error.args[0]}") from error
    finally:
        consumer.close()


def ends(consumer: Consumer, topics: Iterable[str]) -> dict[tuple[str, int], int]:
    """Where each partition ends now. Raises DemoFailed when its first record is not there any more."""
    found = {}
    for topic in topics:
        for number in consumer.list_topics(topic, timeout=ANSWER).topics[topic].partitions:
            bounds = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=ANSWER)
            if bounds is None:
                raise DemoFailed(f"the broker does not tell where {topic}[{number}] ends")
            first, end = bounds
            if first > 0:
                raise DemoFailed(
                    f"{topic}[{number}] has dropped its first {first} records, so nobody can count what was "
                    "published; take a real broker (--kafka real) or fewer orders"
                )
            found[topic, number] = end
    return found


def _records(consumer: Consumer, topics: list[str], check: Callable[[], None]) -> Iterator[Record]:
    left = {place: end for place, end in ends(consumer, topics).items() if end > 0}
    consumer.assign([TopicPartition(topic, number, 0) for topic, number in left])
    until = time.monotonic() + PATIENCE
    while left:
        check()
        messages = consumer.consume(1_000, timeout=0.25)
        if messages:
            until = time.monotonic() + PATIENCE
        elif time.monotonic() > until:
            raise DemoFailed(f"{len(left)} partitions were not readable to their end within {PATIENCE:g} s")
        for message in messages:
            yield from _one(message, left)


def _one(message: Message, left: dict[tuple[str, int], int]) -> Iterator[Record]:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    error = message.error()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    if error is None and offset < left.get((topic, partition), 0):
        key, value = message.key(), message.value()
        yield Record(topic, partition, offset, _id(message), _text(key), _bytes(value))
    if error is not None or offset + 1 >= left.get((topic, partition), 0):
        left.pop((topic, partition), None)


def _id(message: Message) -> str | None:
    headers = message.headers()
    found = dict(headers if isinstance(headers, list) else ()).get("id")
    return _text(found)


def _text(value: bytes | str | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
