"""What fits into one transaction: by count, by bytes, by time."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from outbox import ConfigurationError, Reject
from outbox.consumer import Consumer, Record
from outbox.consumer.batch import BatchRunner
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import Stage, Witness, eventually, running


def sizes(stage: Stage) -> list[int]:
    """How many effects each transaction stored, in order."""
    return [n for (n,) in stage.rows("SELECT count(*) FROM effect GROUP BY xmin::text ORDER BY min(n)")]


def test_a_transaction_holds_no_more_bytes_than_it_may(build: StageFactory) -> None:
    stage = build(partitions=1)
    for _ in range(30):
        stage.put(b"x" * 900)
    stage.flush()
    with running(stage.recorder(batch_bytes=3000)):
        eventually(lambda: stage.offset() == 30)
    assert max(sizes(stage)) == 3
    assert sum(sizes(stage)) == 30


def test_headers_count(build: StageFactory) -> None:
    stage = build(partitions=1)
    for n in range(1, 13):
        stage.put(f"0.{n}", type_="t" * 994)  # with the header's name and the value 1,001 bytes at least
    stage.flush()
    with running(stage.recorder(batch_bytes=2999, batch_wait=timedelta(seconds=2))):
        eventually(lambda: stage.offset() == 12)
    assert max(sizes(stage)) == 2


def test_a_larger_record_still_goes_alone(build: StageFactory) -> None:
    stage = build(partitions=1)
    for size in (10, 50_000, 60_000, 10):
        stage.put(b"x" * size)
    stage.flush()
    with running(stage.recorder(batch_bytes=1000)):
        eventually(lambda: stage.offset() == 4)
    assert [len(value) for value in stage.effects()] == [10, 50_000, 60_000, 10]
    assert max(sizes(stage)) == 1


def test_what_waits_does_not_pile_up_while_batches_are_cut_by_bytes(
    build: StageFactory, seen: Witness
) -> None:
    stage = build(partitions=1)
    for _ in range(2_000):
        stage.put(b"x" * 500)
    stage.flush()
    consumer = stage.recorder(batch_bytes=10_000, batch_size=100)
    held: list[int] = []

    def look(_: dict[str, Any]) -> None:
        (member,) = consumer._members
        held.extend(len(partition.polled) for partition in member._assignment.partitions.values())

    seen.at("consumer.batch.committed", look)
    with running(consumer):
        eventually(lambda: stage.offset() == 2_000)
    assert max(held) <= 200


def test_few_records_wait_for_more_as_long_as_they_may(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    with running(stage.recorder(batch_size=20, batch_wait=timedelta(seconds=30))):
        seen.wait("consumer.claimed")
        for _ in range(4):
            stage.send(5)
            seen.wait("consumer.polled")
        stage.wait(within=25)
    assert sizes(stage) == [20]


def test_few_records_do_not_wait_longer_than_they_may(build: StageFactory) -> None:
    stage = build(partitions=1)
    with running(stage.recorder(batch_wait=timedelta(milliseconds=300))):
        stage.send(3)
        stage.wait()
    assert stage.faults() == []


class Slow:
    """A handler that takes its time until it is told to hurry."""

    def __init__(self, stage: Stage, consumer: Consumer, seconds: float) -> None:
        self.hurry = threading.Event()
        self.calls = 0

        @consumer.on(topic=stage.topic)
        def handle(session: Session, value: bytes, record: Record) -> None:
            self.calls += 1
            if value == b"poison":
                raise Reject("poison")
            stage.store(session, record)
            self.hurry.wait(seconds)


def test_a_batch_whose_time_is_over_is_committed_as_far_as_it_got(stage: Stage, seen: Witness) -> None:
    stage.send(60)
    consumer = stage.consumer(batch_time=timedelta(milliseconds=250))
    slow = Slow(stage, consumer, 0.1)
    with running(consumer):
        cut = seen.wait("consumer.batch.cut")
        assert stage.row(cut["partition"]).next_offset <= cut["next"]
        seen.wait("consumer.batch.cut", count=4)
        slow.hurry.set()
        stage.wait()
    assert stage.faults() == []
    assert slow.calls == 60  # nothing was handled in vain
    for partition in range(3):
        moves = [f for f in seen.all("consumer.batch.committed") if f["partition"] == partition]
        assert [f["first"] for f in moves] == [0, *(f["next"] for f in moves[:-1])]
        assert moves[-1]["next"] == 20


def test_without_setting_the_offset_back_a_cut_batch_loses_records(
    build: StageFactory, seen: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(*_: object) -> None:
        return None

    monkeypatch.setattr(BatchRunner, "_cut", forgetful)
    stage = build(partitions=1)
    stage.send(20)
    consumer = stage.consumer(batch_time=timedelta(milliseconds=250))
    Slow(stage, consumer, 0.1)
    with running(consumer):
        eventually(lambda: stage.offset() == 20)
    assert any("lost" in fault for fault in stage.faults())


def test_a_partition_that_is_not_reached_keeps_what_is_known_of_the_record_before(
    stage: Stage, seen: Witness
) -> None:
    """Its leader's epoch tells later whether the log was cut off meanwhile."""
    stage.send(9)
    with running(stage.recorder()):
        stage.wait()
    consumer = stage.consumer(batch_time=timedelta(milliseconds=50))
    slow = Slow(stage, consumer, 0.1)
    unreached: set[int] = set()
    epochs: list[int | None] = []

    def look(facts: dict[str, Any]) -> None:
        if facts["partition"] in unreached:
            epochs.append(stage.row(facts["partition"]).leader_epoch)

    def cut(facts: dict[str, Any]) -> None:
        if facts["first"] == facts["next"]:
            unreached.add(facts["partition"])

    seen.at("consumer.batch.cut", cut)
    seen.at("consumer.batch.begin", look)
    stage.send(60)
    with running(consumer):
        eventually(lambda: epochs)
        slow.hurry.set()
        stage.wait()
    assert stage.faults() == []
    assert None not in epochs


def test_a_cut_batch_queues_nothing_that_it_did_not_reach(build: StageFactory, seen: Witness) -> None:
    """The records behind a parked one are stored before the handlers are called; those behind the cut come
    again."""
    stage = build(partitions=1)
    consumer = stage.consumer(batch_time=timedelta(milliseconds=250), attempts=1)
    slow = Slow(stage, consumer, 0.1)
    with running(consumer):
        stage.put("poison", key="bad")
        stage.flush()
        seen.wait("consumer.parked")
        for n in range(1, 21):
            stage.put(f"0.{n}", key="bad" if n % 2 else f"good{n}")
        stage.flush()
        seen.wait("consumer.batch.cut")
        slow.hurry.set()
        eventually(lambda: stage.offset() == 21)
    assert stage.effects() == [f"0.{n}" for n in range(2, 21, 2)]
    waiting = stage.rows("SELECT record_offset, state FROM consumer_parked ORDER BY record_offset")
    assert waiting == [(0, "failed"), *((n, "queued") for n in range(1, 21, 2))]
    assert stage.row().parked == 11


def test_slow_handlers_do_not_cost_the_membership(stage: Stage, seen: Witness) -> None:
    """Sixty records of 0.1 s take twice as long as Kafka would wait for a poll."""
    stage.send(60)
    consumer = stage.consumer({"max.poll.interval.ms": 3000, "session.timeout.ms": 3000})
    Slow(stage, consumer, 0.1)
    with running(consumer):
        stage.wait()
    assert stage.faults() == []
    assert seen.all("consumer.fenced") == []
    assert len(seen.all("consumer.assigned")) == 1


def test_a_record_that_fails_splits_its_list_and_touches_no_other_partition(
    stage: Stage, seen: Witness
) -> None:
    consumer = stage.consumer(attempts=1)
    lists: dict[int, list[int]] = {0: [], 1: [], 2: []}

    @consumer.on(topic=stage.topic, batch=True)
    def store(session: Session, values: list[bytes], found: list[Record]) -> None:
        lists[found[0].partition].append(len(values))
        for record in found:
            stage.store(session, record)
        if b"1.5" in values:
            raise ValueError("1.5")

    for partition in range(3):
        for n in range(1, 11):
            stage.put(f"{partition}.{n}", partition=partition, key=f"k{n}")
    stage.flush()
    with running(consumer):
        seen.wait("consumer.parked")
        eventually(lambda: all(stage.offset(partition) == 10 for partition in range(3)))
    assert stage.effects(1) == [f"1.{n}" for n in range(1, 11) if n != 5]
    for partition in (0, 2):
        assert stage.effects(partition) == [f"{partition}.{n}" for n in range(1, 11)]
    assert {f["partition"] for f in seen.all("consumer.parked")} == {1}


def test_offset_and_marks_are_changed_by_one_statement(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    changes: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        by_the_way = "owner_epoch + 1" in statement or "SET inbox" in statement
        if "UPDATE consumer_offset" in statement and not by_the_way:
            changes.append(statement)

    event.listen(stage.engine, "before_cursor_execute", note)
    try:
        with running(stage.recorder()):
            stage.send(20)
            stage.wait()
    finally:
        event.remove(stage.engine, "before_cursor_execute", note)
    assert len(changes) == len(seen.all("consumer.batch.committed"))
    assert all("next_offset = " in change and "sources = " in change for change in changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_bytes", 0), ("batch_wait", timedelta(0)), ("batch_time", timedelta(0)), ("batch_time", None)],
)
def test_what_no_batch_can_keep_to_is_refused(build: StageFactory, name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        build(partitions=1).consumer(**{name: value})
