"""A row that the broker refuses for good halts its shard with a clear alarm; an outage never does."""

from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from outbox.testing.servers import KafkaBroker, KafkaServer
from tests.conftest import TopicFactory
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene


def test_a_row_too_large_halts_the_shard_and_goes_out_once_the_topic_takes_it(
    scene: Scene, start: StartRelay, kafka: KafkaServer, topic: TopicFactory
) -> None:
    scene.topic = topic("small", 1, max_message_bytes="20000")
    innocent = scene.write(120)
    (poison,) = scene.write(1, pad=2_000_000)
    behind = scene.write(120)
    relay = start(sabotage="impatient")
    relay.wait_for("relay.halted", 2)
    assert [record.id for record in wire.effects(scene.arrived())] == innocent
    alarm = scene.status("relay-1")["alarm"]
    for named in (
        poison,
        scene.topic,
        "key k1",
        "position 121",
        "too large",
        "max.message.bytes",
        "until this is mended",
    ):
        assert named in alarm
    assert scene.status("relay-1")["state"] == "halted"
    assert relay.log.count("ERROR relay.shard") == 1, "said once, not at every attempt"
    entry = ConfigEntry("max.message.bytes", "3000000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, scene.topic, incremental_configs=[entry])
    kafka.admin.incremental_alter_configs([resource])[resource].result(20)
    scene.wait_until_through()
    assert scene.complaints() == []
    assert behind[-1] in {record.id for record in scene.arrived()}
    scene.wait("SELECT state->>'state' = 'carrying' AND state->>'alarm' IS NULL FROM outbox_relay")


def test_an_outage_is_no_refusal_and_is_caught_up_with(
    scene: Scene, start: StartRelay, broker: KafkaBroker
) -> None:
    relay = start(sabotage="impatient")
    scene.write(200)
    scene.wait_until_through()
    for lose, regain in ((broker.pause, broker.resume), (broker.kill, broker.start)):
        lose()
        scene.write(300)
        scene.wait("SELECT state->>'alarm' IS NOT NULL FROM outbox_relay")
        assert scene.status("relay-1")["state"] == "waiting"
        regain()
        scene.wait_until_through(60)
        scene.wait("SELECT state->>'alarm' IS NULL FROM outbox_relay")
    assert relay.count("relay.halted") == 0
    assert scene.complaints() == []
    assert relay.stop() == 0
