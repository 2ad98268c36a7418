"""Move a partition's offset so that nobody who read before can undo it, and say in the row why.

A move raises the owner's epoch like a claim: a batch that is under way either ended before it or changes no
row. Whoever holds the partition sees the count of moves change, and claims it anew.

Two kinds. The log is what it was and is read again (or skipped) from another place: records parked there
will come again, and the marks are rebuilt by a run-up, for marks kept would drop everything read again, and
empty ones would let old repeats in. Or the log itself is another: then offsets mean other records, while
marks still say what was applied and parked records still wait.
"""

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, text

from outbox import hooks
from outbox.consumer.identity import TopicIdentity

log = logging.getLogger(__name__)

# Promise: what is decided on is what is moved: nobody changes the row until the end. Served by the primary
# key, and waits for the batch under way.
HOLD = text("""
SELECT next_offset, owner, owner_epoch, moves, parked, partitions, retired, cluster_id, topic_id
FROM consumer_offset WHERE grp = :grp AND topic = :topic AND partition = :partition FOR UPDATE
""")

# Promise: records that are read again are parked once at most. What a person discarded stays discarded, also
# where the owner had not done it yet. Served by the primary key.
DISCARD_WISHED = text("""
UPDATE consumer_parked SET state = 'discarded', wish = NULL
WHERE grp = :grp AND topic = :topic AND partition = :partition AND record_offset >= :to AND wish = 'discard'
""")
FORGET = text("""
DELETE FROM consumer_parked
WHERE grp = :grp AND topic = :topic AND partition = :partition AND record_offset >= :to
  AND state <> 'discarded'
""")

# Promise: what waits keeps its order, below every offset of the log that is there now. Never collides with
# itself: the shift is longer than the range.
SHELVE = text("""
UPDATE consumer_parked SET record_offset = record_offset - (
    SELECT max(record_offset) - least(min(record_offset), 0) + 1 FROM consumer_parked
    WHERE grp = :grp AND topic = :topic AND partition = :partition)
WHERE grp = :grp AND topic = :topic AND partition = :partition
""")

# Promise: flushed whatever the session says, like a claim. The epoch fences the batch under way; `moves`
# calls the owner. Served by the primary key.
MOVE = text("""
UPDATE consumer_offset o
SET owner_epoch = owner_epoch + 1, owner = NULL, backend_pid = NULL, next_offset = :to, leader_epoch = NULL,
    sources = CASE WHEN :empty THEN '{}' ELSE sources END,
    run_up = CASE WHEN :run_up OR run_up IS NOT NULL THEN -1 END,
    cluster_id = coalesce(:cluster_id, cluster_id), topic_id = coalesce(:topic_id, topic_id),
    partitions = coalesce(:partitions, partitions),
    moves = moves + 1, moved_at = clock_timestamp(), moved_by = :who, moved_why = :why,
    moved_from = next_offset, moved_to = :to,
    inbox_seen_at = NULL, inbox_seen_high = NULL, inbox_read_through = NULL,
    claims = 0, claimed_offset = NULL, tries = 0, tried_offset = NULL, updated_at = clock_timestamp(),
    parked = (SELECT count(*) FROM consumer_parked p WHERE p.grp = o.grp AND p.topic = o.topic
        AND p.partition = o.partition AND p.state <> 'discarded')
WHERE grp = :grp AND topic = :topic AND partition = :partition
  AND set_config('synchronous_commit', 'on', true) = 'on'
""")

# Promise: a group that never read the partition begins there; whoever came first stays.
PLACE = text("""
INSERT INTO consumer_offset (grp, topic, partition, cluster_id, topic_id, next_offset, partitions, run_up,
    moves, moved_at, moved_by, moved_why, moved_to)
VALUES (:grp, :topic, :partition, :cluster_id, :topic_id, :to, :partitions, -1,
    1, clock_timestamp(), :who, :why, :to)
ON CONFLICT (grp, topic, partition) DO NOTHING
""")

BOUND = text("SELECT set_config('lock_timeout', :milliseconds, true)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One partition of one group."""

    group: str
    topic: str
    partition: int

    def values(self) -> dict[str, Any]:
        return {"grp": self.group, "topic": self.topic, "partition": self.partition}

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] of group {self.group}"


def bound(connection: Connection, patience: timedelta) -> None:
    """Wait no longer than this for a row in this transaction; a batch under way may hold it."""
    connection.execute(BOUND, {"milliseconds": str(int(patience.total_seconds() * 1000))})


def reread(connection: Connection, spot: Spot, *, origin: int, to: int, who: str, why: str) -> None:
    """Read the same log from `to` on; the row, whose offset is `origin`, is held by this transaction.

    Parked records from there on are forgotten, for they come again; those below keep waiting. Backwards the
    marks are emptied, forwards kept; in both cases a run-up rebuilds them before the first record.
    """
    where = spot.values() | {"to": to}
    connection.execute(DISCARD_WISHED, where)
    connection.execute(FORGET, where)
    _move(connection, spot, to=to, who=who, why=why, empty=to < origin, run_up=True, identity=None)


def go_on(
    connection: Connection,
    spot: Spot,
    *,
    origin: int,
    to: int,
    who: str,
    why: str,
    identity: TopicIdentity | None = None,
    forget_marks: bool = False,
) -> None:
    """Go on in a log that is not what it was; the row, whose offset is `origin`, is held.

    Marks and parked records stay what they are. identity: the topic that the offset means from now on.
    forget_marks: keys are in other partitions there, so the marks would drop what was never applied.
    """
    if to < origin or identity is not None:
        connection.execute(SHELVE, spot.values())
    _move(connection, spot, to=to, who=who, why=why, empty=forget_marks, run_up=False, identity=identity)


def place(
    connection: Connection, spot: Spot, *, to: int, who: str, why: str, identity: TopicIdentity
) -> bool:
    """Begin there, in a partition that the group never read; False if it has a row meanwhile."""
    values = _values(spot, to, who, why, identity)
    return connection.execute(PLACE, values).rowcount == 1


def say(spot: Spot, to: int, why: str) -> None:
    """Tell, once it is committed."""
    log.warning("%s goes on at offset %s: %s", spot, to, why)
    hooks.fire("consumer.moved", group=spot.group, topic=spot.topic, partition=spot.partition, to=to, why=why)


def _move(
    connection: Connection,
    spot: Spot,
    *,
    to: int,
    who: str,
    why: str,
    empty: bool,
    run_up: bool,
    identity: TopicIdentity | None,
) -> None:
    values = _values(spot, to, who, why, identity or TopicIdentity(None, None))
    connection.execute(MOVE, values | {"empty": empty, "run_up": run_up})


def _values(spot: Spot, to: int, who: str, why: str, identity: TopicIdentity) -> dict[str, Any]:
    return spot.values() | {
        "to": to,
        "who": who,
        "why": why,
        "cluster_id": identity.cluster_id,
        "topic_id": identity.topic_id,
        "partitions": identity.partitions,
    }
