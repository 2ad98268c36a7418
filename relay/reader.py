"""Read a planned delta in position order, chunk by chunk, the next one while the last one is sent.

First the stragglers: rows whose position was drawn before `done` looked but whose transaction ended after
it. Then everything above `done`'s floor. Both only as far as `next` sees, so a delta reads the same however
often it is read.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from relay import row
from relay.database import Connection, failed
from relay.progress import Progress
from relay.row import NAMES, POSITION, Row

_STRAGGLER_COLUMNS = f"{row.COLUMNS}, xid"

FEW_STRAGGLERS = f"""
SELECT {NAMES} FROM (
  SELECT *, sum(coalesce(octet_length(payload), 0)) OVER (ORDER BY position) - octet_length(payload) AS before
  FROM (
    SELECT * FROM (
      SELECT {_STRAGGLER_COLUMNS} FROM outbox_event
      WHERE xid >= pg_snapshot_xmax(%(done)s::pg_snapshot) AND xid < %(done_xid)s::xid8
      UNION ALL
      SELECT {_STRAGGLER_COLUMNS} FROM outbox_event
      WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(%(done)s::pg_snapshot)))
    ) late
    WHERE position + 0 <= %(done_floor)s AND position + 0 > %(low)s
      AND pg_visible_in_snapshot(xid, %(next)s::pg_snapshot)
    ORDER BY position LIMIT %(limit)s
  ) few
) bounded
WHERE coalesce(before, 0) < %(bytes)s ORDER BY position
"""
"""The first stragglers, found by transaction (index outbox_event_xid): the range ends at `done_xid`, the
transaction that wrote `done` down, because a later one cannot have drawn a position below its floor."""

MANY_STRAGGLERS = f"""
SELECT {NAMES} FROM (
  SELECT *, sum(coalesce(octet_length(payload), 0)) OVER (ORDER BY position) - octet_length(payload) AS before
  FROM (
    SELECT {_STRAGGLER_COLUMNS} FROM outbox_event
    WHERE position > %(low)s AND position <= %(done_floor)s
      AND NOT pg_visible_in_snapshot(xid, %(done)s::pg_snapshot)
      AND pg_visible_in_snapshot(xid, %(next)s::pg_snapshot)
    ORDER BY position LIMIT %(limit)s
  ) many
) bounded
WHERE coalesce(before, 0) < %(bytes)s ORDER BY position
"""
"""Further stragglers of a large late transaction, walked by position (index outbox_event_position): sorting
all of them again for every chunk would be quadratic."""

CHUNK = f"""
SELECT {NAMES} FROM (
  SELECT *, sum(coalesce(octet_length(payload), 0)) OVER (ORDER BY position) - octet_length(payload) AS before
  FROM (
    SELECT {_STRAGGLER_COLUMNS} FROM outbox_event
    WHERE position > %(low)s AND position <= %(next_floor)s
      AND pg_visible_in_snapshot(xid, %(next)s::pg_snapshot)
    ORDER BY position LIMIT %(limit)s
  ) fresh
) bounded
WHERE coalesce(before, 0) < %(bytes)s ORDER BY position
"""
"""Rows above `done`'s floor, by index outbox_event_position. A row with a position above the floor cannot
have been visible to `done`, so only `next` is asked."""


class DeltaReader:
    """Reads deltas on its own connection. `rows` and `bytes_` bound one chunk (payload bytes)."""

    def __init__(self, connection: Connection, *, rows: int, bytes_: int) -> None:
        self._cursor = row.cursor(connection)
        self._prepare = connection.prepare_threshold is not None
        self._rows = rows
        self._bytes = bytes_

    def chunks(self, state: Progress) -> Iterator[list[Row]]:
        """The rows of the planned delta above `state.low`, in position order, read one chunk ahead."""
        with ThreadPoolExecutor(1, thread_name_prefix="outbox-read") as ahead:
            pages = self._pages(state)
            following = ahead.submit(next, pages, None)
            while (chunk := following.result()) is not None:
                following = ahead.submit(next, pages, None)
                yield chunk

    def _pages(self, state: Progress) -> Iterator[list[Row]]:
        if state.next is None or state.next_floor is None:
            raise ValueError("no delta is planned")
        bound: dict[str, Any] = {
            "done": state.done.text,
            "done_floor": state.done_floor,
            "done_xid": state.done_xid,
            "next": state.next.text,
            "next_floor": state.next_floor,
            "limit": self._rows,
            "bytes": self._bytes,
            "low": state.low,
        }
        statement = FEW_STRAGGLERS
        while bound["low"] < state.done_floor and (chunk := self._fetch(statement, bound)):
            yield chunk
            bound["low"] = chunk[-1][POSITION]
            statement = MANY_STRAGGLERS
        bound["low"] = max(bound["low"], state.done_floor)
        while chunk := self._fetch(CHUNK, bound):
            yield chunk
            bound["low"] = chunk[-1][POSITION]

    def _fetch(self, statement: str, bound: dict[str, Any]) -> list[Row]:
        try:
            return self._cursor.execute(statement, bound, prepare=self._prepare).fetchall()
        except psycopg.Error as error:
            raise failed(error) from error
