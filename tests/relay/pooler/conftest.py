"""A PgBouncer in transaction mode in front of the session's server, and a relay's role on it."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from outbox.storage import roles
from outbox.testing.servers import PgBouncer, PostgresServer, start_pgbouncer


@pytest.fixture(scope="session")
def pooler(postgres: PostgresServer) -> Iterator[PgBouncer]:
    """It may be left stopped, not frozen."""
    with start_pgbouncer(postgres.url) as pooler:
        yield pooler


@pytest.fixture
def pooled(pooler: PgBouncer, database: str) -> str:
    """The URL of this test's database by way of the pooler, as its owner."""
    return pooler.through(database)


@pytest.fixture
def relay_role(pooler: PgBouncer, database: str) -> Iterator[str]:
    """The URL by way of the pooler, as a role with exactly a relay's rights and settings."""
    name = f"relay_{uuid4().hex[:12]}"
    with psycopg.connect(database, autocommit=True) as owner:
        for statement in roles.statements(roles.Roles(relay=[name]), create=True):
            owner.execute(statement.encode())
    yield pooler.url_of(database.rpartition("/")[2], name)
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [name])
        owner.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())
