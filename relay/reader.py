"""Read a planned delta in position order, chunk by chunk, the next one while the last one is sent.

First the stragglers: rows whose position was drawn before `done` looked but whose transaction ended after
it. Then everything above `done`'s floor. Both only as far as `next` sees, so a delta reads the same however
often it is read.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import takewhile
from operator import itemgetter
from typing import Any

import psycopg

from outbox.storage.bucket import OF_EVERY_BUCKET, of_buckets
from relay import row
from relay.database import Connection, OutcomeUnknown, failed
from relay.progress import Progress
from relay.row import MS, NAMES, PAYLOAD, POSITION, Row

_COLUMNS = f"{row.COLUMNS}, xid"

# Does this statement see the plan itself? Then it sees every commit that the plan's snapshot saw, for those
# stand before the plan in the log: a standby that lags, or one promoted without the plan, may lack rows of it
# without any connection breaking (a pooler moves sessions). One look-up by primary key a chunk.
_PLAN_IS_HERE = """EXISTS (SELECT FROM outbox_shard
    WHERE shard = %(shard)s AND delta = %(delta)s AND next_xid = %(next_xid)s::xid8)"""

LEFT_OUT = -1
"""In place of the time of a row whose payload was not fetched; real ones are positive."""

_MARKER = f"SELECT -1::bigint{', NULL' * NAMES.count(',')} WHERE {_PLAN_IS_HERE} UNION ALL"

# Payload bytes in front of a row, for the bound on a chunk. Every NULL counts as nothing: an unknown size
# would let a row in behind one that was left out, and that one would never be read.
_BEFORE = """sum(coalesce(octet_length(payload), 0)) OVER (ORDER BY position)
    - coalesce(octet_length(payload), 0) AS before"""

_LATE = f"""
SELECT {_COLUMNS} FROM outbox_event
WHERE xid >= pg_snapshot_xmax(%(done)s::pg_snapshot) AND xid < %(done_xid)s::xid8 {OF_EVERY_BUCKET}
UNION ALL
SELECT {_COLUMNS} FROM outbox_event
WHERE xid = ANY (ARRAY(
    SELECT pg_snapshot_xip(%(done)s::pg_snapshot) EXCEPT SELECT pg_snapshot_xip(%(next)s::pg_snapshot)))
    {OF_EVERY_BUCKET}
"""
# Rows of the transactions that `done` did not see although they may have drawn positions below its floor
# (index outbox_event_xid). The range ends at `done_xid`, the transaction that wrote `done` down: a later one
# cannot have drawn a position below its floor. What still runs for `next` is not probed.

_IS_STRAGGLER = """position + 0 <= %(done_floor)s AND position + 0 > %(low)s
    AND pg_visible_in_snapshot(xid, %(next)s::pg_snapshot)"""

FEW_STRAGGLERS = f"""
{_MARKER}
(SELECT {NAMES} FROM (
  SELECT *, {_BEFORE} FROM (
    SELECT * FROM ({_LATE}) late WHERE {_IS_STRAGGLER} ORDER BY position LIMIT %(limit)s
  ) few
) bounded
WHERE before < %(bytes)s ORDER BY position)
"""
"""The first stragglers, found by transaction (index outbox_event_xid), however far back they are."""

LAST_STRAGGLER = f"""
SELECT -1::bigint WHERE {_PLAN_IS_HERE} UNION ALL
SELECT max(position) FROM ({_LATE}) late WHERE {_IS_STRAGGLER}
"""
"""Where they end, when they do not fit into one chunk."""

MANY_STRAGGLERS = f"""
{_MARKER}
(SELECT {NAMES} FROM (
  SELECT *, {_BEFORE} FROM (
    SELECT {_COLUMNS} FROM outbox_event
    WHERE position > %(low)s AND position <= %(last)s
      AND NOT pg_visible_in_snapshot(xid, %(done)s::pg_snapshot)
      AND pg_visible_in_snapshot(xid, %(next)s::pg_snapshot) {OF_EVERY_BUCKET}
    ORDER BY position LIMIT %(limit)s
  ) many
) bounded
WHERE before < %(bytes)s ORDER BY position)
"""
"""Further stragglers of a large late transaction, walked by position (index outbox_event_position): sorting
all of them again for every chunk would be quadratic."""

_WITHOUT_LARGE = row.COLUMNS.replace(
    " payload,", " CASE WHEN octet_length(payload) <= %(each)s THEN payload END AS payload,"
).replace("CASE WHEN isfinite", f"CASE WHEN octet_length(payload) > %(each)s THEN {LEFT_OUT} WHEN isfinite")

CHUNK = f"""
{_MARKER}
(SELECT {_WITHOUT_LARGE} FROM outbox_event
 WHERE position > %(low)s AND position <= %(next_floor)s
   AND pg_visible_in_snapshot(xid, %(next)s::pg_snapshot) {OF_EVERY_BUCKET}
 ORDER BY position LIMIT %(limit)s)
"""
"""Rows above `done`'s floor, by index outbox_event_position, without payloads above the even share of a
chunk's bytes: so it is bounded without adding up, which costs the server 0.08 s more in 100,000. A row with a
position above the floor cannot have been visible to `done`, so only `next` is asked."""

LARGE_CHUNK = f"""
{_MARKER}
(SELECT {NAMES} FROM (
  SELECT *, {_BEFORE} FROM (
    SELECT {_COLUMNS} FROM outbox_event
    WHERE position > %(low)s AND position <= %(next_floor)s
      AND pg_visible_in_snapshot(xid, %(next)s::pg_snapshot) {OF_EVERY_BUCKET}
    ORDER BY position LIMIT %(limit)s
  ) fresh
) bounded
WHERE before < %(bytes)s ORDER BY position)
"""
"""The same where large payloads are: whole, and no more than fit."""


class PlanMissing(OutcomeUnknown):
    """The server that was asked has not got the plan, or has it no more."""


class DeltaReader:
    """Reads deltas on its own connection. `rows` and `bytes_` bound one chunk (payload bytes)."""

    def __init__(self, connection: Connection, *, rows: int, bytes_: int) -> None:
        self._cursor = row.cursor(connection)
        self._prepare = connection.prepare_threshold is not None
        self._rows = rows
        self._bytes = bytes_

    def chunks(self, state: Progress, *, near: float | None = None) -> Generator[list[Row]]:
        """The rows of the planned delta above `state.low`, in position order, read one chunk ahead.

        An empty list: the next chunk is not here within `near` seconds, if that is given. Close it before the
        connection: a chunk may be on its way.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="outbox-read") as ahead:
            pages = self._pages(state)
            following = ahead.submit(next, pages, None)
            while True:
                if near is not None and not wait([following], near).done:
                    yield []
                if (chunk := following.result()) is None:
                    return
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
            "next_xid": state.next_xid,
            "shard": state.shard,
            "delta": state.delta,
            "limit": self._rows,
            "bytes": self._bytes,
            "each": self._bytes // self._rows,
            "low": state.low,
        }
        if state.buckets is not None:
            bound["lo"], bound["hi"] = state.buckets
        if state.low < state.done_floor:
            yield from self._stragglers(bound)
        bound["low"] = max(bound["low"], state.done_floor)
        yield from self._fresh(bound, state.next_floor)

    def _stragglers(self, bound: dict[str, Any]) -> Iterator[list[Row]]:
        few = self._fetch(FEW_STRAGGLERS, bound)
        if not few:
            return
        more = self._cut(few)
        last = self._fetch(LAST_STRAGGLER, bound)[0][0] if more else 0
        bound["low"] = few[-1][POSITION]
        yield few
        if more:
            yield from self._walk(MANY_STRAGGLERS, bound | {"last": last}, last)

    def _fresh(self, bound: dict[str, Any], last: int) -> Iterator[list[Row]]:
        """Chunks of small rows while there are such, else bounded as they are read."""
        low, more, large = bound["low"], True, False
        while more and low < last:
            if large:
                chunk = self._fetch(LARGE_CHUNK, bound | {"low": low})
                more = self._cut(chunk)
                large = any(len(r[PAYLOAD] or b"") > bound["each"] for r in chunk)
            else:
                found = self._fetch(CHUNK, bound | {"low": low})
                large = LEFT_OUT in map(_MS, found)
                chunk = [*takewhile(_is_whole, found)] if large else found
                more = large or len(found) >= self._rows
            if chunk:
                low = chunk[-1][POSITION]
                yield chunk

    def _walk(self, statement: str, bound: dict[str, Any], last: int) -> Iterator[list[Row]]:
        low, more = bound["low"], True
        while more and low < last and (chunk := self._fetch(statement, bound | {"low": low})):
            low, more = chunk[-1][POSITION], self._cut(chunk)
            yield chunk

    def _cut(self, chunk: list[Row]) -> bool:
        """May more rows follow? A chunk that stayed below both bounds was the last."""
        return len(chunk) >= self._rows or sum(len(r[PAYLOAD] or b"") for r in chunk) >= self._bytes

    def _fetch(self, statement: str, bound: dict[str, Any]) -> list[Any]:
        """What `statement` finds, if it saw the plan. Raises OutcomeUnknown on a server without it."""
        if "lo" in bound:
            statement = of_buckets(statement)
        try:
            found = self._cursor.execute(statement, bound, prepare=self._prepare).fetchall()
        except psycopg.Error as error:
            raise failed(error) from error
        if not found or found[0][POSITION] != -1:
            raise PlanMissing("this server does not hold the plan whose rows were asked for")
        return found[1:]


_MS = itemgetter(MS)


def _is_whole(found: Row) -> bool:
    return found[MS] != LEFT_OUT
