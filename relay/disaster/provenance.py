"""Tell how a database came here from what PostgreSQL itself wrote beside each row.

Every event carries the id of its transaction, and PostgreSQL keeps beside every row the id of whoever put it
there (`xmin`, or a subtransaction's). Where both agree the row was written by this counter; where one writer
put down rows of several transactions, they were restored. `pg_upgrade` keeps all ids and gives a new system
identifier; a dump, a logical copy or a blue/green switch keeps neither.
"""

from dataclasses import dataclass
from typing import Literal

from outbox.errors import GuardViolation
from outbox.storage import bucket
from relay import database
from relay.database import Connection, OutcomeUnknown

Kind = Literal["same", "moved", "copied", "unclear"]

# The full id behind the 32 bits of `xmin`: none is further back than 2^31 nor ahead of the snapshot.
_WRITER = """
    (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS following) now,
    LATERAL (SELECT following - ((following - {row}.xmin::text::bigint) & 4294967295) AS writer) put
"""

ROWS = f"""
written AS MATERIALIZED (
    SELECT e.tableoid AS leaf, e.ctid AS place, e.xid::text::bigint AS xid, put.writer, now.following,
           e.occurred_at, EXISTS (
               SELECT FROM outbox_shard s
               WHERE {bucket.IN_SHARD}
                 AND (pg_visible_in_snapshot(e.xid, s.done)
                      OR (e.position <= s.low AND pg_visible_in_snapshot(e.xid, s.next)))) AS published
    FROM outbox_event e, {_WRITER.format(row="e")}
    WHERE e.xid <> '2'
),
restorers AS MATERIALIZED (
    SELECT writer FROM written GROUP BY writer HAVING min(xid) <> max(xid)
),
state AS MATERIALIZED (
    SELECT min(writer) AS arrived FROM (
        SELECT put.writer FROM outbox_shard s, {_WRITER.format(row="s")}
        UNION ALL SELECT put.writer FROM outbox_schema v, {_WRITER.format(row="v")}
        UNION ALL SELECT put.writer FROM outbox_identity i, {_WRITER.format(row="i")}) put
),
judged AS (
    SELECT w.*, r.writer IS NULL AND w.writer = w.xid AS native,
           r.writer IS NULL AND w.writer > w.xid AND w.xid < w.following AS lone,
           r.writer IS NULL AND w.writer > w.xid AND w.xid < w.following
               AND w.published AND w.writer > state.arrived AS doubtful
    FROM written w CROSS JOIN state LEFT JOIN restorers r USING (writer)
)
"""
"""Each event with who put it there. `native`: the transaction it names did. `lone`: a writer of rows of one
earlier transaction only, which a subtransaction here is, and a row restored alone too; `doubtful`: such a row
that would pass for published and came after the outbox itself. Reads the whole table, once."""

SURVEY = f"""
WITH {ROWS}
SELECT count(*) FILTER (WHERE native AND published),
       count(*) FILTER (WHERE NOT native AND NOT lone),
       count(*) FILTER (WHERE lone AND published),
       count(*) FILTER (WHERE doubtful), min(occurred_at) FILTER (WHERE doubtful),
       max(occurred_at) FILTER (WHERE doubtful),
       (SELECT bool_and(pg_snapshot_xmax(coalesce(s.next, s.done))::text::bigint <= put.writer)
        FROM outbox_shard s, {_WRITER.format(row="s")})
FROM judged
"""
"""Counts of evidence; last: can each shard's row have been written by this server's counter?"""

PLACE = """
SELECT c.system_identifier, d.oid::bigint, i.system_identifier, i.database_oid,
       NOT EXISTS (SELECT FROM outbox_shard s
                   WHERE pg_snapshot_xmax(coalesce(s.next, s.done)) > pg_snapshot_xmax(pg_current_snapshot()))
       AND NOT EXISTS (SELECT FROM outbox_event e WHERE e.xid >= pg_snapshot_xmax(pg_current_snapshot())),
       CASE WHEN NOT pg_is_in_recovery()
            THEN ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END
FROM pg_control_system() c CROSS JOIN pg_database d LEFT JOIN outbox_identity i ON true
WHERE d.datname = current_database()
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where we are, where the events were numbered (None: nowhere yet), if the counter can be the same."""

    system_identifier: int
    database_oid: int
    known_system: int | None
    known_oid: int | None
    counters_agree: bool
    timeline: int

    @property
    def same(self) -> bool:
        known = (self.known_system, self.known_oid)
        here = known == (self.system_identifier, self.database_oid) or self.known_system is None
        return here and self.counters_agree


@dataclass(frozen=True, slots=True)
class Evidence:
    """How the database came here, and the events of which that cannot be told one by one."""

    kind: Kind
    doubtful: int
    doubtful_from: str | None
    doubtful_to: str | None


def place(connection: Connection) -> Place:
    """Raises OutcomeUnknown on a standby."""
    row = database.execute(connection, PLACE).fetchone()
    assert row is not None
    if row[-1] is None:
        raise OutcomeUnknown("this server is a standby; run it on the primary")
    return Place(*row)


def evidence(connection: Connection, here: Place) -> Evidence:
    """Weigh what the rows say. Raises GuardViolation where the outbox holds no shard to compare with."""
    row = database.execute(connection, SURVEY).fetchone()
    assert row is not None
    native, foreign, lone, doubtful, first, last, own_counter = row
    if own_counter is None:
        raise GuardViolation("outbox_shard is empty; restore it from a backup")
    kind: Kind
    if here.same:
        kind = "same"
    elif foreign or not own_counter or not here.counters_agree:
        kind = "copied"
    elif native:
        kind = "moved"
    else:
        # Nothing published is left to tell by: as a copy it loses nothing and repeats nothing either.
        kind = "unclear" if lone else "copied"
    return Evidence(kind, doubtful, first and str(first), last and str(last))
