"""The statements that keep an event until it is due, and take it back as long as it is there.

A scheduled event waits in a table of its own. The relay moves it among the others when the database's clock
says so; what is moved is published, what is cancelled before never is.
"""

from collections.abc import Sequence
from typing import Any

from outbox.row import Row, array, arrays

SCHEDULE = """
INSERT INTO outbox_scheduled (due, id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent)
SELECT due, id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent
FROM unnest(%s::timestamptz[], %s::uuid[], %s::text[], %s::text[], %s::text[], %s::bytea[], %s::text[],
            %s::jsonb[], %s::text[])
    WITH ORDINALITY AS event (
        due, id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent, emitted)
ORDER BY emitted
""".strip()
"""Any number of events. Of two that are due at one moment, the one that was emitted first leaves first."""

CANCEL = "SELECT outbox_cancel(%s)"
"""True: the event is gone and was never published. False: it was moved, cancelled before or never there.
Waits for whoever moves or cancels it at this moment. Served by the primary key."""


def schedule(rows: Sequence[Row]) -> tuple[str, tuple[Any, ...]]:
    """The statement that keeps `rows`, which all have a due time, with its parameters."""
    due = array(None if row.due is None else row.due.isoformat() for row in rows)
    return SCHEDULE, (due, *arrays(rows))
