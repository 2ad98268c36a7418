"""Give the space of published events back: truncate a leaf, never a row that somebody still needs.

Whether a leaf may go is decided by the rows in it, not by the clock: no transaction that inserted there may
be open, and every row must be seen by the `done` of a shard that covers its bucket. The clock only keeps
published rows readable for the retention.
"""

import logging
import random
from collections.abc import Mapping
from datetime import timedelta

import psycopg

from outbox import hooks
from outbox.notice import Notice
from outbox.storage import bucket, ring
from relay import database, guards
from relay.database import Connection, Database, OutcomeUnknown
from relay.loop import Bell
from relay.own_connection import OwnConnection

log = logging.getLogger("relay.ring")

EVERY = timedelta(seconds=30)

ATTEMPTS = 200
"""For one leaf in one round. Each shard's look holds all leaves while its plan is flushed, a share d of the
time: one attempt among N busy shards finds a leaf free with (1 - d) ** N."""

A_FEW = 20
"""The same where the caller's thread renews the leases too: 0.2 s."""

PAUSE = (0.001, 0.010)
"""Seconds between two attempts, by chance: looks that keep time must not be met at the same point again."""

SOON = 300.0
"""Seconds before the next turn of a leaf from which it is an alarm that it cannot be had."""

QUIET = f"""
SELECT slot, ((now.turn - mod(now.turn - slot, {ring.LEAVES}) + {ring.LEAVES}) * {ring.SECONDS_PER_LEAF}
              - extract(epoch FROM clock_timestamp()))::float8
FROM generate_series(0, {ring.LEAVES - 1}) slot,
    LATERAL (SELECT date_part('epoch', clock_timestamp())::bigint / {ring.SECONDS_PER_LEAF} AS turn) now
WHERE mod(now.turn - slot, {ring.LEAVES}) > 0
  AND extract(epoch FROM clock_timestamp())
      - (now.turn - mod(now.turn - slot, {ring.LEAVES}) + 1) * {ring.SECONDS_PER_LEAF} >= %(retention)s
ORDER BY mod(now.turn - slot, {ring.LEAVES}) DESC
"""
"""Slots whose last turn ended at least the retention ago, the longest quiet first, and the seconds until the
next one."""

FILLED = "SELECT EXISTS (SELECT FROM {leaf})"

IN_USE = """
SELECT EXISTS (
    SELECT FROM pg_locks WHERE relation = '{leaf}'::regclass
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""
"""Asked before each attempt: one in vain would cost a transaction number and an error in the server's log."""

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
    """Truncates leaves on a connection of its own. Published rows stay readable for `retention`.

    `run_once` belongs to one thread, `bell` and `trouble` to any.
    """

    def __init__(self, where: Database, *, retention: timedelta) -> None:
        self.connection = OwnConnection(where, "ring")
        self.bell = Bell()
        """Ends the pauses between attempts, and the loop of whoever runs this."""
        self._retention = retention
        self._late: set[str] = set()
        self._notice = Notice(log, every=ring.SECONDS_PER_LEAF)

    @property
    def trouble(self) -> str | None:
        """Which leaves could not be had before their next turn: it is filled on top of what they hold."""
        return self._notice.text

    def run_once(self, attempts: int = ATTEMPTS) -> list[str]:
        """Truncate every leaf that may go; returns their names. One that may not is tried again later."""
        try:
            connection = self.connection.open()
            retention = {"retention": self._retention.total_seconds()}
            quiet = {
                ring.leaf(slot): left
                for slot, left in database.execute(connection, QUIET, retention).fetchall()
            }
            database.execute(connection, SWEEP)
            return self._truncate_all(connection, quiet, attempts)
        except (OutcomeUnknown, psycopg.OperationalError) as error:
            log.debug("no leaf truncated: %s", error)
            self.connection.close()
            return []

    def _truncate_all(self, connection: Connection, quiet: Mapping[str, float], attempts: int) -> list[str]:
        """`quiet`: seconds until the next turn of each."""
        truncated: list[str] = []
        missed = [
            leaf
            for leaf in quiet
            if database.execute(connection, FILLED.format(leaf=leaf)).fetchone() == (True,)
        ]
        for _ in range(attempts):
            gone = {leaf: self._truncate(connection, leaf) for leaf in missed}
            truncated += [leaf for leaf in missed if gone[leaf]]
            missed = [leaf for leaf in missed if gone[leaf] is None]
            if not missed or self.bell.sleep(random.uniform(*PAUSE)):
                break
        self._late -= quiet.keys() - set(missed)
        self._late |= {leaf for leaf in missed if quiet[leaf] < SOON}
        self._say()
        return truncated

    def _say(self) -> None:
        if self._late:
            self._notice.trouble(
                f"the space of published events in {', '.join(sorted(self._late))} is not given back, for "
                f"somebody used it at each attempt; see who in pg_locks, and Space in docs/operations.md"
            )
        else:
            self._notice.over()

    def _truncate(self, connection: Connection, leaf: str) -> bool | None:
        """None when somebody uses it at the moment."""
        try:
            # READ COMMITTED whatever the default: the check must see what the lock waited for.
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                if connection.execute(IN_USE.format(leaf=leaf).encode()).fetchone() != (False,):
                    return None
                connection.execute(LOCK.format(leaf=leaf).encode())
                hooks.fire("relay.ring.locked", leaf=leaf)
                if connection.execute(NEEDED.format(leaf=leaf).encode()).fetchone() != (False,):
                    return False
                connection.execute(TRUNCATE.format(leaf=leaf).encode())
        except psycopg.errors.LockNotAvailable:
            return None
        except psycopg.Error as error:
            raise database.failed(error) from error
        log.info("%s truncated: all its events are published", leaf)
        return True
