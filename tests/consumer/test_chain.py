"""Result, offset and next event are one transaction, so a chain of services stays exactly-once."""

from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from outbox import Event, Outbox, Retry
from outbox.consumer import Consumer, Record
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import Stage, Witness, eventually, running


class Asked(Event, name="chain.asked", version=1, topic="unused", aggregate="chain", key="id"):
    id: UUID


class Answered(Event, name="chain.answered", version=1, topic="answers", aggregate="chain", key="id"):
    id: UUID


def answering(stage: Stage, fail_once: bool = False) -> Consumer:
    consumer = stage.consumer(batch_size=4)
    outbox = Outbox(sessionmaker(stage.engine))
    failed: list[UUID] = []

    @consumer.on(Asked, topic=stage.topic)
    def answer(session: Session, event: Asked, record: Record) -> None:
        stage.store(session, record)
        outbox.emit(session, Answered(id=event.id))
        if fail_once and record.offset % 5 == 0 and event.id not in failed:
            failed.append(event.id)
            raise Retry("once more")

    return consumer


def ask(stage: Stage, count: int) -> list[UUID]:
    ids = [uuid4() for _ in range(count)]
    for n, id_ in enumerate(ids):
        stage.put(Asked(id=id_).model_dump_json(), type_="chain.asked.v1", seq=f"s/1/0:1.{n + 1}")
    stage.flush()
    return ids


def answers(stage: Stage) -> list[str]:
    with stage.engine.connect() as connection:
        rows = connection.execute(
            text("SELECT aggregateid FROM outbox_event WHERE type = 'chain.answered.v1' ORDER BY position")
        )
        return [id_ for (id_,) in rows]


@pytest.mark.parametrize("fail_once", [False, True])
def test_each_record_emits_its_event_exactly_once_and_in_order(build: StageFactory, fail_once: bool) -> None:
    stage = build(partitions=1)
    ids = ask(stage, 30)
    with running(answering(stage, fail_once)):
        eventually(lambda: stage.offset() == 30)
    assert answers(stage) == [str(id_) for id_ in ids]


def test_a_fenced_batch_emits_nothing(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    ids = ask(stage, 10)
    stole: list[bool] = []

    def steal(_facts: dict[str, object]) -> None:
        if not stole:
            stole.append(True)
            stage.sql("UPDATE consumer_offset SET owner_epoch = owner_epoch + 1")

    seen.at("consumer.batch.begin", steal)
    with running(answering(stage)):
        eventually(lambda: stage.offset() == 10)
    assert seen.all("consumer.fenced")
    assert answers(stage) == [str(id_) for id_ in ids]


def test_a_handler_may_emit_and_do_nothing_else(build: StageFactory) -> None:
    """Also behind one that ended its session's transaction by a commit."""
    stage = build(partitions=1)
    ids = ask(stage, 6)
    consumer = stage.consumer(attempts=1)
    outbox = Outbox(sessionmaker(stage.engine))

    @consumer.on(Asked, topic=stage.topic)
    def answer(session: Session, event: Asked, record: Record) -> None:
        outbox.emit(session, Answered(id=event.id))
        if record.offset == 2:
            session.commit()

    with running(consumer):
        eventually(lambda: stage.offset() == 6)
    assert answers(stage) == [str(id_) for id_ in ids]
