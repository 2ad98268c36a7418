"""See how far each shard is behind: how much waits, how old the oldest of it is, and who carries it.

Asked for every few seconds on a connection of its own, so that a page of metrics costs the database nothing
however often it is read.
"""

import logging
from dataclasses import dataclass
from datetime import timedelta

import psycopg

from outbox.errors import OutboxError
from outbox.storage import bucket
from relay import database
from relay.database import Connection, Database, OutcomeUnknown

log = logging.getLogger("relay.backlog")

EVERY = 5.0
"""Seconds between two surveys."""

MOST = 100_000
"""Events of one shard that are counted at most: 0.1 s of reading."""

ANSWER_WITHIN = 20.0
"""Seconds for the answer of a server that is busy, not gone."""

BACKLOG = f"""
SELECT s.shard, s.epoch, l.owner, coalesce(l.lease_until > clock_timestamp(), false) AS lease_held,
       waiting.events AS pending, waiting.oldest AS oldest_pending{{more}}
FROM outbox_shard s LEFT JOIN outbox_lease l USING (shard), LATERAL (
    SELECT count(*) AS events,
           CASE WHEN count(*) > 0
           THEN greatest(extract(epoch FROM clock_timestamp() - min(occurred_at)), 0)::float8 END AS oldest
    FROM (
        (SELECT e.occurred_at FROM outbox_event e
         WHERE (s.next IS NULL OR s.low <= s.done_floor) AND e.xid >= pg_snapshot_xmin(s.done)
           AND NOT pg_visible_in_snapshot(e.xid, s.done) AND {bucket.IN_SHARD}
           AND NOT (s.next IS NOT NULL AND e.position <= s.low AND pg_visible_in_snapshot(e.xid, s.next))
         ORDER BY e.xid LIMIT {MOST + 1})
        UNION ALL
        (SELECT e.occurred_at FROM outbox_event e
         WHERE s.low > s.done_floor AND e.position > s.low AND e.position <= s.next_floor
           AND pg_visible_in_snapshot(e.xid, s.next) AND {bucket.IN_SHARD}
         ORDER BY e.position LIMIT {MOST + 1})
        UNION ALL
        (SELECT e.occurred_at FROM outbox_event e
         WHERE s.low > s.done_floor AND e.xid >= pg_snapshot_xmin(s.next)
           AND NOT pg_visible_in_snapshot(e.xid, s.next) AND {bucket.IN_SHARD}
         ORDER BY e.xid LIMIT {MOST + 1})
    ) pending
) waiting ORDER BY s.shard
"""
"""What is not acknowledged, per shard, up to a bound. By transaction (index outbox_event_xid), but the
acknowledged part of a large delta is skipped by position (index outbox_event_position)."""

PARKED = """,
       (SELECT count(*) FROM outbox_hold h JOIN outbox_parked USING (hold) WHERE h.shard = s.shard)"""

HAS_PARKED = "SELECT to_regclass('outbox_parked') IS NOT NULL"


@dataclass(frozen=True, slots=True)
class ShardBacklog:
    """One shard as the last survey found it. `oldest_pending` in seconds; None when nothing waits."""

    shard: int
    epoch: int
    owner: str | None
    lease_held: bool
    pending: int
    oldest_pending: float | None
    parked: int = 0


class Backlog:
    """Surveys one database. `run_once` belongs to one thread, `shards` and `alarm()` to any.

    `limit`: the age of the oldest pending event from which there is an alarm.
    """

    def __init__(self, where: Database, *, limit: timedelta) -> None:
        self._database = where
        self._limit = limit.total_seconds()
        self._connection: Connection | None = None
        self._statement = ""
        self.shards: tuple[ShardBacklog, ...] | None = None
        """The last survey; None while the database does not answer."""

    def alarm(self, shard: int) -> str | None:
        """Whether `shard` is behind by more than the limit, in words that stay the same meanwhile."""
        for found in self.shards or ():
            if found.shard == shard and (found.oldest_pending or 0) > self._limit:
                return f"the oldest pending event is more than {self._limit:g} s old"
        return None

    def run_once(self) -> float:
        """Survey the database; returns how long that may rest."""
        try:
            self.shards = self._survey()
        except (OutcomeUnknown, OutboxError, psycopg.OperationalError) as error:
            log.debug("no survey: %s", error)
            self.shards = None
            self.close()
        return EVERY

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def break_off(self) -> None:
        """From another thread: end whatever waits for the database."""
        if self._connection is not None:
            database.break_off(self._connection)

    def _survey(self) -> tuple[ShardBacklog, ...]:
        if self._connection is None:
            self._connection = self._database.connect("backlog", answer_within=ANSWER_WITHIN)
            parks = database.execute(self._connection, HAS_PARKED).fetchone() == (True,)
            self._statement = BACKLOG.format(more=PARKED if parks else "")
        found = database.execute(self._connection, self._statement).fetchall()
        return tuple(ShardBacklog(*row) for row in found)
