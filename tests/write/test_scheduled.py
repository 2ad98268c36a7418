"""An event with a moment waits for it, commits or rolls back with its transaction, and can be taken back."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox import (
    AsyncOutbox,
    ConfigurationError,
    EventRejected,
    NoTransaction,
    Outbox,
    SchemaError,
    cancel,
    emit,
)
from outbox.testing.plugin import OutboxEvents, Scheduled
from tests.write.orders import place, step, stored

LATER = datetime(2100, 1, 1, 12, tzinfo=UTC)


class Abort(Exception):
    """Raised by a test to roll back."""


def waiting(at: Engine | Connection) -> list[dict[str, Any]]:
    """The committed rows that wait for their moment, in the order in which they will leave."""
    if isinstance(at, Engine):
        with at.connect() as connection:
            return waiting(connection)
    rows = at.execute(text("SELECT * FROM outbox_scheduled ORDER BY due, seq")).mappings()
    return [dict(row) for row in rows]


def ids(engine: Engine) -> list[UUID]:
    return [row["id"] for row in waiting(engine)]


def test_it_is_kept_as_it_will_leave_and_nothing_leaves_now(outbox: Outbox, engine: Engine) -> None:
    order, placed = place()
    with outbox.sessions.begin() as session:
        session.add(order)
        event_id = outbox.emit(session, placed, deliver_at=LATER, headers={"a": "ü"})
    assert stored(engine) == []
    (row,) = waiting(engine)
    assert (row["id"], row["due"], row["aggregatetype"], row["aggregateid"], row["topic"]) == (
        event_id, LATER, "order", str(placed.order_id), "orders",
    )  # fmt: skip
    assert (row["type"], row["payload"], row["headers"], row["traceparent"]) == (
        "tests.order.placed.v1", placed.model_dump_json().encode(), {"a": "ü"}, None,
    )  # fmt: skip


def test_ordinary_events_of_the_same_transaction_leave_at_once_and_in_order(
    outbox: Outbox, engine: Engine
) -> None:
    with outbox.sessions.begin() as session:
        outbox.emit(session, step(1))
        late = outbox.emit(session, step(2), deliver_at=LATER)
        outbox.emit(session, step(3))
        early = outbox.emit(session, step(4), deliver_at=LATER - timedelta(days=1))
        same = outbox.emit(session, step(5), deliver_at=LATER)
    assert [b'"number":1' in row["payload"] for row in stored(engine)] == [True, False]
    assert ids(engine) == [early, late, same], "of one moment, in the order of emit"


def test_it_follows_its_transaction_and_its_savepoint(
    sessions: sessionmaker[Session], engine: Engine
) -> None:
    with pytest.raises(Abort), sessions.begin() as session:
        emit(session, step(1), deliver_at=LATER)
        raise Abort
    with sessions.begin() as session:
        with pytest.raises(Abort), session.begin_nested():
            emit(session, step(2), deliver_at=LATER)
            raise Abort
        kept = emit(session, step(3), deliver_at=LATER)
    assert ids(engine) == [kept]


@pytest.mark.parametrize(
    ("moment", "fault"),
    [
        (datetime(2100, 1, 1), "has no time zone"),  # noqa: DTZ001
        (timedelta(hours=1), "is not a datetime"),
        ("2100-01-01T00:00:00Z", "is not a datetime"),
        (datetime.max.replace(tzinfo=timezone(-timedelta(hours=1))), "out of range"),
    ],
)
def test_a_moment_that_is_none_is_refused_at_once(
    sessions: sessionmaker[Session], moment: Any, fault: str
) -> None:
    with sessions() as session, session.begin():
        with pytest.raises(EventRejected, match=fault):
            emit(session, step(1), deliver_at=moment)


@pytest.mark.parametrize(
    "moment",
    [
        LATER.astimezone(timezone(timedelta(hours=5, minutes=45))),
        LATER.astimezone(timezone(-timedelta(hours=9, seconds=28))),
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
    ],
)
def test_any_moment_in_any_zone_is_kept_exactly(
    sessions: sessionmaker[Session], engine: Engine, moment: datetime
) -> None:
    with sessions.begin() as session:
        emit(session, step(1), deliver_at=moment)
    assert [row["due"] for row in waiting(engine)] == [moment]


def test_cancelled_it_is_gone_and_a_second_time_is_too_late(outbox: Outbox, engine: Engine) -> None:
    with outbox.sessions.begin() as session:
        event_id = outbox.emit(session, step(1), deliver_at=LATER)
    with outbox.sessions.begin() as session:
        assert outbox.cancel(session, event_id) is True
        assert outbox.cancel(session, event_id) is False
        assert outbox.cancel(session, uuid4()) is False
    assert ids(engine) == []


def test_a_cancel_that_is_rolled_back_has_not_happened(outbox: Outbox, engine: Engine) -> None:
    with outbox.sessions.begin() as session:
        event_id = outbox.emit(session, step(1), deliver_at=LATER)
    with pytest.raises(Abort), outbox.sessions.begin() as session:
        assert outbox.cancel(session, event_id)
        raise Abort
    with outbox.sessions.begin() as session:
        with pytest.raises(Abort), session.begin_nested():
            assert outbox.cancel(session, event_id)
            raise Abort
    assert ids(engine) == [event_id]


def test_what_the_same_transaction_scheduled_can_be_cancelled_too(outbox: Outbox, engine: Engine) -> None:
    with outbox.sessions.begin() as session:
        gone = outbox.emit(session, step(1), deliver_at=LATER)
        assert outbox.cancel(session, gone)
        assert not outbox.cancel(session, gone)
        kept = outbox.emit(session, step(2), deliver_at=LATER)
        with pytest.raises(Abort), session.begin_nested():
            assert outbox.cancel(session, kept)
            raise Abort
        at_once = outbox.emit(session, step(3))
        assert not outbox.cancel(session, at_once), "what leaves at once is no scheduled event"
    assert ids(engine) == [kept]
    assert [row["id"] for row in stored(engine)] == [at_once]


def test_another_moment_is_a_cancel_and_an_emit_under_the_same_id(outbox: Outbox, engine: Engine) -> None:
    with outbox.sessions.begin() as session:
        event_id = outbox.emit(session, step(1), deliver_at=LATER)
    for moment in (LATER + timedelta(days=1), LATER - timedelta(days=1)):
        with outbox.sessions.begin() as session:
            assert outbox.cancel(session, event_id)
            outbox.emit(session, step(1), id=event_id, deliver_at=LATER)
            assert outbox.cancel(session, event_id)
            outbox.emit(session, step(1), id=event_id, deliver_at=moment)
        assert [(row["id"], row["due"]) for row in waiting(engine)] == [(event_id, moment)]


def test_an_id_that_is_scheduled_already_fails_the_transaction(outbox: Outbox, engine: Engine) -> None:
    with outbox.sessions.begin() as session:
        event_id = outbox.emit(session, step(1), deliver_at=LATER)
    with pytest.raises(EventRejected, match="scheduled already"), outbox.sessions.begin() as session:
        outbox.emit(session, step(2), id=event_id, deliver_at=LATER)
    assert ids(engine) == [event_id]


def test_a_connection_and_a_scoped_session_take_it_too(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    with engine.begin() as connection:
        first = emit(connection, step(1), deliver_at=LATER)
    scoped = scoped_session(sessions)
    with scoped.begin():
        second = emit(scoped, step(2), deliver_at=LATER)
        assert cancel(scoped, first)
    scoped.remove()
    with engine.begin() as connection:
        assert cancel(connection, second)
        third = emit(connection, step(3), deliver_at=LATER)
    assert ids(engine) == [third]


def test_on_a_psycopg_connection_it_is_written_and_taken_back_at_once(engine: Engine, database: str) -> None:
    with psycopg.connect(database) as connection:
        first = emit(connection, step(1), deliver_at=LATER)
        second = emit(connection, step(2), deliver_at=LATER)
        assert cancel(connection, first)
        connection.commit()
        assert cancel(connection, second)
        connection.rollback()
    assert ids(engine) == [second]


@pytest.mark.parametrize(
    "act", [lambda on: emit(on, step(1), deliver_at=LATER), lambda on: cancel(on, uuid4())]
)
def test_outside_a_transaction_both_are_errors_that_say_so(
    engine: Engine, database: str, act: Callable[[Any], object]
) -> None:
    with Session(engine) as session, pytest.raises(NoTransaction, match="this session has none"):
        act(session)
    with engine.connect() as connection, pytest.raises(NoTransaction, match="this connection has none"):
        act(connection)
    with psycopg.connect(database, autocommit=True) as raw, pytest.raises(NoTransaction, match="autocommit"):
        act(raw)


def test_something_else_entirely_is_refused(outbox: Outbox) -> None:
    with pytest.raises(ConfigurationError, match=r"goes to a Session.*not to builtins\.str"):
        cancel("here", uuid4())  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="use AsyncOutbox"):
        outbox.cancel(AsyncSession(), uuid4())  # type: ignore[arg-type]


def test_a_schema_without_the_table_or_the_function_is_explained(empty_database: str) -> None:
    for act in (lambda on: emit(on, step(1), deliver_at=LATER), lambda on: cancel(on, uuid4())):
        with psycopg.connect(empty_database) as connection:
            with pytest.raises(SchemaError, match="outbox-relay db upgrade"):
                act(connection)


@pytest.mark.anyio
async def test_the_async_twins_have_the_same_words(
    engine: Engine, async_engine: AsyncEngine, database: str
) -> None:
    outbox = AsyncOutbox(async_sessionmaker(async_engine))

    @outbox.transaction
    async def remind(session: AsyncSession, number: int) -> UUID:
        return await outbox.emit(session, step(number), deliver_at=LATER)

    first, second = await remind(1), await remind(2)
    async with outbox.sessions.begin() as session:
        assert await outbox.cancel(session, first)
        assert not await cancel(session, first)
    async with async_engine.begin() as connection:
        assert await cancel(connection, second)
        third = await emit(connection, step(3), deliver_at=LATER)
    async with await psycopg.AsyncConnection.connect(database) as raw:
        assert await cancel(raw, third)
        fourth = await emit(raw, step(4), deliver_at=LATER)
    with pytest.raises(NoTransaction):
        await cancel(AsyncSession(async_engine), fourth)
    with pytest.raises(ConfigurationError, match="an AsyncSession"):
        await outbox.cancel(engine, fourth)  # type: ignore[arg-type]
    assert ids(engine) == [fourth]


def test_the_fixture_tells_what_waits(outbox: Outbox, outbox_events: OutboxEvents) -> None:
    with outbox.sessions.begin() as session:
        outbox.emit(session, step(1))
        first = outbox.emit(session, step(2), deliver_at=LATER)
        second = outbox.emit(session, step(3), deliver_at=LATER - timedelta(days=1))
    assert outbox_events() == [step(1)]
    assert outbox_events.scheduled() == [
        Scheduled(LATER - timedelta(days=1), step(3)),
        Scheduled(due=LATER, event=step(2)),
    ]
    with pytest.raises(Abort), outbox.sessions.begin() as session:
        outbox.cancel(session, first)
        raise Abort
    with outbox.sessions.begin() as session:
        outbox.cancel(session, first)
        outbox.cancel(session, second)
        outbox.emit(session, step(3), id=second, deliver_at=LATER)
    assert outbox_events.scheduled() == [Scheduled(LATER, step(3))]
    assert outbox_events() == [step(1)]


def test_the_fixture_sees_a_psycopg_connection_too(
    engine: Engine, database: str, outbox_events: OutboxEvents
) -> None:
    with psycopg.connect(database) as connection:
        event_id = emit(connection, step(1), deliver_at=LATER)
        assert outbox_events.scheduled() == [Scheduled(LATER, step(1))]
        cancel(connection, event_id)
    assert outbox_events.scheduled() == []
