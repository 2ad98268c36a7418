"""One function, one transaction: the domain's rows and its events, or neither."""

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar, Unpack, cast, overload
from uuid import UUID

from sqlalchemy.orm import Session, sessionmaker
from tenacity import Retrying

from outbox import isolation as levels
from outbox.attempts import policy
from outbox.cancellation import take_back
from outbox.emission import Target, is_async, record
from outbox.errors import ConfigurationError, NoTransaction
from outbox.event import Event
from outbox.isolation import Isolation
from outbox.preflight import MAX_RECORD_BYTES
from outbox.row import Overrides, Row, row
from outbox.storage.tables import outbox_event
from outbox.tombstone import Tombstone

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

ATTEMPTS = 3

Service: TypeAlias = Callable[Concatenate[Session, P], R]


class Transactional(Protocol[P, R_co]):
    """A service function without its session: called plainly it is a transaction of its own.

    With `session=` it joins the transaction open there: it neither commits nor tries again, that is its
    owner's part. (Python cannot express both signatures at once; in this form arguments are not checked.)
    """

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: Any, session: Session, **kwargs: Any) -> R_co: ...


class Rows:
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

    def row_of(self, event: Event | Tombstone, overrides: Overrides) -> Row:
        return row(
            event,
            **overrides,
            traceparent=self._traceparent() if self._traceparent is not None else None,
            max_record_bytes=self._max_record_bytes,
        )


class Outbox(Rows):
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
        require_maker(sessions, "Outbox(sessionmaker(engine))")
        self.sessions = sessions

    def emit(self, target: Target, event: Event | Tombstone, **overrides: Unpack[Overrides]) -> UUID:
        """Record `event` in the transaction open on `target`; see outbox.emit."""
        _require_sync(target)
        made = self.row_of(event, overrides)
        record(target, made)
        return made.id

    def cancel(self, target: Target, event_id: UUID) -> bool:
        """Take back an event that was emitted with `deliver_at`; False is too late. See outbox.cancel."""
        _require_sync(target)
        return take_back(target, event_id)

    @overload
    def transaction(self, function: Service[P, R], /) -> Transactional[P, R]: ...
    @overload
    def transaction(
        self, function: None = None, /, *, isolation: Isolation | None = None, attempts: int = ATTEMPTS
    ) -> Callable[[Service[P, R]], Transactional[P, R]]: ...
    def transaction(
        self,
        function: Service[P, R] | None = None,
        /,
        *,
        isolation: Isolation | None = None,
        attempts: int = ATTEMPTS,
    ) -> Transactional[P, R] | Callable[[Service[P, R]], Transactional[P, R]]:
        """Run the function, whose first argument is a Session, as one transaction.

        isolation  None leaves it to the engine.
        attempts   how often it is run at most when PostgreSQL reports a serialization failure or a deadlock.
                   Each run has a fresh session; what the function does outside the database happens again.
        """
        if function is None:
            return lambda function: self._transactional(function, isolation, attempts)
        return self._transactional(function, isolation, attempts)

    def _transactional(
        self, function: Service[P, R], isolation: Isolation | None, attempts: int
    ) -> Transactional[P, R]:
        what = named(function, is_async=False)
        level = levels.checked(isolation, what)
        rules = policy(attempts, what)

        def alone(*args: Any, **kwargs: Any) -> R:
            with self.sessions() as session, session.begin():
                if level is not None:
                    session.connection(CLAUSE, execution_options={"isolation_level": level})
                return ran(function(session, *args, **kwargs), what)

        def joined(session: Session, *args: Any, **kwargs: Any) -> R:
            require_session(session, Session, what)
            if level is not None:
                levels.require(session.connection(CLAUSE).get_isolation_level(), level, what)
            return ran(function(session, *args, **kwargs), what)

        @wraps(function)
        def call(*args: Any, session: Session | None = None, **kwargs: Any) -> R:
            if session is not None:
                return joined(session, *args, **kwargs)
            return Retrying(**rules)(alone, *args, **kwargs)

        return cast(Transactional[P, R], call)


CLAUSE = {"clause": outbox_event}


def _require_sync(target: object) -> None:
    if is_async(target):
        raise ConfigurationError(
            f"an Outbox emits synchronously; for {type(target).__name__} use AsyncOutbox"
        )


def require_maker(sessions: object, example: str, *, awaited: bool = False) -> None:
    """Something that makes sessions when called. Raises ConfigurationError for an engine, a session, None and
    the other twin's maker.
    """
    aio = sys.modules.get("sqlalchemy.ext.asyncio")  # not loaded for the answer: it needs greenlet
    twins = sessionmaker if awaited else () if aio is None else aio.async_sessionmaker
    if isinstance(sessions, twins):
        raise ConfigurationError(
            f"sessions is a {type(sessions).__name__}, which makes sessions that "
            f"{'cannot' if awaited else 'must'} be awaited; give {example}, or use "
            f"{'Outbox' if awaited else 'AsyncOutbox'}"
        )
    if hasattr(sessions, "registry"):
        # An inner transaction would close the outer one's session, and with it throw its work away.
        raise ConfigurationError(
            f"sessions is a {type(sessions).__name__}, which hands out one session again and again; give "
            f"what makes a new one for each transaction: {example}"
        )
    if not callable(sessions):
        raise ConfigurationError(f"sessions is a {type(sessions).__name__}; give what makes them: {example}")


def require_session(session: Any, wanted: type[object], what: str) -> None:
    """A caller's session that can be joined. Raises ConfigurationError, NoTransaction."""
    if not isinstance(session, wanted):
        raise ConfigurationError(
            f"{what}(session=...) takes a {wanted.__name__}, not {type(session).__name__}"
        )
    if not cast(Session, session).in_transaction():
        raise NoTransaction(
            f"{what} was asked to join a session that has no open transaction; begin one, or call {what} "
            "without session= to have a transaction of its own"
        )


def ran(result: R, what: str) -> R:
    """`result`. Raises ConfigurationError for a coroutine: a decorator may hide that nothing has run yet."""
    if inspect.iscoroutine(result):
        result.close()
        raise ConfigurationError(f"{what} returned a coroutine, which would run after its transaction")
    return result


def named(function: Callable[..., object], *, is_async: bool) -> str:
    """How messages call the function. Raises ConfigurationError for one that cannot be a transaction."""
    what = getattr(function, "__qualname__", repr(function))
    if inspect.iscoroutinefunction(function) is not is_async:
        raise ConfigurationError(
            f"{what} is not a coroutine function; an AsyncOutbox takes `async def`, an Outbox takes `def`"
            if is_async
            else f"{what} is a coroutine function; use AsyncOutbox for `async def`"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{what} contains `yield`: it would run after its transaction has ended")
    first = next(iter(inspect.signature(function).parameters), None)
    if first is None or first in {"self", "cls"}:
        raise ConfigurationError(
            f"{what} must be a function whose first parameter is the session, def {what}(session, ...); "
            "decorate functions, not methods"
        )
    return what
