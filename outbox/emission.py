"""Record an event in the transaction that is open: it leaves if that commits, and only then.

Through SQLAlchemy the event waits and is written at the connection's commit, after every flush. A raw
psycopg connection has no such moment: there the event is written at once, so take your row locks first, or
two transactions that conflict may publish in the other order.

What cannot travel is refused here, before anything commits.
"""

import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack, overload
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection
from sqlalchemy.exc import InvalidRequestError, PendingRollbackError, UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from outbox import hooks, pending, unawaited
from outbox.errors import ConfigurationError, NoTransaction
from outbox.event import Event
from outbox.row import Overrides, Row, insert, refuse, row
from outbox.scheduled import schedule
from outbox.storage.tables import outbox_event
from outbox.tombstone import Tombstone
from outbox.unawaited import Unawaited

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from typing_extensions import TypeIs

Target: TypeAlias = Session | scoped_session[Session] | Connection | psycopg.Connection[Any]
AsyncTarget: TypeAlias = (
    "AsyncSession | async_scoped_session[AsyncSession] | AsyncConnection | psycopg.AsyncConnection[Any]"
)


@overload
def emit(target: Target, event: Event | Tombstone, **overrides: Unpack[Overrides]) -> UUID: ...
@overload
def emit(
    target: AsyncTarget, event: Event | Tombstone, **overrides: Unpack[Overrides]
) -> Coroutine[Any, Any, UUID]: ...
def emit(
    target: "Target | AsyncTarget", event: Event | Tombstone, **overrides: Unpack[Overrides]
) -> UUID | Coroutine[Any, Any, UUID]:
    """Record `event`, or the Tombstone of a key, in the transaction open on `target`; returns the event's id.

    target      a SQLAlchemy Session or Connection, or a psycopg connection; `await` it for their async twins
                (a transaction that commits without the `await` fails, but for psycopg's, which tells of no
                commit).
    headers     the caller's own, beside those the relay writes.
    topic       instead of the event class's. key: instead of its key field. id: instead of a new UUIDv7.
    deliver_at  a moment (datetime with a time zone): the event is kept until the database's clock has
                reached it, and `cancel` takes it back until then. It bears that moment as its time.

    Raises NoTransaction, EventNotSerialisable, EventRejected, ConfigurationError; SchemaError when the table
    or a right is missing (at commit, or here on a psycopg connection).
    """
    made = row(event, **overrides)
    if is_async(target):
        return promise(target, made)
    record(target, made)
    return made.id


def is_async(target: object) -> "TypeIs[AsyncTarget]":
    """Must `target` be awaited? SQLAlchemy's asyncio, which needs greenlet, is not loaded for the answer."""
    if isinstance(target, psycopg.AsyncConnection):
        return True
    aio = sys.modules.get("sqlalchemy.ext.asyncio")
    return aio is not None and isinstance(
        target, aio.AsyncSession | aio.AsyncConnection | aio.async_scoped_session
    )


def record(target: Target, made: Row) -> None:
    """Keep `made` until the transaction on `target` commits; on a psycopg connection, write it."""
    if isinstance(target, scoped_session):
        target = target()
    if isinstance(target, Session):
        pending.keep(connection_of(target), made)
    elif isinstance(target, Connection):
        pending.keep(target, made)
    elif isinstance(target, psycopg.Connection):
        require_transaction(target)
        try:
            target.execute(*_statement(made))
        except psycopg.Error as error:
            refuse(error, error)
        _written(made)
    else:
        raise unknown(target, SYNC)


def promise(target: AsyncTarget, made: Row) -> Coroutine[Any, Any, UUID]:
    """The same for the async twins, to be awaited: a commit before that fails."""
    call, calls = object(), unawaited_on(target)
    calls[call] = f"emit() of {made.type}"
    return _record_async(target, made, lambda: calls.pop(call, None))


def unawaited_on(target: object) -> Unawaited:
    """Where calls on `target` are noted until they are awaited."""
    if is_async(target) and not isinstance(target, psycopg.AsyncConnection):
        from sqlalchemy.ext.asyncio import AsyncConnection, async_scoped_session

        if not isinstance(target, AsyncConnection):
            session = target() if isinstance(target, async_scoped_session) else target
            return unawaited.on(session.sync_session)
        if target.in_transaction() and target.sync_connection is not None:
            return pending.opened(target.sync_connection).unawaited
    return {}


async def _record_async(target: AsyncTarget, made: Row, awaited: Callable[[], object]) -> UUID:
    awaited()
    if not is_async(target):
        raise unknown(target, ASYNC)
    if isinstance(target, psycopg.AsyncConnection):
        require_transaction(target)
        try:
            await target.execute(*_statement(made))
        except psycopg.Error as error:
            refuse(error, error)
        _written(made)
        return made.id
    from sqlalchemy.ext.asyncio import AsyncConnection, async_scoped_session

    if isinstance(target, AsyncConnection):
        require_open(target.in_transaction(), "connection")
        await target.run_sync(pending.keep, made)
        return made.id
    session = target() if isinstance(target, async_scoped_session) else target
    require_open(session.in_transaction(), "session")
    await session.run_sync(record, made)
    return made.id


def connection_of(session: Session) -> Connection:
    """The connection of the session whose engine holds the outbox, whatever other engines it is bound to."""
    require_open(session.in_transaction(), "session")
    try:
        return session.connection(bind_arguments={"clause": outbox_event})
    except UnboundExecutionError as error:
        raise ConfigurationError(
            "this session has no engine for outbox_event; bind the session, or name the table among its "
            "binds: sessionmaker(binds={Base: engine, outbox.tables.outbox_event: engine})"
        ) from error
    except PendingRollbackError:
        raise
    except InvalidRequestError as error:
        raise NoTransaction(f"this session's transaction takes no more events: {error}") from error


def require_open(is_open: bool, what: str) -> None:
    """Raises NoTransaction: what is recorded outside a transaction belongs to nothing."""
    if not is_open:
        raise NoTransaction(
            f"an event needs an open transaction, and this {what} has none; put the work into a function "
            f"under @outbox.transaction, or into `with {what}.begin():`"
        )


def require_transaction(connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]") -> None:
    """Raises NoTransaction for an autocommit connection outside a transaction block."""
    if connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
        raise NoTransaction(
            "an event needs an open transaction, and this psycopg connection is in autocommit; put the work "
            "into `with connection.transaction():`"
        )


SYNC = "a Session, a Connection or a psycopg connection"
ASYNC = "an AsyncSession, an AsyncConnection or a psycopg AsyncConnection"


def unknown(target: object, wanted: str) -> ConfigurationError:
    """What is said of a target that holds no transaction."""
    return ConfigurationError(
        f"an event goes to {wanted}, not to {type(target).__module__}.{type(target).__qualname__}"
    )


def _statement(made: Row) -> tuple[Any, ...]:
    return insert([made]) if made.due is None else schedule([made])


def _written(made: Row) -> None:
    alone = pending.Pending()
    alone.add(made)
    alone.written = True
    hooks.fire("outbox.opened", pending=alone)
    hooks.fire("outbox.written", count=1)
