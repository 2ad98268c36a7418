"""Small batches of several partitions share a transaction, and yet none answers for another."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from outbox import Reject
from outbox.consumer import Consumer, Record
from outbox.consumer.batch import BatchRunner
from outbox.consumer.identity import BrokerIdentities, TopicIdentity, TopicMissing
from outbox.consumer.partition import Partition
from outbox.consumer.told import Told
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import Stage, Witness, eventually, running


class Shared:
    """Notices the begin of a transaction for partition 1 and others, and lets a test act there, once."""

    def __init__(self, seen: Witness) -> None:
        self._begun: list[int] = []
        self.met = False
        seen.at("consumer.batch.begin", self._begin)
        seen.at("consumer.batch.advanced", lambda _: self._begun.clear())

    def act(self) -> None:
        """Called in the working thread before anything was done in the transaction."""

    def _begin(self, facts: dict[str, Any]) -> None:
        self._begun.append(facts["partition"])
        if not self.met and len(self._begun) > 1 and 1 in self._begun:
            self.met = True
            self.act()


def send_until_shared(stage: Stage, shared: Shared) -> None:
    """Whether the records of several partitions arrive together is the broker's choice."""

    def sent() -> bool:
        stage.send(3)
        return shared.met

    eventually(sent, what="a transaction of several partitions")


def test_few_records_of_several_partitions_are_one_commit(stage: Stage, seen: Witness) -> None:
    shared = Shared(seen)
    with running(stage.recorder()):
        send_until_shared(stage, shared)
        stage.wait()
    with stage.engine.connect() as connection:
        commits = connection.exec_driver_sql("SELECT count(DISTINCT xmin::text) FROM effect").scalar_one()
    assert commits < len(seen.all("consumer.batch.committed"))
    assert stage.faults() == []


def test_a_batch_is_not_larger_for_being_shared(stage: Stage, seen: Witness) -> None:
    stage.send(90)
    with running(stage.recorder(batch_size=7)):
        stage.wait()
    with stage.engine.connect() as connection:
        sizes = connection.exec_driver_sql("SELECT count(*) FROM effect GROUP BY xmin::text").scalars().all()
    assert max(sizes) <= 7
    assert stage.faults() == []


class Claimed(Shared):
    """Somebody else claims partition 1 at that moment."""

    def __init__(self, stage: Stage, seen: Witness) -> None:
        super().__init__(seen)
        self._stage = stage

    def act(self) -> None:
        self._stage.sql("UPDATE consumer_offset SET owner_epoch = owner_epoch + 1 WHERE partition = 1")


def test_a_partition_claimed_by_another_fences_itself_alone(stage: Stage, seen: Witness) -> None:
    with running(stage.recorder()):
        send_until_shared(stage, Claimed(stage, seen))
        stage.wait()
    assert {fenced["partition"] for fenced in seen.all("consumer.fenced")} == {1}
    assert stage.faults() == []


def test_without_counting_every_offset_a_shared_transaction_does_harm(
    stage: Stage, seen: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = BatchRunner._advance

    def careless(self: BatchRunner, connection: Connection, *rest: Any) -> bool:
        advance(self, connection, *rest)
        return True

    monkeypatch.setattr(BatchRunner, "_advance", careless)
    with running(stage.recorder()):
        send_until_shared(stage, Claimed(stage, seen))
        stage.wait()
    # The next owner begins where the row stands, and applies again what was not counted.
    with running(stage.recorder()):
        eventually(lambda: any("doubled ['1." in fault for fault in stage.faults()))


class Flickering(BrokerIdentities):
    """The topic is not found, once, when records of both partitions are about to be run."""

    partitions: Iterable[Partition] = ()
    flickered = False

    def look(self, topics: Iterable[str]) -> dict[str, TopicIdentity | TopicMissing]:
        found = super().look(topics)
        here = list(self.partitions)
        if self.flickered or len([p for p in here if p.polled]) < 2:
            return found
        self.flickered = True
        return {topic: TopicMissing(topic) for topic in found}


def test_a_topic_that_flickers_takes_its_partitions_back_and_no_consumer_down(
    build: StageFactory, seen: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Brokers without topic ids: the client cannot tell which it reads, they are asked at every batch.
    monkeypatch.setattr(Told, "_keep", lambda *_: None)
    stage = build(partitions=2)
    consumer = stage.recorder()
    consumer._setup = dataclasses.replace(consumer._setup, new_identities=Flickering)

    def fetched() -> bool:
        """Has the client got the records of both partitions, so that its next poll returns them together?"""
        (member,) = consumer._members
        ends = {p: stage.end(p) for p in range(stage.partitions)}
        return all(
            member._client.get_watermark_offsets(TopicPartition(stage.topic, p), cached=True)[1] >= end
            for p, end in ends.items()
        )

    def more(_: dict[str, Any]) -> None:
        if len(seen.all("consumer.batch.committed")) == 1:
            stage.send(6)
            eventually(fetched)

    seen.at("consumer.batch.committed", more)
    seen.at("consumer.assigned", lambda _: watch(consumer))
    with running(consumer):
        stage.send(1, partition=0)
        eventually(lambda: consumer._members and flicker(consumer).flickered)
        stage.wait()
    assert stage.faults() == []


def flicker(consumer: Consumer) -> Flickering:
    (member,) = consumer._members
    assert isinstance(member._identities, Flickering)
    return member._identities


def watch(consumer: Consumer) -> None:
    flicker(consumer).partitions = consumer._members[0]._assignment.partitions.values()


def test_a_poison_stops_its_own_partition_alone(stage: Stage, seen: Witness) -> None:
    shared = Shared(seen)
    consumer = stage.consumer(poison="stop")

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        stage.store(session, record)
        if shared.met and record.partition == 1:
            raise Reject("poison")

    with running(consumer):
        send_until_shared(stage, shared)
        seen.wait("consumer.stopped")
        eventually(lambda: stage.effects(0) == stage.expected(0) and stage.effects(2) == stage.expected(2))
    assert stage.effects(1) == stage.expected(1)[: stage.offset(1)]
    assert len(seen.all("consumer.stopped")) == 1
