"""A savepoint that is rolled back publishes nothing, however savepoints are nested."""

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from outbox import emit
from outbox.pending import Pending
from tests.write.orders import order_ids, place, published, step, steps


class Abort(Exception):
    """Raised by a test to roll back."""


def test_a_rolled_back_savepoint_drops_its_events_only(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    kept, kept_event = place()
    lost, lost_event = place()
    with sessions.begin() as session:
        session.add(kept)
        emit(session, kept_event)
        with pytest.raises(Abort), session.begin_nested():
            session.add(lost)
            emit(session, lost_event)
            raise Abort
    assert published(engine) == [kept_event]
    assert order_ids(engine) == {kept_event.order_id}


def test_forgotten_savepoints_would_publish_ghosts(
    engine: Engine, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken variant: events that do not know their savepoint."""
    monkeypatch.setattr(Pending, "roll_back_to", lambda self, savepoint: None)
    with sessions.begin() as session:
        with pytest.raises(Abort), session.begin_nested():
            emit(session, step(1))
            raise Abort
    assert steps(engine) == [1]


def test_released_savepoints_belong_to_what_is_around_them(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        with session.begin_nested():
            emit(session, step(1))
            with session.begin_nested():
                emit(session, step(2))
        with pytest.raises(Abort), session.begin_nested():
            emit(session, step(3))
            with session.begin_nested():
                emit(session, step(4))
            emit(session, step(5))
            raise Abort
        emit(session, step(6))
    assert steps(engine) == [1, 2, 6]


def test_the_first_event_may_stand_in_a_savepoint(engine: Engine, database: str) -> None:
    """On an engine that never emitted before, so that nothing was listening when the savepoint began."""
    from tests.conftest import create_engine

    fresh = create_engine(database)
    with fresh.begin() as connection:
        outer = connection.begin_nested()
        inner = connection.begin_nested()
        emit(connection, step(1))
        inner.commit()
        emit(connection, step(2))
        outer.rollback()
        with connection.begin_nested():
            emit(connection, step(3))
    assert steps(engine) == [3]
    fresh.dispose()


def test_a_savepoint_rolled_back_and_begun_again_starts_empty(engine: Engine) -> None:
    with engine.begin() as connection:
        for number in range(5):
            savepoint = connection.begin_nested()
            emit(connection, step(number))
            if number % 2:
                savepoint.commit()
            else:
                savepoint.rollback()
    assert steps(engine) == [1, 3]


def test_a_session_inside_a_callers_transaction_follows_the_caller(engine: Engine) -> None:
    """SQLAlchemy's recipe for test suites: the session commits into a savepoint of an outer transaction."""
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.begin()
            emit(session, step(1))
            session.commit()
            session.begin()
            emit(session, step(2))
            session.rollback()
        assert steps(engine) == []
        outer.rollback()
        assert steps(engine) == []
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.begin()
            emit(session, step(3))
            session.commit()
        outer.commit()
    assert steps(engine) == [3]
