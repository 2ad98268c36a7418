"""Scheduled events, and events that SQL writes."""

from outbox import ddl

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    ddl.upgrade(to=4, since=3)


def downgrade() -> None:
    ddl.downgrade(to=3, since=4)
