"""Where a benchmark runs: one PostgreSQL and one Kafka, with a database and topics of its own each round."""

import itertools
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import psycopg
import sqlalchemy
from confluent_kafka import libversion
from sqlalchemy import Engine
from sqlalchemy.pool import NullPool

from outbox.storage import ddl
from outbox.testing.servers import KafkaServer, PostgresServer, start_kafka, start_postgres

POSTGRES = {
    "fsync": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
}
"""A commit waits for the disk, as in production; checkpoints stay out of the way of what is compared."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured. `seconds`: of each phase with a paced load."""

    rounds: int = 3
    events: int = 200_000
    seconds: float = 6.0
    transactions: int = 1_000
    many: int = 1_000_000
    """A backlog beside which `events` is small."""


@dataclass(slots=True)
class Place:
    """Two servers. Databases and topics live as long as their `with` block."""

    postgres: PostgresServer
    kafka: KafkaServer
    _template: str = field(default_factory=lambda: f"bench_{uuid4().hex[:8]}")
    _ready: bool = False
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def database(self) -> Iterator[str]:
        """A fresh database with the schema."""
        if not self._ready:
            fresh = engine(self.postgres.database(self._template))
            with fresh.begin() as connection:
                ddl.apply(connection)
            self._ready = True
        name = f"{self._template}_{next(self._numbers)}"
        yield self.postgres.database(name, template=self._template)
        self.postgres.drop(name)

    @contextmanager
    def topic(self) -> Iterator[str]:
        """A fresh topic of six partitions."""
        name = self.kafka.create_topic(f"{self._template}-{next(self._numbers)}", 6)
        yield name
        self.kafka.delete_topic(name)

    def close(self) -> None:
        if self._ready:
            self.postgres.drop(self._template)

    def describe(self) -> dict[str, str | int]:
        """What the figures depend on."""
        with psycopg.connect(self.postgres.url) as connection:
            found = connection.execute(
                "SELECT current_setting('server_version'), current_setting('fsync')"
            ).fetchone()
        assert found is not None
        return {
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "postgres": f"{found[0]} (fsync {found[1]})",
            "kafka": _kafka_version(),
            "librdkafka": libversion()[0],
        }


@contextmanager
def place(settings: Mapping[str, str] | None = None) -> Iterator[Place]:
    """The servers given in the environment, else new ones from this machine's programs, with `settings`."""
    given = os.environ.get("OUTBOX_DATABASE_URL")
    with (
        start_postgres() if given else start_postgres({**POSTGRES, **(settings or {})}) as postgres,
        start_kafka() as kafka,
    ):
        where = Place(postgres, kafka)
        try:
            yield where
        finally:
            where.close()


def engine(url: str) -> Engine:
    """Without a pool: whoever drops the database finds nobody connected."""
    address = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
    return sqlalchemy.create_engine(address, poolclass=NullPool)


def _kafka_version() -> str:
    if os.environ.get("OUTBOX_KAFKA_BOOTSTRAP_SERVERS"):
        return "given by its address"
    from outbox.testing.servers import jars

    names = [jar.name for jar in jars.resolve() if jar.name.startswith("kafka_2")]
    return f"{names[0].removesuffix('.jar').rpartition('-')[2]}, one broker" if names else "one broker"
