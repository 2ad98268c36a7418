"""Take a scheduled event back, in the transaction that is open: it never leaves if that commits."""

from collections.abc import Callable, Coroutine
from typing import Any, overload
from uuid import UUID

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session

from outbox import hooks, pending
from outbox.emission import (
    ASYNC,
    SYNC,
    AsyncTarget,
    Target,
    connection_of,
    is_async,
    require_open,
    require_transaction,
    unawaited_on,
    unknown,
)
from outbox.row import refuse
from outbox.scheduled import CANCEL


@overload
def cancel(target: Target, event_id: UUID) -> bool: ...
@overload
def cancel(target: AsyncTarget, event_id: UUID) -> Coroutine[Any, Any, bool]: ...
def cancel(target: "Target | AsyncTarget", event_id: UUID) -> bool | Coroutine[Any, Any, bool]:
    """Take back the event that `emit(..., deliver_at=...)` returned the id of.

    True: it will never be published, if the transaction open on `target` commits. False: too late, or no such
    event is scheduled. While the transaction is open, later events of the same topic and key wait.

    Raises NoTransaction, ConfigurationError; SchemaError when the function or a right is missing. Under
    REPEATABLE READ a race that is lost to the relay is a serialization failure, as any lost race there.
    """
    return promise_back(target, event_id) if is_async(target) else take_back(target, event_id)


def take_back(target: Target, event_id: UUID) -> bool:
    """The same for a target that is not awaited."""
    if isinstance(target, scoped_session):
        target = target()
    if isinstance(target, Session):
        return _on_connection(connection_of(target), event_id)
    if isinstance(target, Connection):
        return _on_connection(target, event_id)
    if not isinstance(target, psycopg.Connection):
        raise unknown(target, SYNC)
    require_transaction(target)
    try:
        found = target.execute(CANCEL, [event_id]).fetchone()
    except psycopg.Error as error:
        refuse(error, error)
    return _told(event_id, found)


def promise_back(target: AsyncTarget, event_id: UUID) -> Coroutine[Any, Any, bool]:
    """The same for the async twins, to be awaited: a commit before that fails."""
    call, calls = object(), unawaited_on(target)
    calls[call] = f"cancel() of {event_id}"
    return _take_back_async(target, event_id, lambda: calls.pop(call, None))


async def _take_back_async(target: AsyncTarget, event_id: UUID, awaited: Callable[[], object]) -> bool:
    awaited()
    if not is_async(target):
        raise unknown(target, ASYNC)
    if isinstance(target, psycopg.AsyncConnection):
        require_transaction(target)
        try:
            found = await (await target.execute(CANCEL, [event_id])).fetchone()
        except psycopg.Error as error:
            refuse(error, error)
        return _told(event_id, found)
    from sqlalchemy.ext.asyncio import AsyncConnection, async_scoped_session

    if isinstance(target, AsyncConnection):
        require_open(target.in_transaction(), "connection")
        return await target.run_sync(_on_connection, event_id)
    session = target() if isinstance(target, async_scoped_session) else target
    require_open(session.in_transaction(), "session")
    return await session.run_sync(take_back, event_id)


def _on_connection(connection: Connection, event_id: UUID) -> bool:
    mine = pending.opened(connection)
    unwritten = not mine.written and any(row.due and row.id == event_id for row in mine.rows)
    if not unwritten:
        try:
            if not connection.exec_driver_sql(CANCEL, (event_id,)).scalar_one():
                return False
        except DBAPIError as error:
            refuse(error, error.orig)
    mine.cancel(event_id, pending.savepoints(connection))
    return True


def _told(event_id: UUID, found: tuple[Any, ...] | None) -> bool:
    assert found is not None
    if found[0]:
        alone = pending.Pending()
        alone.cancel(event_id)
        alone.written = True
        hooks.fire("outbox.opened", pending=alone)
    return bool(found[0])
