"""The relay carries to librdkafka's mock cluster as it does to Kafka: all that a demo without Java needs."""

from outbox.testing.servers import start_mock_kafka
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene


def test_a_mock_cluster_gets_every_event_in_order(scene: Scene, start: StartRelay) -> None:
    with start_mock_kafka() as mock:
        scene.settings["OUTBOX_KAFKA_BOOTSTRAP_SERVERS"] = scene.bootstrap = mock.bootstrap
        scene.settings["OUTBOX_COMPACTED_TOPICS"] = "allow"  # the mock cannot be asked
        mock.create_topic(scene.topic, 6)
        scene.write(300)
        assert start(strike="relay.acknowledged 3 KILL").wait() == -9
        relay = start()
        scene.wait_until_through()
        assert scene.complaints() == []
        assert relay.stop() == 0
