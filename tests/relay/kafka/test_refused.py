"""A record that the broker refuses for good stops its own key only; an outage stops nobody for good."""

from uuid import uuid4

from outbox.testing.servers import KafkaBroker
from tests.conftest import TopicFactory
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene

PARKED = "SELECT id::text, state FROM outbox_parked ORDER BY parked"


def test_one_row_too_large_among_twenty_is_parked_its_key_waits_and_all_others_go_on(
    scene: Scene, start: StartRelay, topic: TopicFactory
) -> None:
    scene.topic = topic("small", 2, max_message_bytes="20000")
    with scene.session.transaction():
        before = scene.write(10)  # keys k1 … k6, k0, k1, k2, k3
        (poison,) = scene.write(1, pad=2_000_000)  # key k1
        behind = scene.write(9)
    later = scene.write(14)
    relay = start()
    scene.wait_until_through()
    waiting = [behind[0], behind[7], later[0], later[7]]
    assert scene.session.execute(PARKED).fetchall() == [(poison, "failed"), *((w, "held") for w in waiting)]
    sent = {*before, *behind, *later} - {*waiting}
    records = scene.arrived()
    assert {record.id for record in records} == sent
    assert wire.complaints(records, [row for row in scene.committed() if row[0] in sent]) == []
    error, attempts, seq = scene.session.execute(
        "SELECT error, attempts, numbers[1] FROM outbox_parked WHERE state = 'failed'"
    ).fetchone() or ("", 0, "")
    assert "too large" in error
    assert "max.message.bytes" in error
    assert attempts == 1
    assert seq.endswith(".11")
    scene.wait(
        "SELECT state->>'state' = 'carrying' AND state->'shards'->'0'->'parked' = '1' FROM outbox_relay"
    )
    assert relay.log.count("ERROR relay.parking") == 1
    for named in (poison, scene.topic, "key k1", "position 11", "outbox-relay parked list"):
        assert named in relay.log
    assert relay.count("relay.halted") == 0


def test_more_poison_than_max_parked_halts_the_shard_instead_of_parking_the_world(
    scene: Scene, start: StartRelay, topic: TopicFactory
) -> None:
    scene.topic = topic("small", 1, max_message_bytes="20000")
    scene.write(7, pad=30_000)
    relay = start(sabotage="impatient", max_parked=3)
    relay.wait_for("relay.halted", 2)
    assert scene.value("SELECT count(*) FROM outbox_parked") == 3
    assert scene.status("relay-1")["state"] == "halted"
    assert "make room (outbox-relay parked discard)" in scene.status("relay-1")["alarm"]


def test_a_row_without_a_key_holds_nobody_but_itself(
    scene: Scene, start: StartRelay, topic: TopicFactory
) -> None:
    scene.topic = topic("small", 1, max_message_bytes="20000")
    before = scene.write(5, keys=0)
    (poison,) = scene.write(1, keys=0, pad=30_000)
    behind = scene.write(5, keys=0)
    start()
    scene.wait_until_through()
    assert [record.id for record in wire.effects(scene.arrived())] == before + behind
    assert scene.session.execute(PARKED).fetchall() == [(poison, "failed")]


def test_a_topic_that_does_not_exist_is_waited_for_unless_its_events_may_be_set_aside(
    scene: Scene, start: StartRelay
) -> None:
    missing = f"missing.{uuid4().hex[:12]}"
    waiting = scene.write(3, topic=missing)
    behind = scene.write(4)
    patient = start(sabotage="impatient")
    scene.wait("SELECT state->>'alarm' LIKE '%does not exist%' FROM outbox_relay")
    assert scene.value("SELECT count(*) FROM outbox_parked") == 0
    assert patient.stop() == 0
    start(missing_topic="park")
    scene.wait_until_through()
    assert scene.value("SELECT count(*) FROM outbox_hold") == 3
    assert {id_ for id_, _ in scene.session.execute(PARKED).fetchall()} == {*waiting}
    assert {record.id for record in scene.arrived()} == {*behind}


def test_an_outage_parks_nothing_and_is_caught_up_with(
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
    assert scene.value("SELECT count(*) FROM outbox_hold") == 0
    assert scene.complaints() == []
    assert relay.stop() == 0
