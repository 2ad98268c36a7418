"""The producer of mode `sequenced`: its sessions, and the repeats that it may leave."""

from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError

from outbox.testing.servers import KafkaServer
from relay.producers import SequencedProducer, session
from tests.conftest import TopicFactory
from tests.relay import wire
from tests.relay.kafka.chunks import Delivery, row
from tests.relay.kafka.vanishing import gaps, through_a_vanished_topic


@pytest.fixture
def producer(kafka: KafkaServer) -> Iterator[SequencedProducer]:
    made = SequencedProducer({"bootstrap.servers": kafka.bootstrap, "compression.type": "none"})
    yield made
    made.close()


@pytest.fixture
def small(topic: TopicFactory) -> str:
    """A topic that takes 20,000 bytes."""
    return topic("small", 2, max_message_bytes="20000")


def test_the_test_finds_out_a_producer_that_goes_on_behind_an_error(
    kafka: KafkaServer, producer: SequencedProducer, topic: TopicFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def served(self: session.Session, wait: float, alive: object) -> None:
        self._client.poll(wait)
        for flight in [*self._delivered, *(flight for flight, _ in self._failures)]:
            flight.pending = 0
        self._failures.clear()
        self._delivered.clear()

    def refused(self: session.Session, _: Exception) -> None:
        self._flights[-1].pending = 0

    monkeypatch.setattr(session.Session, "_serve", served)
    monkeypatch.setattr(session.Session, "_refused", refused)
    monkeypatch.setattr(session.Session, "close", lambda self: None)
    _, arrived = through_a_vanished_topic(kafka, producer, topic("vanishing", 2))
    assert gaps(arrived) != []


# Sessions


def test_a_batch_that_is_written_twice_takes_effect_once(
    kafka: KafkaServer, producer: SequencedProducer, small: str
) -> None:
    """As an idempotent client may do when the leader changes, and every new session after a crash does."""
    rows = [row(n, small) for n in range(1, 60)]
    for again in range(3):
        assert Delivery(producer, rows[10 * again :]).attempt() is None
        producer.close()
    records = wire.read(kafka.bootstrap, small)
    assert len(records) == 59 + 49 + 39
    assert sorted(record.id for record in wire.effects(records)) == sorted(f"id-{n}" for n in range(1, 60))
    assert wire.complaints(records, [(f"id-{n}", str(n)) for n in range(1, 60)]) == []


def test_a_rejection_without_its_own_report_is_still_explained() -> None:
    fatal = KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, "Cluster authorization failed")
    assert "Cluster authorization failed" in str(session.SessionEnded(fatal, None))
