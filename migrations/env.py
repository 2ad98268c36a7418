"""Run the revisions on OUTBOX_DATABASE_URL, or print their SQL (`--sql`):

alembic --config migrations/alembic.ini upgrade head
"""

import os

from alembic import context
from sqlalchemy import Connection, create_engine, make_url
from sqlalchemy.pool import NullPool

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


def _online() -> None:
    given: Connection | None = context.config.attributes.get("connection")
    if given is not None:
        _run(given)
        return
    url = make_url(os.environ["OUTBOX_DATABASE_URL"]).set(drivername="postgresql+psycopg")
    with create_engine(url, poolclass=NullPool).connect() as connection:
        _run(connection)


if context.is_offline_mode():
    _run(None)
else:
    _online()
