"""What every test stands on: one PostgreSQL and one Kafka a worker, one database and own topics a test."""

from collections.abc import Generator, Iterator
from typing import Protocol
from uuid import uuid4

import pytest
import sqlalchemy
from sqlalchemy import Engine

from outbox.storage import ddl
from outbox.testing import requirement
from outbox.testing.servers import KafkaServer, PostgresServer, ServerUnavailable, start_kafka, start_postgres
from tests import turns


class TopicFactory(Protocol):
    """Creates a topic whose name no other test has; underscores in `config` are dots."""

    def __call__(self, name: str = "topic", partitions: int = 6, **config: str) -> str: ...


def pytest_sessionstart() -> None:
    requirement.required()  # a misspelt name ends the run here, before it could skip anything


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return turns.workers(config)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the time-out too: waiting for one's turn is no failure
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    with turns.turn(item, nextitem):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    return (yield from _without_server())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    return (yield from _without_server())


def _without_server() -> Generator[None]:
    try:
        return (yield)
    except ServerUnavailable as error:
        requirement.missing(error)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """This worker's PostgreSQL. Whoever kills or reconfigures a server starts another one."""
    with start_postgres(memory=True) as server:
        yield server


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """This worker's Kafka, of one broker. Whoever kills or freezes brokers starts another one."""
    with start_kafka() as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: PostgresServer) -> Iterator[str]:
    """The name of a database that holds the newest schema and nothing else."""
    name = f"outbox_template_{uuid4().hex[:12]}"
    engine = create_engine(postgres.database(name))
    with engine.begin() as connection:
        ddl.apply(connection)
    engine.dispose()
    yield name
    postgres.drop(name)


@pytest.fixture
def database(postgres: PostgresServer, template: str) -> Iterator[str]:
    """The URL of a database of this test's own, with the newest schema."""
    name = f"outbox_{uuid4().hex[:12]}"
    yield postgres.database(name, template=template)
    postgres.drop(name)


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a database of this test's own, with nothing in it."""
    name = f"outbox_{uuid4().hex[:12]}"
    yield postgres.database(name)
    postgres.drop(name)


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    """A SQLAlchemy engine on `database`."""
    engine = create_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture
def topic(kafka: KafkaServer) -> Iterator[TopicFactory]:
    """Creates topics for this test; they are deleted after it."""
    made: list[str] = []

    def create(name: str = "topic", partitions: int = 6, **config: str) -> str:
        made.append(kafka.create_topic(f"{name}.{uuid4().hex[:12]}", partitions, **config))
        return made[-1]

    yield create
    for name in made:
        kafka.delete_topic(name)


def create_engine(url: str) -> Engine:
    """An engine of psycopg 3 for a URL in either form."""
    return sqlalchemy.create_engine(sqlalchemy.make_url(url).set(drivername="postgresql+psycopg"))
