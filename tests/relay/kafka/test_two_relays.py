"""Two relays on one shard: the frozen one that wakes up changes nothing, its late records are repeats."""

from signal import SIGCONT, SIGTERM

import pytest

from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene

STEPS = ["relay.planned 1 STOP", "relay.sending 6 STOP", "relay.acknowledged 2 STOP"]


@pytest.mark.parametrize("step", STEPS)
def test_a_relay_that_overslept_its_lease_changes_nothing(scene: Scene, start: StartRelay, step: str) -> None:
    scene.write(1000)
    zombie = start(strike=step, instance="zombie")
    zombie.wait_frozen()
    start()
    scene.write(150)
    scene.wait_until_through()
    before = scene.shard()
    zombie.send(SIGCONT)
    scene.wait("SELECT state->>'state' = 'standby' FROM outbox_relay WHERE instance = 'zombie'")
    assert scene.shard() == before
    assert scene.complaints() == []


@pytest.mark.parametrize("step", STEPS)
def test_a_relay_that_believes_in_a_lease_it_lost_is_fenced_by_the_row(
    scene: Scene, start: StartRelay, step: str
) -> None:
    scene.write(1000)
    zombie = start(strike=step, sabotage="sleepwalks,stops_when_fenced")
    zombie.wait_frozen()
    start().wait_for("relay.acknowledged", 10)
    scene.write(150)
    scene.wait_until_through()
    before = scene.shard()
    zombie.send(SIGCONT)
    zombie.wait_for("relay.fenced")
    assert scene.shard() == before
    assert scene.complaints() == []


def test_a_clean_stop_hands_over_at_once(scene: Scene, start: StartRelay) -> None:
    first = start(lease="60")
    first.wait_for("relay.claimed")
    second = start(lease="60")
    scene.wait("SELECT count(*) = 2 FROM outbox_relay")
    scene.write(300)
    first.send(SIGTERM)
    second.wait_for("relay.claimed", within=10)
    assert first.wait() == 0
    scene.wait_until_through()
    records = scene.arrived()
    assert wire.complaints(records, scene.committed()) == []
    assert wire.repeats(records) == 0
    assert scene.status("relay-1")["state"] == "stopped"
    assert second.stop() == 0
