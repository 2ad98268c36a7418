"""A company's Kafka, TLS and SCRAM: a wrong login or certificate is named, waited out and costs nothing."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.testing.servers import SecureKafka
from outbox.testing.servers.certificates import Authority
from tests.relay.conftest import StartRelay
from tests.relay.outages.strain import Strain
from tests.relay.process import RelayProcess
from tests.relay.scene import Scene, until

WATCHED = 3.0
"""Seconds during which an outage's strain is measured."""


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    with SecureKafka(tmp_path_factory.mktemp("secure")) as kafka:
        kafka.add_user("relay", "right")
        yield kafka


@pytest.fixture
def behind_login(scene: Scene, secure: SecureKafka) -> SecureKafka:
    """This scene's topic is on the secured cluster, and its settings are right."""
    secure.create_topic(scene.topic)
    for name, value in secure.properties("relay", "right").items():
        scene.settings[f"OUTBOX_KAFKA__{name.upper().replace('.', '_')}"] = str(value)
    del scene.settings["OUTBOX_KAFKA_BOOTSTRAP_SERVERS"]
    return secure


def named(scene: Scene, relay: RelayProcess, cause: str, instance: str = "relay-1") -> None:
    """Until status says it; then nothing may be strained while it lasts."""
    until(lambda: cause in str(scene.status(instance).get("alarm")), 40, lambda: relay.log[-2000:])
    assert scene.status(instance)["state"] == "waiting"
    strain = Strain(relay)
    time.sleep(WATCHED)
    assert strain.faults() == []


def test_a_wrong_password_is_named_and_the_right_one_carries(
    scene: Scene, start: StartRelay, behind_login: SecureKafka
) -> None:
    scene.write(50)
    refused = start(kafka__sasl_password="s3cret")
    named(scene, refused, "uthentication failed")
    assert refused.stop() == 0
    assert "s3cret" not in refused.log + str(scene.status("relay-1"))
    start(kafka__sasl_password="right")
    scene.wait_until_through()


def test_a_password_that_becomes_right_is_taken_without_a_restart(
    scene: Scene, start: StartRelay, behind_login: SecureKafka
) -> None:
    scene.write(50)
    relay = start(kafka__sasl_username="late", kafka__sasl_password="tomorrow")
    named(scene, relay, "uthentication failed")
    behind_login.add_user("late", "tomorrow")
    scene.wait_until_through(60)
    scene.wait("SELECT state->>'alarm' IS NULL FROM outbox_relay", within=30)


def test_a_certificate_of_a_stranger_is_named(
    scene: Scene, start: StartRelay, behind_login: SecureKafka, tmp_path: Path
) -> None:
    scene.write(1)
    relay = start(kafka__ssl_ca_location=Authority(tmp_path, "stranger").certificate)
    named(scene, relay, "certificate verify failed")
    assert relay.stop() == 0


def test_a_certificate_that_expires_meanwhile_is_named_until_it_is_renewed(
    scene: Scene, start: StartRelay, behind_login: SecureKafka
) -> None:
    relay = start(sabotage="impatient")
    scene.write(50)
    scene.wait_until_through()
    behind_login.restart(expired=True)
    scene.write(50)
    named(scene, relay, "certificate verify failed")
    behind_login.restart()
    scene.wait_until_through(60)
    well = "SELECT state->>'alarm' IS NULL AND state->>'state' = 'carrying' FROM outbox_relay"
    scene.wait(well, within=30)
    assert relay.stop() == 0
