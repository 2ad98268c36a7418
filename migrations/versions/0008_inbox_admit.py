"""The look into the inbox keeps to its indexes."""

from outbox import ddl

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    ddl.upgrade(to=8, since=7)


def downgrade() -> None:
    ddl.downgrade(to=7, since=8)
