"""Write a connection's events as the last thing before its commit, and only if it commits.

Positions must be drawn while the transaction holds every lock it will ever take: of two transactions that
conflict, the later then gets the higher numbers. Inside a flush that is not so, because SQLAlchemy sorts
unrelated mappers by name; the commit of the connection comes after every flush, and after whatever
before_commit listeners do.

Events belong to a transaction object, not to a connection, so a pooled connection cannot carry them from
one transaction into another.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import UUID
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import NestedTransaction, RootTransaction
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from outbox import hooks
from outbox.errors import ConfigurationError, EmitError, NoTransaction
from outbox.row import Row, insert, refuse
from outbox.scheduled import schedule
from outbox.unawaited import Unawaited, refuse_unawaited


class Pending:
    """What one transaction emitted and cancelled, in order, each with the savepoints it stands in."""

    __slots__ = ("_log", "unawaited", "written")

    def __init__(self) -> None:
        self._log: list[tuple[Row | UUID, tuple[str, ...], int]] = []
        self.unawaited: Unawaited = {}
        self.written = False

    def add(self, row: Row, savepoints: tuple[str, ...] = ()) -> None:
        self._log.append((row, savepoints, _place.get()))

    def cancel(self, event_id: UUID, savepoints: tuple[str, ...] = ()) -> None:
        """What was scheduled under this id, by this transaction or an earlier one, will not leave."""
        self._log.append((event_id, savepoints, _place.get()))

    def arrange(self) -> None:
        """Bring what was done at several places at a time into their order."""
        self._log.sort(key=lambda entry: entry[2])

    def roll_back_to(self, savepoint: str) -> None:
        """Forget what was done inside `savepoint`, also in savepoints within it."""
        self._log = [entry for entry in self._log if savepoint not in entry[1]]

    def drop(self) -> None:
        """The transaction was rolled back."""
        self._log.clear()
        self.unawaited.clear()

    @property
    def rows(self) -> list[Row]:
        """What is written, or would be if the transaction committed now."""
        kept: list[Row] = []
        for done, *_ in self._log:
            if isinstance(done, UUID):
                kept = [row for row in kept if row.due is None or row.id != done]
            else:
                kept.append(done)
        return kept

    @property
    def cancelled(self) -> set[UUID]:
        """Ids that this transaction took back."""
        return {done for done, *_ in self._log if isinstance(done, UUID)}


_place: ContextVar[int] = ContextVar("outbox.place", default=0)


@contextmanager
def place(number: int) -> Iterator[None]:
    """What is emitted inside, in this thread or task, is the `number`-th part of its transaction."""
    token = _place.set(number)
    try:
        yield
    finally:
        _place.reset(token)


_pending: WeakKeyDictionary[RootTransaction, Pending] = WeakKeyDictionary()
_listening: WeakSet[Engine] = WeakSet()
_lock = threading.Lock()

_WRITTEN = "outbox.written"
"""In a pooled connection's `info`: how many events its transaction wrote. Gone when that was rolled back."""


def of(connection: Connection) -> Pending | None:
    """What the transaction open on `connection` has emitted so far."""
    transaction = connection.get_transaction()
    return None if transaction is None else _pending.get(transaction)


def keep(connection: Connection, row: Row) -> None:
    """Remember `row` until `connection` commits. Raises NoTransaction, ConfigurationError."""
    pending = opened(connection)
    if pending.written:
        raise EmitError(
            "this transaction is being committed and its events are written already; emit before commit() "
            "(and before prepare())"
        )
    pending.add(row, savepoints(connection))


def opened(connection: Connection) -> Pending:
    """What the transaction open on `connection` keeps. Raises NoTransaction, ConfigurationError."""
    transaction = connection.get_transaction()
    if transaction is None or not transaction.is_active:
        raise NoTransaction(
            "an event needs an open transaction, and this connection has none; use `with engine.begin() as "
            "connection:` or connection.begin()"
        )
    pending = _pending.get(transaction)
    return _open(connection, transaction) if pending is None else pending


def _open(connection: Connection, transaction: RootTransaction) -> Pending:
    dialect = connection.dialect
    if dialect.name != "postgresql" or dialect.driver != "psycopg":
        raise ConfigurationError(
            f"events are kept in PostgreSQL through psycopg 3, and this connection is {dialect.name}+"
            f"{dialect.driver}; use a URL that begins with postgresql+psycopg://"
        )
    if getattr(connection.connection.driver_connection, "autocommit", False):
        raise NoTransaction(
            "an event needs a transaction, and this connection is in AUTOCOMMIT, where each statement is one "
            'of its own; leave isolation_level="AUTOCOMMIT" away for this engine or connection'
        )
    _listen(connection.engine)
    with _lock:
        if (pending := _pending.get(transaction)) is not None:
            return pending  # of several threads that share the transaction another one was first
        pending = _pending[transaction] = Pending()
    hooks.fire("outbox.opened", pending=pending)
    return pending


def savepoints(connection: Connection) -> tuple[str, ...]:
    """Names of the savepoints that are open, innermost first."""
    savepoint: NestedTransaction | None = connection.get_nested_transaction()
    if savepoint is None:
        return ()
    names = []
    while savepoint is not None:
        names.append(savepoint._savepoint)
        savepoint = savepoint._previous_nested
    return tuple(names)


def write(connection: Connection, pending: Pending) -> None:
    """Insert what is pending, in emit order, in one statement. An error fails the commit."""
    if pending.written:
        return
    refuse_unawaited(pending.unawaited)
    pending.written = True
    rows = pending.rows
    if not rows:
        return
    now = [row for row in rows if row.due is None]
    try:
        if len(now) < len(rows):
            # First, for its unique index may wait for another transaction, and positions must be drawn after.
            connection.exec_driver_sql(*schedule([row for row in rows if row.due is not None]))
        if now:
            connection.exec_driver_sql(*insert(now))
    except DBAPIError as error:
        refuse(error, error.orig)
    connection.info[_WRITTEN] = len(rows)
    hooks.fire("outbox.written", count=len(rows))


def _listen(engine: Engine) -> None:
    """Register once per engine, when it first emits: engines that never do pay nothing."""
    if engine in _listening:
        return
    with _lock:
        if engine not in _listening:
            for name, listener in _LISTENERS.items():
                event.listen(engine, name, listener)
            event.listen(engine, "checkin", _on_checkin)
            _listening.add(engine)


def _on_commit(connection: Connection) -> None:
    transaction = connection.get_transaction()
    if transaction is None:
        return
    pending = _pending.get(transaction)
    if pending is None:
        # A first event that comes only now, from a listener behind this one, must fail and not get lost.
        pending = _pending[transaction] = Pending()
    write(connection, pending)


def _on_prepare(connection: Connection, _xid: object) -> None:
    _on_commit(connection)


def _on_commit_twophase(connection: Connection, _xid: object, is_prepared: bool) -> None:
    if not is_prepared:
        _on_commit(connection)


def _on_checkin(connection: object, record: ConnectionPoolEntry) -> None:
    """SQLAlchemy tells of a commit before it, and of nothing after it but this (None: it broke)."""
    if (count := record.info.pop(_WRITTEN, 0)) and connection is not None:
        hooks.fire("outbox.committed", count=count)


def _on_rollback(connection: Connection) -> None:
    if not connection.invalidated:  # its info would be a new connection's, which a rollback may not ask for
        connection.info.pop(_WRITTEN, None)
    if pending := of(connection):
        pending.drop()


def _on_rollback_twophase(connection: Connection, _xid: object, _is_prepared: bool) -> None:
    _on_rollback(connection)


def _on_rollback_savepoint(connection: Connection, name: str, _context: None) -> None:
    if pending := of(connection):
        pending.roll_back_to(name)


_LISTENERS: dict[str, Callable[..., None]] = {
    "rollback": _on_rollback,
    "rollback_twophase": _on_rollback_twophase,
    "rollback_savepoint": _on_rollback_savepoint,
    "prepare_twophase": _on_prepare,
    "commit_twophase": _on_commit_twophase,
    "commit": _on_commit,
}
