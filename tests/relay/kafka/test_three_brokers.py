"""Three brokers, one of them killed or frozen: the stall is bounded and the order stands."""

import time
from collections.abc import Iterator

import pytest

from outbox.testing.servers import KafkaServer, start_kafka
from relay.reach import Reach
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene, until


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaServer]:
    with start_kafka(brokers=3) as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_leaders_lost_in_turn_cost_seconds_and_nothing_else(
    kafka: KafkaServer, scene: Scene, start: StartRelay
) -> None:
    scene.settings["OUTBOX_KAFKA_BOOTSTRAP_SERVERS"] = scene.bootstrap = kafka.bootstrap
    kafka.create_topic(scene.topic, 6)
    relay = start(lease="5")
    scene.write(500)
    scene.wait_until_through()
    stalls = []
    for broker, lose, regain in (
        (kafka.brokers[0], "kill", "start"),
        (kafka.brokers[1], "pause", "resume"),
    ):
        kafka.await_in_sync(scene.topic)
        scene.write(3000)
        relay.wait_for("relay.sending", relay.count("relay.sending") + 5)
        getattr(broker, lose)()
        began = time.monotonic()
        scene.write(500)
        scene.wait_until_through(60)
        stalls.append(time.monotonic() - began)
        getattr(broker, regain)()
    assert relay.stop() == 0
    assert max(stalls) < 15, "54 s with the client's default patience for a frozen leader"
    kafka.await_in_sync(scene.topic)
    assert wire.complaints(scene.arrived(), scene.committed()) == []


def test_whichever_broker_is_gone_a_relay_knows_that_it_reaches_the_others(kafka: KafkaServer) -> None:
    """The client asks the one that it knows as controller, and nothing tells it of another."""
    one = Reach({"bootstrap.servers": kafka.bootstrap}, heard=lambda: None)

    def answered(since: float) -> bool:
        one.run_once()
        return one._answered_at is not None and one._answered_at > since

    until(lambda: answered(0.0), 30, lambda: str(one.trouble))
    assert one._admin is not None
    asked = one._admin.list_topics(timeout=10).controller_id
    known = time.monotonic()
    until(lambda: answered(known), 30, lambda: str(one.trouble))
    (broker,) = (broker for broker in kafka.brokers if broker.node == asked)
    broker.kill()
    killed = time.monotonic()
    try:
        until(lambda: answered(killed + 3), 30, lambda: str(one.trouble))
    finally:
        broker.launch()
        one.close()
