"""The table holds what is needed and nothing dead; where there is no room to give back, only that waits."""

from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from outbox.storage import ring as leaves
from relay.database import Database
from relay.ring import Ring
from tests.relay.database.half import Session, drain, shard, wait_for, write
from tests.relay.database.memory_broker import MemoryBroker

MANY = """
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload)
SELECT gen_random_uuid(), 'order', 'k' || n % 100, 'order.placed.v1', '\\x7b7d'
FROM generate_series(1, 5000) n
"""

DEAD = """
SELECT coalesce(sum(n_dead_tup), 0) = 0 FROM pg_stat_all_tables WHERE relname ~ '^outbox_event'
"""

WRITTEN = """
SELECT sum(n_tup_ins) >= 25000 FROM pg_stat_all_tables WHERE relname ~ '^outbox_event'
"""


@pytest.fixture
def writer(database: str) -> Iterator[Session]:
    with psycopg.connect(database, autocommit=True) as session:
        yield session


def count(session: Session, query: str) -> int:
    row = session.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_a_ring_that_is_full_of_needed_events_only_postpones(database: str, writer: Session) -> None:
    ring, broker = Ring(Database(database), retention=timedelta(0)), MemoryBroker()
    written = [id_ for turn in range(3) for slot in range(leaves.LEAVES) for id_ in write(writer, slot=slot)]
    assert ring.run_once() == [], "every leaf holds what is not published"
    written += write(writer, 5)
    carrying = shard(database, broker)
    drain(carrying)
    carrying.finish()
    assert broker.ids() == written, "nothing lost, in order, from whatever leaf"
    given_back = ring.run_once()
    assert len(given_back) >= leaves.LEAVES - 2, "all but the leaf of now, and its neighbour at the turn"
    left = count(writer, "SELECT count(DISTINCT slot) FROM outbox_event")
    assert left == leaves.LEAVES - len(given_back)
    ring.connection.close()


def test_thousands_of_events_leave_no_dead_row_and_no_swollen_one(database: str, writer: Session) -> None:
    carrying = shard(database, broker := MemoryBroker(), look_rows=1000, chunk_rows=5000)
    for _ in range(5):
        writer.execute(MANY)
        drain(carrying)
    carrying.finish()
    assert len(broker.log) == 25_000
    writer.execute("SELECT pg_stat_clear_snapshot()")
    wait_for(writer, WRITTEN, within=30)
    assert writer.execute(DEAD).fetchone() == (True,), "an event is written once and never touched again"
    assert count(writer, "SELECT pg_relation_size('outbox_shard')") <= 10 * 8192, (
        "the shard's row is updated for each delta, in place"
    )


def test_the_test_finds_out_rows_that_are_deleted_one_by_one(database: str, writer: Session) -> None:
    writer.execute(MANY)
    writer.execute("DELETE FROM outbox_event")
    wait_for(writer, DEAD.replace("= 0", "> 0"), within=30)
