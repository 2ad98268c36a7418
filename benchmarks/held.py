"""What stalls a relay that waits for old transactions: one that wrote and does not end, one old snapshot."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg


@contextmanager
def held_open(url: str, *, hold: bool) -> Iterator[None]:
    """One transaction that has written an event and does not end, and one that keeps an old snapshot."""
    if not hold:
        yield
        return
    with psycopg.connect(url) as writing, psycopg.connect(url) as reading:
        writing.execute(
            "INSERT INTO outbox_event (id, aggregatetype, aggregateid, type) "
            "VALUES (gen_random_uuid(), 'order', 'held', 'order.placed.v1')"
        )
        reading.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reading.execute("SELECT count(*) FROM outbox_event")
        yield
        writing.rollback()
        reading.rollback()
