"""The async twins promise what the plain ones promise."""

from collections.abc import Coroutine
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker

from outbox import AsyncOutbox, ConfigurationError, EmitError, NoTransaction, cancel, emit
from tests.write.orders import Order, Zone, place, published, step, steps

pytestmark = pytest.mark.anyio


class Abort(Exception):
    """Raised by a test to roll back."""


@pytest.fixture
def sessions(async_engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(async_engine)


@pytest.fixture
def outbox(sessions: async_sessionmaker[AsyncSession]) -> AsyncOutbox:
    return AsyncOutbox(sessions)


async def test_a_service_function_is_a_transaction(engine: Engine, outbox: AsyncOutbox) -> None:
    @outbox.transaction
    async def place_order(session: AsyncSession, total: str) -> UUID:
        order, placed = place(total)
        session.add(order)
        await outbox.emit(session, placed)
        if total == "0":
            raise Abort
        return order.id

    order_id = await place_order("9.90")
    with pytest.raises(Abort):
        await place_order("0")
    (event,) = published(engine)
    assert event.order_id == order_id  # type: ignore[attr-defined]


async def test_it_joins_an_open_transaction(engine: Engine, outbox: AsyncOutbox) -> None:
    @outbox.transaction
    async def take(session: AsyncSession, number: int) -> None:
        await outbox.emit(session, step(number))

    async with outbox.sessions.begin() as session:
        await take(1, session=session)
        assert steps(engine) == []
        with pytest.raises(Abort):
            async with session.begin_nested():
                await take(2, session=session)
                raise Abort
    assert steps(engine) == [1]
    async with outbox.sessions() as session:
        with pytest.raises(NoTransaction, match="has no open transaction"):
            await take(3, session=session)


async def test_savepoints_and_emit_order(engine: Engine, sessions: async_sessionmaker[AsyncSession]) -> None:
    async with sessions.begin() as session:
        for number in range(3):
            await emit(session, step(number))
        with pytest.raises(Abort):
            async with session.begin_nested():
                await emit(session, step(99))
                raise Abort
        await emit(session, step(3))
    assert steps(engine) == [0, 1, 2, 3]


async def test_an_async_connection_is_as_good_as_a_session(engine: Engine, async_engine: AsyncEngine) -> None:
    async with async_engine.begin() as connection:
        await emit(connection, step(1))
    async with async_engine.connect() as connection:
        with pytest.raises(NoTransaction):
            await emit(connection, step(2))
        await connection.begin()
        await emit(connection, step(3))
        await connection.rollback()
    assert steps(engine) == [1]


async def test_a_scoped_session_is_as_good_as_a_session(
    engine: Engine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    scoped = async_scoped_session(sessions, scopefunc=lambda: 1)
    async with scoped.begin():
        await emit(scoped, step(1))
    await scoped.remove()
    assert steps(engine) == [1]


async def test_outside_a_transaction_is_an_error_that_says_so(
    sessions: async_sessionmaker[AsyncSession],
) -> None:
    async with sessions() as session:
        with pytest.raises(NoTransaction, match=r"@outbox\.transaction"):
            await emit(session, step(1))


async def test_a_commit_without_the_await_fails_and_names_the_event(
    engine: Engine, outbox: AsyncOutbox, sessions: async_sessionmaker[AsyncSession]
) -> None:
    forgotten: list[Coroutine[Any, Any, UUID]] = []

    @outbox.transaction
    async def place_order(session: AsyncSession) -> None:
        order, placed = place("9.90")
        session.add(order)
        forgotten.append(outbox.emit(session, placed))

    with pytest.raises(EmitError, match=r"order\.placed\.v1 was called and not awaited"):
        await place_order()
    scoped = async_scoped_session(sessions, scopefunc=lambda: 1)
    with pytest.raises(EmitError, match="not awaited"):
        async with scoped.begin():
            await emit(scoped, step(1))
            forgotten.append(emit(scoped, step(2)))
    await scoped.remove()
    assert published(engine) == []
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Order)) == 0
    for call in forgotten:
        call.close()


async def test_a_connections_commit_without_the_await_fails_too(
    engine: Engine, async_engine: AsyncEngine
) -> None:
    with pytest.raises(EmitError, match="not awaited"):
        async with async_engine.begin() as connection:
            await emit(connection, step(1))
            forgotten = emit(connection, step(2))
    forgotten.close()
    assert published(engine) == []


async def test_a_cancel_without_the_await_fails_the_commit_too(
    outbox: AsyncOutbox, sessions: async_sessionmaker[AsyncSession], async_engine: AsyncEngine
) -> None:
    id_ = uuid4()
    forgotten = []
    with pytest.raises(EmitError, match=rf"cancel\(\) of {id_} was called and not awaited"):
        async with sessions.begin() as session:
            forgotten.append(outbox.cancel(session, id_))
    with pytest.raises(EmitError, match="not awaited"):
        async with async_engine.begin() as connection:
            forgotten.append(cancel(connection, id_))
    for call in forgotten:
        call.close()
    async with sessions.begin() as session:
        assert await outbox.cancel(session, id_) is False


async def test_an_emit_may_be_awaited_later_and_a_rollback_forgets_it(
    engine: Engine, async_engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    async with sessions() as session:
        await session.begin()
        forgotten = [emit(session, step(1))]
        await session.rollback()
        async with session.begin():
            later = emit(session, step(2))
            await emit(session, step(3))
            await later
    async with async_engine.connect() as connection:
        await connection.begin()
        forgotten.append(emit(connection, step(4)))
        await connection.rollback()
        async with connection.begin():
            await emit(connection, step(5))
    assert steps(engine) == [3, 2, 5]
    for call in forgotten:
        call.close()


async def test_a_serialization_failure_is_tried_again(engine: Engine, outbox: AsyncOutbox) -> None:
    async with outbox.sessions.begin() as session:
        session.add(Zone(id=1))
    seen: list[int] = []

    @outbox.transaction(isolation="repeatable read")
    async def raise_balance(session: AsyncSession) -> None:
        zone = await session.get_one(Zone, 1)
        seen.append(zone.balance)
        if len(seen) == 1:
            with engine.begin() as other:
                other.execute(text("UPDATE zones SET balance = 5"))
        zone.balance += 1
        await outbox.emit(session, step(zone.balance))

    await raise_balance()
    assert seen == [0, 5]
    assert steps(engine) == [6]


async def test_a_stricter_function_does_not_join_a_looser_transaction(outbox: AsyncOutbox) -> None:
    @outbox.transaction(isolation="serializable")
    async def strict(session: AsyncSession) -> None:
        raise AssertionError("never called")

    async with outbox.sessions.begin() as session:
        with pytest.raises(ConfigurationError, match=r"SERIALIZABLE.*READ COMMITTED"):
            await strict(session=session)


async def test_plain_functions_and_sessions_are_refused(
    engine: Engine, outbox: AsyncOutbox, sessions: async_sessionmaker[AsyncSession]
) -> None:
    from sqlalchemy.orm import Session, sessionmaker

    from outbox import Outbox

    with pytest.raises(ConfigurationError, match="async def"):

        @outbox.transaction  # type: ignore[arg-type]
        def plain(session: AsyncSession) -> None: ...

    with Session(engine) as session, session.begin():
        with pytest.raises(ConfigurationError, match="AsyncSession"):
            await outbox.emit(session, step(1))  # type: ignore[arg-type]
    plain_outbox = Outbox(sessionmaker())
    async with sessions.begin() as asynchronous:
        with pytest.raises(ConfigurationError, match="use AsyncOutbox"):
            plain_outbox.emit(asynchronous, step(1))  # type: ignore[arg-type]
