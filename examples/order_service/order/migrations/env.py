"""Run the revisions on the connection that `migrate` hands over."""

from alembic import context

from examples.order_service.order.domain import Base
from outbox import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=[Base.metadata, tables.metadata],
    include_name=tables.include_name,
)
with context.begin_transaction():
    context.run_migrations()
