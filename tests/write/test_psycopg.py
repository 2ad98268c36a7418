"""On a raw psycopg connection an event is written at once, and follows the connection's transaction."""

import psycopg
import pytest
from sqlalchemy import Engine

from outbox import ConfigurationError, NoTransaction, SchemaError, emit
from tests.write.orders import step, steps

pytestmark = pytest.mark.usefixtures("engine")


def test_commit_publishes_and_rollback_does_not(engine: Engine, database: str) -> None:
    with psycopg.connect(database) as connection:
        emit(connection, step(1))
        assert steps(engine) == []
        connection.commit()
        emit(connection, step(2))
        connection.rollback()
    assert steps(engine) == [1]


def test_a_savepoint_drops_its_own(engine: Engine, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection, connection.transaction():
        emit(connection, step(1))
        with connection.transaction(force_rollback=True):
            emit(connection, step(2))
        emit(connection, step(3))
    assert steps(engine) == [1, 3]


def test_autocommit_without_a_transaction_is_an_error_that_says_so(engine: Engine, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        with pytest.raises(NoTransaction, match=r"with connection\.transaction\(\)"):
            emit(connection, step(1))
    assert steps(engine) == []


def test_a_missing_table_is_explained_at_once(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        with pytest.raises(SchemaError, match="outbox-relay db upgrade"):
            emit(connection, step(1))


@pytest.mark.anyio
async def test_the_async_connection_has_the_same_words(engine: Engine, database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        event_id = await emit(connection, step(1))
        assert event_id.version == 7
        await connection.commit()
        await emit(connection, step(2))
        await connection.rollback()
        await connection.set_autocommit(True)
        with pytest.raises(NoTransaction):
            await emit(connection, step(3))
    assert steps(engine) == [1]


@pytest.mark.anyio
async def test_async_errors_are_explained_too(empty_database: str) -> None:
    async with await psycopg.AsyncConnection.connect(empty_database) as connection:
        with pytest.raises(SchemaError, match="outbox-relay db upgrade"):
            await emit(connection, step(1))


def test_a_cursor_is_no_place_for_an_event(database: str) -> None:
    with psycopg.connect(database) as connection, pytest.raises(ConfigurationError, match=r"psycopg.*Cursor"):
        emit(connection.cursor(), step(1))  # type: ignore[call-overload]
