"""Partitions given by hand are applied as exactly as those that a group gives; who shares one is fenced."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer as Plain
from confluent_kafka import TopicPartition

from outbox.consumer import backoff
from outbox.errors import ConfigurationError
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, Stage, Witness, eventually, running
from tests.nursery import Child

HANDED = ["cooperative", "kip848"]


@pytest.fixture
def processes() -> Iterator[list[Child]]:
    """Whoever is appended is ended after the test."""
    started: list[Child] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(10)


@pytest.mark.parametrize("protocol", HANDED)
def test_partitions_given_by_hand_are_read_and_no_others(
    build: StageFactory, seen: Witness, protocol: str
) -> None:
    stage = build(partitions=4)
    stage.send(40)
    places = [(stage.topic, 0), (stage.topic, 1), (stage.topic, 3)]
    with running(stage.recorder(PROTOCOLS[protocol]), threads=2, partitions=places):
        eventually(lambda: len(stage.effects()) == 30)
        stage.send(40)
        eventually(lambda: len(stage.effects()) == 60)
    assert [stage.offset(p) for p in range(4)] == [20, 20, -1, 20]
    assert [stage.effects(p) for p in (0, 1, 3)] == [stage.expected(p) for p in (0, 1, 3)]
    assert seen.all("consumer.assigned") == []


@pytest.mark.parametrize("protocol", HANDED)
def test_lag_tools_see_partitions_given_by_hand(stage: Stage, protocol: str) -> None:
    stage.send(9, partition=0)
    with running(stage.recorder(PROTOCOLS[protocol]), partitions=[(stage.topic, 0)]):
        stage.wait()
        plain = Plain({"bootstrap.servers": stage.bootstrap, "group.id": stage.group})
        eventually(lambda: plain.committed([TopicPartition(stage.topic, 0)], timeout=5)[0].offset == 9)
        plain.close()


def test_two_who_were_given_one_partition_alternate_ever_more_rarely(
    build: StageFactory, seen: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = build(partitions=1)
    waits: list[tuple[int, float]] = []

    def brief(wait: Any, failures: int) -> float:
        """The wait that would be; the test's is a tenth of it."""
        length = real(wait, failures)
        if wait is backoff.DISPUTED:
            waits.append((failures, length))
        return length / 10

    real, place = backoff.seconds, [(stage.topic, 0)]
    monkeypatch.setattr(backoff, "seconds", brief)
    with running(stage.recorder(), partitions=place), running(stage.recorder(), partitions=place):

        def fought() -> bool:
            stage.send(5)
            return len(waits) >= 6

        eventually(fought)
        stage.send(5)
        stage.wait()
    assert stage.faults() == []
    rounds = {failures for failures, _ in waits}
    assert max(rounds) >= 3
    assert all(length >= min(30.0, 0.5 * 2 ** (failures - 1)) for failures, length in waits)


def test_who_was_given_a_partition_too_goes_on_when_the_other_dies(
    build: StageFactory, processes: list[Child]
) -> None:
    stage = build(partitions=1)
    stage.send(20)
    processes += [stage.process(partitions=[[stage.topic, 0]]) for _ in range(2)]
    stage.wait()
    stage.send(20)
    stage.wait()
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait(10)
    stage.send(20)
    stage.wait()
    assert stage.faults() == []


@pytest.mark.parametrize(
    ("partitions", "words"),
    [
        ([], "empty"),
        ([("things", 0), ("things", 0)], "twice"),
        ([("others", 0)], "no handler reads"),
        ([("things", -1)], "write"),
        (["things"], "write"),
    ],
)
def test_what_cannot_be_read_by_hand_is_refused(stage: Stage, partitions: Any, words: str) -> None:
    consumer = stage.consumer()
    consumer.on(topic="things")(lambda session, value: None)
    with pytest.raises(ConfigurationError, match=words):
        consumer.run(partitions=partitions)
