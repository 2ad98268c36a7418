"""Invoices and their journal; the consumer's offsets and the outbox beside them."""

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
        "invoice",
        sa.Column("order_id", sa.Uuid, primary_key=True),
        sa.Column("customer_id", sa.Uuid, nullable=False),
        sa.Column("balance", sa.Numeric(12, 2), nullable=False),
        sa.Column("voided_at", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "invoice_journal",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("order_id", sa.Uuid, sa.ForeignKey("invoice.order_id"), nullable=False, index=True),
        sa.Column("booking", sa.String(8), nullable=False),
        sa.Column("amount", sa.Numeric(12, 2), nullable=False),
        sa.Column("order_revision", sa.Integer, nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("kafka_partition", sa.Integer, nullable=False),
        sa.Column("kafka_offset", sa.BigInteger, nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.clock_timestamp(),
        ),
    )


def downgrade() -> None:
    op.drop_table("invoice_journal")
    op.drop_table("invoice")
    ddl.downgrade(to=0, since=9)
