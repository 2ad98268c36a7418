"""An offset is believed only where it means the records it was stored for."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import Message, Producer, TopicPartition

from outbox.consumer import Consumer, Status
from outbox.testing.servers import KafkaServer
from tests.consumer import broken
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, Stage, Witness, eventually, running


class Skipping(KafkaConsumer):
    """A client that begins too far on, as one does whose position a late look-up overrode."""

    fetches = 1
    """How many fetches after an assignment begin too far on."""
    records = 5

    def __init__(self, properties: dict[str, Any]) -> None:
        super().__init__(properties)
        self._left = 0

    def assign(self, partitions: list[TopicPartition]) -> None:
        super().assign(partitions)
        self._positioned(partitions)

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        super().incremental_assign(partitions)
        self._positioned(partitions)

    def _positioned(self, partitions: list[TopicPartition]) -> None:
        if partitions and type(self).fetches > 0:
            type(self).fetches -= 1
            self._left = self.records

    def poll(self, timeout: float = -1) -> Any:
        message = super().poll(timeout)
        return None if message is not None and self._skips(message) else message

    def consume(self, num_messages: int = 1, timeout: float = -1) -> Any:
        return [message for message in super().consume(num_messages, timeout) if not self._skips(message)]

    def _skips(self, message: "Message[Any, Any]") -> bool:
        if message.error() is not None or not self._left:
            return False
        self._left -= 1
        return True


def with_client(consumer: Consumer, client: Callable[[dict[str, Any]], KafkaConsumer]) -> Consumer:
    consumer._setup = dataclasses.replace(consumer._setup, new_client=client)
    return consumer


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_jump_after_positioning_is_not_believed_until_seen_twice(
    build: StageFactory, seen: Witness, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    stage = build(partitions=1)
    stage.send(40)
    monkeypatch.setattr(Skipping, "fetches", 1)
    with running(with_client(stage.recorder(PROTOCOLS[protocol]), Skipping)):
        stage.wait()
    assert stage.faults() == []
    jumps = [(facts["seen"], facts["believed"]) for facts in seen.all("consumer.jump")]
    assert jumps == [(5, False), (0, False)]


def test_believing_the_first_jump_loses_records(build: StageFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = build(partitions=1)
    stage.send(40)
    monkeypatch.setattr(Skipping, "fetches", 1)
    with broken.variant(broken.believes_jumps), running(with_client(stage.recorder(), Skipping)):
        eventually(lambda: stage.offset() == 40)
    assert len(stage.effects()) == 35


def test_a_gap_that_is_really_there_is_believed_the_second_time(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    producer = Producer({"bootstrap.servers": stage.bootstrap, "transactional.id": stage.topic})
    producer.init_transactions(20)
    for commit in (False, True):
        producer.begin_transaction()
        for n in range(5):
            producer.produce(stage.topic, f"{commit}{n}", partition=0)
        producer.flush(10)
        if commit:
            producer.commit_transaction(20)
        else:
            producer.abort_transaction(20)
    with running(stage.recorder()):
        eventually(lambda: len(stage.effects()) == 5)
    assert stage.effects() == [f"True{n}" for n in range(5)]
    jumps = [(facts["seen"], facts["believed"]) for facts in seen.all("consumer.jump")]
    assert jumps == [(6, False), (6, True)]


def made_again(stage: Stage, kafka: KafkaServer, records: int) -> None:
    """The topic is deleted, made again under its name and filled with other records."""
    kafka.delete_topic(stage.topic)

    def create() -> bool:
        try:
            kafka.create_topic(stage.topic, partitions=1)
        except Exception:
            return False
        return True

    eventually(create, what="the new topic")
    producer = Producer({"bootstrap.servers": stage.bootstrap})
    for n in range(records):
        producer.produce(stage.topic, f"new{n}", partition=0)
    assert producer.flush(20) == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_topic_made_again_while_it_is_read_stops(
    build: StageFactory, kafka: KafkaServer, seen: Witness, protocol: str
) -> None:
    stage = build(partitions=1)
    stage.send(10)
    consumer = stage.recorder({**PROTOCOLS[protocol], "topic.metadata.refresh.interval.ms": 1000})
    with running(consumer):
        stage.wait()
        made_again(stage, kafka, 40)
        facts = seen.wait("consumer.stopped", within=40)
        assert "made again" in facts["reason"]
        assert [p.status for p in consumer.health().stopped] == [Status.STOPPED]
        assert not consumer.health().ok
    assert (stage.faults(), stage.offset()) == ([], 10)


@pytest.mark.parametrize("protocol", ["cooperative", "kip848"])
def test_trusting_the_name_reads_the_new_topic_at_the_old_offset(
    build: StageFactory, kafka: KafkaServer, protocol: str
) -> None:
    stage = build(partitions=1)
    stage.send(10)
    with (
        broken.variant(broken.trusts_names),
        running(stage.recorder({**PROTOCOLS[protocol], "topic.metadata.refresh.interval.ms": 1000})),
    ):
        stage.wait()
        made_again(stage, kafka, 40)
        eventually(lambda: stage.offset() == 40, within=40)
    assert "new0" not in stage.effects()
    assert "new39" in stage.effects()


def test_a_topic_made_again_while_nobody_reads_stops(
    build: StageFactory, kafka: KafkaServer, seen: Witness
) -> None:
    stage = build(partitions=1)
    stage.send(10)
    with running(stage.recorder()):
        stage.wait()
    made_again(stage, kafka, 40)
    with running(stage.recorder()):
        assert "consumer_offset" in seen.wait("consumer.stopped")["reason"]
    assert (stage.faults(), stage.offset(), stage.row().owner_epoch) == ([], 10, 1)


def test_offsets_of_another_cluster_stop(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    stage.send(10)
    with running(stage.recorder()):
        stage.wait()
    stage.sql("UPDATE consumer_offset SET cluster_id = 'another'")
    stage.send(10)
    with running(stage.recorder()):
        assert "cluster another" in seen.wait("consumer.stopped")["reason"]
    assert stage.offset() == 10


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_offset_below_retention_stops_and_skips_nothing(
    build: StageFactory, kafka: KafkaServer, seen: Witness, protocol: str
) -> None:
    stage = build(partitions=1)
    stage.send(10)
    with running(stage.recorder(PROTOCOLS[protocol])):
        stage.wait()
    stage.send(20)
    for future in kafka.admin.delete_records([TopicPartition(stage.topic, 0, 15)]).values():
        future.result(20)
    with running(stage.recorder(PROTOCOLS[protocol])):
        assert "retention deleted 5 offsets" in seen.wait("consumer.stopped")["reason"]
    assert stage.offset() == 10
    stage.sql("UPDATE consumer_offset SET next_offset = 15")
    with running(stage.recorder(PROTOCOLS[protocol])):
        eventually(lambda: len(stage.effects()) == 25)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_offset_beyond_the_end_stops(build: StageFactory, seen: Witness, protocol: str) -> None:
    stage = build(partitions=1)
    stage.send(10)
    with running(stage.recorder(PROTOCOLS[protocol])):
        stage.wait()
    stage.sql("UPDATE consumer_offset SET next_offset = 50")
    with running(stage.recorder(PROTOCOLS[protocol])):
        assert "beyond the end 10" in seen.wait("consumer.stopped")["reason"]
    assert stage.offset() == 50


def test_other_partitions_go_on_when_one_stops(stage: Stage, seen: Witness) -> None:
    stage.send(30)
    with running(stage.recorder()):
        stage.wait()
    stage.sql("UPDATE consumer_offset SET next_offset = 1000 WHERE partition = 1")
    with running(stage.recorder()):
        seen.wait("consumer.stopped")
        stage.send(30)
        eventually(lambda: len(stage.effects()) == 50)
    assert stage.effects(1) == stage.expected(1)[:10]
