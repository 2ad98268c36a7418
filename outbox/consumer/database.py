"""Where a consumer's transactions run and its handlers are called: in the thread that asks."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, sessionmaker

from outbox.consumer import handlers
from outbox.consumer.handlers import Run
from outbox.consumer.record import Polled
from outbox.consumer.time_limit import TimeLimit, cancel_statement
from outbox.errors import ConfigurationError

T = TypeVar("T")


class Database:
    """The engine that holds results and offsets, and the sessions that handlers are given.

    Whoever connects does so inside `transact`, so that the same code serves an engine that must be awaited.
    """

    def __init__(self, engine: Engine, sessions: sessionmaker[Session]) -> None:
        self.engine = engine
        self.sessions = sessions

    def transact(self, work: Callable[[], T]) -> T:
        """Do `work`, in which the engine may be used. From any thread."""
        return work()

    def connect(self) -> Connection:
        """A connection on which handlers may be called; inside `transact`."""
        return self.engine.connect()

    def handle(self, connection: Connection, runs: Sequence[Run], limit: TimeLimit) -> Polled | None:
        """Call handlers in the connection's transaction, which stays the caller's; inside `transact`.

        A handler's session.commit() flushes, its session.rollback() fails the batch. Returns the record
        before which the batch's time was over, None if all were handled. Raises TooSlow for a call that was
        interrupted.
        """
        with self.sessions(bind=connection, join_transaction_mode="rollback_only") as session:
            check_bound(session, connection)
            limit.begin(cancel_statement(connection, limit.limit))
            try:
                left = handlers.apply(session, runs, limit.call)
                session.commit()
            finally:
                limit.end()
        return left


def check_bound(session: Session, connection: Connection) -> None:
    """Raises ConfigurationError for a session that would store results elsewhere."""
    if session.get_bind() is not connection:
        raise ConfigurationError(
            f"{type(session).__name__}.get_bind() chooses a connection of its own, so results and offset "
            "would not be stored together; give the consumer a sessionmaker of plain Sessions"
        )
