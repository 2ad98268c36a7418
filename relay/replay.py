"""Send published events again for an operator: each row of a frozen set once, in order, live events between.

A replay is cut into deltas of its own, one window of positions each, which add nothing to `done`. Rows
keep their position within the new delta, so a window reads the same however often it is sent; the cursor
moves when all of it is acknowledged. Consumers see new numbers, hence apply the events again, if the replay
is for them.
"""

import dataclasses
import logging
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg

from outbox import hooks, record
from outbox.storage import bucket
from relay import database, points, row
from relay.database import Connection, failed
from relay.producers import Chunk, Producer, Refused, TopicRefused, address
from relay.progress import Progress, ShardRow
from relay.row import NAMES, POSITION, Row
from relay.supervision import Supervision
from relay.topics import Topics, UnfitTopic

log = logging.getLogger("relay.replay")

WINDOW = 5_000
"""Positions of one delta: live events wait for no more than these."""

WINDOWS_AT_ONCE = 20
"""Windows looked through between two looks for live events."""

EXPIRED = "24 hours"
"""A replay keeps all leaves of the ring, so it may not last for ever."""

DUE = f"""
SELECT job, requested_at < clock_timestamp() - interval '{EXPIRED}', canceled_by FROM outbox_job
WHERE shard = %(shard)s AND ended_at IS NULL
  AND NOT (SELECT frozen FROM outbox_shard s WHERE s.shard = %(shard)s)
ORDER BY job LIMIT 1
"""
"""The oldest replay of a shard that has not ended."""

FREEZE = """
UPDATE outbox_job
SET upto = coalesce(upto, %(done)s::pg_snapshot), upto_floor = coalesce(upto_floor, %(floor)s)
WHERE job = %(job)s AND ended_at IS NULL
RETURNING cursor, upto::text, upto_floor, groups, to_topic
"""
"""What is acknowledged at the first plan is the set; later events are not added."""

JOB = "SELECT cursor, upto::text, upto_floor, groups, to_topic FROM outbox_job WHERE job = %(job)s"

_MATCHES = f"""
e.position > %(low)s AND e.position <= %(last)s
AND pg_visible_in_snapshot(e.xid, %(upto)s::pg_snapshot)
AND (j.since IS NULL OR e.occurred_at >= j.since) AND (j.until IS NULL OR e.occurred_at < j.until)
AND (j.topic IS NULL OR coalesce(e.topic, 'outbox.event.' || e.aggregatetype) = j.topic)
AND (j.aggregateid IS NULL OR e.aggregateid = j.aggregateid)
AND {bucket.IN_SHARD}
AND NOT EXISTS (SELECT FROM outbox_parked p WHERE p.id = e.id)
AND NOT EXISTS (SELECT FROM outbox_archive a WHERE a.id = e.id AND a.outcome = 'discarded')
"""

FIRST = """
SELECT position FROM outbox_event
WHERE position > %(cursor)s AND position <= %(floor)s AND pg_visible_in_snapshot(xid, %(upto)s::pg_snapshot)
ORDER BY position LIMIT 1
"""
"""Where the next window begins, whatever is committed below it later. Index outbox_event_position."""

_IN = f"""
FROM outbox_event e, outbox_job j, outbox_shard s
WHERE j.job = %(job)s AND s.shard = j.shard AND {_MATCHES}
"""

ANY_IN = f"SELECT EXISTS (SELECT {_IN})"
"""Is a window worth a delta? Index outbox_event_position."""

COUNT_IN = f"SELECT count(*) {_IN}"

PAGE = f"""
SELECT {NAMES} FROM (
  SELECT *, sum(coalesce(octet_length(payload), 0)) OVER (ORDER BY position)
    - coalesce(octet_length(payload), 0) AS before
  FROM (
    SELECT {row.COLUMNS} FROM (
      SELECT e.position, e.occurred_at, coalesce(j.to_topic, a.topic, e.topic) AS topic, e.aggregatetype,
             e.aggregateid, CASE WHEN a.parked IS NULL THEN e.payload ELSE a.payload END AS payload, e.id,
             e.type, e.traceparent,
             coalesce(CASE WHEN a.parked IS NULL THEN e.headers ELSE a.headers END, '{{}}')
                 || jsonb_build_object(%(header)s::text, %(replay)s::text) AS headers
      FROM outbox_job j CROSS JOIN outbox_shard s CROSS JOIN outbox_event e
      LEFT JOIN outbox_archive a ON a.id = e.id AND a.outcome = 'sent'
      WHERE j.job = %(job)s AND s.shard = j.shard AND {_MATCHES}
      ORDER BY e.position LIMIT %(limit)s) found
  ) few
) bounded
WHERE before < %(bytes)s ORDER BY position
"""
"""Rows of a window as they were sent, a released one as it was released. Index outbox_event_position."""

MOVE = """
UPDATE outbox_job
SET cursor = greatest(cursor, %(cursor)s), sent = sent + %(sent)s
WHERE job = %(job)s
"""

REPORT = "UPDATE outbox_job SET refused = refused + 1, error = %(error)s WHERE job = %(job)s"

FINISH = """
UPDATE outbox_job SET ended_at = clock_timestamp(), outcome = %(outcome)s, error = coalesce(%(error)s, error)
WHERE job = %(job)s AND ended_at IS NULL
"""


@dataclass(frozen=True, slots=True)
class _Job:
    job: int
    cursor: int
    upto: str
    floor: int
    groups: str
    to_topic: str | None

    @property
    def header(self) -> str:
        return record.replay(self.job, self.groups)


class Replay:
    """Carries replays of one shard, a window at a time, between ordinary deltas."""

    def __init__(
        self,
        connection: Connection,
        row: ShardRow,
        topics: Topics,
        producer: Producer,
        supervision: Supervision,
        *,
        rows: int,
        bytes_: int,
    ) -> None:
        self._connection = connection
        self._row = row
        self._topics = topics
        self._producer = producer
        self._supervision = supervision
        self._rows = rows
        self._bytes = bytes_

    def due(self, state: Progress) -> int | None:
        """A replay with something left to send, after those that are over were ended."""
        found = database.execute(self._connection, DUE, {"shard": state.shard}).fetchone()
        if found is None:
            return None
        job, expired, canceled_by = found
        if expired or canceled_by:
            self._finish(job, "expired" if expired else "canceled")
            return None
        values = {"job": job, "done": state.done.text, "floor": state.done_floor}
        frozen = database.execute(self._connection, FREEZE, values).fetchone()
        return None if frozen is None else self._next(_Job(job, *frozen))

    def plan(self, state: Progress, job: int, server: int) -> Progress:
        """Nothing may be planned. The next window is durable before the first of it is sent."""
        planned = self._row.plan_job(state, job, server)
        hooks.fire(points.REPLAY_PLANNED, shard=planned.shard, delta=planned.delta, job=job)
        return planned

    def carry(self, state: Progress) -> Progress:
        """Send what is planned and move the cursor behind it. Repeatable after any interruption."""
        assert state.job is not None
        values = {"job": state.job}
        found = database.execute(self._connection, JOB, values).fetchone()
        assert found is not None
        job = _Job(state.job, *found)
        first = self._first(job, job.cursor)
        while first is not None and not self._matches(job, first):
            first = self._first(job, first + WINDOW - 1)
        last, sent, error = job.floor, 0, None
        if first is not None:
            last = min(first + WINDOW - 1, job.floor)
            try:
                state = self._send(state, job, first, last)
                sent = self._count(job, first, last)
            except (UnfitTopic, TopicRefused) as refused:
                error, last = str(refused), job.cursor
        with database.transaction(self._connection):
            confirmed = self._row.confirm_job(state)
            database.execute(self._connection, MOVE, values | {"cursor": last, "sent": sent})
            if error is not None:
                self._finish(job.job, "failed", error)
        hooks.fire(points.REPLAYED, shard=state.shard, delta=state.delta, job=state.job, cursor=last)
        return confirmed

    def _send(self, state: Progress, job: _Job, first: int, last: int) -> Progress:
        """The window above `low`. What is refused is reported and left out, never parked."""
        while True:
            try:
                with closing(self._pages(state, job, max(state.low, first - 1), last)) as pages:
                    timed = self._supervision.timed(pages)
                    for low in self._producer.deliver(timed, self._supervision.alive):
                        state = dataclasses.replace(state, low=low)
                return state
            except Refused as refused:
                log.error("replay %d: %s; it is left out", job.job, refused)
                with database.transaction(self._connection):
                    state = self._row.park(state, refused.row[POSITION])
                    values = {"job": job.job, "error": str(refused)[:2_000]}
                    database.execute(self._connection, REPORT, values)

    def _count(self, job: _Job, first: int, last: int) -> int:
        found = database.execute(self._connection, COUNT_IN, self._window(job, first - 1, last)).fetchone()
        assert found is not None
        return int(found[0])

    def _pages(self, state: Progress, job: _Job, low: int, last: int) -> Generator[Chunk]:
        assert state.next is not None
        cursor = row.cursor(self._connection)
        while True:
            values = self._window(job, low, last) | {"limit": self._rows, "bytes": self._bytes}
            try:
                rows: list[Row] = cursor.execute(PAGE, values).fetchall()
            except psycopg.Error as error:
                raise failed(error) from error
            if not rows:
                return
            low = rows[-1][POSITION]
            targets = list(address(rows, lambda topic: self._topics.resolve(state, topic)))
            hooks.fire(points.REPLAYING, shard=state.shard, job=job.job, rows=len(rows), last=low)
            yield Chunk(state.stream, rows, targets, state.done.text, state.next.text)

    def _window(self, job: _Job, low: int, last: int) -> dict[str, Any]:
        return {
            "job": job.job,
            "low": low,
            "last": last,
            "upto": job.upto,
            "header": record.REPLAY,
            "replay": job.header,
        }

    def _next(self, job: _Job) -> int | None:
        """The job, when its next window is found. Windows without a row that matches are passed over."""
        first = self._first(job, job.cursor)
        for _ in range(WINDOWS_AT_ONCE):
            if first is None:
                self._finish(job.job, "done")
                return None
            if self._matches(job, first):
                return job.job
            cursor = first + WINDOW - 1
            # Nobody will ever find one there: the set is frozen.
            database.execute(self._connection, MOVE, {"job": job.job, "cursor": cursor, "sent": 0})
            first = self._first(job, cursor)
        return None

    def _first(self, job: _Job, cursor: int) -> int | None:
        values = {"cursor": cursor, "floor": job.floor, "upto": job.upto}
        found = database.execute(self._connection, FIRST, values).fetchone()
        return None if found is None else int(found[0])

    def _matches(self, job: _Job, first: int) -> bool:
        values = self._window(job, first - 1, first + WINDOW - 1)
        return database.execute(self._connection, ANY_IN, values).fetchone() == (True,)

    def _finish(self, job: int, outcome: str, error: str | None = None) -> None:
        values = {"job": job, "outcome": outcome, "error": error}
        database.execute(self._connection, FINISH, values)
        log.info("replay %d: %s", job, outcome)
