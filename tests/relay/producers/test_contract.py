"""What both modes promise of their producer, asked of a real broker."""

import gc
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from outbox.record import Seq
from outbox.testing.servers import KafkaServer
from relay.producers import (
    Abandoned,
    Chunk,
    Interrupted,
    Names,
    Producer,
    Recorded,
    Refused,
    SequencedProducer,
    TransactionalProducer,
    inquiry,
)
from relay.row import POSITION, Row
from tests.conftest import TopicFactory
from tests.relay.kafka.chunks import Delivery, chunks, row
from tests.relay.kafka.vanishing import (
    gaps,
    positions,
    through_a_vanished_topic,
    too_deep,
    too_large,
    too_large_for_the_client,
)
from tests.relay.scene import until

MODES = ["sequenced", "transactional"]


def go_on() -> bool:
    return True


def make(mode: str, bootstrap: str) -> Producer:
    settings = {"bootstrap.servers": bootstrap, "compression.type": "none"}
    if mode == "sequenced":
        return SequencedProducer(settings)
    return TransactionalProducer(settings, Names(7, random.getrandbits(40), 0))


@pytest.fixture(params=MODES)
def producer(request: pytest.FixtureRequest, kafka: KafkaServer) -> Iterator[Producer]:
    """A producer whose shard has sent nothing yet."""
    made = make(request.param, kafka.bootstrap)
    if isinstance(made, TransactionalProducer):
        made.fence(go_on)
        made.begin(Recorded(Seq("s", 1, 0, 1, 0), "1:1:", "9:9:"), go_on)
    yield made
    made.close()
    if isinstance(made, TransactionalProducer):
        kafka.delete_topic(made.names.progress_topic)


@pytest.fixture
def small(topic: TopicFactory) -> str:
    """A topic that takes 20,000 bytes."""
    return topic("small", 2, max_message_bytes="20000")


@pytest.mark.parametrize("poison", [too_large, too_large_for_the_client, too_deep])
@pytest.mark.parametrize("place", [1, 33, 60, 61])
def test_the_row_that_is_refused_is_the_one_that_is_blamed(
    kafka: KafkaServer,
    producer: Producer,
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
    kafka: KafkaServer, producer: Producer, topic: TopicFactory
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


def test_several_rows_on_their_way_are_never_blamed(producer: Producer, small: str) -> None:
    """The client batches what waits: the innocent are reported as too large together with the guilty."""
    rows = [row(n, small, partition=0) if n != 3 else too_large(small, n) for n in range(1, 7)]
    delivery = Delivery(producer, rows, size=1)
    assert delivery.until_refused().row[POSITION] == 3


def test_a_topic_that_vanishes_for_a_while_leaves_no_gap(
    kafka: KafkaServer, producer: Producer, topic: TopicFactory
) -> None:
    ends, arrived = through_a_vanished_topic(kafka, producer, topic("vanishing", 2))
    assert ends
    assert not any(isinstance(ended, Refused) for ended in ends)
    assert gaps(arrived) == []


def test_a_topic_with_too_few_partitions_is_named_before_anything_is_sent(
    kafka: KafkaServer, producer: Producer, topic: TopicFactory
) -> None:
    name = topic("narrow", 1)
    delivery = Delivery(producer, [row(n, name) for n in range(1, 10)])
    ended = delivery.attempt()
    assert isinstance(ended, Interrupted)
    assert "has 1 partitions" in str(ended)
    assert "at least 2 partitions" in str(ended)
    assert positions(kafka, name) == {}


def test_a_delivery_that_nobody_listens_to_leaves_nothing_on_its_way(
    kafka: KafkaServer, producer: Producer, small: str
) -> None:
    rows = [row(n, small) for n in range(1, 100)]
    listening = producer.deliver(chunks(rows, 10), lambda: True)
    next(listening)
    listening.close()  # type: ignore[attr-defined]
    delivery = Delivery(producer, rows)
    assert delivery.attempt() is None
    producer.close()
    producer.close()
    assert {n for numbers in positions(kafka, small).values() for n in numbers} == set(range(1, 100))


def test_a_delivery_is_abandoned_before_it_sends_more(producer: Producer, small: str) -> None:
    rows = [row(n, small) for n in range(1, 100)]
    with pytest.raises(Abandoned):
        list(producer.deliver(chunks(rows, 10), lambda: False))


def test_what_is_acknowledged_counts_also_when_it_is_abandoned(producer: Producer, small: str) -> None:
    lows: list[int] = []
    rows = [row(n, small) for n in range(1, 100)]
    with pytest.raises(Abandoned):
        lows.extend(producer.deliver(halting(chunks(rows, 10)), lambda: not lows))
    assert lows[0] == 10


def test_what_was_given_arrives_while_the_next_chunk_is_not_at_hand(
    kafka: KafkaServer, producer: Producer, small: str
) -> None:
    def given() -> Iterator[Chunk | None]:
        first, second = chunks([row(n, small) for n in range(1, 21)], 10)
        yield first
        yield None
        until(lambda: sum(map(len, positions(kafka, small).values())) == 10, 20, lambda: "not 10")
        yield second

    assert list(producer.deliver(given(), lambda: True))[-1] == 20


def halting(given: Iterator[Chunk]) -> Iterator[Chunk | None]:
    """Behind each chunk the next one is not at hand."""
    for chunk in given:
        yield chunk
        yield None


def test_an_ended_client_does_not_wait_for_the_garbage_collector(producer: Producer, small: str) -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()

    Delivery(producer, [row(1, small)]).attempt()
    gc.collect()
    before = threads()
    gc.disable()
    try:
        for _ in range(5):
            with suppress(Interrupted, Refused):
                producer.take_over(go_on)
                list(producer.deliver(chunks([too_large(small, 2)], 1), lambda: True))
        producer.close()
        until(lambda: threads() <= before, 10, lambda: f"{threads()} threads, {before} before")
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", MODES)
def test_a_broker_that_is_away_is_no_refusal(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiry, "METADATA_TIMEOUT", 0.5)
    producer = make(mode, "127.0.0.1:1")
    with pytest.raises(Interrupted, match=r"no broker answers at 127\.0\.0\.1:1"):
        producer.cluster_id()
    producer.close()
