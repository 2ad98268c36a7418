"""Parked rows and the jobs that send them again."""

from outbox import ddl

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    ddl.upgrade(to=3, since=2)


def downgrade() -> None:
    ddl.downgrade(to=2, since=3)
