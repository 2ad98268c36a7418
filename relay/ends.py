"""Note now and then where partitions end, so that a look for an old row need not begin at the beginning.

A record cannot lie below where its partition ended before its delta was planned. The ends are read first
and the shard's delta after them, so all later deltas were planned later: right whoever notes it, and
however late.
"""

import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import psycopg
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from outbox.errors import OutboxError
from relay import database
from relay.database import Database, OutcomeUnknown
from relay.own_connection import OwnConnection
from relay.producers.properties import checked, connection_only

log = logging.getLogger("relay.ends")

EVERY = timedelta(seconds=60)

ANSWER_WITHIN = 5.0

DUE = """
SELECT t.topic, max(t.partitions) FROM outbox_topic t JOIN outbox_shard s USING (shard)
WHERE t.ends_delta IS DISTINCT FROM s.delta GROUP BY t.topic
"""
"""Topics of shards that have planned something since the last note."""

NOTE = """
UPDATE outbox_topic t
SET earlier_ends = t.ends, earlier_delta = t.ends_delta, ends = %(ends)s::bigint[], ends_delta = s.delta
FROM outbox_shard s
WHERE s.shard = t.shard AND t.topic = %(topic)s
  AND t.ends_delta IS DISTINCT FROM s.delta
"""
"""The note before serves the delta that is under way. One that lasts is noted once, so it keeps its own."""


class Ends:
    """Notes ends on a connection for the moment; a failure only makes a later look longer."""

    def __init__(self, where: Database, *, properties: Mapping[str, Any]) -> None:
        self.connection = OwnConnection(where, "ends")
        self._properties = properties
        self._next = 0.0

    def run_once(self) -> int:
        """Note what is due; how many topics were noted."""
        if time.monotonic() < self._next:
            return 0
        self._next = time.monotonic() + EVERY.total_seconds()
        try:
            connection = self.connection.open()
            due = database.execute(connection, DUE).fetchall()
            for topic, ends in self._read(dict(due)).items():
                values = {"topic": topic, "ends": ends}
                database.execute(connection, NOTE, values)
            return len(due)
        except (OutcomeUnknown, OutboxError, psycopg.OperationalError, KafkaException) as error:
            log.debug("no ends noted: %s", error)
            return 0
        finally:
            self.connection.close()

    def _read(self, topics: dict[str, int]) -> dict[str, list[int]]:
        if not topics:
            return {}
        admin = AdminClient(connection_only(checked(self._properties)))
        wanted = {
            TopicPartition(topic, number): OffsetSpec.latest()  # type: ignore[no-untyped-call]
            for topic, partitions in topics.items()
            for number in range(partitions)
        }
        found: dict[str, dict[int, int]] = {topic: {} for topic in topics}
        for place, answer in admin.list_offsets(wanted, request_timeout=ANSWER_WITHIN).items():
            # Not raised: its traceback would hold this client, which goes on trying until it is collected.
            if (error := answer.exception()) is not None:
                log.debug("%s has no end: %s", place.topic, error)
                found.pop(place.topic, None)
            elif place.topic in found:
                found[place.topic][place.partition] = answer.result().offset
        return {
            topic: [ends[number] for number in sorted(ends)]
            for topic, ends in found.items()
            if len(ends) == topics[topic]
        }
