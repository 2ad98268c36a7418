"""`outbox_events` shows what the code under test announced, without a relay."""

from uuid import uuid4

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from outbox import Outbox, Tombstone, emit
from outbox.testing.plugin import OutboxEvents
from tests.write.orders import StepTaken, place, step


class Abort(Exception):
    """Raised by a test to roll back."""


def test_it_lists_what_was_committed_in_order(outbox: Outbox, outbox_events: OutboxEvents) -> None:
    assert outbox_events() == []
    order, placed = place()
    with outbox.sessions.begin() as session:
        session.add(order)
        outbox.emit(session, placed)
        outbox.emit(session, step(1))
    with outbox.sessions.begin() as session:
        outbox.emit(session, step(2))
    assert outbox_events() == [placed, step(1), step(2)]


def test_it_lists_tombstones_too(outbox: Outbox, outbox_events: OutboxEvents) -> None:
    key = uuid4()
    with outbox.sessions.begin() as session:
        outbox.emit(session, Tombstone(StepTaken, key=key))
    assert outbox_events() == [Tombstone(StepTaken, key=key)]


def test_it_leaves_out_what_was_rolled_back(
    sessions: sessionmaker[Session], outbox_events: OutboxEvents
) -> None:
    with pytest.raises(Abort), sessions.begin() as session:
        emit(session, step(1))
        raise Abort
    with sessions.begin() as session:
        with pytest.raises(Abort), session.begin_nested():
            emit(session, step(2))
            raise Abort
        emit(session, step(3))
    with Session(sessions.kw["bind"], twophase=True) as session:
        session.begin()
        emit(session, step(4))
        session.prepare()
        session.rollback()
    assert outbox_events() == [step(3)]


def test_it_works_in_a_test_that_rolls_back_everything(engine: Engine, outbox_events: OutboxEvents) -> None:
    with engine.connect() as connection:
        outer = connection.begin()
        inside = sessionmaker(connection, join_transaction_mode="create_savepoint")
        outbox = Outbox(inside)

        @outbox.transaction
        def take(session: Session, number: int) -> None:
            outbox.emit(session, step(number))
            if number < 0:
                raise Abort

        take(1)
        with pytest.raises(Abort):
            take(-1)
        assert outbox_events() == [step(1)]
        outer.rollback()


def test_the_next_test_starts_empty(outbox_events: OutboxEvents) -> None:
    assert outbox_events() == []
