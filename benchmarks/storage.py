"""What an event costs the database's log, and what it leaves behind: against plain tables."""

import psycopg

from benchmarks import child
from benchmarks.backlog import PAYLOAD_BYTES, Arrivals
from benchmarks.place import Place, Sizes
from benchmarks.report import Figure, Report, at_most

WARM = 200
"""Transactions that do not count: first pages, their full images."""

PLAIN = """
CREATE TABLE plain_{indexes} (
    id uuid, aggregatetype text, aggregateid text, type text, payload bytea, topic text,
    headers jsonb, traceparent text, occurred_at timestamptz DEFAULT clock_timestamp(),
    xid xid8 DEFAULT pg_current_xact_id(),
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)
"""
"""The outbox's row without its ring."""

INSERT = """
INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload, topic)
VALUES (gen_random_uuid(), 'order', md5(%(number)s::text), 'order.placed.v1', %(payload)s, %(topic)s)
"""

WRITTEN = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"

DEAD = "SELECT coalesce(sum(n_dead_tup), 0)::int FROM pg_stat_user_tables WHERE relname LIKE 'outbox_event%'"


def measure(place: Place, sizes: Sizes) -> Report:
    one, two, ours, published, dead = [], [], [], [], []
    count = 2 * sizes.transactions
    for _ in range(sizes.rounds):
        with (
            place.database() as url,
            place.topic() as topic,
            psycopg.connect(url, autocommit=True) as connection,
        ):
            for indexes in (1, 2):
                connection.execute(PLAIN.format(indexes=indexes).encode())
            connection.execute("CREATE INDEX ON plain_2 (xid)")
            one.append(_bytes(connection, "plain_1", topic, count))
            two.append(_bytes(connection, "plain_2", topic, count))
            ours.append(_bytes(connection, "outbox_event", topic, count))
            arrivals = Arrivals(place.kafka.bootstrap, topic)
            with child.relay(url, place.kafka.bootstrap):
                arrivals.wait(WARM + count)
                published.append(_bytes(connection, "outbox_event", topic, count, arrivals))
            found = connection.execute(DEAD).fetchone()
            assert found is not None
            dead.append(found[0])
    return Report(
        "storage",
        f"Write-ahead log of an event of {PAYLOAD_BYTES} bytes, committed alone",
        [
            Figure("written / a plain table with one index", "×", _ratios(ours, one), at_most(1.1)),
            Figure("written / a plain table with two", "×", _ratios(ours, two)),
            Figure("written and published at once / two indexes", "×", _ratios(published, two)),
            Figure("written", "bytes", ours),
            Figure("written and published at once", "bytes", published),
            Figure("dead tuples in the outbox", "tuples", dead, at_most(0)),
        ],
    )


def _ratios(these: list[float], those: list[float]) -> list[float]:
    return [this / that for this, that in zip(these, those, strict=True)]


def _bytes(
    connection: psycopg.Connection, table: str, topic: str, count: int, arrivals: Arrivals | None = None
) -> float:
    """Of the log for one transaction, until all have arrived."""
    _insert(connection, table, topic, WARM)
    before = _log(connection)
    _insert(connection, table, topic, count)
    if arrivals is not None:
        arrivals.wait(2 * (WARM + count))
    return (_log(connection) - before) / count


def _insert(connection: psycopg.Connection, table: str, topic: str, count: int) -> None:
    statement = INSERT.format(table=table).encode()
    for number in range(count):
        values = {"number": number, "payload": b"x" * PAYLOAD_BYTES, "topic": topic}
        connection.execute(statement, values, prepare=True)


def _log(connection: psycopg.Connection) -> int:
    found = connection.execute(WRITTEN).fetchone()
    assert found is not None
    return int(found[0])
