"""Changing a shard's mode is a command: nothing is lost, repeated or reordered by it."""

import json
import os
import subprocess
import sys
from signal import SIGCONT
from typing import Any

import pytest

from outbox.testing.servers import KafkaServer
from tests.conftest import TopicFactory
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene


def ask(scene: Scene, mode: str, *options: str, code: int = 0) -> dict[str, Any]:
    """`outbox-relay shards mode … --json`."""
    done = subprocess.run(
        [sys.executable, "-m", "relay", "shards", "mode", mode, "--yes", "--json", *options],
        env=os.environ | {"OUTBOX_DATABASE_URL": scene.database},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == code, done
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_mode_changes_under_traffic_and_a_plain_reader_sees_each_event_once(
    scene: Scene, start: StartRelay
) -> None:
    relay = start(sabotage="impatient")
    for mode in ("transactional", "sequenced", "transactional"):
        scene.write(400)
        answer = ask(scene, mode)
        assert answer["done"]
        assert [(s["shard"], s["mode"]) for s in answer["shards"]] == [(0, mode)]
        assert answer["without_end"] == []
        scene.write(200)
    scene.wait_until_through()
    assert scene.plain_complaints() == []
    assert relay.stop() == 0


@pytest.mark.parametrize("step", ["relay.recorded 1", "relay.switched 1"])
def test_killed_within_a_change_its_successor_does_it_again(
    scene: Scene, start: StartRelay, step: str
) -> None:
    scene.write(300)
    first = start(sabotage="impatient", strike=f"{step} KILL")
    scene.wait_until_through()
    scene.transactional()
    assert first.wait() == -9
    scene.write(200)
    start()
    scene.wait_until_through()
    scene.wait("SELECT mode = 'transactional' AND wanted_mode IS NULL FROM outbox_shard")
    scene.write(50)
    scene.wait_until_through()
    assert scene.plain_complaints() == []


@pytest.mark.parametrize("step", ["relay.fencing 1", "relay.recorded 1"])
def test_frozen_within_a_change_it_wakes_up_to_change_nothing(
    scene: Scene, start: StartRelay, step: str
) -> None:
    """Above all it writes no old progress record behind those of its successor."""
    scene.transactional()
    scene.write(300)
    zombie = start(strike=f"{step} STOP", sabotage="sleepwalks,stops_when_fenced")
    zombie.wait_frozen()
    second = start(strike="relay.acknowledged 4 STOP")
    second.wait_frozen()
    zombie.send(SIGCONT)
    zombie.wait_for("relay.fenced")
    second.close()
    start()
    scene.wait_until_through()
    assert scene.plain_complaints() == []


def test_the_test_finds_out_a_change_that_writes_its_record_without_asking_the_row_first(
    scene: Scene, start: StartRelay
) -> None:
    scene.transactional()
    scene.write(300)
    zombie = start(strike="relay.fencing 1 STOP", sabotage="sleepwalks,stops_when_fenced,believes_its_claim")
    zombie.wait_frozen()
    second = start(strike="relay.acknowledged 4 STOP", sabotage="leaves_without_a_word")
    second.wait_frozen()
    zombie.send(SIGCONT)
    zombie.wait_for("relay.fenced")
    second.close()
    start()
    scene.wait_until_through()
    assert "came again" in " ".join(scene.plain_complaints())


def test_a_mode_that_cannot_be_had_leaves_the_shard_in_the_one_it_has(
    scene: Scene, start: StartRelay, kafka: KafkaServer
) -> None:
    name = scene.value(
        "SELECT format('outbox.progress.%s.%s', system_identifier, "
        "(SELECT oid FROM pg_database WHERE datname = current_database())) FROM pg_control_system()"
    )
    kafka.create_topic(name, 1, cleanup_policy="delete")
    relay = start(sabotage="impatient")
    scene.write(100)
    answer = ask(scene, "transactional", "--timeout", "3", code=1)
    assert "cleanup.policy=delete" in answer["shards"][0]["alarm"]
    assert "kafka-configs.sh --alter" in answer["shards"][0]["alarm"]
    scene.write(100)
    scene.wait_until_through()
    assert ask(scene, "sequenced")["shards"][0]["wanted_mode"] is None, "the request is withdrawn"
    assert relay.stop() == 0
    assert scene.complaints() == []


def test_a_compacted_topic_waits_for_mode_transactional_and_goes_out_exactly_once(
    scene: Scene, start: StartRelay, topic: TopicFactory
) -> None:
    before = scene.write(60)
    squeezed = topic("squeezed", 3, cleanup_policy="compact")
    scene.write(60, topic=squeezed)
    scene.write(60)
    start(sabotage="impatient")
    scene.wait("SELECT state->>'alarm' LIKE '%is compacted%' FROM outbox_relay")
    assert "outbox-relay shards mode transactional" in scene.status("relay-1")["alarm"]
    assert [record.id for record in wire.read(scene.bootstrap, scene.topic)] != []
    assert {record.id for record in scene.arrived()} == set(before)
    assert ask(scene, "transactional")["done"]
    scene.wait_until_through()
    records = wire.read(scene.bootstrap, scene.topic, squeezed)
    assert wire.plain_complaints(records, scene.committed()) == []


def test_a_compacted_topic_that_is_allowed_is_sent_to_in_mode_sequenced(
    scene: Scene, start: StartRelay, topic: TopicFactory
) -> None:
    scene.topic = topic("squeezed", 3, cleanup_policy="compact")
    scene.write(60)
    start(compacted_topics="allow")
    scene.wait_until_through()
    assert len(scene.arrived()) > 0


def test_a_lost_progress_topic_stops_the_shard_and_the_row_takes_over_when_told(
    scene: Scene, start: StartRelay, kafka: KafkaServer
) -> None:
    scene.transactional()
    scene.write(100)
    relay = start()
    scene.wait_until_through()
    assert relay.stop() == 0
    (name,) = [t for t in kafka.admin.list_topics(timeout=10).topics if t.endswith(progress_suffix(scene))]
    kafka.delete_topic(name)
    scene.write(100)
    stopped = start()
    assert stopped.wait(60) == 3
    assert "--from-row --shard 0" in stopped.log
    assert ask(scene, "transactional", "--from-row", "--timeout", "0.5", code=1)["done"] is False
    start()
    scene.wait_until_through()
    assert scene.plain_complaints() == [], "it was through before the topic was lost, so nothing is repeated"


def progress_suffix(scene: Scene) -> str:
    oid = scene.value("SELECT oid FROM pg_database WHERE datname = current_database()")
    return f".{oid}"
