"""Results, offset and marks change together, in partition order, under every group protocol."""

from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from confluent_kafka import Consumer as Plain
from confluent_kafka import TopicPartition
from sqlalchemy.orm import Session

from outbox import Event
from outbox.consumer import Record
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, Stage, Witness, eventually, running


class ThingDone(Event, name="thing.done", version=1, topic="unused", aggregate="thing", key="thing_id"):
    thing_id: UUID
    amount: Decimal


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_record_is_applied_once_and_in_order(build: StageFactory, protocol: str) -> None:
    stage = build(partitions=4)
    stage.send(400)
    with running(stage.recorder(PROTOCOLS[protocol], batch_size=50), threads=2):
        stage.wait()
        stage.send(400)
        stage.wait()
    assert stage.faults() == []
    assert [stage.offset(p) for p in range(4)] == [200] * 4


def test_a_second_run_goes_on_where_the_first_ended(stage: Stage) -> None:
    stage.send(30)
    with running(stage.recorder()):
        stage.wait()
    stage.send(30)
    with running(stage.recorder()):
        stage.wait()
    assert stage.faults() == []
    assert stage.row().owner_epoch == 2


def test_the_database_decides_and_not_the_offsets_in_kafka(stage: Stage) -> None:
    stage.send(30)
    with running(stage.recorder(), threads=1):
        stage.wait()
    stage.sql("DELETE FROM effect")
    stage.sql("UPDATE consumer_offset SET next_offset = 0, sources = '{}'")
    with running(stage.recorder()):
        stage.wait()
    assert stage.faults() == []


def test_latest_begins_at_the_end_but_only_the_first_time(stage: Stage, seen: Witness) -> None:
    stage.send(30)
    with running(stage.recorder(start="latest")):
        seen.wait("consumer.assigned")
    assert stage.effects() == []
    stage.send(3)
    with running(stage.recorder(start="latest")):
        eventually(lambda: len(stage.effects()) == 3)


def test_repeats_are_dropped_per_source_and_partition(build: StageFactory) -> None:
    stage = build(partitions=2)
    for partition, source, place, value in [
        (0, "a", "1.1", "a1"), (0, "a", "1.2", "a2"), (0, "b", "1.1", "b1"), (0, "a", "1.1", "repeat"),
        (0, "a", "1.2", "repeat"), (0, "a", "2.1", "a3"), (0, "b", "1.1", "repeat"), (0, "b", "1.4", "b2"),
        # The other partition is behind: what was applied there says nothing about here.
        (1, "a", "1.1", "x1"), (1, "b", "1.1", "x2"),
    ]:  # fmt: skip
        stage.put(value, partition=partition, seq=f"{source}/1/0:{place}")
    stage.flush()
    with running(stage.recorder(batch_size=3)):
        eventually(lambda: len(stage.effects()) >= 7)
        eventually(lambda: (stage.offset(0), stage.offset(1)) == (8, 2))
    assert stage.effects(0) == ["a1", "a2", "b1", "a3", "b2"]
    assert stage.effects(1) == ["x1", "x2"]


def test_records_of_foreign_producers_are_never_dropped(stage: Stage) -> None:
    for value in ("one", "one", "two"):
        stage.put(value, type_=None)
    stage.flush()
    with running(stage.recorder()):
        eventually(lambda: len(stage.effects()) == 3)
    assert stage.effects() == ["one", "one", "two"]


def test_events_reach_the_handler_of_their_type_with_their_record(stage: Stage) -> None:
    consumer = stage.consumer()
    got: list[tuple[object, Record]] = []

    @consumer.on(ThingDone, topic=stage.topic)
    def handle(session: Session, event: ThingDone, record: Record) -> None:
        got.append((event, record))

    event = ThingDone(thing_id=uuid4(), amount=Decimal("9.90"))
    stage.put(event.model_dump_json(), seq="s/1/0:5.7", key=str(event.thing_id))
    stage.flush()
    with running(consumer):
        eventually(lambda: got)
    assert got[0][0] == event
    record = got[0][1]
    assert (record.offset, record.key, record.type) == (0, str(event.thing_id).encode(), "thing.done.v1")
    assert record.seq is not None
    assert (record.seq.delta, record.seq.position) == (5, 7)
    assert record.timestamp is not None
    assert record.timestamp.tzinfo is not None


def test_bulk_handlers_get_neighbours_of_one_type_in_order(build: StageFactory) -> None:
    stage = build(partitions=1)
    consumer = stage.consumer()
    got: list[tuple[str, list[str]]] = []

    @consumer.on(ThingDone, topic=stage.topic, batch=True)
    def typed(session: Session, events: list[ThingDone]) -> None:
        got.append(("typed", [str(event.amount) for event in events]))

    @consumer.on(topic=stage.topic, batch=True)
    def other(session: Session, values: list[bytes], records: list[Record]) -> None:
        got.append(("other", [value.decode() for value in values]))
        assert [record.value for record in records] == values

    for n, kind in enumerate(["typed", "typed", "other", "typed"]):
        value = (
            ThingDone(thing_id=uuid4(), amount=Decimal(n)).model_dump_json() if kind == "typed" else str(n)
        )
        stage.put(value, type_="thing.done.v1" if kind == "typed" else None)
    stage.flush()
    with running(consumer):
        eventually(lambda: stage.offset() == 4)
    flat = [(kind, value) for kind, values in got for value in values]
    assert flat == [("typed", "0"), ("typed", "1"), ("other", "2"), ("typed", "3")]
    assert len(got) <= 4


def test_unknown_types_are_skipped_and_said_once(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    consumer = stage.consumer()

    @consumer.on(ThingDone, topic=stage.topic)
    def handle(session: Session, event: ThingDone) -> None:
        raise AssertionError("not for this handler")

    for n in range(5):
        stage.put("{}", type_="thing.undone.v1", seq=f"s/1/0:1.{n + 1}")
    stage.flush()
    with running(consumer):
        eventually(lambda: stage.offset() == 5)
    said = [line for line in caplog.messages if "thing.undone.v1" in line]
    assert len(said) == 1


def test_unknown_types_stop_the_partition_if_told_so(stage: Stage, seen: Witness) -> None:
    consumer = stage.consumer(unknown="stop")

    @consumer.on(ThingDone, topic=stage.topic)
    def handle(session: Session, event: ThingDone) -> None:
        raise AssertionError("not for this handler")

    stage.put("{}", type_="thing.undone.v1")
    stage.flush()
    with running(consumer):
        assert "thing.undone.v1" in seen.wait("consumer.stopped")["reason"]
    assert stage.offset() == 0


def test_tombstones_reach_only_handlers_that_ask_for_them(build: StageFactory) -> None:
    stage = build(partitions=1)
    got: list[str] = []
    deaf, keen = stage.consumer(group="deaf"), stage.consumer()

    @deaf.on(ThingDone, topic=stage.topic)
    def never(session: Session, event: ThingDone) -> None:
        raise AssertionError("a tombstone is not an event")

    @keen.on(ThingDone, topic=stage.topic, tombstones=True)
    def handle(session: Session, event: ThingDone | None, record: Record) -> None:
        assert event is None
        got.append((record.key or b"").decode())

    stage.put(None, key="gone")
    stage.flush()
    with running(keen), running(deaf):
        eventually(lambda: got)
        eventually(lambda: stage.offset(group="deaf") == 1)
    assert got == ["gone"]


def test_offsets_are_shown_to_lag_tools(stage: Stage, seen: Witness) -> None:
    stage.send(9, partition=0)
    with running(stage.recorder()):
        stage.wait()
        plain = Plain({"bootstrap.servers": stage.bootstrap, "group.id": stage.group})
        place = TopicPartition(stage.topic, 0)
        eventually(lambda: plain.committed([place], timeout=5)[0].offset == 9)
        plain.close()
