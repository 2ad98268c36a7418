"""A record that fails keeps its place: it is tried again or stops its partition, and nothing is skipped."""

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from outbox import Event, Reject, Retry
from outbox.consumer import Consumer, Record, Status
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, Stage, Witness, eventually, running


class Counted(Event, name="thing.counted", version=1, topic="unused", aggregate="thing"):
    n: int


class Faulty:
    """Stores effects, and raises what `faults` holds for a record as often as it says."""

    def __init__(self, stage: Stage, **settings: Any) -> None:
        self.faults: dict[str, list[Exception]] = {}
        self.tried: list[str] = []
        self.consumer = stage.consumer(**settings)

        @self.consumer.on(topic=stage.topic)
        def handle(session: Session, value: bytes, record: Record) -> None:
            self.tried.append(value.decode())
            stage.store(session, record)
            faults = self.faults.get(value.decode())
            if faults:
                raise faults.pop(0) if len(faults) > 1 else faults[0]

    def heal(self) -> None:
        self.faults.clear()


def test_retry_keeps_its_partition_waiting_and_the_others_going(stage: Stage, seen: Witness) -> None:
    faulty = Faulty(stage)
    faulty.faults["1.3"] = [Retry("not yet", after=timedelta(milliseconds=200))]
    stage.send(30)
    with running(faulty.consumer):
        seen.wait("consumer.retrying", count=5)
        stage.send(30)
        eventually(lambda: len(stage.effects(0)) == len(stage.effects(2)) == 20)
        # What stands before it is applied; what stands behind it waits.
        assert stage.effects(1) == ["1.1", "1.2"]
        (waiting,) = [p for p in faulty.consumer.health().members[0].partitions if p.partition == 1]
        assert waiting.status is Status.RETRYING
        assert "not yet" in (waiting.reason or "")
        faulty.heal()
        stage.wait()
    assert stage.faults() == []
    assert seen.all("consumer.revoked")[0]["lost"] is False


def test_retry_waits_as_long_as_the_handler_asks(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    faulty = Faulty(stage)
    faulty.faults["0.1"] = [Retry(after=timedelta(minutes=1))]
    stage.send(1)
    with running(faulty.consumer):
        assert seen.wait("consumer.retrying")["wait"] >= 60
    assert stage.effects() == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_partition_that_rests_goes_on_whatever_is_repositioned_meanwhile(
    build: StageFactory, seen: Witness, protocol: str
) -> None:
    stage = build(partitions=2)
    faulty = Faulty(stage, kafka=PROTOCOLS[protocol])
    faulty.faults["0.1"] = [Retry(after=timedelta(seconds=1))]
    with running(faulty.consumer):
        stage.send(3, partition=0)
        seen.wait("consumer.retrying")
        stage.sql("UPDATE consumer_offset SET owner_epoch = owner_epoch + 1 WHERE partition = 1")
        stage.send(3, partition=1)
        seen.wait("consumer.fenced")
        eventually(lambda: len(stage.effects(1)) == 3)
        faulty.heal()
        stage.wait(within=10)
        stage.send(6)
        stage.wait(within=10)
    assert stage.faults() == []


def test_records_do_not_pile_up_while_a_batch_is_run_one_by_one(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    faulty = Faulty(stage, batch_size=50)
    faulty.faults["0.50"] = [ZeroDivisionError("1/0")]
    seen.at("consumer.retrying", lambda _: faulty.heal())
    waiting: list[int] = []

    def count(_: dict[str, Any]) -> None:
        (member,) = faulty.consumer._members
        waiting.extend(len(partition.polled) for partition in member._assignment.partitions.values())

    seen.at("consumer.batch.begin", count)
    stage.send(3000)
    with running(faulty.consumer):
        stage.wait()
    assert stage.faults() == []
    assert max(waiting) <= 4 * 50


class Later:
    """A handler whose call only prepares the work."""

    async def __call__(self, session: Session, value: bytes, record: Record) -> None: ...


def test_work_that_a_handler_only_prepares_is_not_taken_for_done(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    consumer = stage.consumer()
    consumer.on(topic=stage.topic)(Later())
    stage.send(3)
    with running(consumer):
        assert "returned a coroutine" in seen.wait("consumer.stopped")["reason"]
    assert stage.offset() == 0


def test_reject_can_stop_the_partition_before_the_record(stage: Stage, seen: Witness) -> None:
    faulty = Faulty(stage, poison="stop")
    faulty.faults["1.3"] = [Reject("an order of nobody")]
    stage.send(30)
    with running(faulty.consumer):
        assert "an order of nobody" in seen.wait("consumer.stopped")["reason"]
        eventually(lambda: len(stage.effects()) == 22)
        assert not faulty.consumer.health().ok
    assert stage.effects(1) == ["1.1", "1.2"]
    assert stage.offset(1) == 2
    # The next claim tries it again.
    faulty.heal()
    with running(faulty.consumer):
        stage.wait()
    assert stage.faults() == []


def test_an_unexpected_error_is_tried_so_often_and_then_poison(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    faulty = Faulty(stage, attempts=2, poison="stop")
    faulty.faults["0.5"] = [ZeroDivisionError("1/0")]
    stage.send(10)
    with running(faulty.consumer):
        assert "2 attempts" in seen.wait("consumer.stopped")["reason"]
    assert stage.effects() == ["0.1", "0.2", "0.3", "0.4"]
    # Once in its batch, twice alone.
    assert faulty.tried.count("0.5") == 3
    assert faulty.tried.count("0.1") == 2


def test_an_error_that_passes_in_time_is_survived(build: StageFactory) -> None:
    stage = build(partitions=1)
    faulty = Faulty(stage, attempts=3)
    faulty.faults["0.5"] = [ValueError(), ValueError(), Retry()]
    stage.send(10)
    with running(faulty.consumer):
        eventually(lambda: faulty.tried.count("0.5") >= 4)
        faulty.heal()
        stage.wait()
    assert stage.faults() == []


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.SerializationFailure("again"),
        psycopg.errors.DeadlockDetected("again"),
        OperationalError("SELECT", {}, psycopg.OperationalError("server closed the connection")),
    ],
)
def test_failures_of_the_database_are_tried_without_limit(build: StageFactory, error: Exception) -> None:
    stage = build(partitions=1)
    faulty = Faulty(stage, attempts=1)
    faulty.faults["0.5"] = [error] * 6 + [Retry()]
    stage.send(10)
    with running(faulty.consumer):
        eventually(lambda: faulty.tried.count("0.5") >= 6, within=40)
        faulty.heal()
        stage.wait()
    assert stage.faults() == []


def test_a_record_that_is_no_event_is_poison(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    consumer, _ = counting(stage, poison="stop")
    for value in ('{"n": 1}', '{"n": 2}', '{"n": "many"}', '{"n": 4}'):
        stage.put(value, type_="thing.counted.v1")
    stage.flush()
    with running(consumer):
        reason = seen.wait("consumer.stopped")["reason"]
    assert "offset 2" in reason
    assert "Counted" in reason
    assert stage.offset() == 2


def test_a_forged_sequence_header_is_poison(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    consumer, _ = counting(stage, poison="stop")
    stage.put('{"n": 1}', type_="thing.counted.v1", seq="s/1/0:1.1")
    stage.put('{"n": 2}', type_="thing.counted.v1", seq="nonsense")
    stage.flush()
    with running(consumer):
        assert "outbox-seq" in seen.wait("consumer.stopped")["reason"]
    assert stage.offset() == 1


def counting(stage: Stage, **settings: Any) -> tuple[Consumer, list[int]]:
    consumer, got = stage.consumer(**settings), []

    @consumer.on(Counted, topic=stage.topic)
    def handle(session: Session, event: Counted) -> None:
        got.append(event.n)

    return consumer, got


def test_a_handler_cannot_commit_part_of_a_batch(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    consumer = stage.consumer(poison="stop")

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        stage.store(session, record)
        session.commit()
        if value == b"0.3":
            raise Reject("after commit()")

    stage.send(5)
    with running(consumer):
        seen.wait("consumer.stopped")
    assert stage.effects() == ["0.1", "0.2"]
    assert stage.offset() == 2


def test_a_handler_that_rolls_back_and_returns_is_an_error(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    consumer = stage.consumer(attempts=1, poison="stop")

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        stage.store(session, record)
        session.rollback()

    stage.send(1)
    with running(consumer):
        assert "rolled its session back" in seen.wait("consumer.stopped")["reason"]
    assert (stage.effects(), stage.offset()) == ([], 0)


def test_a_handler_that_swallows_a_database_error_is_an_error(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    consumer = stage.consumer(attempts=1, poison="stop")

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        stage.store(session, record)
        try:
            session.execute(text("SELECT 1/0"))
        except Exception:
            return

    stage.send(1)
    with running(consumer):
        assert "given up the whole transaction" in seen.wait("consumer.stopped")["reason"]
    assert (stage.effects(), stage.offset()) == ([], 0)


def test_a_savepoint_may_fail(build: StageFactory) -> None:
    stage = build(partitions=1)
    consumer = stage.consumer()

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        try:
            with session.begin_nested():
                session.execute(text("SELECT 1/0"))
        except Exception:
            stage.store(session, record)

    stage.send(3)
    with running(consumer):
        stage.wait()
    assert stage.faults() == []


def test_a_session_that_chooses_its_own_connection_is_refused(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)

    class Routing(Session):
        def get_bind(self, *_: Any, **__: Any) -> Any:
            return stage.engine

    consumer = stage.consumer(sessions=sessionmaker(stage.engine, class_=Routing))

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        stage.store(session, record)

    stage.send(1)
    with running(consumer):
        assert "get_bind" in seen.wait("consumer.stopped")["reason"]
    assert (stage.effects(), stage.offset()) == ([], 0)
