"""A mode that cannot be had is asked for now and then: a shard that waits for it neither spins nor ends."""

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

import relay.takeover
from relay.producers import Interrupted, Names, Recorded, RecordingProducer
from relay.producers.inquiry import Inquiry
from relay.producers.ledger import Ledger
from relay.producers.ranges import Ranges
from tests.relay.database.half import Session, shard, write
from tests.relay.database.memory_broker import MemoryBroker, MemoryProducer

BRAKE = 0.4
"""Seconds in place of ten, so that several attempts fit into the test."""

LASTS = 2.0

ROUNDS = 30


class Squeezed(MemoryProducer):
    """Every topic is compacted."""

    def compacted(self, topics: Collection[str]) -> frozenset[str]:
        return frozenset(topics)


class Forbidden(MemoryProducer):
    """We may have no TransactionalId."""

    def fence(self, alive: Callable[[], bool]) -> None:  # noqa: ARG002
        raise Interrupted("not authorized; grant WRITE on TransactionalId")

    def begin(self, recorded: Recorded, alive: Callable[[], bool]) -> None:
        raise NotImplementedError


class Unrecorded(Forbidden):
    """We may write, but not give shard 1 a partition of the progress topic."""

    def fence(self, alive: Callable[[], bool]) -> None:
        pass

    def begin(self, recorded: Recorded, alive: Callable[[], bool]) -> None:  # noqa: ARG002
        asked = _Asked()
        Ledger(Ranges({}, asked, group="group"), asked, place=("outbox.progress.7.5", 1)).prepare()


class _Asked(Inquiry):
    """A cluster on which the progress topic has one partition and we hold no ALTER."""

    def __init__(self) -> None:
        super().__init__({}, listen=lambda: None, stopping=lambda: False)

    def admin(self) -> Any:
        refused: Future[None] = Future()
        refused.set_exception(KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)))
        found = SimpleNamespace(error=None, partitions={0: None})
        return SimpleNamespace(
            list_topics=lambda topic, timeout: SimpleNamespace(topics={topic: found}),
            create_partitions=lambda new, operation_timeout: {new[0].topic: refused},
        )


class Stubborn(MemoryBroker):
    """All topics are compacted, and the mode that they need is not to be had."""

    recording: type[Forbidden] = Forbidden

    def sequenced(self) -> MemoryProducer:
        return Squeezed(self)

    def transactional(self, names: Names) -> RecordingProducer:  # noqa: ARG002
        return self.recording(self)


def epoch(session: Session) -> int:
    row = session.execute("SELECT epoch FROM outbox_shard").fetchone()
    assert row is not None
    return int(row[0])


def test_a_compacted_topic_whose_mode_is_not_to_be_had_is_claimed_for_now_and_then_only(
    database: str, writer: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay.takeover, "SWITCH_AGAIN", BRAKE)
    write(writer, 3)
    carrying = shard(database, Stubborn())
    carrying.run_once()
    before = epoch(writer)
    writer.execute("UPDATE outbox_shard SET wanted_mode = 'transactional'")
    began = time.monotonic()
    while time.monotonic() - began < LASTS:
        carrying.run_once()  # without the rest between two rounds
    most = 1 + (time.monotonic() - began) / BRAKE
    assert 2 <= epoch(writer) - before <= most
    assert "is compacted" in carrying._supervision.status["alarm"]
    assert "grant WRITE on TransactionalId" in carrying._supervision.status["switch"]
    carrying.let_go()


def test_a_compacted_topic_that_holds_up_a_change_of_the_number_of_shards_says_how_to_get_out(
    database: str, writer: Session
) -> None:
    write(writer, 3)
    carrying = shard(database, Stubborn())
    carrying.run_once()
    writer.execute("SELECT outbox_shards_set(2)")
    writer.execute("UPDATE outbox_shard SET wanted_mode = 'transactional'")
    before = epoch(writer)
    for _ in range(ROUNDS):
        carrying.run_once()
    assert epoch(writer) - before <= 1
    alarm = carrying._supervision.status["alarm"]
    assert "the number of shards is being changed: first outbox-relay shards set --cancel" in alarm
    writer.execute("SELECT outbox_shards_cancel()")
    for _ in range(3):
        carrying.run_once()
    assert "cannot be had" in carrying._supervision.status["switch"], "it is tried again at once"
    carrying.let_go()


def test_a_shard_that_may_not_add_its_partition_of_the_progress_topic_waits_and_says_what_to_run(
    database: str, writer: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `shards set 4` in mode transactional: the new shards begin records of their own."""
    monkeypatch.setattr(Stubborn, "recording", Unrecorded)
    writer.execute("UPDATE outbox_shard SET mode = 'transactional', wanted_mode = 'transactional'")
    before = epoch(writer)
    carrying = shard(database, Stubborn())
    rests = [carrying.run_once().rest for _ in range(3)]
    assert rests == [1.0] * 3, "tried again after a rest each time"
    assert epoch(writer) - before == 3
    status = carrying._supervision.status
    assert status["state"] == "waiting"
    assert "grant ALTER on it" in status["alarm"]
    assert (
        "kafka-topics.sh --alter --topic outbox.progress.7.5 --partitions <number of shards>"
        in status["alarm"]
    )
    carrying.let_go()
