"""Shipments and their log; the consumer's offsets beside them."""

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
        "shipment",
        sa.Column("order_id", sa.Uuid, primary_key=True),
        sa.Column("standing", sa.String(8), nullable=False),
    )
    op.create_table(
        "shipment_log",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("order_id", sa.Uuid, sa.ForeignKey("shipment.order_id"), nullable=False, index=True),
        sa.Column("action", sa.String(8), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("kafka_topic", sa.String, nullable=False),
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
    op.drop_table("shipment_log")
    op.drop_table("shipment")
    ddl.downgrade(to=0, since=9)
