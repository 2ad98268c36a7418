"""What a foreign producer sends again is applied once, whatever stops, dies or waits between."""

import signal
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from outbox import Reject
from outbox.consumer import Consumer, Record
from outbox.errors import ConfigurationError
from outbox.storage.ddl import step_8
from tests.consumer.conftest import StageFactory
from tests.consumer.foreign import PlainProducer
from tests.consumer.stage import SHORT, Stage, Witness, eventually, running
from tests.consumer.test_crash import POINTS
from tests.consumer.test_parking import Keyed


def deduping(stage: Stage, kafka: dict[str, Any] | None = None, **settings: Any) -> Consumer:
    """A consumer that stores each foreign record as an effect, repeats excepted."""
    options = {
        name: settings.pop(name) for name in ("dedupe", "dedupe_window", "without_id") if name in settings
    }
    consumer = stage.consumer(kafka, **settings)

    @consumer.on(topic=stage.topic, **{"dedupe": "event_id", **options})
    def store(session: Session, value: bytes, record: Record) -> None:
        stage.store(session, record)

    return consumer


@pytest.fixture
def one(build: StageFactory) -> PlainProducer:
    """A producer on a topic of one partition."""
    return PlainProducer(build(partitions=1))


def read_to(stage: Stage, offset: int) -> None:
    eventually(lambda: stage.offset() >= offset, what=f"offset {offset}")


def test_a_repeat_is_dropped_in_the_same_batch_a_later_one_and_after_a_restart(one: PlainProducer) -> None:
    for name in ("a", "b", "a", "c"):
        one.event(name)
    one.flush()
    with running(deduping(one.stage)):
        read_to(one.stage, 4)
        for name in ("b", "d", "a"):
            one.event(name)
        one.flush()
        read_to(one.stage, 7)
    one.event("d")
    one.event("e")
    one.flush()
    with running(deduping(one.stage)):
        read_to(one.stage, 9)
    assert one.stage.effects() == ["a", "b", "c", "d", "e"]


def test_without_dedupe_a_producers_repeat_is_applied_again(one: PlainProducer) -> None:
    for name in ("a", "b", "a"):
        one.event(name)
    one.flush()
    with running(deduping(one.stage, dedupe=None)):
        read_to(one.stage, 3)
    assert one.stage.effects() == ["a", "b", "a"]
    assert one.stage.rows("SELECT count(*) FROM consumer_inbox") == [(0,)]


def test_repeats_in_another_partition_and_other_groups_are_their_own(stage: Stage) -> None:
    producer = PlainProducer(stage)
    for partition in range(3):
        producer.event("a", partition=partition)
        producer.event("a", partition=partition)
    producer.flush()
    with running(deduping(stage)), running(deduping(stage, group="another")):
        eventually(lambda: all(stage.offset(p, g) == 2 for p in range(3) for g in (stage.group, "another")))
    assert stage.effects() == ["a"] * 6  # three partitions, two groups


def test_ids_of_cloud_events_count_within_their_source(one: PlainProducer) -> None:
    def structured(id_: str, source: str) -> bytes:
        return b'{"specversion":"1.0","id":"%s","source":"%s","data":1}' % (id_.encode(), source.encode())

    kind = [("content-type", "application/cloudevents+json; charset=UTF-8")]
    for source in ("/x", "/y"):
        for _ in range(2):
            one.put("binary", headers=[("ce_id", "1"), ("ce_source", source)])
            one.put(structured("2", source), headers=[*kind])
    one.flush()
    with running(deduping(one.stage)):
        read_to(one.stage, 8)
    assert len(one.stage.effects()) == 4


def test_an_id_may_be_any_function_of_the_record(one: PlainProducer) -> None:
    def by_value(record: Record) -> bytes | None:
        return None if record.value is None else record.value.split(b":")[0]

    values: list[bytes] = [b"1:x", b"2:x", b"1:y", b"\xff:z", b"\xff:w", b"9" * 3_000, b"9" * 3_000]
    for value in values:
        one.put(value)
    one.flush()
    consumer = one.stage.consumer()
    got: list[bytes] = []

    @consumer.on(topic=one.stage.topic, dedupe=by_value)
    def keep(session: Session, value: bytes) -> None:
        got.append(value)

    with running(consumer):
        read_to(one.stage, 7)
    assert got == [b"1:x", b"2:x", b"\xff:z", b"9" * 3_000]


@pytest.mark.parametrize("without_id", ["handle", "park", "stop"])
def test_a_record_without_an_id_is_handled_parked_or_stops_its_partition(
    one: PlainProducer, seen: Witness, without_id: str
) -> None:
    one.event("a")
    one.put("nameless")
    one.put("nameless")
    one.event("b")
    one.flush()
    with running(deduping(one.stage, without_id=without_id)):
        match without_id:
            case "handle":
                read_to(one.stage, 4)
                assert one.stage.effects() == ["a", "nameless", "nameless", "b"]
            case "park":
                read_to(one.stage, 4)
                assert one.stage.effects() == ["a", "b"]
                assert one.stage.rows("SELECT record_offset FROM consumer_parked") == [(1,), (2,)]
            case "stop":
                assert "no event id" in seen.wait("consumer.stopped")["reason"]
                assert one.stage.offset() == 1


def test_what_an_outbox_sent_is_left_to_its_marks(one: PlainProducer) -> None:
    for n in (1, 2):
        for _ in range(2):
            one.put(f"{n}", headers=[("id", "the same"), ("outbox-seq", f"s/1/0:1.{n}")])
    one.flush()
    with running(deduping(one.stage)):
        read_to(one.stage, 4)
    assert one.stage.effects() == ["1", "2"]
    assert one.stage.rows("SELECT count(*) FROM consumer_inbox") == [(0,)]


def test_records_that_are_read_again_are_no_repeats_of_themselves(one: PlainProducer) -> None:
    for name in ("a", "b", "a", "c"):
        one.event(name)
    one.flush()
    with running(deduping(one.stage)):
        read_to(one.stage, 4)
    one.stage.sql("UPDATE consumer_offset SET next_offset = 1, owner_epoch = owner_epoch + 1")
    with running(deduping(one.stage)):
        read_to(one.stage, 4)
    assert one.stage.effects() == ["a", "b", "c", "b", "c"]


def test_an_id_that_stands_at_any_offset_would_lose_what_is_read_again(one: PlainProducer) -> None:
    ((definition,),) = one.stage.rows(f"SELECT pg_get_functiondef(CAST('{step_8.NAME}' AS regprocedure))")
    naive = definition.replace("AND i.record_offset < g.record_offset", "")
    assert naive != definition
    with one.stage.engine.begin() as connection:
        connection.exec_driver_sql(naive)
    with pytest.raises(AssertionError, match="'a', 'b', 'c'"):
        test_records_that_are_read_again_are_no_repeats_of_themselves(one)


@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_at_any_step_of_a_batch_neither_loses_nor_doubles(stage: Stage, point: str) -> None:
    random, producer = Random(point), PlainProducer(stage)
    producer.events(30, random)
    first = stage.process(
        at=point, count=2, do="kill", kafka=SHORT, settings={"batch_size": 7}, dedupe="event_id"
    )
    producer.events(30, random)
    assert first.wait(30) == -signal.SIGKILL
    with running(deduping(stage, SHORT)):
        producer.events(5, random)
        eventually(producer.all_there)
    assert producer.faults() == []


def test_take_overs_among_members_drop_every_repeat_and_no_event(stage: Stage, seen: Witness) -> None:
    random, producer = Random(8), PlainProducer(stage)
    producer.events(40, random)
    with running(deduping(stage, SHORT, batch_size=5)):
        seen.wait("consumer.batch.committed", count=3)
        for _ in range(2):
            with running(deduping(stage, SHORT, batch_size=5)):
                producer.events(20, random)
                seen.wait("consumer.revoked")
                eventually(producer.all_there)
        producer.events(5, random)
        eventually(producer.all_there)
    assert producer.faults() == []


def test_a_repeat_of_what_is_parked_or_waits_is_dropped_and_a_release_runs_it_once(
    build: StageFactory,
) -> None:
    keyed = Keyed(build(partitions=1), dedupe="event_id")
    producer = PlainProducer(keyed.stage)

    def put(*names: str) -> None:
        for name in names:
            producer.event(name, key=name[0])
        producer.flush()

    keyed.bad["a:1"] = Reject("not yet")
    put("a:1", "a:2", "b:1", "a:1", "a:2", "b:1", "a:3")
    with running(keyed.consumer):
        read_to(keyed.stage, 7)
        assert keyed.waiting() == [(0, "failed"), (1, "queued"), (6, "queued")]
        put("a:1", "a:3", "b:2")
        read_to(keyed.stage, 10)
        assert keyed.waiting() == [(0, "failed"), (1, "queued"), (6, "queued")]
        keyed.bad.clear()
        keyed.release(0)
        eventually(lambda: keyed.counted() == 0)
        put("a:1", "a:2", "b:1", "a:4")
        read_to(keyed.stage, 14)
    assert keyed.stage.effects() == ["b:1", "b:2", "a:1", "a:2", "a:3", "a:4"]


def test_a_discarded_record_and_its_repeats_never_run(build: StageFactory) -> None:
    keyed = Keyed(build(partitions=1), dedupe="event_id")
    producer = PlainProducer(keyed.stage)
    keyed.bad["a:1"] = Reject("never")
    producer.event("a:1", key="a")
    producer.flush()
    with running(keyed.consumer):
        eventually(lambda: keyed.counted() == 1)
        keyed.discard(0)
        eventually(lambda: keyed.counted() == 0)
        keyed.bad.clear()
        producer.event("a:1", key="a")
        producer.event("a:2", key="a")
        producer.flush()
        read_to(keyed.stage, 3)
    assert keyed.stage.effects() == ["a:2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dedupe": "id"}, "neither 'event_id' nor a function"),
        ({"dedupe": "event_id", "dedupe_window": timedelta(seconds=1)}, "from one minute to seven days"),
        ({"dedupe": "event_id", "dedupe_window": timedelta(days=8)}, "from one minute to seven days"),
        ({"dedupe": "event_id", "without_id": "skip"}, "none of 'handle', 'park', 'stop'"),
    ],
)
def test_what_cannot_work_is_refused_at_birth(stage: Stage, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        deduping(stage, **options)


def test_a_function_that_gives_no_id_is_the_consumers_fault(one: PlainProducer, seen: Witness) -> None:
    one.event("a")
    one.flush()
    wrong: Any = lambda record: record.offset + 1  # noqa: E731
    with running(deduping(one.stage, dedupe=wrong)):
        assert "it must give a str, bytes or UUID" in seen.wait("consumer.stopped")["reason"]
    with running(deduping(one.stage, dedupe=lambda record: UUID(int=record.offset))):
        read_to(one.stage, 1)
    assert one.stage.effects() == ["a"]
