"""The progress topic: in each of a shard's Kafka transactions one record of how far the shard is with it."""

import logging
import time
from collections.abc import Callable

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewPartitions
from confluent_kafka.cimpl import NewTopic

from outbox.errors import ConfigurationError, GuardViolation
from relay.producers.delivery import Abandoned, Interrupted, Target
from relay.producers.entry import Entry, decoded
from relay.producers.inquiry import FORBIDDEN, METADATA_TIMEOUT, UNKNOWN, Inquiry
from relay.producers.openings import standing
from relay.producers.ranges import READ_COMMITTED, READ_UNCOMMITTED, Ranges

log = logging.getLogger("relay.producer")

SETTINGS = {
    "cleanup.policy": "compact",
    # Only closed segments are compacted, and a take-over reads what is left: keep them small.
    "segment.bytes": "1048576",
    "min.cleanable.dirty.ratio": "0.1",
}

TAIL = 64
"""Offsets from the end that are read first; the last record almost always lies there."""

READY_WITHIN, READY_EVERY = 10.0, 0.1
"""Seconds for a new partition to have its leader, and between two questions whether it has."""

OUTRUN = frozenset({KafkaError.TOPIC_ALREADY_EXISTS, KafkaError.INVALID_PARTITIONS})
"""Codes that say that the topic, or as many partitions of it, are there already."""

SETTLED_ATTEMPTS = 50
"""Questions, `READY_EVERY` seconds apart, whether every transaction in the partition has ended."""


class Standing(Interrupted):
    """A transaction stands open in the partition at `offset`, and committed records may lie behind it."""

    def __init__(self, place: Target, offset: int) -> None:
        super().__init__(standing(*place, offset))
        self.offset = offset


class Ledger:
    """One shard's partition of the progress topic. Whoever reads it has to be the only one who may write."""

    def __init__(self, ranges: Ranges, inquiry: Inquiry, *, place: Target) -> None:
        self._ranges = ranges
        self._inquiry = inquiry
        self._place = place
        self.topic, self.shard = place

    def prepare(self) -> None:
        """Have the topic with this shard's partition.

        Raises Interrupted, naming the command where somebody else has to run it: the shard waits for that.
        ConfigurationError for a topic whose records would go away.
        """
        until = time.monotonic() + READY_WITHIN
        while not self._made():
            if self._inquiry.stopping() or time.monotonic() > until:
                raise Interrupted(f"topic {self.topic} is changed by others; it is looked at again")
            time.sleep(READY_EVERY)

    def _made(self) -> bool:
        """Make what is missing. False when another shard did so meanwhile: what there is now is looked at."""
        admin = self._ranges.admin
        there = 0
        try:
            found = self._inquiry.topic(admin, self.topic)
            if found.error is not None and found.error.code() not in UNKNOWN:
                raise KafkaException(found.error)
            if found.error is not None or not found.partitions:
                new = NewTopic(
                    self.topic, num_partitions=self.shard + 1, replication_factor=-1, config=SETTINGS
                )
                made = admin.create_topics([new], operation_timeout=METADATA_TIMEOUT)
                self._inquiry.answer(made[self.topic])
                log.info("created topic %s", self.topic)
                self._wait_for_leader()
            elif (there := len(found.partitions)) <= self.shard:
                more = NewPartitions(self.topic, self.shard + 1)
                made = admin.create_partitions([more], operation_timeout=METADATA_TIMEOUT)
                self._inquiry.answer(made[self.topic])
                self._wait_for_leader()
            else:
                self._check()
        except KafkaException as error:
            if error.args[0].code() in OUTRUN:
                return False
            raise self._not_prepared(error.args[0], there) from error
        return True

    def _wait_for_leader(self) -> None:
        """A new partition is known before its leader takes records. Raises Interrupted when told to stop."""
        try:
            self._ranges.ends([self._place], READ_UNCOMMITTED)
        except Interrupted as interrupted:
            raise Interrupted(f"topic {self.topic} cannot be prepared: {interrupted}") from interrupted

    def read(self, alive: Callable[[], bool], *, before: int | None = None) -> Entry:
        """The last committed record (before this offset), up to an end that the leader itself names.

        Raises GuardViolation when there is none: a shard gets this mode together with its first record.
        Standing while a transaction is open in the partition.
        """
        self._make_sure()
        end = self._settled(alive) if before is None else before
        depth = TAIL
        while True:
            start = max(0, end - depth)
            found = self._ranges.read(self._place, start, end, committed=True, alive=alive)
            if found:
                return self._decoded(found[-1].value())
            if start == 0:
                raise self._lost()
            depth *= 16

    def since(self, offset: int, alive: Callable[[], bool], *, committed: bool) -> list[Entry]:
        """The records from this offset on; committed ones, or all."""
        (end,) = self._ranges.ends([self._place], READ_COMMITTED if committed else READ_UNCOMMITTED).values()
        found = self._ranges.read(self._place, offset, end, committed=committed, alive=alive)
        return [self._decoded(message.value()) for message in found]

    def _decoded(self, value: bytes | None) -> Entry:
        return decoded(value or b"", self.topic)

    def _make_sure(self) -> None:
        try:
            found = self._inquiry.topic(self._ranges.admin, self.topic)
        except KafkaException as error:
            raise Interrupted(f"topic {self.topic}: {error.args[0].str()}") from error
        if found.error is not None or self.shard not in found.partitions:
            raise self._lost()

    def _settled(self, alive: Callable[[], bool]) -> int:
        """The partition's end, once no transaction is open: behind one, committed records cannot be seen yet.

        Only owners of the shard write here and all of them are fenced, so what is still open is being ended
        by the broker, or the broker has lost sight of it. To go on meanwhile would send again what is
        committed behind it.
        """
        stable = 0
        for attempt in range(SETTLED_ATTEMPTS):
            stable, end = (
                self._ranges.ends([self._place], level)[self._place]
                for level in (READ_COMMITTED, READ_UNCOMMITTED)
            )
            if stable >= end:
                return end
            if not alive():
                raise Abandoned("told to stop while the shard was being taken over")
            if attempt + 1 < SETTLED_ATTEMPTS:
                time.sleep(READY_EVERY)
        raise Standing(self._place, stable)

    def _check(self) -> None:
        """A topic that somebody else made: its records must not go away with time."""
        policy = self._inquiry.policies([self.topic]).get(self.topic, frozenset({"compact"}))
        if policy != {"compact"}:
            raise ConfigurationError(
                f"topic {self.topic} has cleanup.policy={','.join(sorted(policy))}, so the shard's last "
                "record would be deleted with time; run: kafka-configs.sh --alter --entity-type topics "
                f"--entity-name {self.topic} --add-config cleanup.policy=compact"
            )

    def _not_prepared(self, error: KafkaError, there: int) -> Interrupted:
        if error.code() in FORBIDDEN:
            if there:
                return Interrupted(
                    f"topic {self.topic} has {there} partitions, none for shard {self.shard}, and the "
                    "relay may not add any; grant ALTER on it, or run: kafka-topics.sh --alter --topic "
                    f"{self.topic} --partitions <number of shards>"
                )
            settings = " ".join(f"--config {name}={value}" for name, value in SETTINGS.items())
            return Interrupted(
                f"the relay may not create topic {self.topic}; run: kafka-topics.sh --create --topic "
                f"{self.topic} --partitions {self.shard + 1} {settings}"
            )
        return Interrupted(f"topic {self.topic} cannot be prepared: {error.str()}")

    def _lost(self) -> GuardViolation:
        return GuardViolation(
            f"shard {self.shard} is in mode transactional, but topic {self.topic} holds no record of it: the "
            "topic was emptied, deleted or is another cluster's; what is committed beyond the shard's row is "
            f"unknown. To go on from the row, which can repeat events, run: outbox-relay shards mode "
            f"transactional --from-row --shard {self.shard}"
        )
