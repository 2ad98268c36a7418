"""Where a consumer's transactions run and its handlers are called: in the thread that asks."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, sessionmaker

from outbox import pending
from outbox.consumer import handlers, lanes
from outbox.consumer.handlers import Run
from outbox.consumer.lanes import LaneConnection
from outbox.consumer.record import Polled
from outbox.consumer.time_limit import TimeLimit, cancel_statement
from outbox.errors import ConfigurationError, OutboxError

T = TypeVar("T")


class LoopEnded(OutboxError):
    """The event loop gave up what it did for a consumer: nothing of it was committed, or the row tells."""


class Database:
    """The engine that holds results and offsets, and the sessions that handlers are given.

    lanes: how many handlers may run at a time in one transaction. Whoever connects does so inside
    `transact`, so that the same code serves an engine that must be awaited.
    """

    def __init__(self, engine: Engine, sessions: sessionmaker[Session], lanes: int = 1) -> None:
        self.engine = engine
        self.sessions = sessions
        self.lanes = lanes

    def transact(self, work: Callable[[], T]) -> T:
        """Do `work`, in which the engine may be used. From any thread but the loop's. Raises LoopEnded."""
        return work()

    def connect(self) -> Connection:
        """A connection on which handlers may be called; inside `transact`."""
        return self.engine.connect() if self.lanes == 1 else LaneConnection(self.engine)

    def handle(self, connection: Connection, runs: Sequence[Run], limit: TimeLimit) -> Polled | None:
        """Call handlers in the connection's transaction, which stays the caller's; inside `transact`.

        A handler's session.commit() flushes, its session.rollback() fails the batch. Returns the record
        before which the batch's time was over, None if all were handled. Raises TooSlow for a call that was
        interrupted.
        """
        if self.lanes > 1 and not alone(runs):
            return self._handle_in_lanes(connection, runs, limit)
        with self.sessions(bind=connection, join_transaction_mode="rollback_only") as session:
            check_bound(session, connection)
            limit.begin(cancel_statement(connection, limit.limit))
            try:
                left = handlers.apply(session, runs, limit.call)
                session.commit()
            finally:
                limit.end()
        return left

    def _handle_in_lanes(
        self, connection: Connection, runs: Sequence[Run], limit: TimeLimit
    ) -> Polled | None:
        with ExitStack() as stack:
            sessions = [
                stack.enter_context(self.sessions(bind=connection, join_transaction_mode="rollback_only"))
                for _ in range(self.lanes)
            ]
            check_bound(sessions[0], connection)
            limit.begin(cancel_statement(connection, limit.limit))
            try:
                left = lanes.handle(sessions, runs, limit)
                with pending.place(sum(len(run.messages) for run in runs)):
                    for session in sessions:
                        session.commit()
            finally:
                limit.end()
        arrange_events(connection)
        return left


def alone(runs: Sequence[Run]) -> bool:
    """Is there nothing that could be done at the same time?"""
    return sum(len(run.messages) for run in runs if not run.route.handler.bulk) <= 1


def arrange_events(connection: Connection) -> None:
    """What the lanes emitted leaves in the order of the records that caused it."""
    emitted = pending.of(connection)
    if emitted is not None:
        emitted.arrange()


def check_bound(session: Session, connection: Connection) -> None:
    """Raises ConfigurationError for a session that would store results elsewhere."""
    if session.get_bind() is not connection:
        raise ConfigurationError(
            f"{type(session).__name__}.get_bind() chooses a connection of its own, so results and offset "
            "would not be stored together; give the consumer a sessionmaker of plain Sessions"
        )
