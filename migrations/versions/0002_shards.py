"""The mode of a shard, many shards and changing their number."""

from outbox import ddl

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    ddl.upgrade(to=2, since=1)


def downgrade() -> None:
    ddl.downgrade(to=1, since=2)
