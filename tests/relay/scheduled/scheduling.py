"""Schedule events as any application would, and see what was moved."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from outbox.storage.ddl import step_4

Session = psycopg.Connection[TupleRow]

SCHEDULE = """
INSERT INTO outbox_scheduled (id, due, aggregatetype, aggregateid, type, payload, topic)
VALUES (gen_random_uuid(), clock_timestamp() + %(due)s, 'step', %(key)s, 'step.taken.v1', %(payload)s,
        %(topic)s)
RETURNING id
"""

PLAIN_SKIP_LOCKED = step_4.MOVE.replace(
    "bool_or(locked.id IS NULL) OVER (PARTITION BY seen.line ORDER BY seen.due, seen.seq)", "false"
).replace("seen.line = ANY (held)", "false")
"""The naive mover: whatever is not locked goes, also past an earlier event of its key that is."""

SEVERAL_MOVERS = PLAIN_SKIP_LOCKED.replace("RETURN NULL;", "NULL;")
"""The same without the one row that keeps a second mover away: a queue as everybody writes it."""


def schedule(
    session: Session, due: float = 0.0, *, key: str | None = "k", topic: str | None = None, note: str = ""
) -> UUID:
    """An event that is due in `due` seconds (negative: it is already); returns its id."""
    values: dict[str, Any] = {
        "due": timedelta(seconds=due),
        "key": key,
        "topic": topic,
        "payload": note.encode(),
    }
    row = session.execute(SCHEDULE, values).fetchone()
    assert row is not None
    return UUID(str(row[0]))


def cancel(session: Session, event_id: UUID) -> bool:
    row = session.execute("SELECT outbox_cancel(%s)", [event_id]).fetchone()
    assert row is not None
    return bool(row[0])


def moved(session: Session) -> list[UUID]:
    """What is among the events now, in the order in which it will be published."""
    return [id_ for (id_,) in session.execute("SELECT id FROM outbox_event ORDER BY position").fetchall()]


def left(session: Session) -> int:
    row = session.execute("SELECT count(*) FROM outbox_scheduled").fetchone()
    assert row is not None
    return int(row[0])


def use(session: Session, function: str) -> None:
    """Put a naive mover in the place of ours."""
    session.execute(function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION").encode())
