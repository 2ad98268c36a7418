"""An event is published if and only if its transaction committed."""

import pytest
import sqlalchemy
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import RootTransaction
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox import EmitError, Outbox, emit, hooks, pending
from outbox.row import INSERT_MANY, Row, insert
from tests.write.orders import Order, order_ids, place, published, step, steps, stored


class Abort(Exception):
    """Raised by a test to roll back."""


def test_order_and_event_commit_together(engine: Engine, outbox: Outbox) -> None:
    order, placed = place()
    with outbox.sessions.begin() as session:
        session.add(order)
        event_id = outbox.emit(session, placed)
    assert published(engine) == [placed]
    (row,) = stored(engine)
    assert row["id"] == event_id
    assert event_id.version == 7
    assert row["aggregatetype"] == "order"
    assert row["aggregateid"] == str(placed.order_id)
    assert row["type"] == "tests.order.placed.v1"
    assert row["topic"] == "orders"
    assert row["headers"] is None
    assert order_ids(engine) == {placed.order_id}


def test_a_rolled_back_transaction_publishes_nothing(engine: Engine, sessions: sessionmaker[Session]) -> None:
    order, placed = place()
    with pytest.raises(Abort), sessions.begin() as session:
        session.add(order)
        emit(session, placed)
        session.flush()
        raise Abort
    assert stored(engine) == []
    assert order_ids(engine) == set()


def test_a_rolled_back_transaction_would_publish_if_events_left_on_another_connection(
    engine: Engine, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken variant: a dual write, as code without an outbox does it."""

    def leave_at_once(connection: Connection, row: Row) -> None:
        with connection.engine.begin() as other:
            other.exec_driver_sql(*insert([row]))

    monkeypatch.setattr(pending, "keep", leave_at_once)
    order, placed = place()
    with pytest.raises(Abort), sessions.begin() as session:
        session.add(order)
        emit(session, placed)
        raise Abort
    assert published(engine) == [placed], "the ghost that the tests above would find"
    assert order_ids(engine) == set()


def test_a_transaction_that_only_emits_still_writes(engine: Engine, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        emit(session, step(1))
    assert steps(engine) == [1]


def test_nothing_is_written_before_commit(engine: Engine, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        emit(session, step(1))
        session.flush()
        assert steps(session.connection()) == []
    assert steps(engine) == [1]


def test_a_core_connection_is_as_good_as_a_session(engine: Engine) -> None:
    with engine.begin() as connection:
        emit(connection, step(1))
    with engine.connect() as connection:
        connection.begin()
        emit(connection, step(2))
        connection.commit()
        connection.begin()
        emit(connection, step(3))
        connection.rollback()
        connection.begin()
        emit(connection, step(4))
        connection.commit()
    assert steps(engine) == [1, 2, 4]


def test_a_scoped_session_is_as_good_as_a_session(engine: Engine, sessions: sessionmaker[Session]) -> None:
    scoped = scoped_session(sessions)
    with scoped.begin():
        emit(scoped, step(1))
    scoped.remove()
    assert steps(engine) == [1]


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_emit_order_is_kept_in_one_insert(
    engine: Engine, sessions: sessionmaker[Session], count: int
) -> None:
    inserts: list[str] = []

    def count_inserts(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if "INSERT INTO outbox_event" in statement:
            inserts.append(statement)

    event.listen(engine, "before_cursor_execute", count_inserts)
    with sessions.begin() as session:
        for number in range(count):
            emit(session, step(number, key=f"k{number % 3}"))
    assert steps(engine) == list(range(count))
    assert len(inserts) == 1
    positions = [row["position"] for row in stored(engine)]
    assert positions == sorted(positions)


def test_a_statement_without_order_would_be_caught(
    engine: Engine, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken variant: rows in another order than they were emitted."""
    backwards = INSERT_MANY.replace("ORDER BY emitted", "ORDER BY emitted DESC")
    monkeypatch.setattr("outbox.row.INSERT_MANY", backwards)
    with sessions.begin() as session:
        for number in range(5):
            emit(session, step(number))
    assert steps(engine) == [4, 3, 2, 1, 0]


def test_events_emitted_by_listeners_of_the_session_are_written_too(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    """Whatever before_commit and before_flush listeners emit comes before the connection's commit."""

    def last_words(session: Session, *_: object) -> None:
        emit(session, step(2))

    with sessions() as session:
        event.listen(session, "before_commit", last_words)
        session.begin()
        emit(session, step(1))
        session.commit()
    assert steps(engine) == [1, 2]


def test_an_event_that_comes_too_late_fails_instead_of_getting_lost(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    """A commit listener that runs behind ours."""
    with sessions.begin() as session:
        emit(session, step(0))

    def too_late(connection: Connection) -> None:
        emit(connection, step(2))

    event.listen(engine, "commit", too_late)
    with pytest.raises(EmitError, match="emit before commit"), sessions.begin() as session:
        emit(session, step(1))
    with pytest.raises(EmitError, match="emit before commit"), sessions.begin() as session:
        session.execute(text("SELECT 1"))  # the late event would be the first
    event.remove(engine, "commit", too_late)
    assert steps(engine) == [0]


def test_a_failing_flush_takes_the_events_with_it(engine: Engine, sessions: sessionmaker[Session]) -> None:
    order, placed = place()
    with sessions.begin() as session:
        session.add(order)
    with pytest.raises(IntegrityError), sessions.begin() as session:
        session.add(Order(id=placed.order_id, total=placed.total))
        emit(session, placed)
    assert stored(engine) == []


def test_a_pooled_connection_carries_no_events_into_its_next_transaction(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    """One connection in the pool, left in every way there is."""
    single = sqlalchemy.create_engine(engine.url, pool_size=1, max_overflow=0)
    own = sessionmaker(single)
    session = own()
    session.begin()
    emit(session, step(1))
    session.close()  # without a word

    connection = single.connect()
    connection.begin()
    emit(connection, step(2))
    connection.close()

    connection = single.connect()
    connection.begin()
    emit(connection, step(3))
    connection.invalidate()
    connection.close()

    session = own()
    session.begin()
    emit(session, step(4))
    session.invalidate()

    with own.begin() as session:
        session.execute(text("SELECT 1"))
    with own.begin() as session:
        emit(session, step(5))
    with own.begin() as session:
        session.execute(text("SELECT 1"))
    assert steps(engine) == [5]
    single.dispose()


def test_events_kept_with_the_connection_would_leak(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken variant: a pool hands the first transaction's events to the second."""
    kept: dict[object, pending.Pending] = {}

    class ByConnection:
        def get(self, transaction: RootTransaction) -> pending.Pending | None:
            return kept.get(transaction.connection.connection.driver_connection)

        def __setitem__(self, transaction: RootTransaction, value: pending.Pending) -> None:
            kept[transaction.connection.connection.driver_connection] = value

    monkeypatch.setattr(pending, "_pending", ByConnection())
    monkeypatch.setattr(pending.Pending, "drop", lambda self: None)
    single = sqlalchemy.create_engine(engine.url, pool_size=1, max_overflow=0)
    with single.connect() as connection:
        connection.begin()
        emit(connection, step(1))
    with single.begin() as connection:
        connection.execute(text("SELECT 1"))
    single.dispose()
    assert steps(engine) == [1], "the ghost that the test above would find"


def test_a_lost_connection_fails_the_commit_and_publishes_nothing(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    order, placed = place()
    with pytest.raises(OperationalError) as failed, sessions.begin() as session:
        session.add(order)
        emit(session, placed)
        session.flush()
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        with engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    assert failed.value.connection_invalidated
    assert stored(engine) == []
    with sessions.begin() as session:
        emit(session, step(1))
    assert steps(engine) == [1]


def test_a_session_with_several_engines_writes_beside_the_table(engine: Engine, empty_database: str) -> None:
    """The events go where outbox_event is bound, whatever the session's other work goes to."""
    from outbox.storage.tables import outbox_event
    from tests.conftest import create_engine

    elsewhere = create_engine(empty_database)
    sessions = sessionmaker(binds={Order: elsewhere, outbox_event: engine})
    with sessions.begin() as session:
        emit(session, step(1))
        session.execute(text("SELECT 1"), bind_arguments={"mapper": Order})
    assert steps(engine) == [1]
    elsewhere.dispose()


def test_options_of_an_engine_change_nothing(engine: Engine) -> None:
    """execution_options() makes an engine that shares its parent's listeners: written once, not twice."""
    with engine.begin() as connection:
        emit(connection, step(1))
    for _ in range(3):
        with engine.execution_options(isolation_level="REPEATABLE READ").begin() as connection:
            emit(connection, step(2))
    assert steps(engine) == [1, 2, 2, 2]


def test_a_transaction_that_emits_nothing_costs_no_statement(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    told: list[str] = []
    with sessions.begin() as session:
        emit(session, step(1))
    unsubscribe = hooks.subscribe(lambda point, _: told.append(point))
    with sessions.begin() as session:
        session.execute(text("SELECT 1"))
    unsubscribe()
    assert told == []


def test_observers_hear_of_each_transaction_once(engine: Engine, sessions: sessionmaker[Session]) -> None:
    told: list[tuple[str, object]] = []
    unsubscribe = hooks.subscribe(lambda point, facts: told.append((point, facts.get("count"))))
    with sessions.begin() as session:
        emit(session, step(1))
        emit(session, step(2))
    unsubscribe()
    assert told == [("outbox.opened", None), ("outbox.written", 2), ("outbox.committed", 2)]
