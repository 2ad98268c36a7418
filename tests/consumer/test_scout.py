"""What is read without being a member is read to its end, whoever leads the partition meanwhile."""

from typing import Any, cast

import pytest
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from outbox.consumer.place.scout import Scout


def record(offset: int) -> "Message[Any, Any]":
    return Message("things", 0, offset, b"key", b"value")


def end(offset: int) -> "Message[Any, Any]":
    return Message("things", 0, offset, error=KafkaError(KafkaError._PARTITION_EOF))


class Log:
    """A client of a partition with 10 records, whose new leader shows 6 first. ends: what it answers."""

    def __init__(self, ends: list[int | None]) -> None:
        self.ends = ends
        self.polls = [
            [record(n) for n in range(6)],
            [end(6)],
            [],
            [record(n) for n in range(6, 10)],
            [end(10)],
        ]

    def assign(self, _places: list[TopicPartition]) -> None: ...

    def consume(self, _number: int, _timeout: float) -> "list[Message[Any, Any]]":
        return self.polls.pop(0)

    def get_watermark_offsets(self, _place: TopicPartition, **_: Any) -> tuple[int, int]:
        answer = self.ends.pop(0)
        if answer is None:
            raise KafkaException(KafkaError(KafkaError.OFFSET_NOT_AVAILABLE))
        return 0, answer

    def offsets(self, last: int) -> list[int | None]:
        reader = Scout({}, lambda _: cast(KafkaConsumer, self))
        return [message.offset() for chunk in reader.read("things", 0, 0, last) for message in chunk.records]


def test_a_new_leader_that_shows_an_end_too_soon_is_asked_and_read_on() -> None:
    assert Log([10]).offsets(10) == list(range(10))


def test_a_log_that_was_cut_off_ends_where_it_ends() -> None:
    assert Log([6]).offsets(10) == list(range(6))


def test_a_leader_that_does_not_know_the_end_yet_is_no_end() -> None:
    with pytest.raises(KafkaException):
        Log([None]).offsets(10)
