"""A key has one partition, the Java client's, and keeps it as long as a delta is on its way."""

from signal import SIGCONT

import pytest
from confluent_kafka.admin import NewPartitions

from outbox.testing.servers import KafkaServer
from relay.producers import address
from relay.row import Row
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene

# Key → murmur2 as a signed number: org.apache.kafka.common.utils.UtilsTest.
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def row(position: int, key: bytes | None) -> Row:
    return (position, 1, b"t", key, b"", b"id", b"type", None, None)


def partition_of(key: bytes | None, partitions: int) -> int:
    (target,) = address([row(0, key)], lambda _: ("t", partitions))
    return target[1]


@pytest.mark.parametrize("partitions", [1, 3, 6, 50])
def test_keys_go_where_the_java_client_would_put_them(partitions: int) -> None:
    rows = [row(n, key) for n, key in enumerate(JAVA)]
    expected = [("t", (number & 0x7FFFFFFF) % partitions) for number in JAVA.values()]
    assert list(address(rows, lambda _: ("t", partitions))) == expected


def test_events_without_a_key_go_where_their_repeat_would_go() -> None:
    rows = [row(n, None) for n in range(12)]
    first = list(address(rows, lambda _: ("t", 5)))
    assert first == list(address(rows, lambda _: ("t", 5)))
    assert {partition for _, partition in first} == set(range(5))


def test_the_partition_count_is_durable_before_a_topics_first_record(scene: Scene, start: StartRelay) -> None:
    scene.write(10)
    start(strike="relay.sending 1 STOP").wait_frozen()
    assert scene.value("SELECT partitions FROM outbox_topic") == 6
    assert scene.arrived() == []


def test_a_changed_partition_count_is_followed_between_deltas_and_never_inside_one(
    scene: Scene, start: StartRelay, kafka: KafkaServer
) -> None:
    first = set(scene.write(600))
    relay = start(strike="relay.sending 5 STOP", sabotage="impatient", lease="60")
    relay.wait_frozen()
    kafka.admin.create_partitions([NewPartitions(scene.topic, 12)])[scene.topic].result(20)
    relay.send(SIGCONT)
    scene.wait("SELECT partitions = 12 FROM outbox_topic")
    second = set(scene.write(200, keys=50))
    scene.wait_until_through()
    records = scene.arrived()
    assert {r.id for r in records} == first | second
    for record in records:
        assert record.partition == partition_of(record.key, 6 if record.id in first else 12)
    assert max(r.partition for r in records if r.id in second) > 5
    assert "has 12 partitions instead of 6" in relay.log


def test_an_event_for_a_topic_that_kafka_cannot_have_is_parked(scene: Scene, start: StartRelay) -> None:
    before = scene.write(10)
    (impossible,) = scene.write(1, topic="no such: name")
    behind = scene.write(10)
    start(sabotage="impatient")
    scene.wait_until_through()
    assert scene.session.execute("SELECT id::text, state FROM outbox_parked").fetchall() == [
        (impossible, "failed")
    ]
    assert {record.id for record in wire.effects(scene.arrived())} == {*before, *behind}


def test_a_missing_topic_is_named_and_its_events_go_out_once_it_is_there(
    scene: Scene, start: StartRelay, kafka: KafkaServer
) -> None:
    before = scene.write(10)
    late = f"{scene.topic}.late"
    missing = scene.write(10, topic=late)
    behind = scene.write(10)
    relay = start(sabotage="impatient")
    scene.wait("SELECT state->>'alarm' LIKE '%does not exist%' FROM outbox_relay")
    assert late in scene.status("relay-1")["alarm"]
    assert [r.id for r in scene.arrived() if r.id in behind] == []
    assert {r.id for r in scene.arrived()} == set(before)
    kafka.create_topic(late, 3)
    try:
        scene.wait_until_through()
        assert {r.id for r in scene.arrived()} == {*before, *behind}
        scene.topic = late
        assert {r.id for r in scene.arrived()} == set(missing)
        assert relay.stop() == 0
    finally:
        kafka.delete_topic(late)
