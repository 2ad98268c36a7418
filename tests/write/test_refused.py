"""What could never be delivered fails its caller before anything commits, and says why."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy
from pydantic import BaseModel, field_serializer
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from outbox import (
    ConfigurationError,
    Event,
    EventNotSerialisable,
    EventRejected,
    NoTransaction,
    Outbox,
    SchemaError,
    Tombstone,
    emit,
)
from tests.write.orders import Order, order_ids, place, step, steps, stored


class Loose(Event, name="tests.loose", version=1, aggregate="loose", key="key"):
    key: Any = "k"
    anything: Any = None


class Price(BaseModel):
    amount: float


@dataclass
class Rate:
    percent: float


class Nameless(Event, aggregate="loose"):
    pass


def refused(sessions: sessionmaker[Session], act: Callable[[Session], object]) -> Exception:
    """The error that `act` raises; an order placed beside it must not survive."""
    with pytest.raises(Exception) as failed, sessions.begin() as session:  # noqa: PT011
        session.add(place()[0])
        act(session)
    return failed.value


@pytest.mark.parametrize(
    ("event", "overrides", "error", "message"),
    [
        (step(1), {"topic": "no spaces"}, EventRejected, "topic 'no spaces' is not 1 to 249 of"),
        (step(1), {"topic": ""}, EventRejected, "topic '' is not"),
        (step(1), {"topic": ".."}, EventRejected, "cannot be named"),
        (step(1), {"topic": "t" * 250}, EventRejected, "is not 1 to 249"),
        (step(1), {"topic": 5}, EventRejected, "is a str, not int"),
        (step(1), {"key": "a\x00b"}, EventRejected, "the key holds a NUL character"),
        (step(1), {"key": "\ud800"}, EventRejected, "the key holds a lone surrogate"),
        (step(1), {"headers": [("a", "b")]}, EventRejected, "headers are a mapping"),
        (step(1), {"headers": {"": "x"}}, EventRejected, "header name '' is not a non-empty str"),
        (step(1), {"headers": {"id": "x"}}, EventRejected, "header 'id' is written by the relay"),
        (step(1), {"headers": {"outbox-seq": "x"}}, EventRejected, "written by the relay"),
        (step(1), {"headers": {"n": 1}}, EventRejected, "header 'n' is a int, not a str"),
        (step(1), {"headers": {"n": "\x00"}}, EventRejected, "header 'n' holds a NUL"),
        (step(1), {"id": "42"}, EventRejected, "id='42' is not a UUID"),
        (Loose(key=None), {}, EventRejected, "key field key is None"),
        (Loose(key=1.5), {}, EventNotSerialisable, r"Loose\.key is a float, and a key is"),
        (Loose(key=True), {}, EventNotSerialisable, r"Loose\.key is a bool"),
        (Loose(anything=object()), {}, EventNotSerialisable, r"Loose\.anything has no JSON form"),
        (Loose(anything="\ud800"), {}, EventNotSerialisable, r"Loose\.anything has no JSON form"),
        (Loose(anything=nan), {}, EventNotSerialisable, r"Loose\.anything is not a finite number"),
        (Loose(anything=[1.5, {"a": (-inf,)}]), {}, EventNotSerialisable, r"anything\[1\]\.a\[0\] is not"),
        (Loose(anything=Price(amount=inf)), {}, EventNotSerialisable, r"Loose\.anything\.amount is not"),
        (Loose(anything=Rate(nan)), {}, EventNotSerialisable, r"Loose\.anything\.percent is not"),
        (Nameless(), {}, EventRejected, "Nameless has no name on the wire"),
        ({"not": "an event"}, {}, EventRejected, "dict is not an outbox.Event"),
        (Loose, {}, EventRejected, "Loose is a class; emit an instance"),
        (step(1), {"header": {"n": "1"}}, TypeError, r"emit\(\) has no argument header; it takes headers"),
        (Loose(anything="x" * 1_000_000), {}, EventRejected, "the limit is 1,000,000"),
        (step(1), {"headers": {"h": "ü" * 500_000}}, EventRejected, "and the limit is"),
    ],
)
def test_bad_data_fails_the_business_transaction(
    engine: Engine,
    sessions: sessionmaker[Session],
    event: Any,
    overrides: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    failure = refused(sessions, lambda session: emit(session, event, **overrides))
    assert isinstance(failure, error)
    assert re.search(message, str(failure)), str(failure)
    assert stored(engine) == []
    assert order_ids(engine) == set()


class Worded(Event, name="tests.worded", version=1, aggregate="loose"):
    value: Any
    unit: Any = None

    @field_serializer("value")
    def in_words(self, value: Any) -> Any:
        return "unknown" if value != value else value


def test_a_number_that_the_event_itself_puts_into_words_is_written(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        emit(session, Worded(value=nan))
    (row,) = stored(engine)
    assert row["payload"] == b'{"value":"unknown","unit":null}'


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Tombstone(Nameless, key="k"), ConfigurationError, "an event class that has a name"),
        (lambda: Tombstone(Loose(), key="k"), ConfigurationError, "an event class that has a name"),  # type: ignore[arg-type]
        (lambda: Tombstone(Loose, key=None), EventRejected, "of Loose needs the key that it ends"),  # type: ignore[arg-type]
        (lambda: Tombstone(Loose, key=1.5), EventNotSerialisable, r"Loose\.key is a float"),  # type: ignore[arg-type]
    ],
)
def test_a_tombstone_that_ends_nothing_is_refused(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_tombstone_is_checked_as_any_event(engine: Engine, sessions: sessionmaker[Session]) -> None:
    failure = refused(sessions, lambda session: emit(session, Tombstone(Loose, key="k\x00")))
    assert "the key holds a NUL" in str(failure)
    assert stored(engine) == []


def test_an_event_just_under_the_limit_passes_and_one_byte_more_does_not(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    from outbox.preflight import RELAY_HEADERS_BYTES

    size = RELAY_HEADERS_BYTES + len(b"k") + len(b'{"key":"k","anything":""}') + 10
    small = Outbox(sessions, max_record_bytes=size)
    with sessions.begin() as session:
        small.emit(session, Loose(anything="x" * 10))
    failure = refused(sessions, lambda session: small.emit(session, Loose(anything="x" * 11)))
    assert f"has {size + 1:,} bytes" in str(failure)
    assert len(stored(engine)) == 1


def test_a_session_outside_a_transaction(engine: Engine, sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        with pytest.raises(NoTransaction, match=r"under @outbox\.transaction, or into `with session\.begin"):
            emit(session, step(1))
    with engine.connect() as connection:
        with pytest.raises(NoTransaction, match=r"engine\.begin\(\)"):
            emit(connection, step(1))
        connection.execute(text("SELECT 1"))
        connection.commit()
        with pytest.raises(NoTransaction):
            emit(connection, step(1))


def test_autocommit_is_no_transaction_though_sqlalchemy_says_begin(engine: Engine) -> None:
    autocommit = sqlalchemy.create_engine(engine.url, isolation_level="AUTOCOMMIT")
    with autocommit.begin() as connection:
        assert connection.in_transaction()
        with pytest.raises(NoTransaction, match="AUTOCOMMIT"):
            emit(connection, step(1))
    autocommit.dispose()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection, connection.begin():
        with pytest.raises(NoTransaction, match="AUTOCOMMIT"):
            emit(connection, step(1))
    with sessionmaker(engine.execution_options(isolation_level="AUTOCOMMIT")).begin() as session:
        with pytest.raises(NoTransaction, match="AUTOCOMMIT"):
            emit(session, step(1))
    assert stored(engine) == []


def test_another_database_is_refused() -> None:
    with sqlalchemy.create_engine("sqlite://").begin() as connection:
        with pytest.raises(ConfigurationError, match=r"this connection is sqlite\+pysqlite"):
            emit(connection, step(1))


def test_a_session_without_an_engine_for_the_table() -> None:
    with sessionmaker()() as session, session.begin():
        with pytest.raises(ConfigurationError, match=r"outbox\.tables\.outbox_event: engine"):
            emit(session, step(1))


def test_something_else_entirely() -> None:
    with pytest.raises(ConfigurationError, match=r"goes to a Session.*not to builtins\.str"):
        emit("session", step(1))  # type: ignore[call-overload]


def test_a_committed_session_takes_no_more_events(engine: Engine, sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        session.begin()

        def after_commit(session: Session) -> None:
            emit(session, step(1))

        sqlalchemy.event.listen(session, "after_commit", after_commit)
        with pytest.raises(NoTransaction, match="takes no more events"):
            session.commit()


def test_a_missing_table_is_explained_and_nothing_commits(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE outbox_event RENAME TO elsewhere"))
    failure = refused(sessions, lambda session: emit(session, step(1)))
    assert isinstance(failure, SchemaError)
    assert 'relation "outbox_event" does not exist' in str(failure)
    assert "outbox-relay db upgrade" in str(failure)
    assert order_ids(engine) == set()


def test_a_missing_column_is_explained_and_nothing_commits(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE outbox_event DROP COLUMN traceparent"))
    for count in (1, 2):
        failure = refused(sessions, lambda session, n=count: [emit(session, step(i)) for i in range(n)])  # type: ignore[misc]
        assert isinstance(failure, SchemaError)
        assert 'column "traceparent"' in str(failure)
        assert "outbox-relay db check" in str(failure)
    assert order_ids(engine) == set()


def test_a_missing_right_is_explained_and_nothing_commits(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    role = f"stranger_{uuid4().hex[:8]}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(text(f"GRANT INSERT, SELECT ON orders TO {role}"))
    stranger = sqlalchemy.create_engine(engine.url.set(username=role))
    failure = refused(sessionmaker(stranger), lambda session: emit(session, step(1)))
    assert isinstance(failure, SchemaError)
    assert "permission denied for table outbox_event" in str(failure)
    assert "outbox-relay db roles" in str(failure)
    assert order_ids(engine) == set()
    stranger.dispose()
    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))


def test_other_database_errors_keep_their_own_class(engine: Engine, sessions: sessionmaker[Session]) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE outbox_event ADD CHECK (type <> 'tests.step.taken.v1')"))
    failure = refused(sessions, lambda session: emit(session, step(1)))
    assert isinstance(failure, sqlalchemy.exc.IntegrityError)
    assert isinstance(failure.orig, psycopg.errors.CheckViolation)
    assert order_ids(engine) == set()


def test_the_caller_may_say_it_differently(engine: Engine, sessions: sessionmaker[Session]) -> None:
    own = uuid4()
    with sessions.begin() as session:
        given = emit(
            session, step(1), headers={"tenant": 'a "quoted" \\ ü'}, topic="elsewhere", key="other", id=own
        )
        emit(session, step(2), headers={"tenant": 'a "quoted" \\ ü'}, topic="elsewhere", key="")
    assert given == own
    first, second = stored(engine)
    assert first["id"] == own
    assert (first["topic"], first["aggregateid"]) == ("elsewhere", "other")
    assert first["headers"] == second["headers"] == {"tenant": 'a "quoted" \\ ü'}
    assert second["aggregateid"] == ""
    assert steps(engine) == [1, 2]


def test_orders_table_is_there(sessions: sessionmaker[Session]) -> None:
    """So that what `refused` adds could have committed."""
    with sessions.begin() as session:
        session.add(place()[0])
    with sessions() as session:
        assert session.query(Order).count() == 1
