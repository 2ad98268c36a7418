"""Records that a consumer group parked."""

from outbox import ddl

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    ddl.upgrade(to=5, since=4)


def downgrade() -> None:
    ddl.downgrade(to=4, since=5)
