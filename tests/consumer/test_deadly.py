"""A record that ends its process, or never ends, does not stop its partition for ever."""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from outbox import Reject, Retry
from outbox.consumer import Record
from outbox.consumer.batch import BatchRunner
from outbox.consumer.parking import wishes
from outbox.consumer.time_limit import EXIT_CODE
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import SHORT, Stage, Witness, eventually, running
from tests.nursery import Child

SUCCESSOR = {**SHORT, "group.instance.id": "one"}
"""Each has the place of the one before it at once, without waiting for the end of a dead one's session."""


def ended(stage: Stage, **task: Any) -> list[int]:
    """Exit codes of the processes that one after the other met the record, until it is out of the way."""
    codes: list[int] = []
    while len(codes) < 8:
        with stage.process(kafka=SUCCESSOR, settings={"attempts": 1, "batch_size": 10}, **task) as process:
            try:
                eventually(partial(_over, process, stage), within=60)
            finally:
                over = process.poll()
                process.kill()
        if over is None:
            return codes
        codes.append(over)
    raise AssertionError(f"the record is still there after {codes}")


def _over(process: Child, stage: Stage) -> bool:
    return process.poll() is not None or len(stage.effects()) == 19


def send(stage: Stage, count: int) -> None:
    """Records 0.1, 0.2 … each with a key of its own."""
    for n in range(1, count + 1):
        stage.put(f"0.{n}", key=f"k{n}")
    stage.flush()


def test_a_record_that_kills_its_process_is_parked_after_some_deaths(build: StageFactory) -> None:
    stage = build(partitions=1)
    send(stage, 20)
    codes = ended(stage, deadly="0.13")
    # In its batch until that looks suspicious, then once alone, counted before it was tried.
    assert codes == [-9] * 4
    assert stage.effects() == [f"0.{n}" for n in range(1, 21) if n != 13]
    ((offset, error),) = stage.rows("SELECT record_offset, error FROM consumer_parked")
    assert offset == 12
    assert "the process ended 1 times" in error


def test_a_handler_that_never_returns_ends_its_process_and_is_parked(build: StageFactory) -> None:
    stage = build(partitions=1)
    send(stage, 20)
    codes = ended(stage, endless="0.13", limit=1.0)
    assert codes == [EXIT_CODE] * 4
    assert stage.effects() == [f"0.{n}" for n in range(1, 21) if n != 13]


def test_a_handler_that_waits_too_long_in_the_database_is_interrupted(
    build: StageFactory, seen: Witness
) -> None:
    stage = build(partitions=1)
    consumer = stage.consumer(attempts=1, handler_limit=timedelta(seconds=1))

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        stage.store(session, record)
        if value == b"0.2":
            session.execute(text("SELECT pg_sleep(60)"))

    send(stage, 4)
    with running(consumer):
        assert "handler_limit" in seen.wait("consumer.parked")["error"]
        eventually(lambda: stage.offset() == 4)
    assert stage.effects() == ["0.1", "0.3", "0.4"]


def test_a_deadly_record_that_is_released_ends_no_more_processes_than_before(build: StageFactory) -> None:
    """Its release stands in the database: without a count every process would die of it, one after the
    other."""
    stage = build(partitions=1)
    consumer = stage.consumer()

    @consumer.on(topic=stage.topic)
    def refuse(session: Session, value: bytes, record: Record) -> None:
        raise Reject("not yet")

    send(stage, 1)
    with running(consumer):
        eventually(lambda: stage.offset() == 1)
    with stage.engine.begin() as connection:
        wishes.release_all(connection, group=stage.group, who="a test")
    codes: list[int] = []
    while stage.rows("SELECT wish FROM consumer_parked") != [(None,)]:
        assert len(codes) < 4
        with stage.process(kafka=SUCCESSOR, settings={"attempts": 1}, deadly="0.1") as process:
            try:
                eventually(
                    lambda: (
                        process.poll() is not None
                        or stage.rows("SELECT wish FROM consumer_parked") == [(None,)]
                    )
                )
                if process.poll() is not None:
                    codes.append(process.returncode)
            finally:
                process.kill()
    assert codes == [-9]
    assert "the process ended 1 times" in stage.rows("SELECT error FROM consumer_parked")[0][0]
    with stage.engine.begin() as connection:
        wishes.release_all(connection, group=stage.group, who="a test")
    with running(stage.recorder()):
        eventually(lambda: stage.effects() == ["0.1"])


def test_a_record_that_waits_in_a_living_process_is_not_taken_for_a_deadly_one(build: StageFactory) -> None:
    """Three claims at one offset are suspicious, and also what a quiet partition has after three restarts."""
    stage = build(partitions=1)
    send(stage, 1)
    with running(stage.recorder()):
        eventually(lambda: stage.offset() == 1)
    stage.sql("UPDATE consumer_offset SET claims = 3, claimed_offset = next_offset")
    send(stage, 1)
    consumer = stage.consumer(attempts=1)
    calls: list[bytes] = []

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        calls.append(value)
        if len(calls) < 5:
            raise Retry("not now")
        stage.store(session, record)

    with running(consumer):
        eventually(lambda: stage.offset() == 2)
    assert stage.rows("SELECT error FROM consumer_parked") == []
    assert len(calls) == 5
    assert stage.effects() == ["0.1", "0.1"]


def test_a_try_that_could_not_be_taken_back_is_not_counted_twice(
    build: StageFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("the database is away"))

    monkeypatch.setattr(BatchRunner, "take_back", away)
    test_a_record_that_waits_in_a_living_process_is_not_taken_for_a_deadly_one(build)


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_limit_that_nothing_meets_is_refused(build: StageFactory, seconds: int) -> None:
    with pytest.raises(Exception, match="handler_limit"):
        build(partitions=1).consumer(handler_limit=timedelta(seconds=seconds))
