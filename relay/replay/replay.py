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
from outbox.errors import Fenced
from relay import database, points, row
from relay.database import Connection, failed
from relay.producers import Chunk, Producer, Refused, TopicRefused, address
from relay.progress import Progress, ShardRow
from relay.replay import window
from relay.row import POSITION, Row
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
RETURNING cursor, upto::text, upto_floor, groups, to_topic, latest_per_key
"""
"""What is acknowledged at the first plan is the set; later events are not added."""

JOB = """
SELECT j.cursor, j.upto::text, j.upto_floor, j.groups, j.to_topic, j.latest_per_key
FROM outbox_job j JOIN outbox_shard s USING (shard, job)
WHERE job = %(job)s AND s.epoch = %(epoch)s AND s.delta = %(delta)s
"""
"""Where the planned window begins: no row once it is confirmed, when the cursor is that of the next one."""

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


class KeepsLatest(UnfitTopic):
    """A compacted topic and a replay of every event: an old one would take the place of its successor."""

    def __init__(self, topic: str) -> None:
        super().__init__(
            topic,
            "is compacted, and an old event that comes after newer ones would stay as the last value of its "
            "key; ask for the replay with --latest-per-key",
        )


@dataclass(frozen=True, slots=True)
class _Job:
    job: int
    cursor: int
    upto: str
    floor: int
    groups: str
    to_topic: str | None
    latest_per_key: bool

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
        self._keeps_all: set[bytes] = set()

    def asked(self, state: Progress) -> int | None:
        """A replay that has not ended, after one that is over was ended."""
        found = database.execute(self._connection, DUE, {"shard": state.shard}).fetchone()
        if found is None:
            return None
        job, expired, canceled_by = found
        if expired or canceled_by:
            self._finish(job, "expired" if expired else "canceled")
            return None
        return int(job)

    def due(self, state: Progress, job: int) -> int | None:
        """`job`, when it has something left to send. All that is acknowledged has to be confirmed before:
        what its set holds is decided here."""
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
        values = {"job": state.job, "epoch": state.epoch, "delta": state.delta}
        found = database.execute(self._connection, JOB, values).fetchone()
        if found is None:
            raise Fenced(
                f"shard {state.shard}: the window of delta {state.delta} is over, or somebody else's"
            )
        job = _Job(state.job, *found)
        first = self._first(job, job.cursor)
        while first is not None and not self._matches(job, first):
            first = self._first(job, first + WINDOW - 1)
        last, sent, error = job.floor, 0, None
        if first is not None:
            last = min(first + WINDOW - 1, job.floor)
            bounds = self._bounds(job, first - 1, last) | {"delta": state.delta}
            if job.latest_per_key:
                found_newest = database.execute(self._connection, window.NEWEST, bounds).fetchall()
                bounds["only"] = [position for (position,) in found_newest]
            try:
                state = self._send(state, job, bounds)
                sent = self._count(bounds)
            except (UnfitTopic, TopicRefused) as refused:
                error, last = str(refused), job.cursor
        with database.transaction(self._connection):
            confirmed = self._row.confirm_job(state)
            database.execute(self._connection, MOVE, values | {"cursor": last, "sent": sent})
            if error is not None:
                self._finish(job.job, "failed", error)
        hooks.fire(points.REPLAYED, shard=state.shard, delta=state.delta, job=state.job, cursor=last)
        return confirmed

    def _send(self, state: Progress, job: _Job, bounds: dict[str, Any]) -> Progress:
        """The window above `low`. What is refused is reported and left out, never parked."""
        while True:
            above = bounds | {"low": max(state.low, bounds["low"])}
            try:
                with closing(self._pages(state, job, above)) as pages:
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

    def _count(self, bounds: dict[str, Any]) -> int:
        found = database.execute(self._connection, window.COUNT_IN, bounds).fetchone()
        assert found is not None
        return int(found[0])

    def _pages(self, state: Progress, job: _Job, bounds: dict[str, Any]) -> Generator[Chunk]:
        assert state.next is not None
        cursor = row.cursor(self._connection)
        values = bounds | {"limit": self._rows, "bytes": self._bytes}
        while True:
            try:
                rows: list[Row] = cursor.execute(window.PAGE, values).fetchall()
            except psycopg.Error as error:
                raise failed(error) from error
            if not rows:
                return
            values["low"] = low = rows[-1][POSITION]
            targets = list(address(rows, lambda topic: self._resolve(state, job, topic)))
            hooks.fire(points.REPLAYING, shard=state.shard, job=job.job, rows=len(rows), last=low)
            yield Chunk(state.stream, rows, targets, state.done.text, state.next.text)

    def _resolve(self, state: Progress, job: _Job, topic: bytes) -> tuple[str, int]:
        """Raises UnfitTopic where an old event would stay as the last value of its key."""
        found = self._topics.resolve(state, topic)
        if not job.latest_per_key and topic not in self._keeps_all:
            if self._producer.compacted([found[0]]):
                raise KeepsLatest(found[0])
            self._keeps_all.add(topic)
        return found

    def _bounds(self, job: _Job, low: int, last: int) -> dict[str, Any]:
        return {
            "job": job.job,
            "low": low,
            "last": last,
            "only": None,
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
        found = database.execute(self._connection, window.FIRST, values).fetchone()
        return None if found is None else int(found[0])

    def _matches(self, job: _Job, first: int) -> bool:
        values = self._bounds(job, first - 1, first + WINDOW - 1)
        return database.execute(self._connection, window.ANY_IN, values).fetchone() == (True,)

    def _finish(self, job: int, outcome: str, error: str | None = None) -> None:
        values = {"job": job, "outcome": outcome, "error": error}
        database.execute(self._connection, FINISH, values)
        log.info("replay %d: %s", job, outcome)
