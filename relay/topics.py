"""A key keeps its partition: the partition count of each topic, durable before the topic's first record.

A repeat after a crash must land where the first copy did, so the count that a delta was sent with stays
until that delta is done, whatever the broker says meanwhile.
"""

import logging
from collections.abc import Collection
from typing import Any, Protocol

from outbox.errors import Fenced
from outbox.record import PROGRESS_TOPICS
from relay import database
from relay.database import Connection
from relay.producers import Target, TopicRefused
from relay.progress import Progress

log = logging.getLogger("relay.topics")

_PROGRESS = PROGRESS_TOPICS.encode()

KNOWN = "SELECT topic, partitions FROM outbox_topic WHERE shard = %(shard)s"

REMEMBER = """
WITH mine AS (
    SELECT shard FROM outbox_shard WHERE shard = %(shard)s AND epoch = %(epoch)s
    AND set_config('synchronous_commit', 'on', true) = 'on' FOR UPDATE)
INSERT INTO outbox_topic (shard, topic, partitions) SELECT shard, %(topic)s, %(partitions)s FROM mine
ON CONFLICT (shard, topic) DO UPDATE SET partitions = outbox_topic.partitions
RETURNING partitions
"""
"""Write a count down once; a count that is there already wins. Fenced by the shard's epoch."""

GROW = """
WITH mine AS (
    SELECT shard FROM outbox_shard WHERE shard = %(shard)s AND epoch = %(epoch)s AND next IS NULL
    AND set_config('synchronous_commit', 'on', true) = 'on' FOR UPDATE)
UPDATE outbox_topic t SET partitions = %(partitions)s
FROM mine WHERE t.shard = mine.shard AND t.topic = %(topic)s
RETURNING t.partitions
"""
"""Take over a changed count, between deltas only. The lock makes a claim wait, so that a successor cannot
plan with the old count what a later one would repeat with the new."""


class Metadata(Protocol):
    """Asks the broker."""

    def partitions(self, topic: str) -> int | None:
        """How many partitions `topic` has now; None when the broker does not know it."""

    def compacted(self, topics: Collection[str]) -> frozenset[str]:
        """Which of `topics` keep only the last record of a key, as far as we may know."""


class UnfitTopic(Exception):
    """Nothing goes to a topic as it is; its events wait, in order, until that is mended."""

    def __init__(self, topic: str, said: str) -> None:
        super().__init__(f"topic {topic!r} {said}")
        self.topic = topic


class UnknownTopic(UnfitTopic):
    """A topic that events are addressed to does not exist on the broker."""

    def __init__(self, topic: str) -> None:
        super().__init__(
            topic, "does not exist on the broker; create it, and its events will go out in order"
        )


class CompactedTopic(UnfitTopic):
    """A compacted topic in mode sequenced: a stalled relay's late record could stay as a key's last value."""

    def __init__(self, topic: str) -> None:
        super().__init__(
            topic,
            "is compacted, and in mode sequenced the late record of a stalled relay could stay as the last "
            "value of its key; run: outbox-relay shards mode transactional (or, when every reader uses this "
            "framework's marks and reads all records, set OUTBOX_COMPACTED_TOPICS=allow)",
        )


class HeldUp(UnfitTopic):
    """A compacted topic inside the delta that a change of the number of shards waits for: a deadlock."""

    def __init__(self, topic: str) -> None:
        super().__init__(
            topic,
            "is compacted, which needs another mode, and no mode is changed while the number of shards is "
            "being changed: first outbox-relay shards set --cancel, then outbox-relay shards mode "
            "transactional",
        )


def places(connection: Connection, shard: int) -> set[Target]:
    """Each partition that the shard may have written to."""
    rows = database.execute(connection, KNOWN, {"shard": shard}).fetchall()
    return {(topic, number) for topic, partitions in rows for number in range(partitions)}


class Topics:
    """Partition counts for one shard's owner."""

    def __init__(self, connection: Connection, metadata: Metadata, *, compacted: bool = True) -> None:
        """`compacted`: may events go to compacted topics?"""
        self._connection = connection
        self._metadata = metadata
        self._compacted = compacted
        self._counts: dict[bytes, tuple[str, int]] = {}

    def load(self, state: Progress) -> None:
        """After a claim: believe what is written down."""
        rows = database.execute(self._connection, KNOWN, {"shard": state.shard}).fetchall()
        self._counts = {topic.encode(): (topic, partitions) for topic, partitions in rows}

    def known(self, topic: bytes) -> tuple[str, int] | None:
        """What is written down, without asking the broker."""
        return self._counts.get(topic)

    def resolve(self, state: Progress, topic: bytes) -> tuple[str, int]:
        """Name and partition count of `topic`, written down before its first record.

        Raises UnfitTopic when nothing may go to it, TopicRefused when nothing ever will, Fenced when the
        shard has another owner.
        """
        if topic.startswith(_PROGRESS):
            raise TopicRefused(topic.decode(), f"{PROGRESS_TOPICS}* holds the relays' own records, no events")
        known = self._counts.get(topic)
        if known is not None:
            return known
        name = topic.decode()
        count = self._metadata.partitions(name)
        if count is None:
            raise UnknownTopic(name)
        if self._refused([name]):
            raise CompactedTopic(name)
        self._counts[topic] = name, self._write(REMEMBER, state, name, count)
        return self._counts[topic]

    def refresh(self, state: Progress) -> None:
        """Between deltas: follow topics whose partition count or compaction was changed on the broker."""
        for name in self._refused([name for name, _ in self._counts.values()]):
            del self._counts[name.encode()]
        for key, (name, count) in list(self._counts.items()):
            now = self._metadata.partitions(name)
            if now is not None and now != count:
                self._counts[key] = name, self._write(GROW, state, name, now)
                log.warning(
                    "topic %s has %d partitions instead of %d: keys move, so their order holds within each "
                    "partition only until the consumers have caught up",
                    name,
                    now,
                    count,
                )

    def _refused(self, names: Collection[str]) -> frozenset[str]:
        return frozenset() if self._compacted or not names else self._metadata.compacted(names)

    def _write(self, statement: str, state: Progress, topic: str, partitions: int) -> int:
        values: dict[str, Any] = {
            "shard": state.shard,
            "epoch": state.epoch,
            "topic": topic,
            "partitions": partitions,
        }
        row = database.execute(self._connection, statement, values).fetchone()
        if row is None:
            raise Fenced(
                f"shard {state.shard}: epoch {state.epoch} is no longer current; nothing was changed"
            )
        return int(row[0])
