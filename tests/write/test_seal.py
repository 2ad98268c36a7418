"""A sealed event gets its place at COMMIT, so a writer may record it before it locks what it is about."""

import time
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from outbox import emit
from tests.write.orders import step, stored
from tests.write.sealing import inversions
from tests.write.waiting import SECONDS

SEALED = """
INSERT INTO outbox_sealed (id, aggregatetype, aggregateid, type, payload) VALUES (%s, 'a', %s, 'b', '\\x00ff')
"""


def keys(engine: Engine) -> list[str]:
    return [row["aggregateid"] for row in stored(engine)]


def test_sealed_events_of_writers_that_insert_before_they_lock_are_never_inverted(engine: Engine) -> None:
    wrong, of = inversions(engine, table="outbox_sealed", rounds=150)
    assert (wrong, of) == (0, 600)


def test_without_the_seal_they_are(engine: Engine) -> None:
    """The broken form: the position is drawn by the INSERT, before the wait for the row's lock."""
    wrong, _ = inversions(engine, table="outbox_event", rounds=150)
    assert wrong > 0


def test_the_event_arrives_whole_in_the_order_of_its_statement(engine: Engine, database: str) -> None:
    first, second = uuid4(), uuid4()
    with psycopg.connect(database) as session:
        session.execute(SEALED, [first, "1"])
        session.execute(
            "INSERT INTO outbox_sealed (id, aggregatetype, aggregateid, type, topic, headers, traceparent, "
            "occurred_at) VALUES (%s, 'a', '2', 'b', 't', '{\"h\": \"v\"}', 'x', '2020-02-02 00:00+00')",
            [second],
        )
        assert stored(engine) == []
    one, two = stored(engine)
    assert (one["id"], bytes(one["payload"]), one["topic"]) == (first, b"\x00\xff", None)
    assert (two["id"], two["payload"], two["topic"], two["headers"], two["traceparent"]) == (
        second, None, "t", {"h": "v"}, "x",
    )  # fmt: skip
    assert two["occurred_at"].year == 2020
    assert one["xid"] == two["xid"]


def test_it_follows_its_transaction_and_its_savepoint(engine: Engine, database: str) -> None:
    with psycopg.connect(database) as session:
        session.execute(SEALED, [uuid4(), "gone"])
        session.rollback()
        session.execute(SEALED, [uuid4(), "1"])
        with session.transaction(force_rollback=True):
            session.execute(SEALED, [uuid4(), "gone too"])
        session.execute(SEALED, [uuid4(), "2"])
    assert keys(engine) == ["1", "2"]


def test_a_prepared_transaction_has_drawn_its_place_under_its_locks(engine: Engine, database: str) -> None:
    if not engine.connect().scalar(text("SELECT current_setting('max_prepared_transactions')::int > 0")):
        pytest.fail("the test server allows no prepared transactions")
    with psycopg.connect(database, autocommit=True) as session:
        session.execute("BEGIN")
        session.execute(SEALED, [uuid4(), "1"])
        session.execute("PREPARE TRANSACTION 'sealed'")
        session.execute("COMMIT PREPARED 'sealed'")
    assert keys(engine) == ["1"]


def test_what_emit_records_in_the_same_transaction_comes_before(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        session.connection().exec_driver_sql(SEALED, (uuid4(), "sealed"))
        emit(session, step(1, key="emitted"))
    assert keys(engine) == ["emitted", "sealed"]


def test_rows_that_a_restore_brings_back_are_not_published_again(engine: Engine, database: str) -> None:
    """pg_dump holds what was not swept yet; a restore of the data alone fires triggers."""
    with psycopg.connect(database) as session:
        session.execute(SEALED, [uuid4(), "1"])
        session.commit()
        session.execute("CREATE TEMPORARY TABLE dump AS SELECT * FROM outbox_sealed")
        session.execute("TRUNCATE outbox_sealed")
        session.commit()
        session.execute("INSERT INTO outbox_sealed SELECT * FROM dump")
        session.commit()
    assert keys(engine) == ["1"]


def test_a_lock_that_a_later_deferred_trigger_takes_is_not_covered(engine: Engine, database: str) -> None:
    """Not promised: deferred triggers fire in the order in which they were queued."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE fired (n int GENERATED ALWAYS AS IDENTITY, events bigint);"
            "CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "INSERT INTO fired (events) SELECT count(*) FROM outbox_event; RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER fire AFTER INSERT ON zones DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION fire()"
        )
    with psycopg.connect(database) as session:
        session.execute("INSERT INTO zones VALUES (1, 0)")
        session.execute(SEALED, [uuid4(), "1"])
        session.execute("INSERT INTO zones VALUES (2, 0)")
        session.commit()
        assert session.execute("SELECT events FROM fired ORDER BY n").fetchall() == [(0,), (1,)]


def test_what_stays_behind_is_swept_once_its_writers_have_ended(engine: Engine, database: str) -> None:
    turn = "mod(date_part('epoch', clock_timestamp())::bigint / 600 + 1, 2)"
    into = SEALED.replace("payload)", "payload, slot)").replace("'\\x00ff')", f"NULL, {turn})")
    with psycopg.connect(database) as open_, psycopg.connect(database, autocommit=True) as session:
        session.execute(into, [uuid4(), "1"])
        open_.execute(into, [uuid4(), "2"])
        assert session.execute("SELECT outbox_sweep()").fetchone() == (False,)
        open_.commit()
        assert session.execute("SELECT outbox_sweep()").fetchone() == (True,)
        assert session.execute("SELECT outbox_sweep()").fetchone() == (False,)
        assert session.execute("SELECT count(*) FROM outbox_sealed").fetchone() == (0,)
    assert keys(engine) == ["1", "2"]


def test_sealing_leaves_no_dead_row_anywhere(engine: Engine, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as session:
        for n in range(50):
            session.execute(SEALED, [uuid4(), str(n)])
    counts = until_counted(engine, 100)
    assert counts == (100, 0, 0, 0)


def until_counted(engine: Engine, inserted: int) -> tuple[int, ...]:
    """What PostgreSQL has counted of our tables: inserted, updated, deleted, dead. It counts late."""
    deadline = time.monotonic() + SECONDS
    while True:
        with engine.connect() as connection:
            found = connection.execute(
                text(
                    "SELECT sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_del), sum(n_dead_tup) "
                    "FROM pg_stat_user_tables WHERE relname ~ '^outbox_(event|sealed)_'"
                )
            ).one()
        if found[0] == inserted:
            return tuple(map(int, found))
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
