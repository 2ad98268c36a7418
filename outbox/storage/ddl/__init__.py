"""Bring a database to exactly the schema this version knows, in frozen, numbered steps.

Inside an Alembic revision (`op` is used, so offline `--sql` works too):

    from outbox import ddl

    def upgrade() -> None: ddl.upgrade(to=9)
    def downgrade() -> None: ddl.downgrade(to=0, since=9)

Without Alembic: `ddl.apply(connection)`. Both leave committing to the caller.
"""

from outbox.storage.ddl.check import check, problems, warnings
from outbox.storage.ddl.steps import apply, downgrade, statements, upgrade, version
from outbox.storage.version import LATEST

__all__ = [
    "LATEST",
    "apply",
    "check",
    "downgrade",
    "problems",
    "statements",
    "upgrade",
    "version",
    "warnings",
]
