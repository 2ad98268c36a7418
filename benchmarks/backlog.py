"""Events to work on: committed rows in the outbox, and records that are counted as they arrive."""

import time

import psycopg
from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

PAYLOAD_BYTES = 330

FILL = f"""
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload, topic)
SELECT gen_random_uuid(), 'order', md5((number %% 20000)::text)::uuid::text, 'order.placed.v1',
       convert_to(rpad(head, {PAYLOAD_BYTES - 2}, repeat(md5(number::text), 10)) || '"}}', 'UTF8'), %(topic)s
FROM (SELECT number, format('{{"order_id":"%%s","number":%%s,"total":"19.90","note":"',
                            md5(number::text)::uuid, number) AS head
      FROM generate_series(%(first)s::int, %(first)s::int + %(count)s::int - 1) number) numbered
"""
"""JSON of 330 bytes that compresses as hexadecimal digits do, 20,000 keys, no headers of the caller's own."""


def fill(url: str, topic: str, count: int, *, first: int = 0) -> None:
    """Commit `count` events in one transaction, numbered from `first`."""
    with psycopg.connect(url) as connection:
        connection.execute(FILL, {"topic": topic, "count": count, "first": first})


_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]


class Arrivals:
    """Counts a topic's records from outside, which costs whoever sends them nothing."""

    def __init__(self, bootstrap: str, topic: str, *, partitions: int = 6) -> None:
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
        self._ends = {TopicPartition(topic, number): _LATEST for number in range(partitions)}

    def count(self, *, committed: bool = False) -> int:
        """How many records are acknowledged, or can be read; each end of a Kafka transaction counts as one
        in each partition."""
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        found = self._admin.list_offsets(self._ends, isolation_level=level, request_timeout=10)
        return sum(future.result().offset for future in found.values())

    def settled(self, count: int) -> int:
        """How many there are once there are `count` at least, and no transaction is open any more."""
        self.wait(count, committed=True)
        while (found := self.count(committed=True)) < self.count():
            time.sleep(0.01)
        return found

    def wait(self, count: int, *, within: float = 120.0, every: float = 0.01, committed: bool = False) -> int:
        """Return the number of records as soon as there are at least `count`."""
        until = time.monotonic() + within
        found: int | KafkaError = -1
        while time.monotonic() < until:
            try:
                found = self.count(committed=committed)
            except KafkaException as error:  # a new topic's leader, or the broker, is not ready yet
                found = error.args[0]
            else:
                if found >= count:
                    return found
            time.sleep(every)
        raise TimeoutError(f"of {count} records there are after {within:g} s: {found}")
