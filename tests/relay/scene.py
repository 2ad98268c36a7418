"""Write events as any application would, and wait until the relay is through with them."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.rows import TupleRow

from tests.relay import wire

WRITE = """
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload, topic)
SELECT gen_random_uuid(), 'order', key, 'order.placed.v1',
       convert_to('{"n": ' || n || '}' || coalesce(ballast, ''), 'UTF8'), %(topic)s
FROM (SELECT n, CASE WHEN %(keys)s > 0 THEN 'k' || n %% %(keys)s END AS key
      FROM generate_series(1, %(count)s) n) numbered,
     LATERAL (SELECT string_agg(md5(n::text || i::text), '') AS ballast
              FROM generate_series(1, %(pad)s / 32) i) incompressible
RETURNING id::text
"""

THROUGH = """
SELECT NOT EXISTS (SELECT FROM outbox_shard WHERE next IS NOT NULL) AND NOT EXISTS (
    SELECT FROM outbox_event e WHERE NOT EXISTS (
        SELECT FROM outbox_shard s
        WHERE coalesce(hashtextextended(e.aggregateid, 0) & 255, 0) BETWEEN s.lo AND s.hi
          AND pg_visible_in_snapshot(e.xid, s.done)))
"""

Session = psycopg.Connection[TupleRow]


class Scene:
    """`settings`: the relay's environment. Each write commits at once: position order is commit order."""

    def __init__(self, database: str, bootstrap: str, topic: str, **settings: str) -> None:
        self.database = database
        self.bootstrap = bootstrap
        self.topic = topic
        self.settings = {
            "OUTBOX_DATABASE_URL": database,
            "OUTBOX_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "OUTBOX_LEASE": "0.5",
            "OUTBOX_CHUNK_ROWS": "50",
            "OUTBOX_LOOK_ROWS": "100",
            "OUTBOX_TRANSACTION_ROWS": "50",
            "OUTBOX_TRANSACTION_TIME": "0",
            **settings,
        }
        self.session: Session = psycopg.connect(database, autocommit=True)

    def transactional(self) -> None:
        """The shard shall have mode transactional from its first event on."""
        self.session.execute("UPDATE outbox_shard SET wanted_mode = 'transactional'")

    def write(
        self,
        count: int,
        *,
        keys: int = 7,
        pad: int = 0,
        topic: str | None = None,
        session: Session | None = None,
    ) -> list[str]:
        """Commit events (`keys=0`: without keys); returns their ids in order."""
        values = {"count": count, "keys": keys, "pad": pad, "topic": topic or self.topic}
        return [id_ for (id_,) in (session or self.session).execute(WRITE, values).fetchall()]

    def committed(self) -> list[tuple[str, str | None]]:
        """Id and key of every event, in position order."""
        return self.session.execute(
            "SELECT id::text, aggregateid FROM outbox_event ORDER BY position"
        ).fetchall()

    def wait_until_through(self, within: float = 90.0) -> None:
        """Until every event is acknowledged and that is written down."""
        self.wait(THROUGH, within=within)

    def wait(self, condition: str, *, within: float = 60.0) -> None:
        """Until the query says true."""
        until(lambda: self.value(condition) is True, within, lambda: f"{condition}\n{self.shard()}")

    def value(self, query: str) -> Any:
        row = self.session.execute(query.encode()).fetchone()
        return row[0] if row is not None else None

    def shard(self) -> tuple[Any, ...]:
        """The shard's row, but for `done`, which its owner may move whenever a look found nothing."""
        row = self.session.execute(
            "SELECT source, generation, epoch, delta, next, next_floor, low FROM outbox_shard"
        ).fetchone()
        assert row is not None
        return row

    def status(self, instance: str) -> dict[str, Any]:
        """What the relay's heartbeat said last."""
        row = self.session.execute(
            "SELECT state FROM outbox_relay WHERE instance = %s", [instance]
        ).fetchone()
        return dict(row[0]) if row is not None else {}

    def arrived(self) -> list[wire.Arrived]:
        return wire.read(self.bootstrap, self.topic)

    def plain_complaints(self) -> list[str]:
        """What a reader notices that knows nothing of sequences: read_committed, and no more."""
        return wire.plain_complaints(self.arrived(), self.committed())

    def complaints(self) -> list[str]:
        return wire.complaints(self.arrived(), self.committed())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.session.close()


def until(reached: Callable[[], bool], within: float, what: Callable[[], str]) -> None:
    """Until `reached()`: the condition is somebody else's, so it is looked at every few milliseconds."""
    end = time.monotonic() + within
    while not reached():
        assert time.monotonic() < end, f"not within {within} s: {what()}"
        time.sleep(0.02)
