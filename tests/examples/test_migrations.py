"""Each service's revisions and its models say the same, in both directions."""

import importlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, MetaData, inspect

from examples.order_service.migrate import migrate
from outbox import ddl, tables
from outbox.testing.servers import PostgresServer
from tests.examples.conftest import SERVICES, Databases, engine_of


@pytest.mark.parametrize("service", SERVICES)
def test_the_migrated_tables_are_what_the_models_describe(database_of: Databases, service: str) -> None:
    domain = importlib.import_module(f"examples.order_service.{service}.domain")
    described = MetaData()
    for table in domain.Base.metadata.sorted_tables:
        table.to_metadata(described)
    tables.attach(described)
    with database_of(service).connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": tables.include_name})
        assert compare_metadata(context, described) == []
        assert ddl.problems(connection) == []


@pytest.mark.parametrize("service", SERVICES)
def test_downgrading_to_base_leaves_nothing(database_of: Databases, service: str) -> None:
    engine = database_of(service)
    migrate(engine, f"examples.order_service.{service}", to="base")
    assert inspect(engine).get_table_names() == ["alembic_version"]


def test_processes_that_migrate_at_once_do_it_once(postgres: PostgresServer) -> None:
    url = postgres.database("migrated_at_once")
    engines: list[Engine] = [engine_of(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda engine: migrate(engine, "examples.order_service.invoice"), engines))
    assert inspect(engines[0]).has_table("invoice_journal")
    for engine in engines:
        engine.dispose()
    postgres.drop("migrated_at_once")
