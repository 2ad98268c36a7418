"""Kafka started for a test: groups of both protocols, a lost broker, and nothing left behind."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, ConfigResource

from outbox.testing.servers import KafkaServer, MockKafka, broker_settings, start_kafka, start_mock_kafka
from tests.conftest import TopicFactory

IMPATIENT = {"socket.timeout.ms": 3000, "api.version.request.timeout.ms": 2000}
"""A frozen broker answers nobody; the defaults wait for it 60 and 10 s."""


def send(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, **IMPATIENT})
    for value in values:
        producer.produce(topic, value, key=b"k")
    assert producer.flush(60) == 0


def read(bootstrap: str, topic: str, count: int, **settings: str) -> list[bytes | None]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": uuid4().hex,
            "auto.offset.reset": "earliest",
            **IMPATIENT,
            **{name.replace("_", "."): value for name, value in settings.items()},
        }
    )
    try:
        consumer.subscribe([topic])
        return [message.value() for message in consumer.consume(count, timeout=60)]
    finally:
        consumer.close()


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_group_of_either_protocol_reads_what_was_sent(
    kafka: KafkaServer, topic: TopicFactory, protocol: str
) -> None:
    name = topic("either", partitions=2)
    send(kafka.bootstrap, name, [b"1", b"2"])
    assert read(kafka.bootstrap, name, 2, group_protocol=protocol) == [b"1", b"2"]


def test_a_transaction_commits_on_one_broker(kafka: KafkaServer, topic: TopicFactory) -> None:
    name = topic("transaction", partitions=1)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": uuid4().hex})
    producer.init_transactions(30)
    for value, ends in ((b"no", producer.abort_transaction), (b"yes", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(name, value)
        producer.flush(10)
        ends(30)
    assert read(kafka.bootstrap, name, 1) == [b"yes"]


def test_topics_are_never_made_by_a_mistyped_name(kafka: KafkaServer) -> None:
    name = f"mistyped.{uuid4().hex}"
    assert name in kafka.admin.list_topics(name, timeout=10).topics  # the answer is about it, with an error
    assert name not in kafka.admin.list_topics(timeout=10).topics


def test_every_shared_setting_is_one_the_broker_knows_and_uses() -> None:
    with start_kafka(own=True) as kafka:
        resource = ConfigResource(ConfigResource.Type.BROKER, str(kafka.brokers[0].node))
        told = kafka.admin.describe_configs([resource])[resource].result(30)
    used = {name: entry.value for name, entry in told.items()}
    wanted = broker_settings.read()
    assert {name: used.get(name) for name in wanted} == wanted


@pytest.mark.slow
def test_three_brokers_keep_accepting_records_when_one_is_killed() -> None:
    with start_kafka(brokers=3) as cluster:
        name = cluster.create_topic("replicated", partitions=3)
        send(cluster.bootstrap, name, [b"1"])
        cluster.brokers[0].kill()
        send(cluster.bootstrap, name, [b"2"])
        cluster.brokers[0].start()
        cluster.await_in_sync(name)
        cluster.brokers[1].pause()
        send(cluster.bootstrap, name, [b"3"])
        cluster.brokers[1].resume()
        assert read(cluster.bootstrap, name, 3) == [b"1", b"2", b"3"]


def test_a_closed_cluster_leaves_no_process_and_no_directory() -> None:
    with start_kafka(own=True) as cluster:
        broker = cluster.brokers[0]
        directory, pid = broker.directory, broker.pid
        assert directory.exists()
    assert not directory.parent.exists()
    assert not Path(f"/proc/{pid}").exists()


@pytest.fixture
def mock() -> Iterator[MockKafka]:
    with start_mock_kafka(brokers=3) as mock:
        yield mock


def leader_of(mock: MockKafka, topic: str) -> int:
    admin = AdminClient({"bootstrap.servers": mock.bootstrap, "log_level": 2})
    return int(admin.list_topics(topic, timeout=10).topics[topic].partitions[0].leader)


def test_the_mock_goes_on_without_a_broker_that_leads_nothing(mock: MockKafka) -> None:
    name = mock.create_topic("mocked", partitions=1)
    other = leader_of(mock, name) % 3 + 1
    mock.down(other)
    send(mock.bootstrap, name, [b"1", b"2"])
    mock.up(other)  # the reader's group may be coordinated there, and no other broker takes that over either
    assert read(mock.bootstrap, name, 2) == [b"1", b"2"]


def test_the_mock_elects_nobody_so_a_partition_waits_for_the_leader_it_lost(mock: MockKafka) -> None:
    """Each partition's leader is drawn at random when its topic is made, and kept while it is down."""
    name = mock.create_topic("mocked", partitions=1)
    lost = leader_of(mock, name)
    producer = Producer({"bootstrap.servers": mock.bootstrap, "enable.idempotence": True, **IMPATIENT})
    mock.down(lost)
    for value in (b"1", b"2"):
        producer.produce(name, value, key=b"k")
    assert producer.flush(1) == 2
    assert leader_of(mock, name) == lost
    mock.up(lost)
    assert producer.flush(60) == 0
    assert read(mock.bootstrap, name, 2) == [b"1", b"2"]


def test_a_closed_mock_leaves_no_process() -> None:
    with start_mock_kafka() as mock:
        pid = mock.pid
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()
