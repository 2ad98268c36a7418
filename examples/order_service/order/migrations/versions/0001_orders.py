"""Orders, and the outbox beside them."""

import sqlalchemy as sa
from alembic import op

from outbox import ddl

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    ddl.upgrade(to=9)
    op.create_table(
        "orders",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("customer_id", sa.Uuid, nullable=False),
        sa.Column("total", sa.Numeric(12, 2), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cancelled_at", sa.DateTime(timezone=True)),
    )


def downgrade() -> None:
    op.drop_table("orders")
    ddl.downgrade(to=0, since=9)
