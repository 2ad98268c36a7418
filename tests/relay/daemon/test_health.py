"""What keeps a relay from its broker is in its status, where an operator looks first."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from outbox.testing.servers import KafkaBroker, start_kafka
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene, until

JAAS = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required "
    'username="broker" password="broker" user_broker="broker" user_relay="right";'
)
LOGIN = {
    "listener.security.protocol.map": "PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "sasl.mechanism.inter.broker.protocol": "PLAIN",
    "listener.name.plaintext.sasl.enabled.mechanisms": "PLAIN",
    "listener.name.plaintext.plain.sasl.jaas.config": JAAS,
}


def test_a_wrong_kafka_password_is_told_and_a_right_one_carries(scene: Scene, start: StartRelay) -> None:
    with start_kafka(settings=LOGIN) as kafka:
        client: dict[str, str | int | float | bool] = {
            "bootstrap.servers": kafka.bootstrap,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "relay",
            "sasl.password": "right",
        }
        admin = AdminClient(client)
        admin.create_topics([NewTopic(scene.topic, 3, 1)], operation_timeout=20)[scene.topic].result(30)
        scene.settings["OUTBOX_KAFKA_BOOTSTRAP_SERVERS"] = kafka.bootstrap
        for name in ("security.protocol", "sasl.mechanism", "sasl.username"):
            scene.settings[f"OUTBOX_KAFKA__{name.upper().replace('.', '_')}"] = str(client[name])
        scene.write(10)
        refused = start(kafka__sasl_password="s3cret")
        scene.wait("SELECT state->>'alarm' LIKE '%uthentication failed%' FROM outbox_relay", within=30)
        assert "Invalid username or password" in scene.status("relay-1")["alarm"]
        assert refused.stop() == 0
        assert "s3cret" not in refused.log
        start(kafka__sasl_password="right")
        scene.wait_until_through()


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    def make(name: str) -> tuple[str, str]:
        """Key and certificate of a broker at 127.0.0.1, signed by itself."""
        key, signed = tmp_path / f"{name}.key", tmp_path / f"{name}.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-keyout", str(key), "-out", str(signed), "-subj", f"/CN={name}"),
                *("-addext", "subjectAltName=IP:127.0.0.1"),
            ],
            check=True,
            capture_output=True,
        )
        return str(key), str(signed)

    return make


def test_a_certificate_that_nobody_vouches_for_is_told(
    scene: Scene, start: StartRelay, certificate: Callable[[str], tuple[str, str]]
) -> None:
    key, signed = certificate("broker")
    _, stranger = certificate("stranger")

    def pem(path: str) -> str:
        return " ".join(Path(path).read_text().splitlines())

    encrypted = {
        "listener.security.protocol.map": "PLAINTEXT:SSL,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.key": pem(key),
        "ssl.keystore.certificate.chain": pem(signed),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": pem(signed),
    }
    with start_kafka(settings=encrypted) as kafka:
        scene.settings["OUTBOX_KAFKA_BOOTSTRAP_SERVERS"] = kafka.bootstrap
        scene.settings["OUTBOX_KAFKA__SECURITY_PROTOCOL"] = "SSL"
        start(kafka__ssl_ca_location=stranger)
        scene.wait("SELECT state->>'alarm' ILIKE '%certificate%' FROM outbox_relay", within=30)
        assert "certificate verify failed" in scene.status("relay-1")["alarm"]


def test_brokers_that_went_away_while_nothing_was_sent_are_told(
    scene: Scene, start: StartRelay, broker: KafkaBroker
) -> None:
    start(sabotage="impatient")
    scene.write(10)
    scene.wait_until_through()
    broker.kill()
    scene.wait("SELECT state->>'alarm' IS NOT NULL FROM outbox_relay", within=30)
    assert scene.status("relay-1")["state"] == "waiting"
    broker.start()
    scene.wait("SELECT state->>'alarm' IS NULL FROM outbox_relay", within=30)
    assert scene.status("relay-1")["state"] == "carrying"


def test_a_large_backlog_takes_no_large_memory(scene: Scene, start: StartRelay) -> None:
    for _ in range(2):
        scene.write(10_000, pad=2_048, keys=1000)
    relay = start(chunk_rows="2000", look_rows="1000", lease="5")
    relay.wait_for("relay.acknowledged")
    until(lambda: scene.status("relay-1").get("published", 0) > 0, 20, lambda: relay.log)
    scene.wait_until_through(60)
    status = Path(f"/proc/{relay.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    assert peak < 130_000, f"{peak:,} kB for a backlog of 43 MB"
    assert wire.repeats(scene.arrived()) == 0
