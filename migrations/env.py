"""Run the revisions against `connection` (online) or print their SQL (offline)."""

from alembic import context
from sqlalchemy import Connection

from outbox.storage import tables

VERSION_TABLE = "outbox_alembic_version"
"""A name of its own, so that the outbox and an application can share one database."""


def _run(connection: Connection | None) -> None:
    if connection is None:
        context.configure(
            dialect_name="postgresql",
            as_sql=True,
            literal_binds=True,
            target_metadata=tables.metadata,
            version_table=VERSION_TABLE,
        )
    else:
        context.configure(
            connection=connection,
            target_metadata=tables.metadata,
            include_name=tables.include_name,
            version_table=VERSION_TABLE,
        )
    with context.begin_transaction():
        context.run_migrations()


_run(None if context.is_offline_mode() else context.config.attributes["connection"])
