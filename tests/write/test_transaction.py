"""A function under @outbox.transaction is one transaction, run again when only its timing was wrong."""

import inspect
import threading
from asyncio import current_task
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox import AsyncOutbox, ConfigurationError, NoTransaction, Outbox, attempts, hooks
from outbox.isolation import Isolation
from tests.write.orders import Order, Zone, order_ids, place, published, step, steps
from tests.write.waiting import SECONDS


class Abort(Exception):
    """Raised by a test to roll back."""


@pytest.fixture
def zones(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        session.add_all([Zone(id=1), Zone(id=2)])


def add(engine: Engine, number: int, zone: int = 1) -> None:
    """What somebody else does meanwhile."""
    with engine.execution_options(isolation_level="SERIALIZABLE").begin() as connection:
        connection.execute(text("SELECT sum(balance) FROM zones"))
        connection.execute(
            text("UPDATE zones SET balance = balance + :number WHERE id = :zone"),
            {"number": number, "zone": zone},
        )


def test_order_and_event_or_neither(engine: Engine, outbox: Outbox) -> None:
    @outbox.transaction
    def place_order(session: Session, total: Decimal, *, refuse: bool = False) -> UUID:
        """Place an order."""
        order, placed = place(str(total))
        session.add(order)
        outbox.emit(session, placed)
        if refuse:
            raise Abort
        return order.id

    with pytest.raises(Abort):
        place_order(Decimal(1), refuse=True)
    order_id = place_order(Decimal("9.90"))
    assert order_ids(engine) == {order_id}
    assert [event.order_id for event in published(engine)] == [order_id]  # type: ignore[attr-defined]


def test_the_function_keeps_its_name_and_doc(outbox: Outbox) -> None:
    @outbox.transaction
    def place_order(session: Session, total: Decimal) -> UUID:
        """Place an order."""
        raise NotImplementedError

    assert place_order.__name__ == "place_order"  # type: ignore[attr-defined]
    assert place_order.__doc__ == "Place an order."
    assert list(inspect.signature(place_order).parameters) == ["session", "total"]


def test_it_joins_an_open_transaction_and_leaves_it_open(engine: Engine, outbox: Outbox) -> None:
    @outbox.transaction
    def take(session: Session, number: int) -> Session:
        outbox.emit(session, step(number))
        return session

    with outbox.sessions.begin() as session:
        assert take(1, session=session) is session
        assert session.in_transaction()
        assert steps(engine) == []
        take(2)  # without session= a transaction of its own
        assert steps(engine) == [2]
    assert steps(engine) == [2, 1]
    with pytest.raises(Abort), outbox.sessions.begin() as session:
        take(3, session=session)
        raise Abort
    assert steps(engine) == [2, 1]


def test_it_refuses_to_join_what_is_not_open(outbox: Outbox) -> None:
    @outbox.transaction
    def take(session: Session) -> None:
        raise AssertionError("never called")

    with outbox.sessions() as session:
        with pytest.raises(
            NoTransaction, match="take was asked to join a session that has no open transaction"
        ):
            take(session=session)
        with pytest.raises(ConfigurationError, match="takes a Session, not Connection"):
            take(session=session.connection())  # type: ignore[call-overload]


@pytest.mark.usefixtures("zones")
@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_serialization_failure_is_tried_again_on_a_fresh_session(
    engine: Engine, outbox: Outbox, isolation: Isolation
) -> None:
    runs: list[tuple[Session, int]] = []

    @outbox.transaction(isolation=isolation)
    def increase(session: Session) -> int:
        zone = session.get_one(Zone, 1)
        runs.append((session, zone.balance))
        if len(runs) == 1:
            add(engine, 10)
        zone.balance += 1
        outbox.emit(session, step(zone.balance))
        return zone.balance

    assert increase() == 11
    assert [balance for _, balance in runs] == [0, 10]
    assert runs[0][0] is not runs[1][0]
    assert steps(engine) == [11]


@pytest.mark.usefixtures("zones")
@pytest.mark.parametrize("emits", [True, False])
def test_a_failure_that_only_commit_reports_is_tried_again(
    engine: Engine, outbox: Outbox, emits: bool
) -> None:
    """Write skew: both read everything, each changes another row; the second learns of it when it ends."""
    runs: list[int] = []

    @outbox.transaction(isolation="serializable")
    def increase(session: Session) -> None:
        total = session.scalars(text("SELECT sum(balance) FROM zones")).one()
        runs.append(total)
        session.get_one(Zone, 1).balance = total + 1
        session.flush()
        if emits:
            outbox.emit(session, step(total + 1))
        if len(runs) == 1:
            add(engine, 10, zone=2)

    increase()
    assert runs == [0, 10]
    assert steps(engine) == ([11] if emits else [])


@pytest.mark.usefixtures("zones")
def test_a_deadlock_is_tried_again(engine: Engine, outbox: Outbox) -> None:
    both_hold_one = threading.Barrier(2)
    runs: list[int] = []

    @outbox.transaction
    def transfer(session: Session, first: int, second: int) -> None:
        runs.append(first)
        session.execute(text("SET LOCAL deadlock_timeout = '50ms'"))
        session.get_one(Zone, first, with_for_update=True)
        if len(runs) <= 2:
            both_hold_one.wait(SECONDS)
        session.get_one(Zone, second, with_for_update=True)
        outbox.emit(session, step(first))

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(transfer, 1, 2), threads.submit(transfer, 2, 1)]:
            done.result(SECONDS)
    assert len(runs) >= 3
    assert sorted(steps(engine)) == [1, 2]


@pytest.mark.usefixtures("zones")
def test_attempts_end_and_the_last_error_is_the_databases_own(engine: Engine, outbox: Outbox) -> None:
    runs: list[int] = []
    told: list[int] = []

    @outbox.transaction(isolation="repeatable read", attempts=2)
    def unlucky(session: Session) -> None:
        zone = session.get_one(Zone, 1)
        runs.append(zone.balance)
        add(engine, 1)
        zone.balance += 1
        outbox.emit(session, step(1))

    unsubscribe = hooks.subscribe(
        lambda point, facts: told.append(facts["attempt"]) if point == "outbox.retried" else None
    )
    with pytest.raises(DBAPIError) as failed:
        unlucky()
    unsubscribe()
    assert failed.value.orig is not None
    assert failed.value.orig.sqlstate == "40001"  # type: ignore[attr-defined]
    assert runs == [0, 1]
    assert told == [1]
    assert steps(engine) == []


def test_a_connection_lost_at_commit_is_never_tried_again(engine: Engine, outbox: Outbox) -> None:
    """Nobody knows whether it committed: a second run might place a second order."""
    runs: list[int] = []

    @outbox.transaction
    def cut_off(session: Session) -> None:
        runs.append(1)
        outbox.emit(session, step(1))
        pid = session.scalars(text("SELECT pg_backend_pid()")).one()
        with engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    with pytest.raises(OperationalError):
        cut_off()
    assert runs == [1]
    assert steps(engine) == []


def test_trying_again_after_a_lost_answer_would_run_it_twice(
    engine: Engine, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken variant: a lost connection taken for a matter of timing."""
    monkeypatch.setattr(attempts, "_TIMING", frozenset({"40001", "40P01", "57P01"}))
    runs: list[int] = []

    @outbox.transaction
    def cut_off(session: Session) -> None:
        runs.append(1)
        pid = session.scalars(text("SELECT pg_backend_pid()")).one()
        with engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    with pytest.raises(OperationalError):
        cut_off()
    assert runs == [1, 1, 1]


def test_what_is_no_matter_of_timing_is_never_tried_again(engine: Engine, outbox: Outbox) -> None:
    runs: list[int] = []
    order, _ = place()

    @outbox.transaction
    def twice(session: Session) -> None:
        runs.append(1)
        session.add(Order(id=order.id, total=Decimal(1)))

    twice()
    with pytest.raises(IntegrityError):
        twice()
    assert runs == [1, 1]


@pytest.mark.usefixtures("zones")
def test_a_joined_transaction_is_its_owners_to_try_again(engine: Engine, outbox: Outbox) -> None:
    runs: list[int] = []

    @outbox.transaction
    def increase(session: Session) -> None:
        runs.append(1)
        zone = session.get_one(Zone, 1)
        add(engine, 10)
        zone.balance += 1
        session.flush()

    with pytest.raises(DBAPIError), outbox.sessions() as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        increase(session=session)
    assert runs == [1]


def test_the_isolation_level_is_the_one_asked_for(outbox: Outbox) -> None:
    @outbox.transaction(isolation="serializable")
    def level(session: Session) -> str:
        return str(session.scalar(text("SHOW transaction_isolation")))

    assert level() == "serializable"
    with outbox.sessions.begin() as session:
        with pytest.raises(ConfigurationError, match=r"SERIALIZABLE.*runs at READ COMMITTED"):
            level(session=session)
    with outbox.sessions() as session:
        session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        assert level(session=session) == "serializable"
    with outbox.sessions.begin() as session:
        assert session.scalars(text("SHOW transaction_isolation")).one() == "read committed"


def test_work_that_would_run_after_its_transaction_is_refused(engine: Engine, outbox: Outbox) -> None:
    async def work(session: Session) -> None: ...

    @outbox.transaction
    def place_later(session: Session) -> Any:
        order, placed = place("1")
        session.add(order)
        outbox.emit(session, placed)
        return work(session)

    with pytest.raises(ConfigurationError, match="returned a coroutine"):
        place_later()
    assert (order_ids(engine), published(engine)) == (set(), [])


def test_what_cannot_be_a_transaction_is_refused_when_defined(outbox: Outbox) -> None:
    with pytest.raises(ConfigurationError, match="use AsyncOutbox"):

        @outbox.transaction
        async def coroutine(session: Session) -> None: ...

    with pytest.raises(ConfigurationError, match="not methods"):

        class Service:
            @outbox.transaction  # type: ignore[arg-type]
            def method(self, session: Session) -> None: ...

    with pytest.raises(ConfigurationError, match="first parameter is the session"):

        @outbox.transaction  # type: ignore[arg-type]
        def nothing() -> None: ...

    with pytest.raises(ConfigurationError, match="`yield`"):

        @outbox.transaction
        def generator(session: Session) -> Iterator[None]:
            yield

    with pytest.raises(ConfigurationError, match="isolation='chaos' is none of"):

        @outbox.transaction(isolation="chaos")  # type: ignore[call-overload, untyped-decorator]
        def chaotic(session: Session) -> None: ...

    with pytest.raises(ConfigurationError, match="attempts=0"):

        @outbox.transaction(attempts=0)
        def never(session: Session) -> None: ...

    with pytest.raises(ConfigurationError, match="max_record_bytes=0"):
        Outbox(outbox.sessions, max_record_bytes=0)


@pytest.mark.parametrize("door", [Outbox, AsyncOutbox])
@pytest.mark.parametrize("wrong", ["engine", None])
def test_a_door_takes_what_makes_sessions(engine: Engine, door: Any, wrong: str | None) -> None:
    with pytest.raises(ConfigurationError, match=r"sessions is a (Engine|NoneType).*sessionmaker\(engine\)"):
        door(wrong and engine)


@pytest.mark.parametrize(
    ("door", "wrong", "message"),
    [
        (Outbox, async_sessionmaker(), r"must be awaited; give Outbox\(sessionmaker\(.*or use AsyncOutbox"),
        (
            AsyncOutbox,
            sessionmaker(),
            r"cannot be awaited; give AsyncOutbox\(async_sessionmaker\(.*use Outbox",
        ),
    ],
)
def test_a_door_refuses_its_twins_maker(door: Any, wrong: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        door(wrong)


@pytest.mark.parametrize(
    ("door", "scoped"),
    [
        (Outbox, scoped_session(sessionmaker())),
        (AsyncOutbox, async_scoped_session(async_sessionmaker(), current_task)),
    ],
)
def test_a_door_refuses_what_hands_out_one_session_again(door: Any, scoped: Any) -> None:
    with pytest.raises(ConfigurationError, match="again and again"):
        door(scoped)


def test_the_trace_of_the_work_in_hand_travels_with_the_event(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    from tests.write.orders import stored

    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for given in (trace, None, "nonsense"):
        traced = Outbox(sessions, traceparent=lambda given=given: given)  # type: ignore[misc]
        with sessions.begin() as session:
            traced.emit(session, step(1))
    assert [row["traceparent"] for row in stored(engine)] == [trace, None, None]
