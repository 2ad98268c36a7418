"""One Kafka cluster looked at from outside: who it is, where its topics end, and with which record."""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from outbox.errors import ConfigurationError
from outbox.record import SEQ

TIMEOUT = 15.0

PASSING = frozenset({KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE})

_PRODUCERS_ONLY = (
    "linger.ms",
    "compression.type",
    "acks",
    "batch.",
    "queue.buffering",
    "message.",
    "enable.",
)


@dataclass(frozen=True, slots=True)
class End:
    """A partition's first and next offset."""

    low: int
    high: int

    @property
    def empty(self) -> bool:
        return self.low == self.high


class Cluster:
    """Reads; never joins a group, writes or creates anything. Raises ConfigurationError when it cannot."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        given = {k: v for k, v in properties.items() if not k.startswith(_PRODUCERS_ONLY)}
        self._where = str(given.get("bootstrap.servers"))
        self._admin = AdminClient(given)
        self._reader = Consumer(
            {
                **given,
                "group.id": "outbox-relay-adopt",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
            }
        )

    def close(self) -> None:
        self._reader.close()

    @property
    def id(self) -> str:
        """The cluster's id, which brokers keep for ever."""
        found = self._asked(lambda: self._admin.list_topics(timeout=TIMEOUT)).cluster_id
        if not found:
            raise ConfigurationError(f"the brokers at {self._where} do not tell their cluster's id")
        return str(found)

    def topic_id(self, topic: str) -> str:
        futures = self._admin.describe_topics(TopicCollection([topic]), request_timeout=TIMEOUT)
        return str(self._asked(lambda: futures[topic].result(TIMEOUT)).topic_id)

    def ends(self, topic: str) -> dict[int, End] | None:
        """Of each partition; None when there is no such topic."""
        known = self._asked(lambda: self._admin.list_topics(topic, timeout=TIMEOUT)).topics.get(topic)
        if known is None or known.error is not None:
            if known is None or known.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return None
            raise ConfigurationError(f"topic {topic} at {self._where}: {known.error.str()}")
        return {
            number: End(*self._asked(lambda n=number: self._watermarks(topic, n)))
            for number in sorted(known.partitions)
        }

    def last(self, topic: str, partition: int, end: End) -> tuple[object, ...] | None:
        """What the last record is: its `outbox-seq`, else its whole content. None where there is none.

        Looks further and further back: transactions end with records that nobody sees.
        """
        if end.empty:
            return None
        back = 4
        while True:
            start = max(end.low, end.high - back)
            if found := self._from(topic, partition, start):
                return found
            if start == end.low:
                return None
            back *= 16

    def _from(self, topic: str, partition: int, start: int) -> tuple[object, ...] | None:
        last: tuple[object, ...] | None = None
        self._reader.assign([TopicPartition(topic, partition, start)])
        try:
            while True:
                message = self._asked(lambda: self._reader.poll(TIMEOUT))
                if message is None:
                    raise ConfigurationError(f"topic {topic} at {self._where} gives no answer")
                error = message.error()
                if error is None:
                    headers = tuple(message.headers() or ())
                    seq = dict(headers).get(SEQ)
                    last = (seq,) if seq is not None else (message.key(), message.value(), headers)
                elif error.code() == KafkaError._PARTITION_EOF:
                    return last
                elif not error.retriable():
                    raise ConfigurationError(f"topic {topic} at {self._where}: {error.str()}")
        finally:
            self._reader.unassign()

    def _watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        found = self._reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT)
        if found is None:
            raise ConfigurationError(f"topic {topic} at {self._where} gives no answer")
        low, high = found
        return low, high

    def _asked(self, question: Any) -> Any:
        """The answer; what passes (a leader that is being chosen) is asked again for a while."""
        end = time.monotonic() + TIMEOUT
        while True:
            try:
                return question()
            except KafkaException as error:
                said = error.args[0]
                if not (said.retriable() or said.code() in PASSING) or time.monotonic() > end:
                    raise ConfigurationError(f"Kafka at {self._where}: {said.str()}") from error
                time.sleep(0.05)


def opened(properties: Mapping[str, Any]) -> "closing[Cluster]":
    """A cluster for a `with` block."""
    return closing(Cluster(properties))
