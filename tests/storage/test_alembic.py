"""One line in a revision installs the outbox, online and offline, and autogenerate sees nothing to change."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox import SchemaError, ddl, tables
from tests.storage.catalog import contents

OWN_ENVIRONMENT = Path(__file__).parents[2] / "migrations"
VERSION_TABLE = "outbox_alembic_version"

USERS_ENV = """
from alembic import context
connection = context.config.attributes.get("connection")
if connection is None:
    context.configure(dialect_name="postgresql", as_sql=True, literal_binds=True)
else:
    context.configure(connection=connection)
with context.begin_transaction():
    context.run_migrations()
"""

USERS_REVISION = """
from alembic import op
import sqlalchemy as sa
from outbox import ddl
revision = "a1"
down_revision = None
def upgrade() -> None:
    op.create_table("customers", sa.Column("id", sa.Integer, primary_key=True))
    ddl.upgrade(to=9)
def downgrade() -> None:
    ddl.downgrade(to=0, since=9)
    op.drop_table("customers")
"""


class UsersBase(DeclarativeBase):
    pass


class Customer(UsersBase):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)


def configured(script_location: Path, connection: Connection | None = None) -> tuple[Config, io.StringIO]:
    printed = io.StringIO()
    config = Config(output_buffer=printed)
    config.set_main_option("script_location", str(script_location))
    config.attributes["connection"] = connection
    return config, printed


def run(engine: Engine, script_location: Path, verb: Callable[[Config, str], object], revision: str) -> None:
    with engine.begin() as connection:
        config, _ = configured(script_location, connection)
        verb(config, revision)


@pytest.fixture
def users_environment(tmp_path: Path) -> Path:
    """An application's own migrations, with one revision that installs the outbox beside a table."""
    folder = tmp_path / "users_migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(USERS_ENV)
    (folder / "versions" / "a1.py").write_text(USERS_REVISION)
    return folder


def differences(connection: Connection, **options: object) -> list[object]:
    """What `alembic revision --autogenerate` would write for an application that attached the tables."""
    users = UsersBase.metadata
    combined = type(users)()
    for table in users.sorted_tables:
        table.to_metadata(combined)
    tables.attach(combined)
    settings = {"compare_type": True, "compare_server_default": True, "include_name": tables.include_name}
    context = MigrationContext.configure(connection, opts={**settings, **options})
    return list(compare_metadata(context, combined))


def test_our_own_revisions_go_up_and_down(empty_engine: Engine) -> None:
    run(empty_engine, OWN_ENVIRONMENT, command.upgrade, "head")
    with empty_engine.connect() as connection:
        ddl.check(connection)
    run(empty_engine, OWN_ENVIRONMENT, command.downgrade, "base")
    with empty_engine.connect() as connection:
        assert ddl.version(connection) == 0
        assert not any(contents(connection, without=VERSION_TABLE).values())


def test_a_users_revision_installs_it_beside_the_users_tables(
    empty_engine: Engine, users_environment: Path
) -> None:
    run(empty_engine, users_environment, command.upgrade, "head")
    with empty_engine.connect() as connection:
        ddl.check(connection)
        assert connection.scalar(text("SELECT to_regclass('customers')")) is not None
    run(empty_engine, users_environment, command.downgrade, "base")
    with empty_engine.connect() as connection:
        assert not any(contents(connection, without="alembic_version").values())


def test_a_downgrade_is_refused_while_events_wait(empty_engine: Engine, users_environment: Path) -> None:
    run(empty_engine, users_environment, command.upgrade, "head")
    with empty_engine.begin() as connection:
        connection.execute(
            text("INSERT INTO outbox_event (id, aggregatetype, type) VALUES (gen_random_uuid(), 'a', 'b')")
        )
    with pytest.raises(SchemaError, match="waiting to be published"):
        run(empty_engine, users_environment, command.downgrade, "base")
    with empty_engine.connect() as connection:
        ddl.check(connection)


@pytest.mark.parametrize("whose", ["own", "users"])
def test_the_printed_sql_makes_the_same_schema(
    engine: Engine, empty_engine: Engine, users_environment: Path, whose: str
) -> None:
    location = OWN_ENVIRONMENT if whose == "own" else users_environment
    config, printed = configured(location)
    command.upgrade(config, "head", sql=True)
    with empty_engine.connect() as connection:
        connection.connection.driver_connection.execute(printed.getvalue())  # type: ignore[union-attr]
        ddl.check(connection)
        if whose == "own":
            with engine.connect() as online:
                assert contents(connection, without=VERSION_TABLE) == contents(online)
    config, printed = configured(location)
    command.downgrade(config, "head:base", sql=True)
    with empty_engine.connect() as connection:
        connection.connection.driver_connection.execute(printed.getvalue())  # type: ignore[union-attr]
        assert not any(contents(connection, without="alembic_version").values()) or whose == "own"
        assert ddl.version(connection) == 0


def test_autogenerate_sees_no_difference(empty_engine: Engine, users_environment: Path) -> None:
    run(empty_engine, users_environment, command.upgrade, "head")
    with empty_engine.connect() as connection:
        assert differences(connection) == []


def test_autogenerate_leaves_our_own_version_table_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        UsersBase.metadata.create_all(connection)
        connection.execute(text(f"CREATE TABLE {VERSION_TABLE} (version_num varchar(32) NOT NULL)"))
        assert differences(connection) == []


def test_autogenerate_would_drop_the_ring_without_include_name(engine: Engine) -> None:
    """The broken variant: the leaves look like tables that nobody described."""
    with engine.begin() as connection:
        UsersBase.metadata.create_all(connection)
        found = differences(connection, include_name=None)
    dropped = {entry[1].name for entry in found if isinstance(entry, tuple) and entry[0] == "remove_table"}
    assert {f"outbox_event_{slot}" for slot in range(8)} <= dropped


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE outbox_event DROP COLUMN traceparent",
        "ALTER TABLE outbox_shard ADD COLUMN more int",
        "ALTER TABLE outbox_lease ALTER owner TYPE int USING 0",
        "ALTER TABLE consumer_offset ALTER owner_epoch DROP NOT NULL",
        "ALTER TABLE consumer_offset ALTER owner_epoch SET DEFAULT 5",
        "DROP INDEX outbox_event_xid",
        "DROP TABLE outbox_topic",
    ],
)
def test_autogenerate_sees_a_table_that_is_not_as_described(engine: Engine, damage: str) -> None:
    """So that `tables` equals the DDL is a statement that can fail."""
    with engine.begin() as connection:
        UsersBase.metadata.create_all(connection)
        assert differences(connection) == []
        connection.execute(text(damage))
        assert differences(connection) != []


def test_the_tables_describe_every_column_in_order(engine: Engine) -> None:
    with engine.connect() as connection:
        found = contents(connection)["columns"]
    for table in tables.metadata.sorted_tables:
        real = [(row[1], row[3]) for row in found if row[0] == table.name]
        assert [(column.name, not column.nullable) for column in table.columns] == real, table.name
