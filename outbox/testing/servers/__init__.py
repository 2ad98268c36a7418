"""Real servers for tests, benchmarks and the demo, without Docker.

Each comes from an address in the environment, else from the programs on this machine; when neither is
there, ServerUnavailable says what to install. No process, socket or directory outlives its owner.
"""

from outbox.testing.servers.failure import ServerFailed, ServerUnavailable
from outbox.testing.servers.kafka import KafkaServer, start_kafka
from outbox.testing.servers.kafka_broker import KafkaBroker
from outbox.testing.servers.mock import MockKafka, start_mock_kafka
from outbox.testing.servers.pgbouncer import PgBouncer, start_pgbouncer
from outbox.testing.servers.postgres import PostgresServer, start_postgres
from outbox.testing.servers.secure_kafka import SecureKafka

__all__ = [
    "KafkaBroker",
    "KafkaServer",
    "MockKafka",
    "PgBouncer",
    "PostgresServer",
    "SecureKafka",
    "ServerFailed",
    "ServerUnavailable",
    "start_kafka",
    "start_mock_kafka",
    "start_pgbouncer",
    "start_postgres",
]
