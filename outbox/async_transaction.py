"""The async twin of Outbox: the same decisions, awaited. Needs greenlet, as SQLAlchemy's asyncio does."""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar, Unpack, cast, overload
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from tenacity import AsyncRetrying

from outbox import isolation as levels
from outbox.attempts import policy
from outbox.cancellation import promise_back
from outbox.emission import AsyncTarget, promise
from outbox.event import Event
from outbox.isolation import Isolation
from outbox.preflight import MAX_RECORD_BYTES
from outbox.row import Overrides
from outbox.tombstone import Tombstone
from outbox.transaction import ATTEMPTS, CLAUSE, Rows, named, require_maker, require_session

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

AsyncService: TypeAlias = Callable[Concatenate[AsyncSession, P], Coroutine[Any, Any, R]]


class AsyncTransactional(Protocol[P, R_co]):
    """A service coroutine function without its session; see outbox.transaction.Transactional."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...
    @overload
    def __call__(self, *args: Any, session: AsyncSession, **kwargs: Any) -> Coroutine[Any, Any, R_co]: ...


class AsyncOutbox(Rows):
    """The same words for services that work with AsyncSession: `async def`, `await outbox.emit(...)`."""

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession],
        *,
        max_record_bytes: int = MAX_RECORD_BYTES,
        traceparent: Callable[[], str | None] | None = None,
    ) -> None:
        super().__init__(max_record_bytes=max_record_bytes, traceparent=traceparent)
        require_maker(sessions, "AsyncOutbox(async_sessionmaker(engine))", awaited=True)
        self.sessions = sessions

    def emit(
        self, target: AsyncTarget, event: Event | Tombstone, **overrides: Unpack[Overrides]
    ) -> Coroutine[Any, Any, UUID]:
        """Record `event` in the transaction open on `target`; see outbox.emit."""
        return promise(target, self.row_of(event, overrides))

    def cancel(self, target: AsyncTarget, event_id: UUID) -> Coroutine[Any, Any, bool]:
        """Take back an event that was emitted with `deliver_at`; False is too late. See outbox.cancel."""
        return promise_back(target, event_id)

    @overload
    def transaction(self, function: AsyncService[P, R], /) -> AsyncTransactional[P, R]: ...
    @overload
    def transaction(
        self, function: None = None, /, *, isolation: Isolation | None = None, attempts: int = ATTEMPTS
    ) -> Callable[[AsyncService[P, R]], AsyncTransactional[P, R]]: ...
    def transaction(
        self,
        function: AsyncService[P, R] | None = None,
        /,
        *,
        isolation: Isolation | None = None,
        attempts: int = ATTEMPTS,
    ) -> AsyncTransactional[P, R] | Callable[[AsyncService[P, R]], AsyncTransactional[P, R]]:
        """Run the coroutine function, whose first argument is an AsyncSession, as one transaction."""
        if function is None:
            return lambda function: self._transactional(function, isolation, attempts)
        return self._transactional(function, isolation, attempts)

    def _transactional(
        self,
        function: AsyncService[P, R],
        isolation: Isolation | None,
        attempts: int,
    ) -> AsyncTransactional[P, R]:
        what = named(function, is_async=True)
        level = levels.checked(isolation, what)
        rules = policy(attempts, what)

        async def alone(*args: Any, **kwargs: Any) -> R:
            async with self.sessions() as session, session.begin():
                if level is not None:
                    await session.connection(CLAUSE, execution_options={"isolation_level": level})
                return await function(session, *args, **kwargs)

        async def joined(session: AsyncSession, *args: Any, **kwargs: Any) -> R:
            require_session(session, AsyncSession, what)
            if level is not None:
                connection = await session.connection(CLAUSE)
                levels.require(await connection.get_isolation_level(), level, what)
            return await function(session, *args, **kwargs)

        @wraps(function)
        async def call(*args: Any, session: AsyncSession | None = None, **kwargs: Any) -> R:
            if session is not None:
                return await joined(session, *args, **kwargs)
            return await AsyncRetrying(**rules)(alone, *args, **kwargs)

        return cast(AsyncTransactional[P, R], call)
