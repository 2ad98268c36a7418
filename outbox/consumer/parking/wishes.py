"""Ask the owner of a partition to run its parked records again, or to drop one for good.

A wish is only noted; the member that owns the partition carries it out, fenced like a batch, within a second
or so. Without an owner it waits.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox.errors import ConfigurationError

# Served by the primary key of consumer_parked, whose rows are bounded by max_parked in each partition.
PARKED = text("""
SELECT p.grp, p.topic, p.partition, p.record_offset, p.key, p.state, p.error, p.attempts, p.parked_at,
    p.wish, p.reason, p.wished_by
FROM consumer_parked p
WHERE (CAST(:grp AS text) IS NULL OR p.grp = :grp) AND (CAST(:topic AS text) IS NULL OR p.topic = :topic)
  AND (:all OR p.state = 'failed')
ORDER BY p.grp, p.topic, p.partition, p.record_offset LIMIT :limit
""")

ONE = text("""
SELECT p.*, o.owner, o.updated_at AS owner_active_at
FROM consumer_parked p JOIN consumer_offset o USING (grp, topic, partition)
WHERE grp = :grp AND topic = :topic AND partition = :partition AND record_offset = :record_offset
""")

# Promise: what the owner has just taken in hand is not changed behind its back: it holds the row's lock.
WISH = text("""
UPDATE consumer_parked
SET wish = :wish, reason = :reason, wished_by = :who, wished_at = clock_timestamp()
WHERE grp = :grp AND topic = :topic AND partition = :partition AND record_offset = :record_offset
  AND (state = 'failed' OR (state = 'queued' AND :wish = 'discard'))
""")

WISH_ALL = text("""
UPDATE consumer_parked
SET wish = :wish, reason = :reason, wished_by = :who, wished_at = clock_timestamp()
WHERE grp = :grp AND state = 'failed' AND (CAST(:topic AS text) IS NULL OR topic = :topic)
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One parked record."""

    group: str
    topic: str
    partition: int
    offset: int

    def values(self) -> dict[str, Any]:
        return {
            "grp": self.group,
            "topic": self.topic,
            "partition": self.partition,
            "record_offset": self.offset,
        }

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] offset {self.offset} of group {self.group}"


def listed(
    connection: Connection,
    *,
    group: str | None = None,
    topic: str | None = None,
    everything: bool = False,
    limit: int = 100,
) -> list[Row[Any]]:
    """The failed records, oldest offset first; `everything`: also what waits behind them or was discarded."""
    values = {"grp": group, "topic": topic, "all": everything, "limit": limit}
    return list(connection.execute(PARKED, values))


def shown(connection: Connection, place: Place) -> Row[Any]:
    """The whole record with its error. Raises ConfigurationError when nothing is parked there."""
    row = connection.execute(ONE, place.values()).one_or_none()
    if row is None:
        raise ConfigurationError(f"nothing is parked at {place}; see: outbox-relay consumers parked list")
    return row


def release(connection: Connection, place: Place, *, who: str) -> None:
    """Let the failed record run again, and then what waits behind it, in order.

    Raises ConfigurationError for a record that did not fail itself.
    """
    _wish(connection, place, "release", None, who)


def release_all(connection: Connection, *, group: str, topic: str | None = None, who: str) -> int:
    """Let every failed record of the group run again; returns how many."""
    values = {"grp": group, "topic": topic, "wish": "release", "reason": None, "who": who}
    return connection.execute(WISH_ALL, values).rowcount


def discard(connection: Connection, place: Place, *, reason: str, who: str) -> None:
    """Never run this record; it stays stored with the reason. What waits behind it goes on."""
    if not reason.strip():
        raise ConfigurationError("say why the record is discarded: the reason is stored with it")
    _wish(connection, place, "discard", reason, who)


def _wish(connection: Connection, place: Place, wish: str, reason: str | None, who: str) -> None:
    values = place.values() | {"wish": wish, "reason": reason, "who": who}
    if connection.execute(WISH, values).rowcount == 1:
        return
    state = shown(connection, place).state
    if state == "discarded":
        raise ConfigurationError(f"the record at {place} was discarded already")
    raise ConfigurationError(
        f"the record at {place} did not fail: it waits behind an earlier one of its key; release that one, "
        "and this one follows by itself"
    )
