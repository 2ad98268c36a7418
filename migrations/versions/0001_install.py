"""Install the outbox ring, the relay's state and the consumer's offsets."""

from outbox import ddl

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    ddl.upgrade(to=1)


def downgrade() -> None:
    ddl.downgrade(to=0, since=1)
