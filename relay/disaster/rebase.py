"""Number pending events anew, in their order, where a copy of the database has another transaction counter.

One transaction: whatever interrupts it, nothing happened. What was pending gets new transaction ids and
positions under a source never used before; what was published stays readable and is never sent again.
"""

import uuid
from dataclasses import dataclass
from typing import Any

import psycopg

from outbox import hooks
from outbox.errors import GuardViolation, SchemaError
from outbox.storage.roles import quote
from relay import database, guards, points
from relay.database import Connection, OutcomeUnknown
from relay.disaster import provenance
from relay.disaster.provenance import Evidence, Kind, Place

WAIT_FOR_WRITERS = "10s"

IN_USE = (
    "the outbox is in use: stop the services that write events, and relays, then run it again; nothing was "
    "changed"
)

OWNED = """
SELECT relname, relowner::regrole::text FROM pg_class
WHERE oid IN ('outbox_event'::regclass, 'outbox_shard'::regclass, 'outbox_identity'::regclass)
  AND NOT pg_has_role(current_user, relowner, 'USAGE')
"""

BUSY = """
SELECT 'relay ' || owner || ' holds the lease of shard ' || shard FROM outbox_lease
WHERE lease_until > clock_timestamp()
UNION ALL
SELECT 'relay ' || instance || ' is alive' FROM outbox_relay
WHERE stopped_at IS NULL AND heartbeat > clock_timestamp() - interval '30 seconds'
"""
"""Who still carries events here."""

HALF_SENT = """
SELECT string_agg(shard::text, ', ' ORDER BY shard) FROM outbox_shard
WHERE mode = 'transactional' AND next IS NOT NULL
"""
"""Of these Kafka may have committed more than their row says, and only under the old name can one ask."""

LOCK = "LOCK TABLE outbox_event IN ACCESS EXCLUSIVE MODE"
"""Every transaction that ever inserted has ended, and none inserts until we have."""

LOCK_SHARDS = "SELECT FROM outbox_shard FOR UPDATE"

RAISE_POSITIONS = """
SELECT setval('outbox_event_position_seq', greatest(
    1, (SELECT max(position) FROM outbox_event), (SELECT last_value FROM outbox_event_position_seq),
    (SELECT max(greatest(done_floor, next_floor)) FROM outbox_shard)))
"""
"""A logical copy leaves the sequence behind. Not undone by a rollback, which is harmless."""

NUMBERED = """
SELECT s.oid::regclass::text, t.oid::regclass::text, a.attname
FROM pg_class s
JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.oid
    AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'i'
JOIN pg_class t ON t.oid = d.refobjid
JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
WHERE s.relkind = 'S' AND starts_with(t.relname, 'outbox_')
  AND t.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'outbox_shard'::regclass)
"""
"""The sequences of our own identity columns."""

RAISE = """
SELECT setval('{sequence}', greatest(
    1, (SELECT max({column}) FROM {table}), (SELECT last_value FROM {sequence})))
"""

RAISE_PARKED = """
SELECT setval(sequence, greatest(
    1, (SELECT max(parked) FROM outbox_archive),
    pg_sequence_last_value(sequence)))
FROM (SELECT pg_get_serial_sequence('outbox_parked', 'parked')::regclass AS sequence) numbers
"""
"""A settled row keeps its number in the archive, where it would stand in the way of the next one."""

_PENDING = """
    (judged.native OR NOT judged.published OR (judged.lone AND judged.occurred_at >= %(since)s::timestamptz))
"""

COUNT = f"""
WITH {provenance.ROWS}
SELECT count(*) FILTER (WHERE {_PENDING}), count(*) FILTER (WHERE native),
       count(*) + (SELECT count(*) FROM outbox_event WHERE xid = '2')
FROM judged
"""

PUT_ASIDE = f"""
CREATE TEMPORARY TABLE outbox_rebased ON COMMIT DROP AS
WITH {provenance.ROWS}
SELECT e.*, coalesce({_PENDING}, false) AS pending, coalesce(judged.native, false) AS native
FROM outbox_event e LEFT JOIN judged ON (judged.leaf, judged.place) = (e.tableoid, e.ctid)
"""
"""Pending: not acknowledged, or written here, where an old snapshot cannot know it."""

EMPTY = "TRUNCATE outbox_event"

KEEP = """
INSERT INTO outbox_event ({columns}, xid, position, slot) OVERRIDING SYSTEM VALUE
SELECT {columns}, '2', position, slot FROM outbox_rebased WHERE NOT pending
"""
"""Published events stay readable. Transaction 2 has ended for every snapshot there is."""

AGAIN = """
INSERT INTO outbox_event ({columns}) SELECT {columns} FROM outbox_rebased WHERE pending
ORDER BY native, position
"""
"""Pending events in their order, the restored ones first; positions are drawn above the sort."""

COLUMNS = """
SELECT attname FROM pg_attribute
WHERE attrelid = 'outbox_event'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
  AND attname NOT IN ('xid', 'position', 'slot')
ORDER BY attnum
"""

SNAPSHOT = """
SELECT pg_current_snapshot()::text, last_value, pg_xact_status(%(rebasing)s::xid8)
FROM outbox_event_position_seq
"""
"""In a session of its own: to it the rebase still runs, so everything pending lies behind this snapshot."""

AFTER = "SELECT pg_current_xact_id()::text"

UNSEEN = "SELECT NOT pg_visible_in_snapshot(pg_current_xact_id(), %(done)s::pg_snapshot)"

BEGIN_ANEW = """
UPDATE outbox_shard
SET source = %(source)s, generation = 1, epoch = epoch + 1, timeline = %(timeline)s,
    delta = greatest(delta + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint),
    done = %(done)s, done_floor = %(floor)s, done_xid = %(after)s::xid8,
    next = NULL, next_floor = NULL, next_xid = NULL, low = 0, job = NULL, frozen = false,
    wanted_mode = CASE mode WHEN 'transactional' THEN mode ELSE wanted_mode END
"""

NEXT_SOURCE = """
UPDATE outbox_shard SET epoch = epoch + 1, timeline = 0,
    wanted_mode = CASE mode WHEN 'transactional' THEN mode ELSE wanted_mode END
"""
"""No server has timeline 0: each shard finishes what it planned, then begins a source never used before. What
a shard is called in Kafka follows the server's identity: a transactional one begins its records anew."""

CANCEL_RESHARD = "DELETE FROM outbox_reshard"

UNPLAN_RELEASES = "UPDATE outbox_hold SET planned = NULL WHERE planned IS NOT NULL"
"""Parked events survive as they are; a release that was under way is planned again, and looks first."""

END_REPLAYS = """
UPDATE outbox_job SET ended_at = clock_timestamp(), outcome = 'rebased' WHERE ended_at IS NULL
"""
"""The snapshot and the positions that a replay is bound by mean nothing here."""

FREE = "UPDATE outbox_lease SET owner = NULL, lease_until = NULL"

SETTLE = """
INSERT INTO outbox_identity (system_identifier, database_oid, timeline)
VALUES (%(system)s, %(oid)s, %(timeline)s)
ON CONFLICT (only_row) DO UPDATE SET system_identifier = excluded.system_identifier,
    database_oid = excluded.database_oid, timeline = excluded.timeline
"""


@dataclass(frozen=True, slots=True)
class Rebased:
    """What was done, or with `changed` False what would be. `pending` counts events that go out anew."""

    changed: bool
    kind: Kind
    here: tuple[int, int]
    before: tuple[int | None, int | None]
    pending: int = 0
    written_here: int = 0
    kept: int = 0
    source: str | None = None


class Rebase:
    """Mend one database; relays must be stopped. Needs the rights of the tables' owner.

    `identity_only`: ids and numbers came along (pg_upgrade, a restored volume), only their place is new.
    `pending_since`: when writing began here, for events of which it cannot be told (see `provenance`).
    Raises GuardViolation or SchemaError where it may not be done: nothing was changed then.
    """

    def __init__(self, url: str, *, identity_only: bool = False, pending_since: str | None = None) -> None:
        self._url = url
        self._identity_only = identity_only
        self._since = pending_since

    def survey(self) -> Rebased:
        """What `run` would do; changes and locks nothing."""
        with database.open_plain(self._url) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            connection.execute("SET LOCAL row_security = off")
            guards.require_version(connection)
            return self._plan(connection)[0]

    def run(self) -> Rebased:
        """Do it, in one transaction. Raises OutcomeUnknown if the answer is missing: run it again."""
        with database.open_plain(self._url) as connection:
            connection.add_notice_handler(connection.remember)
            try:
                done = self._mend(connection)
                connection.warned = None
                connection.commit()
            except OutcomeUnknown as error:
                if isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                    raise GuardViolation(IN_USE) from error
                raise
            except psycopg.Error as error:
                raise database.failed(error) from error
            if connection.warned is not None:
                raise OutcomeUnknown(connection.warned)
            return done

    def _mend(self, connection: Connection) -> Rebased:
        connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE")
        connection.execute("SET LOCAL synchronous_commit = on")
        connection.execute("SET LOCAL row_security = off")
        connection.execute(f"SET LOCAL lock_timeout = '{WAIT_FOR_WRITERS}'".encode())
        connection.execute("SET LOCAL statement_timeout = 0")
        guards.require_version(connection)
        require_owner(connection)
        if not self._identity_only and provenance.place(connection).same:
            return self._plan(connection)[0]
        _execute(connection, LOCK_SHARDS, "shards")
        _execute(connection, LOCK, "locked")
        planned, here = self._plan(connection)
        source = None
        if self._identity_only:
            _execute(connection, NEXT_SOURCE, "moved")
        else:
            source = self._number_anew(connection, here)
        database.execute(connection, FREE)
        place = {"system": here.system_identifier, "oid": here.database_oid, "timeline": here.timeline}
        _execute(connection, SETTLE, "settled", place)
        return Rebased(
            True, planned.kind, planned.here, planned.before, planned.pending, planned.written_here,
            planned.kept, source,
        )  # fmt: skip

    def _plan(self, connection: Connection) -> tuple[Rebased, Place]:
        """What has to be done here, if it may be."""
        refuse_while_busy(connection)
        here = provenance.place(connection)
        found = provenance.evidence(connection, here)
        self._admit(found)
        if self._identity_only:
            _refuse_half_sent(connection, here)
        pending = native = kept = 0
        if found.kind != "same" and not self._identity_only:
            counted = database.execute(connection, COUNT, {"since": self._since or "infinity"}).fetchone()
            assert counted is not None
            pending, native, total = counted
            kept = total - pending
        places = (here.system_identifier, here.database_oid), (here.known_system, here.known_oid)
        return Rebased(False, found.kind, *places, pending, native, kept), here

    def _admit(self, found: Evidence) -> None:
        if self._identity_only:
            if found.kind == "copied":
                raise GuardViolation(
                    "the events here were restored or copied row by row, so their transaction ids belong to "
                    "another server; run: outbox-relay rebase (without --identity-only)"
                )
            return
        if found.kind == "moved":
            raise GuardViolation(
                "the data directory came along with its transaction ids, as pg_upgrade does it; run: "
                "outbox-relay rebase --identity-only"
            )
        if found.kind == "unclear" and self._since is None:
            raise GuardViolation(
                "it cannot be told whether the rows were restored or came with the data directory; after "
                "pg_upgrade run: outbox-relay rebase --identity-only, after a restore or copy: outbox-relay "
                "rebase --pending-since TIME, the time at which services began to write here"
            )
        if found.kind == "copied" and found.doubtful and self._since is None:
            raise GuardViolation(
                f"{found.doubtful} events from {found.doubtful_from} to {found.doubtful_to} were restored "
                "or written here inside a savepoint, and it cannot be told which; run: outbox-relay rebase "
                "--pending-since TIME, the time at which services began to write here (infinity: none did)"
            )

    def _number_anew(self, connection: Connection, here: Place) -> str:
        names = database.execute(connection, COLUMNS).fetchall()
        columns = ", ".join(quote(name) for (name,) in names)
        database.execute(connection, CANCEL_RESHARD)
        database.execute(connection, UNPLAN_RELEASES)
        database.execute(connection, END_REPLAYS)
        database.execute(connection, RAISE_POSITIONS)
        for sequence, table, column in database.execute(connection, NUMBERED).fetchall():
            raising = RAISE.format(sequence=sequence, table=table, column=quote(column))
            database.execute(connection, raising)
        database.execute(connection, RAISE_PARKED)
        _execute(connection, PUT_ASIDE, "aside", {"since": self._since or "infinity"})
        _execute(connection, EMPTY, "emptied")
        database.execute(connection, KEEP.format(columns=columns))
        _execute(connection, AGAIN.format(columns=columns), "refilled")
        done = self._snapshot(connection)
        if database.execute(connection, UNSEEN, done).fetchone() != (True,):
            raise GuardViolation(
                "the second session sees this transaction as ended; connect to the primary directly, not "
                "through a pooler, and run it again; nothing was changed"
            )
        source = uuid.uuid4().hex[:12]
        values = {**done, "source": source, "timeline": here.timeline}
        _execute(connection, BEGIN_ANEW, "numbered", values)
        return source

    def _snapshot(self, rebasing: Connection) -> dict[str, Any]:
        """What another session sees while ours is open; its own transaction id comes after that."""
        own = database.execute(rebasing, AFTER).fetchone()
        assert own is not None
        with database.open_plain(self._url, autocommit=True) as beside:
            seen = database.execute(beside, SNAPSHOT, {"rebasing": own[0]}).fetchone()
            after = database.execute(beside, AFTER).fetchone()
        assert seen is not None
        assert after is not None
        done, floor, status = seen
        if status != "in progress":
            raise GuardViolation("two sessions reached different servers; name the primary's address alone")
        return {"done": done, "floor": floor, "after": after[0]}


def refuse_while_busy(connection: Connection) -> None:
    """Raise GuardViolation while a relay lives, or died a moment ago."""
    if busy := database.execute(connection, BUSY).fetchall():
        raise GuardViolation(
            f"{'; '.join(sorted(what for (what,) in busy))}: stop all relays first (a dead one counts for "
            "30 s); nothing was changed"
        )


def _refuse_half_sent(connection: Connection, here: Place) -> None:
    """A shard's progress topic is named by the identity, so with a new one what it says is out of reach."""
    if (here.known_system, here.known_oid) in {(None, None), (here.system_identifier, here.database_oid)}:
        return
    found = database.execute(connection, HALF_SENT).fetchone()
    if found is not None and found[0] is not None:
        raise GuardViolation(
            f"mode transactional: shard {found[0]} came along in the midst of sending, so events that are "
            "committed in Kafka would go out again; start the relay against the old server, stop it once it "
            "is idle, and move the data directory again; nothing was changed"
        )


def require_owner(connection: Connection) -> None:
    """Raise SchemaError for a role that may not change the relay's own state."""
    lacking = database.execute(connection, OWNED).fetchall()
    if lacking:
        owners = sorted({owner for _, owner in lacking})
        raise SchemaError(
            f"this changes what only the owner of the outbox tables may change; run it as {', '.join(owners)}"
        )


def _execute(connection: Connection, statement: str, step: str, values: dict[str, Any] | None = None) -> None:
    database.execute(connection, statement, values)
    hooks.fire(points.REBASING, step=step)
