"""Read a stretch of a partition, at either isolation level, and tell where it ends at each."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from relay.producers.delivery import Abandoned, Interrupted, Target
from relay.producers.inquiry import FORBIDDEN, METADATA_TIMEOUT, UNKNOWN, Inquiry
from relay.producers.properties import connection_only

READ_COMMITTED, READ_UNCOMMITTED = IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED

SETTLED_WITHIN, ASK_EVERY = 5.0, 0.1
"""Seconds in which a partition gets its new leader, and between two questions whether it has."""

SILENT = 10.0
"""Seconds without any record or end before the reading is given up; the next claim tries again."""


class Unreadable(Interrupted):
    """We may write to the topic, and not read it."""


class Ranges:
    """Asks with clients of its own; `rest` lets go of the one that is kept between questions."""

    def __init__(self, properties: Mapping[str, Any], inquiry: Inquiry, *, group: str) -> None:
        self._properties = properties
        self._inquiry = inquiry
        self._group = group
        self._admin: AdminClient | None = None

    def rest(self) -> None:
        self._admin = None

    @property
    def admin(self) -> AdminClient:
        if self._admin is None:
            self._admin = self._inquiry.admin()
        return self._admin

    def known(self, targets: Collection[Target], *, led: bool = False) -> set[Target]:
        """Those that the brokers still know and let us know of, and (`led`) that have a leader now."""
        found = set()
        for name in {topic for topic, _ in targets}:
            try:
                topic = self._inquiry.topic(self.admin, name)
            except KafkaException as error:
                raise Interrupted(f"topic {name}: {error.args[0].str()}") from error
            if topic.error is None:
                found |= {(name, n) for n, place in topic.partitions.items() if place.leader >= 0 or not led}
            elif topic.error.code() not in UNKNOWN | FORBIDDEN:
                raise Interrupted(f"topic {name}: {topic.error.str()}")
        return found & {*targets}

    def ends(self, targets: Collection[Target], level: IsolationLevel) -> dict[Target, int]:
        """Where each partition ends to a reader of this level: the other's end when nothing is open."""
        spec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        places = {TopicPartition(topic, partition): spec for topic, partition in targets}
        until = time.monotonic() + SETTLED_WITHIN
        while True:
            try:
                answers = self.admin.list_offsets(
                    places, isolation_level=level, request_timeout=METADATA_TIMEOUT
                )
                return {
                    (place.topic, place.partition): int(self._inquiry.answer(answer).offset)
                    for place, answer in answers.items()
                }
            except KafkaException as error:
                if self._inquiry.stopping() or time.monotonic() > until:
                    said = f"the ends of partitions are not to be had: {error.args[0].str()}"
                    raise Interrupted(said) from error
                self.rest()  # the client keeps what it knows of a topic, though it has more partitions now
                time.sleep(ASK_EVERY)

    def read(
        self, target: Target, start: int, end: int, *, committed: bool, alive: Callable[[], bool]
    ) -> list[Message]:
        """The records from `start` to before `end`; committed ones, or all."""
        consumer = Consumer(
            {
                **connection_only(self._properties),
                "group.id": self._group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed" if committed else "read_uncommitted",
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
                "error_cb": self._inquiry.complaints.append,
            }
        )
        try:
            return self._read(consumer, TopicPartition(*target, start), end, alive)
        except KafkaException as error:
            if error.args[0].code() in FORBIDDEN:
                raise Unreadable(f"topic {target[0]} may not be read; grant READ on it") from error
            raise Interrupted(
                f"partition {target[1]} of topic {target[0]} cannot be read: {error.args[0].str()}"
            ) from error
        finally:
            consumer.close()

    def _read(
        self, consumer: Consumer, place: TopicPartition, end: int, alive: Callable[[], bool]
    ) -> list[Message]:
        consumer.assign([place])
        found: list[Message] = []
        at, heard = place.offset, time.monotonic()
        while at < end:
            if not alive():
                raise Abandoned("told to stop while a partition was read")
            for message in consumer.consume(1000, 0.1):
                error, offset, heard = message.error(), message.offset() or 0, time.monotonic()
                if error is None:
                    at = offset + 1
                    if offset < end:
                        found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    # Only markers and aborted records are left, or an open transaction hides the rest.
                    return found
                else:
                    raise KafkaException(error)
            if time.monotonic() - heard > SILENT:
                raise Interrupted(f"partition {place.partition} of topic {place.topic} does not answer")
        return found
