"""A stop is clean, soon and repeats nothing; a broker or database that is frozen cannot hold it up."""

import os
import time
from signal import SIGCONT, SIGINT, SIGSTOP, SIGTERM, Signals

import pytest

from outbox.testing.servers import KafkaBroker, start_mock_kafka
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene


@pytest.mark.alone
@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_stop_under_load_repeats_nothing(scene: Scene, start: StartRelay, number: Signals) -> None:
    scene.write(20_000)
    first = start(lease="30")
    first.wait_for("relay.acknowledged", 20)
    first.send(number)
    began = time.monotonic()
    assert first.wait() == 0
    assert time.monotonic() - began < 5
    assert scene.status("relay-1")["state"] == "stopped"
    assert scene.value("SELECT owner IS NULL FROM outbox_lease") is True
    sent = len(scene.arrived())
    assert 0 < sent < 20_000
    assert scene.status("relay-1")["published"] == sent
    start(lease="30", chunk_rows="2000")
    scene.wait_until_through()
    records = scene.arrived()
    assert wire.complaints(records, scene.committed()) == []
    assert wire.repeats(records) == 0


def test_the_test_finds_out_a_relay_that_leaves_without_a_word(scene: Scene, start: StartRelay) -> None:
    scene.write(5_000)
    first = start(lease="30", sabotage="leaves_without_a_word")
    first.wait_for("relay.acknowledged", 20)
    assert first.stop() == 0
    start(lease="30", chunk_rows="2000")
    scene.wait_until_through()
    assert wire.repeats(scene.arrived()) > 0


@pytest.mark.alone
def test_a_frozen_broker_holds_nobody_longer_than_the_time_to_stop(scene: Scene, start: StartRelay) -> None:
    with start_mock_kafka() as mock:
        scene.settings["OUTBOX_KAFKA_BOOTSTRAP_SERVERS"] = mock.bootstrap
        scene.settings["OUTBOX_COMPACTED_TOPICS"] = "allow"  # the mock cannot be asked
        mock.create_topic(scene.topic, 6)
        carrier = start(lease="30", stop_timeout="1")
        carrier.wait_for("relay.claimed")
        standby = start(lease="30", stop_timeout="1")
        scene.wait("SELECT count(*) = 2 FROM outbox_relay")
        scene.write(10)
        scene.wait_until_through()
        sent = carrier.count("relay.sending")
        mock.pause()
        scene.write(1000)
        carrier.wait_for("relay.sending", sent + 1)
        for relay in (carrier, standby):
            relay.send(SIGTERM)
        began = time.monotonic()
        assert [carrier.wait(), standby.wait()] == [0, 0]
        # A question to the brokers may be under way when the signal comes: 1 s; one client to close: 2 s.
        assert time.monotonic() - began < 9
        mock.resume()


def test_a_frozen_database_holds_nobody_for_ever(scene: Scene, start: StartRelay) -> None:
    relay = start(lease="30", stop_timeout="1")
    relay.wait_for("relay.claimed")
    scene.wait("SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'outbox-relay shard 0'")
    backends = scene.session.execute(
        "SELECT pid FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name ~ '^outbox-relay'"
    ).fetchall()
    assert len(backends) >= 3
    for (pid,) in backends:
        os.kill(pid, SIGSTOP)
    try:
        relay.send(SIGTERM)
        assert relay.wait(25) == 0
        assert "broken off" in relay.log
    finally:
        for (pid,) in backends:
            os.kill(pid, SIGCONT)


def test_a_killed_backend_costs_a_new_claim_and_nothing_else(scene: Scene, start: StartRelay) -> None:
    scene.write(5_000)
    relay = start(sabotage="impatient")
    for claims in (1, 2, 3):
        relay.wait_for("relay.claimed", claims)
        relay.wait_for("relay.acknowledged", relay.count("relay.acknowledged") + 3)
        scene.session.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name ~ '^outbox-relay'"
        )
    scene.wait_until_through()
    assert scene.complaints() == []
    assert relay.stop() == 0


def test_a_broker_that_died_for_good_does_not_hold_a_stop(
    scene: Scene, start: StartRelay, broker: KafkaBroker
) -> None:
    relay = start(lease="30", stop_timeout="1", sabotage="impatient")
    relay.wait_for("relay.claimed")
    broker.kill()
    scene.write(10)
    relay.wait_for("relay.planned")
    assert relay.stop(within=12) == 0
