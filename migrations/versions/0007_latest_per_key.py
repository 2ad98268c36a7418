"""Replays of the latest event of each key."""

from outbox import ddl

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    ddl.upgrade(to=7, since=6)


def downgrade() -> None:
    ddl.downgrade(to=6, since=7)
