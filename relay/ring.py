"""Give the space of published events back: truncate a leaf, never a row that somebody still needs.

Whether a leaf may go is decided by the rows in it, not by the clock: no transaction that inserted there may
be open, and every row must be seen by the `done` of a shard that covers its bucket. The clock only keeps
published rows readable for the retention.
"""

import logging
from datetime import timedelta

import psycopg

from outbox import hooks
from outbox.storage import bucket, ring
from relay import database, guards
from relay.database import Connection, Database, OutcomeUnknown
from relay.own_connection import OwnConnection

log = logging.getLogger("relay.ring")

EVERY = timedelta(seconds=30)

QUIET = f"""
SELECT slot FROM generate_series(0, {ring.LEAVES - 1}) slot,
    LATERAL (SELECT date_part('epoch', clock_timestamp())::bigint / {ring.SECONDS_PER_LEAF} AS turn) now
WHERE mod(now.turn - slot, {ring.LEAVES}) > 0
  AND extract(epoch FROM clock_timestamp())
      - (now.turn - mod(now.turn - slot, {ring.LEAVES}) + 1) * {ring.SECONDS_PER_LEAF} >= %(retention)s
ORDER BY mod(now.turn - slot, {ring.LEAVES}) DESC
"""
"""Slots whose last turn ended at least the retention ago, the longest quiet first."""

FILLED = "SELECT EXISTS (SELECT FROM {leaf})"

LOCK = "LOCK TABLE ONLY {leaf} IN ACCESS EXCLUSIVE MODE NOWAIT"
"""Granted at once or not at all: all that inserted here have ended, and nobody queues behind us."""

NEEDED = (
    """
SELECT (SELECT sum(hi - lo + 1) IS DISTINCT FROM 256 FROM outbox_shard)
  OR """
    + guards.FOREIGN_COUNTER
    + """
  OR EXISTS (
    SELECT FROM {leaf} e
    WHERE e.xid >= (SELECT pg_snapshot_xmin(done) FROM outbox_shard ORDER BY 1 LIMIT 1)
      AND NOT EXISTS (
        SELECT FROM outbox_shard s
        WHERE """
    + bucket.IN_SHARD
    + """
          AND pg_visible_in_snapshot(e.xid, s.done)))
  OR EXISTS (
    SELECT FROM outbox_job WHERE ended_at IS NULL AND requested_at > clock_timestamp() - interval '24 hours')
"""
)
"""Does any row wait to be published, belong to no shard, or perhaps to a replay, or can that not be told?
Asked after the lock, by a statement with a snapshot of its own. Index on xid: what lies below every shard's
oldest running transaction is published."""

TRUNCATE = "TRUNCATE ONLY {leaf}"

SWEEP = "SELECT outbox_sweep()"
"""What sealed events left behind: rows of transactions that have ended, which nobody ever reads again."""


class Ring:
    """Truncates leaves on a connection of its own. Published rows stay readable for `retention`."""

    def __init__(self, where: Database, *, retention: timedelta) -> None:
        self.connection = OwnConnection(where, "ring")
        self._retention = retention

    def run_once(self) -> list[str]:
        """Truncate every leaf that may go; returns their names. One that may not is tried again later."""
        try:
            connection = self.connection.open()
            retention = {"retention": self._retention.total_seconds()}
            quiet = database.execute(connection, QUIET, retention).fetchall()
            database.execute(connection, SWEEP)
            return [leaf for (slot,) in quiet if self._truncate(connection, leaf := ring.leaf(slot))]
        except (OutcomeUnknown, psycopg.OperationalError) as error:
            log.debug("no leaf truncated: %s", error)
            self.connection.close()
            return []

    def _truncate(self, connection: Connection, leaf: str) -> bool:
        if database.execute(connection, FILLED.format(leaf=leaf)).fetchone() == (False,):
            return False
        try:
            # READ COMMITTED whatever the default: the check must see what the lock waited for.
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                connection.execute(LOCK.format(leaf=leaf).encode())
                hooks.fire("relay.ring.locked", leaf=leaf)
                if connection.execute(NEEDED.format(leaf=leaf).encode()).fetchone() != (False,):
                    return False
                connection.execute(TRUNCATE.format(leaf=leaf).encode())
        except psycopg.errors.LockNotAvailable:
            return False
        except psycopg.Error as error:
            raise database.failed(error) from error
        log.info("%s truncated: all its events are published", leaf)
        return True
