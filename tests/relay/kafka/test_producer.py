"""The producer of mode `sequenced`: no gap whatever fails, and blame for the one row that is refused."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from outbox.testing.servers import KafkaServer
from relay.producers import Abandoned, Chunk, Interrupted, Refused, SequencedProducer, inquiry, session
from relay.row import POSITION, Row
from tests.conftest import TopicFactory
from tests.relay import wire
from tests.relay.kafka.chunks import Delivery, chunks, row
from tests.relay.scene import until


@pytest.fixture
def producer(kafka: KafkaServer) -> Iterator[SequencedProducer]:
    made = SequencedProducer({"bootstrap.servers": kafka.bootstrap, "compression.type": "none"})
    yield made
    made.close()


@pytest.fixture
def small(topic: TopicFactory) -> str:
    """A topic that takes 20,000 bytes."""
    return topic("small", 2, max_message_bytes="20000")


def positions(kafka: KafkaServer, name: str) -> dict[int, list[int]]:
    """Positions by partition, in the order in which they lie there."""
    found: dict[int, list[int]] = {}
    for record in wire.read(kafka.bootstrap, name):
        found.setdefault(record.partition, []).append(int(record.seq.rpartition(".")[2]))
    return found


def too_large(name: str, position: int) -> Row:
    return row(position, name, size=30_000)


def too_large_for_the_client(name: str, position: int) -> Row:
    return row(position, name, size=11_000_000)


def too_deep(name: str, position: int) -> Row:
    return row(position, name, headers=b'{"h": ' + b"[" * 3000 + b"]" * 3000 + b"}")


@pytest.mark.parametrize("poison", [too_large, too_large_for_the_client, too_deep])
@pytest.mark.parametrize("place", [1, 33, 60, 61])
def test_the_row_that_is_refused_is_the_one_that_is_blamed(
    kafka: KafkaServer,
    producer: SequencedProducer,
    small: str,
    poison: Callable[[str, int], Row],
    place: int,
) -> None:
    rows = [poison(small, n) if n == place else row(n, small) for n in range(1, 200)]
    delivery = Delivery(producer, rows)
    refused = delivery.until_refused()
    assert refused.row[POSITION] == place
    assert f"position {place})" in str(refused)
    assert delivery.low == place - 1, "the rows in front of it are in"
    assert delivery.until_refused().row[POSITION] == place, "asked again, the answer is the same"
    arrived = positions(kafka, small)
    assert place not in {n for numbers in arrived.values() for n in numbers}
    behind = [n for n in arrived.get(place % 2, []) if n > place]
    assert behind == [], "nothing of its partition overtook it"


def test_a_refused_row_goes_out_once_the_topic_takes_it(
    kafka: KafkaServer, producer: SequencedProducer, topic: TopicFactory
) -> None:
    name = topic("raised", 2, max_message_bytes="20000")
    rows = [too_large(name, n) if n in {57, 59} else row(n, name) for n in range(1, 200)]
    delivery = Delivery(producer, rows)
    delivery.until_refused()
    allow(kafka, name, "100000")
    until(lambda: delivery.attempt() is None, 20, lambda: f"stays at {delivery.low}")
    arrived = positions(kafka, name)
    assert {n for numbers in arrived.values() for n in numbers} == set(range(1, 200))
    assert all(list(dict.fromkeys(numbers)) == sorted(set(numbers)) for numbers in arrived.values())


def allow(kafka: KafkaServer, name: str, size: str) -> None:
    entry = ConfigEntry("max.message.bytes", size, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[entry])
    kafka.admin.incremental_alter_configs([resource])[resource].result(20)


def test_several_rows_on_their_way_are_never_blamed(producer: SequencedProducer, small: str) -> None:
    """The client batches what waits: the innocent are reported as too large together with the guilty."""
    rows = [row(n, small, partition=0) if n != 3 else too_large(small, n) for n in range(1, 7)]
    delivery = Delivery(producer, rows, size=1)
    assert delivery.until_refused().row[POSITION] == 3


# A topic that is gone

LAST = 200


def through_a_vanished_topic(
    kafka: KafkaServer, producer: SequencedProducer, name: str
) -> tuple[list[Exception], dict[int, list[int]]]:
    """Send 1–20, delete the topic, send on, create it again, send to the end.

    What ended the deliveries, and what lies in the new topic.
    """

    def known() -> bool:
        return name in producer._opened().client.list_topics(timeout=5).topics

    def interrupted(given: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in given:
            if chunk.rows[0][POSITION] == 21 and not ends and known():
                until(lambda: sum(map(len, positions(kafka, name).values())) == 20, 20, lambda: "not 20")
                kafka.delete_topic(name)
                until(lambda: not known(), 20, lambda: "the topic is still there")
            if chunk.rows[0][POSITION] == 31 and not known():
                create()
            yield chunk

    def create() -> None:
        kafka.create_topic(name, 2)
        until(known, 20, lambda: "the topic is not there")

    ends: list[Exception] = []
    delivery = Delivery(
        producer, [row(n, name) for n in range(1, LAST + 1)], size=5, pass_through=interrupted
    )
    while not ends and (ended := delivery.attempt()):
        ends.append(ended)
    if not known():
        create()
    until(lambda: delivery.attempt() is None, 20, lambda: f"stays at {delivery.low}")
    return ends, positions(kafka, name)


def gaps(arrived: dict[int, list[int]]) -> list[str]:
    """Rows behind the twentieth that a later one of their partition overtook, or that never came."""
    wrong = []
    for partition in (0, 1):
        first = [n for n in dict.fromkeys(arrived.get(partition, [])) if n > 20]
        if first != [n for n in range(21, LAST + 1) if n % 2 == partition]:
            wrong.append(f"partition {partition}: {first[:20]}…")
    return wrong


def test_a_topic_that_vanishes_for_a_while_leaves_no_gap(
    kafka: KafkaServer, producer: SequencedProducer, topic: TopicFactory
) -> None:
    ends, arrived = through_a_vanished_topic(kafka, producer, topic("vanishing", 2))
    assert ends
    assert all(not isinstance(ended, session.SessionEnded) or ended.row is None for ended in ends)
    assert gaps(arrived) == []


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


def test_a_topic_with_too_few_partitions_is_named_before_anything_is_sent(
    kafka: KafkaServer, producer: SequencedProducer, topic: TopicFactory
) -> None:
    name = topic("narrow", 1)
    delivery = Delivery(producer, [row(n, name) for n in range(1, 10)])
    ended = delivery.attempt()
    assert isinstance(ended, Interrupted)
    assert "has 1 partitions" in str(ended)
    assert "at least 2 partitions" in str(ended)
    assert positions(kafka, name) == {}


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


def test_a_delivery_that_nobody_listens_to_leaves_nothing_on_its_way(
    kafka: KafkaServer, producer: SequencedProducer, small: str
) -> None:
    rows = [row(n, small) for n in range(1, 100)]
    listening = producer.deliver(chunks(rows, 10), lambda: True)
    next(listening)
    listening.close()  # type: ignore[attr-defined]
    first = producer._session
    assert first is None or first.in_flight == 0
    assert Delivery(producer, rows).attempt() is None
    producer.close()
    producer.close()


def test_a_delivery_is_abandoned_before_it_sends_more(producer: SequencedProducer, small: str) -> None:
    rows = [row(n, small) for n in range(1, 100)]
    with pytest.raises(Abandoned):
        list(producer.deliver(chunks(rows, 10), lambda: False))


def test_what_is_acknowledged_counts_also_when_it_is_abandoned(
    producer: SequencedProducer, small: str
) -> None:
    lows: list[int] = []
    with pytest.raises(Abandoned):
        lows.extend(producer.deliver(chunks([row(n, small) for n in range(1, 100)], 10), lambda: not lows))
    assert lows[0] == 10


def test_an_ended_client_does_not_wait_for_the_garbage_collector(
    producer: SequencedProducer, small: str
) -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()

    Delivery(producer, [row(1, small)]).attempt()
    gc.collect()
    before = threads()
    gc.disable()
    try:
        for _ in range(5):
            with suppress(Interrupted, Refused):
                list(producer.deliver(chunks([too_large(small, 2)], 1), lambda: True))
        producer.close()
        until(lambda: threads() <= before, 10, lambda: f"{threads()} threads, {before} before")
    finally:
        gc.enable()


def test_a_broker_that_is_away_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiry, "METADATA_TIMEOUT", 0.5)
    producer = SequencedProducer({"bootstrap.servers": "127.0.0.1:1"})
    with pytest.raises(Interrupted, match=r"no broker answers at 127\.0\.0\.1:1"):
        producer.cluster_id()
    producer.close()


def test_a_rejection_without_its_own_report_is_still_explained() -> None:
    fatal = KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, "Cluster authorization failed")
    assert "Cluster authorization failed" in str(session.SessionEnded(fatal, None))
