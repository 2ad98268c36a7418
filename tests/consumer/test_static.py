"""A static member keeps its partitions over a restart, and a second one of its name does no harm."""

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from outbox.errors import ConfigurationError
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, SHORT, Stage, Witness, eventually, running
from tests.nursery import Child

STATIC = {"group.instance.id": "billing", "session.timeout.ms": 30_000}


@pytest.fixture
def processes() -> Iterator[list[Child]]:
    """Whoever is appended is ended after the test."""
    started: list[Child] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def static(protocol: str, name: str) -> dict[str, Any]:
    return {**PROTOCOLS[protocol], **STATIC, "group.instance.id": name}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_static_member_that_restarts_gets_its_partitions_back_without_a_rebalance(
    build: StageFactory, seen: Witness, protocol: str
) -> None:
    stage = build(partitions=4)
    other = stage.process(kafka=static(protocol, "other"), threads=2)
    try:
        with running(stage.recorder(static(protocol, "billing")), threads=2):
            stage.send(40)
            stage.wait()
            owners = eventually(lambda: settled(stage))
        seen.wait("consumer.revoked")
        with running(stage.recorder(static(protocol, "billing")), threads=2):
            stage.send(40)
            stage.wait(within=20)
            after = settled(stage)
        assert after is not None
        # The other's claims are those of before: it was left alone.
        assert {p: row for p, row in after.items() if str(other.pid) in row[0]} == {
            p: row for p, row in owners.items() if str(other.pid) in row[0]
        }
        assert stage.faults() == []
    finally:
        other.kill()
        other.wait(10)


def settled(stage: Stage) -> dict[int, tuple[str, int]] | None:
    """Owner and epoch by partition, once four members have one each."""
    rows = stage.rows("SELECT partition, owner, owner_epoch FROM consumer_offset")
    if len({owner for _, owner, _ in rows}) < 4:
        return None
    return {partition: (owner, epoch) for partition, owner, epoch in rows}


def test_a_second_process_of_a_name_ends_the_first_and_says_so(stage: Stage) -> None:
    """Classic: the newcomer is taken for the restarted one."""
    stage.send(30)
    with pytest.raises(ConfigurationError, match=r"group\.instance\.id"):
        with running(stage.recorder(static("cooperative", "twin"))):
            stage.wait()
            with running(stage.recorder(static("cooperative", "twin"))):
                eventually(lambda: ended("running"), what="the end of the first")
                stage.send(30)
                stage.wait()
    assert stage.faults() == []


def ended(name: str) -> bool:
    return sum(thread.name == name for thread in threading.enumerate()) == 1


def test_a_static_member_that_slept_past_its_successor_ends_when_it_wakes(
    build: StageFactory, processes: list[Child]
) -> None:
    stage = build(partitions=1)
    stage.send(30)
    kafka = {**static("cooperative", "sleeper"), **SHORT}
    sleeper = stage.process(
        kafka=kafka, at="consumer.batch.begin", count=2, do="freeze", settings={"batch_size": 5}
    )
    processes.append(sleeper)
    eventually(lambda: len(stage.effects()) == 5, within=40)
    with running(stage.recorder(kafka)):
        stage.wait()
        sleeper.send_signal(signal.SIGCONT)
        assert sleeper.wait(40) != 0
        stage.send(30)
        stage.wait()
    assert stage.faults() == []


def test_under_kip848_it_waits_for_its_successor_to_end(build: StageFactory, processes: list[Child]) -> None:
    """Its name does not tell the brokers a sleeper from a restart: it stands by, and does no harm."""
    stage = build(partitions=1)
    stage.send(30)
    kafka = {**static("kip848", "sleeper"), "max.poll.interval.ms": 6000}
    sleeper = stage.process(
        kafka=kafka, at="consumer.batch.begin", count=2, do="freeze", settings={"batch_size": 5}
    )
    processes.append(sleeper)
    eventually(lambda: len(stage.effects()) == 5, within=40)
    with running(stage.recorder(kafka)):
        stage.wait()
        sleeper.send_signal(signal.SIGCONT)
        stage.send(30)
        stage.wait()
        assert str(sleeper.pid) not in stage.row().owner
    stage.send(30)
    stage.wait()
    assert str(sleeper.pid) in stage.row().owner
    assert stage.faults() == []


def test_a_static_member_killed_under_kip848_goes_on_once_its_session_is_over(
    build: StageFactory, processes: list[Child], seen: Witness
) -> None:
    """The brokers refuse its name until then (UNRELEASED_INSTANCE_ID); it waits and says for what."""
    stage = build(partitions=1)
    stage.send(10)
    kafka = {**PROTOCOLS["kip848"], "group.instance.id": "phoenix"}
    first = stage.process(kafka=kafka)
    processes.append(first)
    stage.wait()
    first.kill()
    first.wait(10)
    stage.send(10)
    consumer = stage.recorder(kafka)
    with running(consumer):
        seen.wait("consumer.rebuilt")
        eventually(
            lambda: any("group.instance.id" in t for m in consumer.health().members for t in m.trouble)
        )
        stage.wait(within=90)
        eventually(lambda: consumer.health().ok)
    assert stage.faults() == []
