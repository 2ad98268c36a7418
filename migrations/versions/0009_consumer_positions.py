"""Why a consumer group stands where it stands, and moving it."""

from outbox import ddl

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    ddl.upgrade(to=9, since=8)


def downgrade() -> None:
    ddl.downgrade(to=8, since=9)
