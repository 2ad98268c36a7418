"""See how far each shard is behind: how much waits, how old the oldest of it is, and who carries it.

Asked for every few seconds on a connection of its own, so that a page of metrics costs the database nothing
however often it is read.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg

from outbox.errors import OutboxError
from outbox.storage import bucket
from relay import database
from relay.database import Database, OutcomeUnknown
from relay.own_connection import OwnConnection

log = logging.getLogger("relay.backlog")

EVERY = 5.0
"""Seconds between two surveys."""

MOST = 100_000
"""Events read per shard, all shards together: 0.1 s each."""

MOST_IN_ALL = 1_000_000
"""The same however many shards there are."""

SHARE = 0.05
"""Of the time that surveys may take: one that reads a second rests for twenty."""

ANSWER_WITHIN = 20.0
"""Seconds for the answer of a server that is busy, not gone."""

_TOTAL = """
SELECT b.shard, count(*) AS read, max(e.{place}{cast}) AS upto, count(*) FILTER (WHERE waits) AS events,
       min(e.occurred_at) FILTER (WHERE waits) AS oldest
FROM e LEFT JOIN bucket b USING (bucket) CROSS JOIN LATERAL (SELECT {waits} AS waits) judged
GROUP BY b.shard
"""

BACKLOG = f"""
WITH s AS MATERIALIZED (
    SELECT shard, epoch, lo, hi, done, next, low, next_floor, inside,
           pg_snapshot_xmin(CASE WHEN inside THEN next ELSE done END) AS start
    FROM outbox_shard, LATERAL (SELECT next IS NOT NULL AND low > done_floor AS inside) delta
    WHERE %(shards)s::int[] IS NULL OR shard = ANY (%(shards)s::int[])
), bucket AS MATERIALIZED (
    SELECT s.*, bucket FROM s, generate_series(s.lo::int, s.hi::int) bucket
), later AS MATERIALIZED (
    WITH e AS (
        SELECT e.xid, e.position, e.occurred_at, {bucket.BUCKET_SQL}::int AS bucket FROM outbox_event e
        WHERE e.xid >= (SELECT start FROM s ORDER BY start LIMIT 1) ORDER BY e.xid LIMIT %(most)s
    )
    {
    _TOTAL.format(
        place="xid",
        cast="::text::bigint",
        waits="NOT pg_visible_in_snapshot(e.xid, CASE WHEN b.inside THEN b.next ELSE b.done END) "
        "AND (b.inside OR b.next IS NULL OR e.position > b.low OR NOT pg_visible_in_snapshot(e.xid, b.next))",
    )
}
), planned AS MATERIALIZED (
    WITH e AS (
        SELECT e.xid, e.position, e.occurred_at, {bucket.BUCKET_SQL}::int AS bucket FROM outbox_event e
        WHERE e.position > (SELECT min(low) FROM s WHERE inside)
          AND e.position <= (SELECT max(next_floor) FROM s WHERE inside)
        ORDER BY e.position LIMIT %(most)s
    )
    {
    _TOTAL.format(
        place="position",
        cast="",
        waits="b.inside AND e.position > b.low AND e.position <= b.next_floor "
        "AND pg_visible_in_snapshot(e.xid, b.next)",
    )
}
), cut AS MATERIALIZED (
    SELECT (SELECT max(upto) FROM later HAVING sum(read) >= %(most)s) AS xid,
           (SELECT max(upto) FROM planned HAVING sum(read) >= %(most)s) AS position
)
SELECT s.shard, s.epoch, l.owner, coalesce(l.lease_until > clock_timestamp(), false) AS lease_held,
       coalesce(later.events, 0) + coalesce(planned.events, 0) AS pending,
       CASE WHEN later.events > 0 OR planned.events > 0 THEN greatest(
            extract(epoch FROM clock_timestamp() - least(later.oldest, planned.oldest)), 0)::float8
       END AS oldest_pending,
       (SELECT count(*) FROM outbox_hold h JOIN outbox_parked USING (hold) WHERE h.shard = s.shard)
           AS parked,
       cut.xid IS NOT NULL OR (s.inside AND cut.position IS NOT NULL) AS more,
       (cut.xid IS NULL OR s.start::text::bigint <= cut.xid)
           AND (NOT s.inside OR cut.position IS NULL OR s.low < cut.position) AS reached
FROM s CROSS JOIN cut LEFT JOIN outbox_lease l USING (shard) LEFT JOIN later USING (shard)
    LEFT JOIN planned USING (shard)
ORDER BY s.shard
"""
"""What is not acknowledged, per shard, each event read once for all shards, up to a bound. By transaction
(index outbox_event_xid), but the acknowledged part of a large delta is skipped by position (index
outbox_event_position). Not `reached`: the bound was met before the first event that could be the shard's."""


@dataclass(frozen=True, slots=True)
class ShardBacklog:
    """One shard as the last survey found it. `oldest_pending` in seconds; None when nothing waits.

    `more`: events were read up to the bound, and behind it more may wait.
    """

    shard: int
    epoch: int
    owner: str | None
    lease_held: bool
    pending: int
    oldest_pending: float | None
    parked: int = 0
    more: bool = False


def survey(ask: Callable[[str, dict[str, Any]], Sequence[Sequence[Any]]]) -> tuple[ShardBacklog, ...]:
    """Every shard of the database to which `ask` gives a statement with its parameters.

    A shard that stands still for long must not hide the others: those that begin behind where reading stopped
    are asked for again, from there on.
    """
    [(number,)] = ask("SELECT count(*) FROM outbox_shard", {})
    found: dict[int, ShardBacklog] = {}
    wanted: list[int] | None = None
    while wanted is None or wanted:
        most = min(MOST * (number if wanted is None else len(wanted)), MOST_IN_ALL)
        rows = ask(BACKLOG, {"shards": wanted, "most": most})
        left = [row[0] for row in rows if not row[-1]]
        stuck = len(left) == len(rows)
        found |= {row[0]: ShardBacklog(*row[:-1]) for row in rows if row[-1] or stuck}
        wanted = [] if stuck else left
    return tuple(found[shard] for shard in sorted(found))


class Backlog:
    """Surveys one database. `run_once` belongs to one thread, `shards` and `alarm()` to any.

    `limit`: the age of the oldest pending event from which there is an alarm.
    """

    def __init__(self, where: Database, *, limit: timedelta) -> None:
        self.connection = OwnConnection(where, "backlog", answer_within=ANSWER_WITHIN)
        self._limit = limit.total_seconds()
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
        began = time.monotonic()
        try:
            self.shards = self._survey()
            return max(EVERY, (time.monotonic() - began) / SHARE)
        except (OutcomeUnknown, OutboxError, psycopg.OperationalError) as error:
            log.debug("no survey: %s", error)
            self.shards = None
            self.connection.close()
            return EVERY

    def _survey(self) -> tuple[ShardBacklog, ...]:
        connection = self.connection.open()
        return survey(lambda statement, values: database.execute(connection, statement, values).fetchall())
