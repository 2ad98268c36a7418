"""Whoever was paused for a moment, by a rebalance or by us, goes on at once."""

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer as KafkaConsumer

from outbox.consumer.assignment import Assignment
from outbox.consumer.claim import Claim
from outbox.consumer.identity import TopicIdentity
from outbox.consumer.partition import Partition
from outbox.consumer.watermark import Marks
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import Stage

ROUNDS = 6


@pytest.fixture
def held(build: StageFactory) -> Iterator[tuple[Stage, KafkaConsumer, Assignment, Partition]]:
    """A partition that is read by a client of its own."""
    stage = build(partitions=1)
    client = KafkaConsumer(
        {"bootstrap.servers": stage.bootstrap, "group.id": stage.topic, "fetch.wait.max.ms": 5}
    )
    assignment = Assignment(client, stage.topic, incremental=True)
    partition = Partition(stage.topic, 0)
    claim = Claim(
        group=stage.topic,
        topic=stage.topic,
        partition=0,
        epoch=1,
        next_offset=0,
        marks=Marks(),
        parked=0,
        suspect=False,
        identity=TopicIdentity(None, None),
    )
    partition.begin(claim)
    assignment.add([partition])
    yield stage, client, assignment, partition
    client.close()


def delays(
    stage: Stage, client: KafkaConsumer, assignment: Assignment, partition: Partition, *, wake: bool
) -> float:
    """Seconds, together, from resuming to the first record, in some rounds."""
    took = 0.0
    for _ in range(ROUNDS):
        assignment.pause(partition)
        stage.send(1, partition=0)
        # Until the fetch that was under way is back, and the client's thread at rest.
        assert client.poll(0.1) is None
        begin = time.monotonic()
        assignment.resume(partition)
        if wake:
            assignment.wake()
        message = client.poll(20)
        took += time.monotonic() - begin
        assert message is not None
        assert message.error() is None
    return took


def test_a_partition_that_was_paused_goes_on_at_once_because_the_client_is_woken(
    held: tuple[Stage, KafkaConsumer, Assignment, Partition],
) -> None:
    stage, client, *_ = held
    stage.send(1, partition=0)
    assert client.poll(20) is not None
    asleep, woken = delays(*held, wake=False), delays(*held, wake=True)
    assert woken < asleep / 3, "a client that is not woken sleeps for half a second on average"
