"""Two servers with counters of their own, between which databases are moved."""

from collections.abc import Iterator
from typing import Protocol
from uuid import uuid4

import pytest

from outbox.storage import ddl
from outbox.storage.roles import Roles, statements
from outbox.testing.servers import postgres_copies, start_postgres
from outbox.testing.servers.postgres import OwnPostgres
from tests.conftest import create_engine
from tests.relay.database.memory_broker import MemoryBroker
from tests.relay.disaster.copies import Here
from tests.relay.disaster.pair import NAME, Pair


class Install(Protocol):
    def __call__(self, server: OwnPostgres) -> Here: ...


def own_server() -> OwnPostgres:
    server = start_postgres({"max_connections": 40}, own=True)
    assert isinstance(server, OwnPostgres)
    return server


@pytest.fixture(scope="package")
def old() -> Iterator[OwnPostgres]:
    with own_server() as server:
        yield server


@pytest.fixture(scope="package")
def new() -> Iterator[OwnPostgres]:
    with own_server() as server:
        yield server


@pytest.fixture
def install() -> Install:
    """A database of its own with the newest schema, on the server in question."""

    def make(server: OwnPostgres) -> Here:
        url = server.database(f"shop_{uuid4().hex[:12]}")
        engine = create_engine(url)
        with engine.begin() as connection:
            ddl.apply(connection)
        engine.dispose()
        return Here(server, url)

    return make


@pytest.fixture
def pair(install: Install) -> Iterator[Pair]:
    settings = {**postgres_copies.PAIR, "max_connections": 150}
    with start_postgres(settings, own=True) as primary:
        assert isinstance(primary, OwnPostgres)
        here = install(primary)
        with here.session() as session:
            for statement in statements(Roles(standbys=True)):
                session.execute(statement.encode())
        with postgres_copies.start_standby(primary, NAME, {"max_connections": 150}) as standby:
            pair = Pair(primary, standby, here)
            pair.wait_until_it_streams()
            yield pair


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()
