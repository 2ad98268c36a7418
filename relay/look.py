"""See what was committed since a snapshot: one statement whose visibility is its own snapshot."""

from dataclasses import dataclass
from typing import cast

import psycopg
from psycopg.rows import TupleRow

from outbox.storage.bucket import OF_EVERY_BUCKET, of_buckets
from relay import database, row
from relay.database import Connection, OutcomeUnknown, failed
from relay.row import Row
from relay.snapshot import Snapshot

INLINE_BYTES = 16_384
"""A larger payload is not fetched by the look but by the reader, whose chunks are bounded by bytes."""

COLUMNS = (
    row.COLUMNS.replace(
        " payload,", " CASE WHEN octet_length(payload) <= %(inline)s THEN payload END AS payload,"
    )
    + ", coalesce(octet_length(payload) > %(inline)s, false)"
)
"""Of a row that was found; the last one says that its payload was left out."""

FLOOR = "(SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM outbox_event_position_seq)"

LATER = f"""FROM outbox_event WHERE xid >= pg_snapshot_xmax(%(done)s::pg_snapshot)
 {OF_EVERY_BUCKET} ORDER BY xid LIMIT %(limit)s"""

LATE = f"""FROM outbox_event WHERE xid = ANY (ARRAY(
     SELECT pg_snapshot_xip(%(done)s::pg_snapshot) EXCEPT SELECT pg_snapshot_xip(pg_current_snapshot())))
 {OF_EVERY_BUCKET} LIMIT %(limit)s"""

LOOK = f"""
SELECT -1::bigint,
       {FLOOR},
       CASE WHEN pg_current_xact_id_if_assigned() IS NULL AND NOT pg_is_in_recovery()
            THEN pg_current_snapshot()::text END,
       clock_timestamp()::text, NULL::bytea, pg_backend_pid()::text, {database.SERVER}::text, NULL, NULL,
       EXISTS (SELECT FROM outbox_reshard)
UNION ALL
(SELECT {COLUMNS} {LATER})
UNION ALL
(SELECT {COLUMNS} {LATE})
"""
"""All rows not seen by `done`, at most `limit` of either kind, behind a line with the snapshot and the floor.

Index outbox_event_xid serves both branches; as one OR they would be a Seq Scan (0.1 ms against 45–200 ms).
The snapshot is taken before the sequence is read, so no visible row has a position above the floor. On a
standby, or inside a transaction that writes, running transactions would look ended: there is no snapshot.
The first line's last column: is the number of shards being changed?
"""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look saw. `rows` is the whole delta in position order, or None when it is too much to hold.

    `at` is the server's clock, `backend` its process and `server` its postmaster's start: what is planned
    from a look must reach the same server without a crash in between.
    """

    snapshot: Snapshot
    floor: int
    rows: list[Row] | None
    at: str
    backend: int
    server: int
    resharding: bool = False

    @property
    def empty(self) -> bool:
        return self.rows is not None and not self.rows


class Looker:
    """Looks for new rows on its own cursor. The connection must be in autocommit, on the primary.

    `buckets`: the first and last of one shard of several; None where one shard carries all.
    """

    def __init__(self, connection: Connection, *, limit: int, buckets: tuple[int, int] | None = None) -> None:
        self._cursor = row.cursor(connection)
        self._prepare = connection.prepare_threshold is not None
        self._limit = limit
        self._buckets = dict(zip(("lo", "hi"), buckets, strict=True)) if buckets is not None else {}

    def look(self, done: Snapshot) -> Look:
        """Everything committed that `done` does not see. Raises OutcomeUnknown where nothing can be told."""
        parameters = {"done": done.text, "limit": self._limit + 1, "inline": INLINE_BYTES}
        statement = of_buckets(LOOK) if self._buckets else LOOK
        try:
            self._cursor.execute(statement, parameters | self._buckets, prepare=self._prepare)
            found = self._cursor.fetchall()
        except psycopg.Error as error:
            raise failed(error) from error
        return seen(found, done, self._limit)


def seen(found: list[TupleRow], done: Snapshot, limit: int) -> Look:
    """What a look brought: its first line, then the rows. Raises OutcomeUnknown where nothing can be told."""
    (_, floor, snapshot, at, _, backend, server, *_, resharding), rows = found[0], found[1:]
    if snapshot is None:
        raise OutcomeUnknown(
            "the look ran on a standby or inside a writing transaction, where running transactions look ended"
        )
    now = Snapshot(snapshot.decode())
    if now.xmax < done.xmax:
        raise OutcomeUnknown(f"the transaction counter went back, from {done.xmax} to {now.xmax}")
    whole: list[Row] | None = None
    if len(rows) <= limit and not any(large for *_, large in rows):
        whole = cast(list[Row], sorted([r[:-1] for r in rows], key=_position))
    return Look(now, floor, whole, at.decode(), int(backend), int(server), resharding)


def _position(found: tuple[int, ...]) -> int:
    return found[0]
