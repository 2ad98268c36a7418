"""A migrated database for each service, and records as the services' consumers would hand them over."""

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.orm import Session, sessionmaker

from examples.order_service.migrate import migrate
from examples.order_service.order import services as order_services
from outbox.consumer import Record
from outbox.testing.servers import PostgresServer

SERVICES = ("order", "invoice", "shipping")

Databases = Callable[[str], Engine]


def engine_of(url: str) -> Engine:
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"))


@pytest.fixture(scope="session")
def templates(postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """One migrated database a service, never touched again: copying it is faster than migrating."""
    names = {service: f"{service}_{uuid4().hex[:8]}" for service in SERVICES}
    for service, name in names.items():
        engine = engine_of(postgres.database(name))
        migrate(engine, f"examples.order_service.{service}")
        engine.dispose()
    yield names
    for name in names.values():
        postgres.drop(name)


@pytest.fixture
def database_of(postgres: PostgresServer, templates: dict[str, str]) -> Iterator[Databases]:
    """`database_of("order")`: an engine on a fresh, migrated database of that service."""
    made: dict[str, Engine] = {}

    def make(service: str) -> Engine:
        name = f"{service}_{uuid4().hex[:8]}"
        made[name] = engine_of(postgres.database(name, template=templates[service]))
        return made[name]

    yield make
    for name, engine in made.items():
        engine.dispose()
        postgres.drop(name)


@pytest.fixture
def orders(database_of: Databases) -> Iterator[Engine]:
    """The order service works on this database for the length of a test."""
    engine = database_of("order")
    order_services.sessions.configure(bind=engine)
    yield engine
    order_services.sessions.configure(bind=None)


@pytest.fixture
def invoices(database_of: Databases) -> sessionmaker[Session]:
    return sessionmaker(database_of("invoice"))


@pytest.fixture
def shipments(database_of: Databases) -> sessionmaker[Session]:
    return sessionmaker(database_of("shipping"))


@pytest.fixture
def record() -> Callable[[str], Record]:
    """The record around an event: `record("orders")`, each with the next offset and an id of its own."""
    offsets = itertools.count()

    def make(topic: str, event_id: UUID | None = None) -> Record:
        return Record(
            topic=topic,
            partition=0,
            offset=next(offsets),
            key=b"",
            value=b"",
            headers={},
            timestamp=datetime.now(UTC),
            event_id=event_id or uuid4(),
            type=None,
            seq=None,
        )

    return make
