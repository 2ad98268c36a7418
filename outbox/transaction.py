"""One function, one transaction: the domain's rows and its events, or neither."""

import inspect
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, cast, overload
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from tenacity import AsyncRetrying, Retrying

from outbox import isolation as levels
from outbox.attempts import policy
from outbox.emit import ASYNC_TARGETS, AsyncTarget, Target, record, record_async
from outbox.errors import ConfigurationError, NoTransaction
from outbox.event import Event
from outbox.isolation import Isolation
from outbox.preflight import MAX_RECORD_BYTES
from outbox.row import Overrides, Row, row
from outbox.storage.tables import outbox_event

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

ATTEMPTS = 3


class Transactional(Protocol[P, R_co]):
    """A service function without its session: called plainly it is a transaction of its own.

    With `session=` it joins the transaction open there: it neither commits nor tries again, that is its
    owner's part. (Python cannot express both signatures at once; in this form arguments are not checked.)
    """

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: Any, session: Session, **kwargs: Any) -> R_co: ...


class AsyncTransactional(Protocol[P, R_co]):
    """The same for `async def`."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R_co]: ...
    @overload
    def __call__(self, *args: Any, session: AsyncSession, **kwargs: Any) -> Awaitable[R_co]: ...


class _Rows:
    """What both twins share: the limits of a record, and where the trace comes from."""

    def __init__(
        self,
        *,
        max_record_bytes: int = MAX_RECORD_BYTES,
        traceparent: Callable[[], str | None] | None = None,
    ) -> None:
        if max_record_bytes < 1:
            raise ConfigurationError(f"max_record_bytes={max_record_bytes} is not a number of bytes")
        self._max_record_bytes = max_record_bytes
        self._traceparent = traceparent

    def _row(self, event: Event, overrides: Overrides) -> Row:
        return row(
            event,
            **overrides,
            traceparent=self._traceparent() if self._traceparent is not None else None,
            max_record_bytes=self._max_record_bytes,
        )


class Outbox(_Rows):
    """The door for services that work with Session.

    sessions          makes a session for each transaction.
    max_record_bytes  an event whose key, payload and headers are larger is refused. Default 1,000,000, which
                      fits into Kafka's default limit.
    traceparent       gives the W3C trace context of the work in hand, or None.
    """

    def __init__(
        self,
        sessions: sessionmaker[Session],
        *,
        max_record_bytes: int = MAX_RECORD_BYTES,
        traceparent: Callable[[], str | None] | None = None,
    ) -> None:
        super().__init__(max_record_bytes=max_record_bytes, traceparent=traceparent)
        self.sessions = sessions

    def emit(self, target: Target, event: Event, **overrides: Unpack[Overrides]) -> UUID:
        """Record `event` in the transaction open on `target`; see outbox.emit."""
        if isinstance(target, ASYNC_TARGETS):
            raise ConfigurationError(
                f"an Outbox emits synchronously; for {type(target).__name__} use AsyncOutbox"
            )
        made = self._row(event, overrides)
        record(target, made)
        return made.id

    @overload
    def transaction(self, function: Callable[Concatenate[Session, P], R], /) -> Transactional[P, R]: ...
    @overload
    def transaction(
        self, *, isolation: Isolation | None = None, attempts: int = ATTEMPTS
    ) -> Callable[[Callable[Concatenate[Session, P], R]], Transactional[P, R]]: ...
    def transaction(
        self,
        function: Callable[Concatenate[Session, P], R] | None = None,
        /,
        *,
        isolation: Isolation | None = None,
        attempts: int = ATTEMPTS,
    ) -> Transactional[P, R] | Callable[[Callable[Concatenate[Session, P], R]], Transactional[P, R]]:
        """Run the function, whose first argument is a Session, as one transaction.

        isolation  None leaves it to the engine.
        attempts   how often it is run at most when PostgreSQL reports a serialization failure or a deadlock.
                   Each run has a fresh session; what the function does outside the database happens again.
        """
        if function is None:
            return lambda function: self._transactional(function, isolation, attempts)
        return self._transactional(function, isolation, attempts)

    def _transactional(
        self, function: Callable[Concatenate[Session, P], R], isolation: Isolation | None, attempts: int
    ) -> Transactional[P, R]:
        what = _named(function, is_async=False)
        level = levels.checked(isolation, what)
        rules = policy(attempts, what)

        def alone(*args: Any, **kwargs: Any) -> R:
            with self.sessions() as session, session.begin():
                if level is not None:
                    session.connection(_CLAUSE, execution_options={"isolation_level": level})
                return function(session, *args, **kwargs)

        def joined(session: Session, *args: Any, **kwargs: Any) -> R:
            _require_session(session, Session, what)
            if level is not None:
                levels.require(session.connection(_CLAUSE).get_isolation_level(), level, what)
            return function(session, *args, **kwargs)

        @wraps(function)
        def call(*args: Any, session: Session | None = None, **kwargs: Any) -> R:
            if session is not None:
                return joined(session, *args, **kwargs)
            return Retrying(**rules)(alone, *args, **kwargs)

        return cast(Transactional[P, R], call)


class AsyncOutbox(_Rows):
    """The same words for services that work with AsyncSession: `async def`, `await outbox.emit(...)`."""

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession],
        *,
        max_record_bytes: int = MAX_RECORD_BYTES,
        traceparent: Callable[[], str | None] | None = None,
    ) -> None:
        super().__init__(max_record_bytes=max_record_bytes, traceparent=traceparent)
        self.sessions = sessions

    async def emit(self, target: AsyncTarget, event: Event, **overrides: Unpack[Overrides]) -> UUID:
        """Record `event` in the transaction open on `target`; see outbox.emit."""
        return await record_async(target, self._row(event, overrides))

    @overload
    def transaction(
        self, function: Callable[Concatenate[AsyncSession, P], Awaitable[R]], /
    ) -> AsyncTransactional[P, R]: ...
    @overload
    def transaction(
        self, *, isolation: Isolation | None = None, attempts: int = ATTEMPTS
    ) -> Callable[[Callable[Concatenate[AsyncSession, P], Awaitable[R]]], AsyncTransactional[P, R]]: ...
    def transaction(
        self,
        function: Callable[Concatenate[AsyncSession, P], Awaitable[R]] | None = None,
        /,
        *,
        isolation: Isolation | None = None,
        attempts: int = ATTEMPTS,
    ) -> (
        AsyncTransactional[P, R]
        | Callable[[Callable[Concatenate[AsyncSession, P], Awaitable[R]]], AsyncTransactional[P, R]]
    ):
        """Run the coroutine function, whose first argument is an AsyncSession, as one transaction."""
        if function is None:
            return lambda function: self._transactional(function, isolation, attempts)
        return self._transactional(function, isolation, attempts)

    def _transactional(
        self,
        function: Callable[Concatenate[AsyncSession, P], Awaitable[R]],
        isolation: Isolation | None,
        attempts: int,
    ) -> AsyncTransactional[P, R]:
        what = _named(function, is_async=True)
        level = levels.checked(isolation, what)
        rules = policy(attempts, what)

        async def alone(*args: Any, **kwargs: Any) -> R:
            async with self.sessions() as session, session.begin():
                if level is not None:
                    await session.connection(_CLAUSE, execution_options={"isolation_level": level})
                return await function(session, *args, **kwargs)

        async def joined(session: AsyncSession, *args: Any, **kwargs: Any) -> R:
            _require_session(session, AsyncSession, what)
            if level is not None:
                connection = await session.connection(_CLAUSE)
                levels.require(await connection.get_isolation_level(), level, what)
            return await function(session, *args, **kwargs)

        @wraps(function)
        async def call(*args: Any, session: AsyncSession | None = None, **kwargs: Any) -> R:
            if session is not None:
                return await joined(session, *args, **kwargs)
            return await AsyncRetrying(**rules)(alone, *args, **kwargs)

        return cast(AsyncTransactional[P, R], call)


_CLAUSE = {"clause": outbox_event}


def _require_session(session: object, wanted: type[Session] | type[AsyncSession], what: str) -> None:
    if not isinstance(session, wanted):
        raise ConfigurationError(
            f"{what}(session=...) takes a {wanted.__name__}, not {type(session).__name__}"
        )
    if not session.in_transaction():
        raise NoTransaction(
            f"{what} was asked to join a session that has no open transaction; begin one, or call {what} "
            "without session= to have a transaction of its own"
        )


def _named(function: Callable[..., object], *, is_async: bool) -> str:
    """How messages call the function. Raises ConfigurationError for one that cannot be a transaction."""
    what = getattr(function, "__qualname__", repr(function))
    if inspect.iscoroutinefunction(function) is not is_async:
        raise ConfigurationError(
            f"{what} is not a coroutine function; an AsyncOutbox takes `async def`, an Outbox takes `def`"
            if is_async
            else f"{what} is a coroutine function; use AsyncOutbox for `async def`"
        )
    first = next(iter(inspect.signature(function).parameters), None)
    if first is None or first in {"self", "cls"}:
        raise ConfigurationError(
            f"{what} must be a function whose first parameter is the session, def {what}(session, ...); "
            "decorate functions, not methods"
        )
    return what
