"""Partitions and topics that come and go while a group reads lose no event and end no member."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import NewPartitions
from sqlalchemy.orm import Session

from outbox.consumer import Consumer, Record
from outbox.consumer.handlers import Handlers
from outbox.consumer.interest import Interest
from outbox.errors import ConfigurationError
from outbox.testing.servers import KafkaServer
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, Stage, Witness, eventually, running

QUICK = {"topic.metadata.refresh.interval.ms": 500}


def grow(stage: Stage, kafka: KafkaServer, partitions: int) -> None:
    """The topic gets more partitions."""
    kafka.admin.create_partitions([NewPartitions(stage.topic, partitions)])[stage.topic].result(20)
    eventually(lambda: len(kafka.admin.list_topics(stage.topic).topics[stage.topic].partitions) == partitions)
    stage.grow(partitions)


def test_a_group_that_begins_at_the_end_does_so_beside_a_partition_that_a_person_placed(
    build: StageFactory,
) -> None:
    stage = build(partitions=2)
    stage.send(10)
    consumer = stage.recorder(start="latest")
    consumer.seek("beginning", partition=0)
    with running(consumer):
        eventually(lambda: [stage.offset(p) for p in range(2)] == [5, 5])
        stage.send(2, partition=1)
        eventually(lambda: stage.offset(1) == 7)
    assert stage.effects(0) == stage.expected(0)
    assert stage.effects(1) == stage.expected(1)[5:]
    assert stage.row(1).moved_why == "start=latest"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_partition_added_while_running_is_read_from_its_beginning(
    build: StageFactory, kafka: KafkaServer, seen: Witness, protocol: str
) -> None:
    stage = build(partitions=2)
    stage.send(10)
    with running(stage.recorder({**PROTOCOLS[protocol], **QUICK}, start="latest"), threads=2):
        eventually(lambda: [stage.offset(p) for p in range(2)] == [5, 5])
        grow(stage, kafka, 4)
        for partition in (2, 3):
            stage.send(5, partition=partition)
        eventually(
            lambda: [stage.effects(p) for p in (2, 3)] == [stage.expected(p) for p in (2, 3)], within=40
        )


def test_a_partition_added_while_nobody_runs_is_read_from_its_beginning(
    build: StageFactory, kafka: KafkaServer, seen: Witness
) -> None:
    stage = build(partitions=1)
    stage.send(10)
    with running(stage.recorder(start="latest")):
        seen.wait("consumer.claimed")
    grow(stage, kafka, 2)
    stage.send(5, partition=1)
    with running(stage.recorder(start="latest")):
        eventually(lambda: stage.effects(1) == stage.expected(1))
    assert stage.effects(0) == []


def test_a_partition_that_begins_at_the_end_after_all_loses_what_came_before_it_was_found(
    build: StageFactory, kafka: KafkaServer, seen: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive form: each partition begins where the group was told to begin."""
    monkeypatch.setattr("outbox.consumer.place.beginning.appeared_later", lambda *_: False)
    stage = build(partitions=1)
    with running(stage.recorder(start="latest")):
        seen.wait("consumer.claimed")
    grow(stage, kafka, 2)
    stage.send(5, partition=1)
    with running(stage.recorder(start="latest")):
        eventually(lambda: stage.offset(1) == 5)
    assert stage.effects(1) == []


def test_all_partitions_of_a_topic_begin_at_one_moment(stage: Stage, seen: Witness) -> None:
    """Whoever is given a partition only later finds what came in between."""
    stage.send(9)
    with running(stage.recorder(start="latest"), partitions=[(stage.topic, 1)]):
        seen.wait("consumer.claimed")
    assert [stage.offset(p) for p in range(3)] == [3, 3, 3]
    stage.send(9)
    with running(stage.recorder(start="latest")):
        eventually(lambda: len(stage.effects()) == 9)


def reader(stage: Stage, pattern: str | re.Pattern[str], **settings: Any) -> Consumer:
    """A consumer that stores the effects of all topics that match."""
    consumer = stage.consumer({**QUICK, **settings.pop("kafka", {})}, **settings)

    @consumer.on(topic=pattern)
    def store(session: Session, value: bytes, record: Record) -> None:
        stage.store(session, record, consumer.group)

    return consumer


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_topics_that_match_are_read_when_they_appear_and_no_longer_when_they_go(
    build: StageFactory, kafka: KafkaServer, seen: Witness, protocol: str
) -> None:
    stage = build(partitions=1)
    later = f"{stage.topic}.later"
    consumer = reader(stage, f"^{re.escape(stage.topic)}.*", kafka=PROTOCOLS[protocol], start="latest")
    with running(consumer, threads=2):
        eventually(lambda: stage.offset() == 0)
        stage.send(3)
        stage.wait()
        kafka.create_topic(later, partitions=1)
        stage.put("later", topic=later, type_=None)
        stage.flush()
        eventually(lambda: "later" in stage.effects(), within=40)
        kafka.delete_topic(later)
        eventually(lambda: len(seen.all("consumer.revoked")) > 0, within=40)
        stage.send(3)
        eventually(lambda: len(stage.effects()) == 7, within=40)
        eventually(lambda: consumer.health().ok, within=40)
    assert [value for value in stage.effects() if value != "later"] == stage.expected(0)


def test_a_group_waits_for_topics_that_match(build: StageFactory, kafka: KafkaServer) -> None:
    stage = build(partitions=1)
    consumer = reader(stage, re.compile(rf"{re.escape(stage.topic)}\.(a|b)"))
    with running(consumer):
        eventually(lambda: consumer.health().members and consumer.health().members[0].trouble)
        assert "no topic matches" in consumer.health().members[0].trouble[0]
        kafka.create_topic(f"{stage.topic}.b", partitions=1)
        stage.put("b", topic=f"{stage.topic}.b", type_=None)
        stage.put("not asked for", type_=None)
        stage.flush()
        eventually(lambda: stage.effects() == ["b"], within=40)
        eventually(lambda: consumer.health().ok)
    kafka.delete_topic(f"{stage.topic}.b")


class Listing:
    """A client that lists what it is told to."""

    def __init__(self) -> None:
        self.topics: dict[str, KafkaError | None] = {}

    def list_topics(self, *, timeout: float) -> Any:
        assert timeout
        topics = {name: SimpleNamespace(error=error) for name, error in self.topics.items()}
        return SimpleNamespace(topics=topics)


def test_a_topic_is_let_go_of_only_when_it_is_missing_twice() -> None:
    client: Any = Listing()
    handlers = Handlers()
    handlers.add(named("handle"), [], topic="^orders.*", bulk=False, tombstones=False)
    interest = Interest(client, handlers, {"topic.metadata.refresh.interval.ms": 0})
    assert interest.tick() == []
    lost = KafkaError(KafkaError.LEADER_NOT_AVAILABLE)
    client.topics = {"orders.eu": None, "orders.us": lost, "__orders": None}
    assert interest.tick() == ["orders.eu"]
    client.topics["orders.eu"] = lost
    assert [interest.tick() for _ in range(3)] == [None, None, None]
    client.topics = {"orders.eu": KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)}
    assert [interest.tick() for _ in range(2)] == [None, []]


def test_a_pattern_that_is_none_is_refused(stage: Stage) -> None:
    with pytest.raises(ConfigurationError, match="no pattern"):
        reader(stage, "^(orders")


def test_a_name_goes_before_a_pattern_and_an_earlier_pattern_before_a_later(stage: Stage) -> None:
    consumer = stage.consumer()
    for topic in ("^orders.*", "orders.paid", "^orders.p.*"):
        consumer.on(topic=topic)(named(topic))
    routes = {
        topic: consumer._handlers.routes(topic)[None].handler.function.__name__
        for topic in ("orders.paid", "orders.placed")
    }
    assert routes == {"orders.paid": "orders.paid", "orders.placed": "^orders.*"}
    assert consumer._handlers.routes("shop") == {}


def named(name: str) -> Any:
    def handle(session: Session, value: bytes) -> None: ...

    handle.__name__ = name
    return handle
