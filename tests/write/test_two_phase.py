"""Two-phase transactions write their events when they prepare, and publish them when they commit."""

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from outbox import EmitError, emit, pending
from outbox.storage.tables import outbox_event
from tests.conftest import create_engine
from tests.write.orders import Base, Order, place, published, step, steps


def test_a_two_phase_session_publishes_with_its_commit(engine: Engine) -> None:
    order, placed = place()
    with Session(engine, twophase=True) as session:
        session.begin()
        session.add(order)
        emit(session, placed)
        session.prepare()
        assert published(engine) == []
        session.commit()
    assert published(engine) == [placed]


def test_commit_prepares_by_itself(engine: Engine) -> None:
    with Session(engine, twophase=True) as session, session.begin():
        emit(session, step(1))
    assert steps(engine) == [1]


def test_a_prepared_transaction_that_is_rolled_back_publishes_nothing(engine: Engine) -> None:
    with Session(engine, twophase=True) as session:
        session.begin()
        emit(session, step(1))
        session.prepare()
        session.rollback()
    assert steps(engine) == []


def test_a_prepare_that_forgot_its_events_would_lose_them(
    engine: Engine, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken variant: only the plain commit is listened to."""
    monkeypatch.setattr(pending, "_LISTENERS", {"commit": pending._on_commit})
    fresh = create_engine(database)
    with Session(fresh, twophase=True) as session, session.begin():
        emit(session, step(1))
    fresh.dispose()
    assert steps(engine) == []


def test_what_another_process_commits_from_the_prepared_state_is_published(engine: Engine) -> None:
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        emit(connection, step(1))
        transaction.prepare()
        xid = transaction.xid
        connection.invalidate()
    assert steps(engine) == []
    with engine.connect() as connection:
        assert connection.recover_twophase() == [xid]
        connection.commit_prepared(xid, recover=True)
    assert steps(engine) == [1]


def test_a_two_phase_connection_may_commit_in_one_phase(engine: Engine) -> None:
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        emit(connection, step(1))
        transaction.commit()
        transaction = connection.begin_twophase()
        emit(connection, step(2))
        transaction.rollback()
    assert steps(engine) == [1]


def test_a_prepared_transaction_takes_no_more_events(engine: Engine) -> None:
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        emit(connection, step(1))
        transaction.prepare()
        with pytest.raises(EmitError, match="before prepare"):
            emit(connection, step(2))
        transaction.commit()
    assert steps(engine) == [1]


def test_two_databases_commit_together_or_not_at_all(engine: Engine, empty_database: str) -> None:
    elsewhere = create_engine(empty_database)
    Base.metadata.create_all(elsewhere)
    order, placed = place()
    with Session(binds={Order: elsewhere, outbox_event: engine}, twophase=True) as session, session.begin():
        session.add(order)
        emit(session, placed)
    assert published(engine) == [placed]
    with elsewhere.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM orders")) == 1
    elsewhere.dispose()
