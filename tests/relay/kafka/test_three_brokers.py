"""Three brokers, a leader killed or frozen: the stall is bounded and the order stands."""

import time

import pytest

from outbox.testing.servers import start_kafka
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_leaders_lost_in_turn_cost_seconds_and_nothing_else(scene: Scene, start: StartRelay) -> None:
    with start_kafka(brokers=3) as kafka:
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
