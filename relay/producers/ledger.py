"""The progress topic: in each of a shard's Kafka transactions one record of how far the shard is with it."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, OffsetSpec
from confluent_kafka.cimpl import NewTopic

from outbox.errors import ConfigurationError, GuardViolation, UndecodableRecord
from outbox.record import Seq
from relay.producers.delivery import Abandoned, Interrupted, Recorded
from relay.producers.inquiry import FORBIDDEN, METADATA_TIMEOUT, UNKNOWN, Inquiry
from relay.producers.properties import connection_only

log = logging.getLogger("relay.producer")

SETTINGS = {
    "cleanup.policy": "compact",
    # Only closed segments are compacted, and a take-over reads what is left: keep them small.
    "segment.bytes": "1048576",
    "min.cleanable.dirty.ratio": "0.1",
}

TAIL = 64
"""Offsets from the end that are read first; the last record almost always lies there."""

READY_WITHIN, READY_EVERY = 5.0, 0.1
"""Seconds for a new partition to have its leader, and between two questions whether it has."""

SETTLED_ATTEMPTS = 50
"""Questions, `READY_EVERY` seconds apart, whether every transaction in the partition has ended."""

READ_COMMITTED, READ_UNCOMMITTED = IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED

SILENT = 10.0
"""Seconds without any record or end before the reading is given up; the next claim tries again."""


class Ledger:
    """One shard's partition of the progress topic. Whoever reads it has to be the only one who may write."""

    def __init__(self, properties: Mapping[str, Any], inquiry: Inquiry, *, topic: str, shard: int) -> None:
        self._properties = properties
        self._inquiry = inquiry
        self.topic = topic
        self.shard = shard

    def prepare(self) -> None:
        """Have the topic with this shard's partition.

        Raises Interrupted, naming the command where somebody else has to run it: the shard waits for that.
        ConfigurationError for a topic whose records would go away.
        """
        admin = self._inquiry.admin()
        there = 0
        try:
            found = admin.list_topics(self.topic, timeout=METADATA_TIMEOUT).topics[self.topic]
            if found.error is not None and found.error.code() not in UNKNOWN:
                raise KafkaException(found.error)
            if found.error is not None or not found.partitions:
                new = NewTopic(
                    self.topic, num_partitions=self.shard + 1, replication_factor=-1, config=SETTINGS
                )
                made = admin.create_topics([new], operation_timeout=METADATA_TIMEOUT)
                self._inquiry.answer(made[self.topic])
                log.info("created topic %s", self.topic)
                self._wait_for_leader(admin)
            elif (there := len(found.partitions)) <= self.shard:
                more = NewPartitions(self.topic, self.shard + 1)
                made = admin.create_partitions([more], operation_timeout=METADATA_TIMEOUT)
                self._inquiry.answer(made[self.topic])
                self._wait_for_leader(admin)
            else:
                self._check()
        except KafkaException as error:
            self._not_prepared(error.args[0], there)

    def _wait_for_leader(self, admin: AdminClient) -> None:
        """A new partition is known before its leader takes records. Raises Interrupted when told to stop."""
        until = time.monotonic() + READY_WITHIN
        while True:
            try:
                self._end(admin, READ_UNCOMMITTED)
                return
            except KafkaException:
                if self._inquiry.stopping() or time.monotonic() > until:
                    raise
                time.sleep(READY_EVERY)

    def read(self, alive: Callable[[], bool]) -> Recorded:
        """The last committed record, read up to an end that the leader itself names.

        Raises GuardViolation when there is none: a shard gets this mode together with its first record.
        """
        consumer = Consumer(
            {
                # The producer's own settings would only be warned of here; these say where and as whom.
                **connection_only(self._properties),
                "group.id": f"{self.topic}.{self.shard}",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
                "error_cb": self._inquiry.complaints.append,
            }
        )
        try:
            return self._last(consumer, alive)
        except KafkaException as error:
            raise Interrupted(f"topic {self.topic}: {error.args[0].str()}") from error
        finally:
            consumer.close()

    def _last(self, consumer: Consumer, alive: Callable[[], bool]) -> Recorded:
        # Asking for the topic first makes its leader known: the first fetch then waits for nothing.
        known = consumer.list_topics(self.topic, timeout=METADATA_TIMEOUT).topics[self.topic]
        if known.error is not None or self.shard not in known.partitions:
            raise self._lost()
        self._wait_until_settled(alive)
        first, end = consumer.get_watermark_offsets(
            TopicPartition(self.topic, self.shard), timeout=METADATA_TIMEOUT
        )
        depth = TAIL
        while True:
            start = max(first, end - depth)
            found = self._newest(consumer, start, end, alive)
            if found is not None:
                return found
            if start == first:
                raise self._lost()
            depth *= 16

    def _wait_until_settled(self, alive: Callable[[], bool]) -> None:
        """Until no transaction is open in the partition: behind one, committed records cannot be seen yet.

        Only owners of the shard write here and all of them are fenced, so what is still open is being ended
        by the broker, or the broker has lost sight of it. To go on meanwhile would send again what is
        committed behind it.
        """
        admin = self._inquiry.admin()
        stable = end = 0
        for attempt in range(SETTLED_ATTEMPTS):
            stable, end = (self._end(admin, level) for level in (READ_COMMITTED, READ_UNCOMMITTED))
            if stable >= end:
                return
            if not alive():
                raise Abandoned("told to stop while the shard was being taken over")
            if attempt + 1 < SETTLED_ATTEMPTS:
                time.sleep(READY_EVERY)
        raise Interrupted(
            f"a transaction stands open at offset {stable} of topic {self.topic}, partition {self.shard}; "
            "nothing is sent until the broker ends it; if it never does, run: kafka-transactions.sh abort "
            f"--topic {self.topic} --partition {self.shard} --start-offset {stable}"
        )

    def _end(self, admin: AdminClient, level: IsolationLevel) -> int:
        """The partition's end as a reader of this isolation level sees it. Raises Interrupted at a stop."""
        place = {TopicPartition(self.topic, self.shard): OffsetSpec.latest()}  # type: ignore[no-untyped-call]
        answers = admin.list_offsets(place, isolation_level=level, request_timeout=METADATA_TIMEOUT)
        (answer,) = answers.values()
        return int(self._inquiry.answer(answer).offset)

    def _newest(self, consumer: Consumer, start: int, end: int, alive: Callable[[], bool]) -> Recorded | None:
        """The last record from `start` on, read until `end` is reached."""
        place = TopicPartition(self.topic, self.shard, start)
        consumer.assign([place])
        value: bytes | None = None
        silent = 0.0
        while consumer.position([place])[0].offset < end:
            if not alive():
                raise Abandoned("told to stop while the shard was being taken over")
            messages = consumer.consume(1000, 0.1)
            silent = 0.0 if messages else silent + 0.1
            if silent > SILENT:
                raise Interrupted(f"topic {self.topic} does not answer")
            for message in messages:
                error = message.error()
                if error is None:
                    value = message.value()
                elif error.code() == KafkaError._PARTITION_EOF:
                    # Markers and aborted records at the end are behind us now.
                    if (message.offset() or 0) >= end:
                        return decoded(value, self.topic)
                else:
                    raise KafkaException(error)
        return decoded(value, self.topic)

    def _check(self) -> None:
        """A topic that somebody else made: its records must not go away with time."""
        policy = self._inquiry.policies([self.topic]).get(self.topic, frozenset({"compact"}))
        if policy != {"compact"}:
            raise ConfigurationError(
                f"topic {self.topic} has cleanup.policy={','.join(sorted(policy))}, so the shard's last "
                "record would be deleted with time; run: kafka-configs.sh --alter --entity-type topics "
                f"--entity-name {self.topic} --add-config cleanup.policy=compact"
            )

    def _not_prepared(self, error: KafkaError, there: int) -> None:
        if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return
        if error.code() in FORBIDDEN:
            if there:
                raise Interrupted(
                    f"topic {self.topic} has {there} partitions, none for shard {self.shard}, and the "
                    "relay may not add any; grant ALTER on it, or run: kafka-topics.sh --alter --topic "
                    f"{self.topic} --partitions <number of shards>"
                )
            settings = " ".join(f"--config {name}={value}" for name, value in SETTINGS.items())
            raise Interrupted(
                f"the relay may not create topic {self.topic}; run: kafka-topics.sh --create --topic "
                f"{self.topic} --partitions {self.shard + 1} {settings}"
            )
        raise Interrupted(f"topic {self.topic} cannot be prepared: {error.str()}")

    def _lost(self) -> GuardViolation:
        return GuardViolation(
            f"shard {self.shard} is in mode transactional, but topic {self.topic} holds no record of it: the "
            "topic was emptied, deleted or is another cluster's; what is committed beyond the shard's row is "
            f"unknown. To go on from the row, which can repeat events, run: outbox-relay shards mode "
            f"transactional --from-row --shard {self.shard}"
        )


def encoded(recorded: Recorded) -> bytes:
    """A progress record as it stands in the topic."""
    document = {"seq": recorded.seq.encode().decode(), "done": recorded.done, "next": recorded.next}
    return json.dumps(document, separators=(",", ":")).encode()


def decoded(value: bytes | None, topic: str) -> Recorded | None:
    """The record in `value`. Raises GuardViolation when nothing of ours is in it."""
    if value is None:
        return None
    try:
        found = json.loads(value)
        return Recorded(Seq.parse(found["seq"].encode()), found["done"], found["next"])
    except (ValueError, KeyError, TypeError, AttributeError, UndecodableRecord) as error:
        raise GuardViolation(f"topic {topic} holds what no relay wrote: {value[:100]!r}") from error
