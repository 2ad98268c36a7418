"""Look and plan in one trip to the server: what is new is planned by the very statement that saw it."""

from typing import Any

import psycopg
from pydantic_core import from_json

from outbox.storage.bucket import of_buckets
from relay import look, progress, row
from relay.database import SERVER, Connection, OutcomeUnknown, failed
from relay.look import INLINE_BYTES, Look
from relay.progress import Progress

_FOUND = "position, occurred_at, topic, aggregatetype, aggregateid, payload, id, type, headers, traceparent"

LOOK_AND_PLAN = f"""
WITH here AS MATERIALIZED (
  SELECT pg_current_snapshot() AS seen, {look.FLOOR} AS floor WHERE pg_current_xact_id_if_assigned() IS NULL
), found AS MATERIALIZED (
  (SELECT {_FOUND} {look.LATER}) UNION ALL (SELECT {_FOUND} {look.LATE})
), planned AS (
  UPDATE outbox_shard
  SET next = seen, next_floor = floor, next_xid = pg_current_xact_id(),
      low = 0, delta = {progress.NEXT_DELTA}
  FROM here
  WHERE EXISTS (SELECT FROM found) AND pg_snapshot_xmax(seen) >= pg_snapshot_xmax(%(done)s::pg_snapshot)
    AND ctid = %(ctid)s::tid AND shard = %(shard)s AND epoch = %(epoch)s AND delta = %(delta)s
    AND next IS NULL AND NOT frozen AND {progress.FLUSHED} AND {progress.EXAMINED}
  RETURNING {progress.ROW}
)
SELECT -1::bigint, (SELECT floor FROM here), (SELECT seen::text FROM here), clock_timestamp()::text,
       NULL::bytea, pg_backend_pid()::text, {SERVER}::text,
       (SELECT row_to_json(planned)::text FROM planned), NULL, EXISTS (SELECT FROM outbox_reshard)
UNION ALL
SELECT {look.COLUMNS} FROM found
"""
"""A look (indexes as in LOOK), and if it found anything the plan of it, durable before the answer comes.

All parts of one statement have one snapshot, so the plan's is the look's. It was taken before the row was
found, and the row may have waited for another's transaction since. Then PostgreSQL compares once more with
the newest version (or, since 2025, drops what was found by its place): (epoch, delta, next, frozen) tell
whatever happened, and while those stand, so does `done`. The sequence is read before this transaction gets
its number (`here` is computed first): a later one cannot have drawn a position below the floor. That number
is not below the snapshot's end, for it was nobody's when that was taken; in a transaction that writes already
there is no snapshot and no plan.
"""

LOOK_CONFIRM_AND_PLAN = LOOK_AND_PLAN.replace(
    "SET next", "SET done = next, done_floor = next_floor, done_xid = next_xid, next", 1
).replace("next IS NULL", "next IS NOT NULL", 1)
"""The same when the whole delta before it is acknowledged: confirmed in the same flush."""


class Planner:
    """Looks and plans for the shard's owner. The connection must be in autocommit, on the primary.

    `server`: the one that was examined. `buckets`: as for Looker.
    """

    def __init__(
        self, connection: Connection, *, server: int, limit: int, buckets: tuple[int, int] | None = None
    ) -> None:
        self._connection = connection
        self._cursor = row.cursor(connection)
        self._limit = limit
        self._fixed: dict[str, Any] = {"limit": limit + 1, "inline": INLINE_BYTES, "server": server}
        if buckets is not None:
            self._fixed["lo"], self._fixed["hi"] = buckets

    def look(self, state: Progress, *, sent: bool) -> tuple[Look, Progress | None]:
        """Everything committed since `state`, and the row in which it is planned: None when nothing was
        found, or when the row did not stand as and where we left it. Raises OutcomeUnknown.

        `sent`: the planned delta is acknowledged as a whole.
        """
        done = (state.next or state.done) if sent else state.done
        statement = LOOK_CONFIRM_AND_PLAN if sent else LOOK_AND_PLAN
        if "lo" in self._fixed:
            statement = of_buckets(statement)
        values = self._fixed | {
            "done": done.text,
            "ctid": state.ctid,
            "shard": state.shard,
            "epoch": state.epoch,
            "delta": state.delta,
        }
        prepare = self._connection.prepare_threshold is not None
        self._connection.warned = None
        try:
            found = self._cursor.execute(statement, values, prepare=prepare).fetchall()
        except psycopg.Error as error:
            raise failed(error) from error
        if self._connection.warned is not None:
            raise OutcomeUnknown(self._connection.warned)
        planned = found[0][row.HEADERS]
        return (
            look.seen(found, done, self._limit),
            None if planned is None else progress.believed(tuple(from_json(planned).values())),
        )
