"""A real Kafka that speaks TLS and asks for a SCRAM login, as a company's does."""

from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from confluent_kafka.cimpl import NewTopic

from outbox.testing.servers.certificates import Authority, Certificate
from outbox.testing.servers.kafka import KafkaServer, start_kafka
from outbox.testing.servers.kafka_broker import KafkaBroker

ADMIN = "admin"

SETTINGS = {
    # A broker that talks to itself through a listener does not start when its certificate has expired.
    "listeners": "CLIENTS://{address},BROKERS://127.0.0.1:0,CONTROLLER://{controller}",
    "listener.security.protocol.map": "CLIENTS:SASL_SSL,BROKERS:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "BROKERS",
    "listener.name.clients.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
    "listener.name.clients.plain.sasl.jaas.config": (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        f'username="{ADMIN}" password="{ADMIN}" user_{ADMIN}="{ADMIN}";'
    ),
    "listener.name.clients.scram-sha-512.sasl.jaas.config": (
        "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    ),
    "ssl.keystore.type": "PEM",
    "ssl.truststore.type": "PEM",
    "ssl.endpoint.identification.algorithm": "",
}


class SecureKafka:
    """One broker. `authority` signed its certificate; `directory` keeps the files."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        self._kafka: KafkaServer = start_kafka(settings={**SETTINGS, **self._shown(self.authority.issue())})
        self.bootstrap = self._kafka.bootstrap
        self._admin = AdminClient(
            {
                **self.properties(ADMIN, ADMIN),
                "sasl.mechanism": "PLAIN",
                "socket.timeout.ms": 10_000,
                "log_level": 2,
            }
        )

    @property
    def broker(self) -> KafkaBroker:
        return self._kafka.brokers[0]

    def properties(self, user: str, password: str) -> dict[str, str | int | float | bool]:
        """What a client needs, in librdkafka's words."""
        return {
            "bootstrap.servers": self.bootstrap,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": user,
            "sasl.password": password,
            "ssl.ca.location": str(self.authority.certificate),
        }

    def add_user(self, user: str, password: str) -> None:
        """A login that works when this returns."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(user, info, password.encode())
        self._admin.alter_user_scram_credentials([change])[user].result(30)

    def create_topic(self, name: str, partitions: int = 6) -> str:
        self._admin.create_topics([NewTopic(name, partitions, 1)], operation_timeout=20)[name].result(30)
        return name

    def restart(self, *, expired: bool = False) -> None:
        """With a new certificate: of today, or one that has expired."""
        self.broker.stop()
        self.broker.change(self._shown(self.authority.issue(expired=expired)))
        self.broker.start()

    def close(self) -> None:
        self._kafka.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _shown(self, certificate: Certificate) -> dict[str, str]:
        """The broker's side of TLS."""
        return {
            "ssl.keystore.key": _line(certificate.key),
            "ssl.keystore.certificate.chain": _line(certificate.chain),
            "ssl.truststore.certificates": _line(self.authority.certificate),
        }


def _line(pem: Path) -> str:
    return " ".join(pem.read_text().splitlines())
