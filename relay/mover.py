"""Move each scheduled event among the others when it is due: once, and per key in the order of their times.

What is moved, and in which order, the database function outbox_move decides in one transaction and by the
database's clock. Any number of relays may call it at any time: one moves, the others find nothing to do.
"""

import logging
import time
from dataclasses import dataclass
from datetime import timedelta

import psycopg

from outbox import hooks
from relay import database, points
from relay.database import Connection, Database, OutcomeUnknown
from relay.own_connection import OwnConnection

log = logging.getLogger("relay.mover")

LOOK = """
SELECT (SELECT extract(epoch FROM due - clock_timestamp())::float8
        FROM outbox_scheduled ORDER BY due, seq LIMIT 1),
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_scheduled_seq_seq)
"""
"""Seconds until the earliest event is due, and how many were ever scheduled. Index (due, seq): 0.1 ms."""

MOVE = "SELECT outbox_move(%(batch)s)"
"""How many events were moved; NULL when another relay is moving. One transaction: all of them or none."""

BATCH = 200

IDLE = timedelta(seconds=10)
"""Between looks while nothing is scheduled. An event that is due sooner than that comes so much later."""

BUSY = timedelta(seconds=1)
"""The same while events are being scheduled: until `STAYS_BUSY` after the last one."""

STAYS_BUSY = timedelta(minutes=1)

HELD = timedelta(milliseconds=200)
"""Until the next attempt when what is due waits for an open cancel, or for another relay that moves."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What one round achieved: events moved, and how many seconds may pass before the next round."""

    count: int
    rest: float


class Mover:
    """Moves what is due, on a connection of its own."""

    def __init__(self, where: Database) -> None:
        self.connection = OwnConnection(where, "mover")
        self._scheduled: int | None = None
        self._busy_until = 0.0

    def run_once(self) -> Moved:
        """Move one batch of what is due. An outage is waited out: all that is due stays there.

        Raises SchemaError when a table, function or right is missing.
        """
        try:
            return self._move(self.connection.open())
        except (OutcomeUnknown, psycopg.OperationalError) as error:
            log.debug("no scheduled event moved for certain: %s", error)
            self.connection.close()
            return Moved(0, BUSY.total_seconds())

    def _move(self, connection: Connection) -> Moved:
        found = database.execute(connection, LOOK).fetchone()
        assert found is not None
        due_in, scheduled = found
        rest = self._rest(scheduled)
        if due_in is None or due_in > 0:
            return Moved(0, rest if due_in is None else min(rest, due_in))
        moved = database.execute(connection, MOVE, {"batch": BATCH}).fetchone()
        count = (moved[0] or 0) if moved is not None else 0
        if count == 0:
            return Moved(0, HELD.total_seconds())
        hooks.fire(points.MOVED, count=count)
        return Moved(count, 0.0)

    def _rest(self, scheduled: int) -> float:
        now = time.monotonic()
        if self._scheduled not in (None, scheduled):
            self._busy_until = now + STAYS_BUSY.total_seconds()
        self._scheduled = scheduled
        return (BUSY if now < self._busy_until else IDLE).total_seconds()
