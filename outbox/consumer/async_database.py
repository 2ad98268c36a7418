"""A consumer's transactions and handlers on an event loop: the same statements and decisions, awaited.

What a member does with the database is plain code that SQLAlchemy runs in a greenlet, as it does under its
AsyncSession; where handlers are called, their coroutines are awaited. The member's thread, which alone talks
to Kafka, waits meanwhile.
"""

import asyncio
import concurrent.futures
import inspect
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.util import await_only, greenlet_spawn

from outbox import pending
from outbox.consumer.database import Database, LoopEnded, alone, arrange_events, check_bound
from outbox.consumer.handlers import Handler, Run, read, refuse_unrun
from outbox.consumer.lanes import Bulk, Deal, settle, steps
from outbox.consumer.record import Polled, record_of
from outbox.consumer.time_limit import TimeLimit
from outbox.errors import ConfigurationError, OutboxError

T = TypeVar("T")


class HandlerCancelled(OutboxError):
    """A handler ended as cancelled, though nobody cancelled it: something that it awaited was."""


class AsyncDatabase(Database):
    """The same as Database, for an AsyncEngine. loop: where it is awaited; set while the consumer runs."""

    def __init__(
        self, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], lanes: int = 1
    ) -> None:
        self.engine = engine.sync_engine
        self.lanes = lanes
        self.loop: asyncio.AbstractEventLoop | None = None
        self._async_engine = engine
        self._sessions = sessions

    def transact(self, work: Callable[[], T]) -> T:
        if self.loop is None:
            raise ConfigurationError("an AsyncConsumer works while `serve` or `run` does")
        if self.loop is _running():
            raise ConfigurationError(
                "called on the consumer's own event loop, which would wait for itself; use a thread: "
                "await asyncio.to_thread(consumer.seek, ...)"
            )
        called = greenlet_spawn(work)
        try:
            future = asyncio.run_coroutine_threadsafe(called, self.loop)
        except RuntimeError as error:
            called.close()
            raise LoopEnded("the event loop of this consumer is closed") from error
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise LoopEnded("the event loop cancelled a transaction of this consumer") from error

    async def dispose(self) -> None:
        """Close pooled connections, which belong to the loop that is about to end."""
        await self._async_engine.dispose()

    def handle(self, connection: Connection, runs: Sequence[Run], limit: TimeLimit) -> Polled | None:
        left = await_only(self._handle(AsyncConnection(self._async_engine, connection), runs, limit))
        arrange_events(connection)
        return left

    async def _handle(
        self, connection: AsyncConnection, runs: Sequence[Run], limit: TimeLimit
    ) -> Polled | None:
        lanes = 1 if alone(runs) else self.lanes
        async with AsyncExitStack() as stack:
            sessions = [
                await stack.enter_async_context(
                    self._sessions(bind=connection, join_transaction_mode="rollback_only")
                )
                for _ in range(lanes)
            ]
            assert connection.sync_connection is not None
            check_bound(sessions[0].sync_session, connection.sync_connection)
            limit.begin(_nothing)
            try:
                left = await (
                    _apply(sessions[0], runs, limit) if lanes == 1 else _deal(sessions, runs, limit)
                )
                with pending.place(sum(len(run.messages) for run in runs)):
                    for session in sessions:
                        await session.commit()
            finally:
                limit.end()
        return left


async def _apply(session: AsyncSession, runs: Sequence[Run], limit: TimeLimit) -> Polled | None:
    """The handlers one after the other, in the records' order; a bulk handler gets a run at once."""
    for run in runs:
        handler = run.route.handler
        events = read(run)
        if handler.bulk:
            if not limit.call():
                return run.messages[0]
            records = [record_of(message) for message in run.messages] if handler.wants_record else None
            await _call(handler, limit, session, events, records)
            continue
        for event, message in zip(events, run.messages, strict=True):
            if not limit.call():
                return message
            await _call(handler, limit, session, event, record_of(message) if handler.wants_record else None)
    return None


async def _deal(sessions: Sequence[AsyncSession], runs: Sequence[Run], limit: TimeLimit) -> Polled | None:
    """The same with a task for each session. All of them have ended when it returns."""
    deal = Deal(len(sessions))
    for step in steps(runs, len(sessions)):
        if isinstance(step, Bulk):
            await _settle(sessions)
            with pending.place(step.number):
                left = await _apply(sessions[0], [step.run], limit)
            await _settle(sessions)
            deal.forget()
        else:
            deal.begin(step)
            try:
                async with asyncio.TaskGroup() as group:
                    for lane, session in enumerate(sessions):
                        group.create_task(_lane(lane, session, deal, limit))
            except BaseExceptionGroup as failed:
                raise deal.error or failed from None
            if deal.error is not None:
                raise deal.error
            left = deal.left()
        if left is not None:
            return left
    return None


async def _settle(sessions: Sequence[AsyncSession]) -> None:
    for session in sessions:
        await session.run_sync(lambda within: settle([within]))


async def _lane(lane: int, session: AsyncSession, deal: Deal, limit: TimeLimit) -> None:
    """Its failure cancels the other lanes."""
    try:
        while (task := deal.next(lane)) is not None:
            if not limit.call(lane):
                deal.stop()
            handler, message = task.route.handler, task.message
            (event,) = read(task.run())
            with pending.place(task.number):
                await _call(
                    handler, limit, session, event, record_of(message) if handler.wants_record else None
                )
    except BaseException as error:
        deal.fail(error)  # also for a cancelled one: a group forgives its tasks for that
        raise
    finally:
        limit.rest(lane)


async def _call(handler: Handler, limit: TimeLimit, session: AsyncSession, event: Any, record: Any) -> None:
    """One call. The limit cancels it, wherever it waits.

    What ends as cancelled did not handle its record; only a cancellation that is meant for us ends more.
    """
    if not session.in_transaction():
        session.sync_session.begin()
    arguments = (session, event) if record is None else (session, event, record)
    result: Any = handler.function(*arguments)
    if not inspect.isawaitable(result):
        raise ConfigurationError(
            f"{getattr(handler.function, '__qualname__', repr(handler.function))} returned a "
            f"{type(result).__name__} and nothing to await; handlers of an AsyncConsumer are `async def`"
        )
    seconds = None if limit.limit is None else limit.limit.total_seconds()
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            done = await result
    except TimeoutError as error:
        if clock.expired():
            raise limit.too_slow() from error
        raise
    except asyncio.CancelledError as error:
        here = asyncio.current_task()
        if here is not None and not here.cancelling():
            raise HandlerCancelled("what a handler awaited was cancelled; let it raise an error") from error
        raise
    if done is not None:
        refuse_unrun(handler, done)


def _running() -> asyncio.AbstractEventLoop | None:
    """The event loop of this thread, if one runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _nothing() -> None:
    """The loop itself interrupts what waits on it."""
