"""The async twin of Consumer: handlers are `async def` and get an AsyncSession; guarantees are the same.

    consumer = AsyncConsumer(group="billing", sessions=async_sessionmaker(engine), kafka={...})

    @consumer.on(OrderPlaced)
    async def open_invoice(session: AsyncSession, event: OrderPlaced) -> None:
        session.add(Invoice(order_id=event.order_id, amount=event.total))

    consumer.run(threads=3)        # or, on a loop that is yours: await consumer.serve(threads=3)

Each member talks to Kafka in a thread of its own. Handlers and transactions of all members run on one event
loop, so that clients which belong to a loop (HTTP, pools, the AsyncEngine itself) can be shared by them.
Needs greenlet, as SQLAlchemy's asyncio does.
"""

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from outbox.consumer.async_database import AsyncDatabase
from outbox.consumer.consumer import Consumer, check_engine
from outbox.consumer.crew import signals
from outbox.consumer.database import Database, LoopEnded
from outbox.consumer.handlers import Handlers
from outbox.errors import ConfigurationError


class AsyncConsumer(Consumer):
    """A consumer group's coroutine handlers. Arguments are those of Consumer, with an async_sessionmaker."""

    def run(
        self,
        threads: int = 1,
        *,
        kafka: Mapping[str, Any] | None = None,
        partitions: Iterable[tuple[str, int]] | None = None,
    ) -> None:
        """Consume on an event loop of its own; see Consumer.run. The engine's pool is emptied at the end, as
        its connections belong to that loop."""
        with signals(self._stop):
            asyncio.run(self._alone(threads, kafka, partitions))

    async def serve(
        self,
        threads: int = 1,
        *,
        kafka: Mapping[str, Any] | None = None,
        partitions: Iterable[tuple[str, int]] | None = None,
    ) -> None:
        """Consume on the loop that awaits this, until `stop()` or until it is cancelled; signals stay yours.

        Either way the batch under way is finished before it returns.
        """
        database = self._setup.database
        assert isinstance(database, AsyncDatabase)
        if database.loop is not None:
            raise ConfigurationError("this consumer is running already")
        setup, shares = self._prepared(threads, kafka, partitions)
        loop = database.loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(1, thread_name_prefix=self.group)
        work = loop.run_in_executor(pool, self._consume, setup, shares)
        cancelled: asyncio.CancelledError | None = None
        try:
            while not work.done():
                try:
                    await asyncio.wait([work])
                except asyncio.CancelledError as error:
                    cancelled = error
                    self._stop.set()
            try:
                work.result()
            except LoopEnded:
                if cancelled is None:
                    raise
        finally:
            pool.shutdown(wait=False)
            database.loop = None
            self._stop.clear()
        if cancelled is not None:
            raise cancelled

    async def _alone(
        self,
        threads: int,
        kafka: Mapping[str, Any] | None,
        partitions: Iterable[tuple[str, int]] | None,
    ) -> None:
        database = self._setup.database
        assert isinstance(database, AsyncDatabase)
        try:
            await self.serve(threads, kafka=kafka, partitions=partitions)
        finally:
            await database.dispose()

    def _new_handlers(self) -> Handlers:
        return Handlers(awaited=True)

    def _new_database(self, sessions: object, lanes: int) -> Database:
        if not isinstance(sessions, async_sessionmaker):
            raise ConfigurationError(
                "sessions must be an async_sessionmaker bound to an engine: async_sessionmaker(engine); for "
                "a sessionmaker there is Consumer"
            )
        engine = sessions.kw.get("bind")
        if not isinstance(engine, AsyncEngine):
            raise ConfigurationError(
                "sessions must be an async_sessionmaker bound to an engine: async_sessionmaker(engine)"
            )
        check_engine(sessions.kw, engine.sync_engine)
        if engine.dialect.driver != "psycopg":
            raise ConfigurationError(
                f"the engine's driver is {engine.dialect.driver}; use a URL that begins with "
                "postgresql+psycopg://, whose executemany tells how many rows it changed"
            )
        return AsyncDatabase(engine, sessions, lanes)
