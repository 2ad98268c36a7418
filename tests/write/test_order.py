"""Of two transactions that conflict, the one that took effect first has the lower positions."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from uuid import uuid4

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from outbox import emit
from outbox.storage.tables import outbox_event
from tests.write.naive import Message
from tests.write.orders import Zone, step, steps, stored
from tests.write.waiting import SECONDS, until_blocked

Announce = Callable[[Session, int], object]


def with_emit(session: Session, number: int) -> None:
    emit(session, step(number))


def as_mapped_row(session: Session, number: int) -> None:
    event = step(number)
    session.add(
        Message(
            id=uuid4(),
            aggregatetype="step",
            aggregateid=event.key,
            type=event.__wire_type__,
            payload=event.model_dump_json().encode(),
        )
    )


def conflict(engine: Engine, announce: Announce) -> list[int]:
    """Transaction 1 takes the row's lock, 2 waits for it and commits after 1: what is published?"""
    sessions = sessionmaker(engine)
    with sessions.begin() as session:
        session.add(Zone(id=1))
    pids: SimpleQueue[int] = SimpleQueue()

    def second() -> None:
        with sessions.begin() as session:
            pid = session.scalars(text("SELECT pg_backend_pid()")).one()
            session.get_one(Zone, 1).balance = Zone.balance + 10
            announce(session, 2)
            pids.put(pid)
            # The flush of this commit waits for the first transaction.

    with ThreadPoolExecutor() as threads:
        with sessions.begin() as session:
            session.get_one(Zone, 1).balance = Zone.balance + 1
            session.flush()
            waiting = threads.submit(second)
            until_blocked(engine, pids.get(timeout=SECONDS))
            announce(session, 1)
        waiting.result(timeout=SECONDS)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT balance FROM zones")) == 11
    return steps(engine)


def test_positions_follow_the_order_of_row_locks_whatever_the_mappers_are_called(engine: Engine) -> None:
    assert conflict(engine, with_emit) == [1, 2]


def test_a_mapped_outbox_row_inverts_them(engine: Engine) -> None:
    """The broken variant: the flush inserts Message before it updates Zone; the number is drawn too early."""
    assert conflict(engine, as_mapped_row) == [2, 1]


def test_a_read_write_dependency_alone_orders_nothing(engine: Engine) -> None:
    """Not promised, as the guarantees say: the reader comes first in every serial order, and commits last."""
    sessions = sessionmaker(engine.execution_options(isolation_level="SERIALIZABLE"))
    with sessions.begin() as session:
        session.add_all([Zone(id=1), Zone(id=2)])
    with sessions.begin() as reader:
        before = reader.get_one(Zone, 1).balance
        with sessions.begin() as writer:
            writer.get_one(Zone, 1).balance = before + 1
            emit(writer, step(2))
        reader.get_one(Zone, 2).balance = before
        emit(reader, step(1))
    assert steps(engine) == [2, 1]


def test_the_transaction_id_is_assigned_before_the_position_is_drawn(engine: Engine) -> None:
    """A transaction whose number is drawn has an xid, so no snapshot can take it for one of the future."""
    names = [column.name for column in outbox_event.columns]
    assert names.index("xid") < names.index("position")
    with engine.begin() as connection:
        plan = connection.scalars(
            text(
                "EXPLAIN (VERBOSE, COSTS OFF) INSERT INTO outbox_event (id, aggregatetype, type) VALUES "
                "(gen_random_uuid(), 'a', 'b')"
            )
        ).all()
    output = next(line for line in plan if "Output:" in line)
    assert output.index("pg_current_xact_id()") < output.index("nextval(")


def test_events_of_one_transaction_share_its_xid_and_stay_together_in_order(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        session.add(Zone(id=7))
        session.flush()
        xid = session.scalar(text("SELECT pg_current_xact_id()::text"))
        for number in range(3):
            emit(session, step(number))
    assert [row["xid"] for row in stored(engine)] == [xid] * 3
