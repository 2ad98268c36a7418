"""Whoever was paused for a moment, by a rebalance or by us, goes on at once."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Consumer as KafkaConsumer

from outbox.consumer.assignment import Assignment
from outbox.consumer.claim import Claim
from outbox.consumer.identity import TopicIdentity
from outbox.consumer.partition import Partition
from outbox.consumer.properties import credentials
from outbox.consumer.watermark import Marks
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import Stage, eventually

ROUNDS = 6


Held = tuple[Stage, KafkaConsumer, Assignment, Partition]


@contextmanager
def holding(stage: Stage, **properties: Any) -> Iterator[Held]:
    """A client of its own reads all partitions of the stage; the first of them is told of."""
    client = KafkaConsumer({"bootstrap.servers": stage.bootstrap, "group.id": stage.topic, **properties})
    assignment = Assignment(client, stage.topic, incremental=True, credentials=("", ""))
    partitions = [Partition(stage.topic, number) for number in range(stage.partitions)]
    for partition in partitions:
        claim = Claim(
            group=stage.topic,
            topic=stage.topic,
            partition=partition.number,
            epoch=1,
            next_offset=0,
            marks=Marks(),
            parked=0,
            suspect=False,
            identity=TopicIdentity(None, None),
        )
        partition.begin(claim)
    assignment.add(partitions)
    try:
        yield stage, client, assignment, partitions[0]
    finally:
        client.close()


@pytest.fixture
def held(build: StageFactory) -> Iterator[Held]:
    """A partition that is read by a client of its own, whose fetches never rest."""
    with holding(build(partitions=1), **{"fetch.wait.max.ms": 5}) as held:
        yield held


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


def test_a_partition_that_was_paused_goes_on_at_once_because_the_client_is_woken(held: Held) -> None:
    stage, client, *_ = held
    stage.send(1, partition=0)
    assert client.poll(20) is not None
    asleep, woken = delays(*held, wake=False), delays(*held, wake=True)
    assert woken < asleep / 3, "a client that is not woken sleeps for half a second on average"


def test_waking_asks_no_broker_while_a_fetch_rests_for_an_idle_partition(build: StageFactory) -> None:
    """A broker answers one request after the other: a question would wait for the end of the fetch, half a
    second by default, and its time-out would cut the connection."""
    told: list[dict[str, Any]] = []
    errors: list[str] = []
    watched = {
        "statistics.interval.ms": 100,
        "stats_cb": lambda text: told.append(json.loads(text)),
        "error_cb": lambda error: errors.append(error.str()),
    }
    with holding(build(partitions=2), **watched) as (stage, client, assignment, partition):
        stage.send(1, partition=0)
        assert client.poll(20) is not None
        took = 0.0
        for _ in range(ROUNDS):
            assignment.pause(partition)
            stage.send(1, partition=0)
            assert client.poll(0.1) is None
            assignment.resume(partition)
            begin = time.monotonic()
            assignment.wake()
            took += time.monotonic() - begin
            assert client.poll(20) is not None
        known = len(told)
        eventually(lambda: client.poll(0.1) is None and len(told) > known + 1)
        asked = sum(broker["req"].get("ListOffsets", 0) for broker in told[-1]["brokers"].values())
    assert (asked, errors) == (0, [])
    assert took < ROUNDS * 0.05, "everything that this member reads would wait"


def test_whoever_has_just_been_given_partitions_is_woken_in_each_round_until_no_thread_can_sleep(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client does not say when its own pause of a rebalance is over."""
    _, _, assignment, partition = held
    clock = [1000.0]
    given: list[tuple[str, str]] = []

    class Client:
        def set_sasl_credentials(self, user: str, password: str) -> None:
            given.append((user, password))

    monkeypatch.setattr("outbox.consumer.assignment.time", SimpleNamespace(monotonic=lambda: clock[0]))
    assignment.reposition(partition)
    monkeypatch.setattr(assignment, "_client", Client())
    for late in (0.0, 0.5, 0.9, 1.1, 2.0):
        clock[0] = 1000.0 + late
        assignment.wake()
    assert given == [("", "")] * 3


@pytest.mark.parametrize(
    ("properties", "given"),
    [
        ({}, ("", "")),
        ({"sasl.username": None, "sasl.password": None}, ("", "")),
        ({"sasl.username": "ann", "sasl.password": 123}, ("ann", "123")),
    ],
)
def test_waking_leaves_the_credentials_as_they_are(
    properties: dict[str, Any], given: tuple[str, str]
) -> None:
    assert credentials(properties) == given
