"""The ids of foreign records."""

from outbox import ddl

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    ddl.upgrade(to=6, since=5)


def downgrade() -> None:
    ddl.downgrade(to=5, since=6)
