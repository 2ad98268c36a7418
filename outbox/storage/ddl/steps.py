"""Walk from one schema version to another; a step, once released, never changes."""

from sqlalchemy import Connection, TextClause, text

from outbox.errors import ConfigurationError, SchemaError
from outbox.storage.ddl import step_1, step_2, step_3, step_4, step_5, step_6, step_7, step_8, step_9
from outbox.storage.version import LATEST

STEPS = (step_1, step_2, step_3, step_4, step_5, step_6, step_7, step_8, step_9)
assert len(STEPS) == LATEST

_CREATE_VERSION = "CREATE TABLE outbox_schema (version integer NOT NULL)"
_INSERT_VERSION = "INSERT INTO outbox_schema (version) VALUES (0)"
_DROP_VERSION = "DROP TABLE outbox_schema"

PENDING = """
SELECT EXISTS (
    SELECT FROM outbox_event e
    WHERE NOT EXISTS (
        SELECT FROM outbox_shard s
        WHERE coalesce(hashtextextended(e.aggregateid, 0::bigint) & 255::bigint, 0) BETWEEN s.lo AND s.hi
          AND pg_visible_in_snapshot(e.xid, s.done)))
"""
"""Is any event not acknowledged by the shard that covers its bucket?"""

PARKED = "SELECT EXISTS (SELECT FROM outbox_parked)"
"""Does any event wait for an operator? Its original may be gone. Asked from version 3 on."""


SCHEDULED = "SELECT EXISTS (SELECT FROM outbox_scheduled)"
"""Does any event wait for its moment? Asked of a schema that has the table, from version 4 on."""


def statements(*, frm: int, to: int) -> list[str]:
    """The SQL that leads from version `frm` to version `to`, in order."""
    for number in (frm, to):
        if not 0 <= number <= LATEST:
            raise ConfigurationError(
                f"outbox schema version {number} does not exist; this release knows 0 to {LATEST}"
            )
    sql: list[str] = []
    if frm < to:
        if frm == 0:
            sql += [_CREATE_VERSION, _INSERT_VERSION]
        for number in range(frm, to):
            sql += STEPS[number].UP
    else:
        for number in range(frm, to, -1):
            sql += STEPS[number - 1].DOWN
        if to == 0 and frm > 0:
            sql.append(_DROP_VERSION)
    if to > 0 and frm != to:
        sql.append(f"UPDATE outbox_schema SET version = {to:d}")  # noqa: S608 - a checked number
    return [s.strip() for s in sql]


def version(connection: Connection) -> int:
    """The schema version of this database; 0 when the outbox was never installed."""
    if connection.scalar(text("SELECT to_regclass('outbox_schema')")) is None:
        return 0
    found = connection.scalar(text("SELECT version FROM outbox_schema"))
    if found is None:
        raise SchemaError(
            "table outbox_schema is empty, so the installed version is unknown; restore its one row "
            f"(this release writes version {LATEST})"
        )
    return int(found)


def apply(connection: Connection, *, to: int = LATEST, discard_pending: bool = False) -> int:
    """Bring the database behind `connection` to version `to`; returns the version it had before.

    Going down to a version that drops the outbox is refused while events wait to be published, unless
    `discard_pending`. Committing is the caller's.
    """
    before = version(connection)
    if to < before and not discard_pending:
        if connection.scalar(text(PENDING)):
            raise SchemaError(
                "events are waiting to be published and going down would destroy them; let the relay drain "
                "them first, or pass discard_pending=True to lose them on purpose"
            )
        if to < 3 <= before and connection.scalar(text(PARKED)):
            raise SchemaError(
                "events are parked and going down would destroy them; release or discard them first "
                "(outbox-relay parked list), or pass discard_pending=True to lose them on purpose"
            )
        if to < 4 <= before and connection.scalar(text(SCHEDULED)):
            raise SchemaError(
                "events are scheduled and going down would destroy them; see `outbox-relay scheduled list`, "
                "cancel them or let them fall due, or pass discard_pending=True to lose them on purpose"
            )
    for sql in statements(frm=before, to=to):
        connection.execute(_literal(sql))
    return before


def _literal(sql: str) -> TextClause:
    """`sql` as it stands: no colon in it is a parameter."""
    return text(sql.replace(":", "\\:"))


def upgrade(*, to: int, since: int = 0) -> None:
    """Inside an Alembic revision: go up to version `to`. Nothing happens when it is reached already.

    `since` is the version that your earlier revisions left. Only `--sql` needs it: online the database says.
    """
    from alembic import op  # only in a revision: consumers check the schema, too, and it takes 11 MB

    context = op.get_context()
    if context.as_sql:
        for sql in statements(frm=since, to=to):
            op.execute(_literal(sql))
        return
    connection = op.get_bind()
    if version(connection) < to:
        apply(connection, to=to)


def downgrade(*, to: int, since: int | None = None, discard_pending: bool = False) -> None:
    """Inside an Alembic revision: go down to version `to`; refused while events wait to be published.

    `since` is the version that this revision's upgrade reached. Only `--sql` needs it.
    """
    from alembic import op  # only in a revision: consumers check the schema, too, and it takes 11 MB

    context = op.get_context()
    if context.as_sql:
        if since is None:
            raise ConfigurationError(
                f"without a database the version to go down from is unknown; write "
                f"ddl.downgrade(to={to}, since=...) with the version that the upgrade reached"
            )
        for sql in statements(frm=since, to=to):
            op.execute(_literal(sql))
        return
    connection = op.get_bind()
    if version(connection) > to:
        apply(connection, to=to, discard_pending=discard_pending)
