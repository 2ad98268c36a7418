"""Refuse to number events where the numbers would be wrong: another database, cluster or broken setting."""

import logging
from dataclasses import dataclass

from outbox.errors import SchemaError, WrongDatabase
from outbox.storage.version import LATEST
from relay import database
from relay.database import Connection, OutcomeUnknown
from relay.progress import Progress, ShardRow

log = logging.getLogger("relay.guards")

FACTS = f"""
SELECT (SELECT system_identifier FROM pg_control_system()),
       (SELECT oid::bigint FROM pg_database WHERE datname = current_database()),
       CASE WHEN NOT pg_is_in_recovery()
            THEN ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
       (SELECT relrowsecurity FROM pg_class WHERE oid = 'outbox_event'::regclass),
       (SELECT seqcache FROM pg_sequence WHERE seqrelid = 'outbox_event_position_seq'::regclass),
       (SELECT string_agg(DISTINCT grantee::regrole::text, ', ') FROM (
            SELECT acl.grantee FROM pg_attribute a, LATERAL aclexplode(a.attacl) acl
            WHERE a.attrelid = 'outbox_event'::regclass AND a.attname IN ('xid', 'position', 'slot')
              AND acl.privilege_type IN ('INSERT', 'UPDATE')
            UNION ALL
            SELECT acl.grantee FROM pg_class c, LATERAL aclexplode(c.relacl) acl
            WHERE c.oid = 'outbox_event'::regclass AND acl.grantee <> c.relowner
              AND acl.privilege_type IN ('INSERT', 'UPDATE', 'DELETE')) granted),
       {database.SERVER}
"""

COUNTERS = """
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
       (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM outbox_event_position_seq),
       EXISTS (SELECT FROM outbox_event WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
"""
"""What is visible cannot have been written by a transaction that comes after (index outbox_event_xid)."""

FOREIGN_COUNTER = """
EXISTS (SELECT FROM outbox_identity i, pg_control_system() here
    WHERE (i.system_identifier, i.database_oid) <> (here.system_identifier,
        (SELECT oid::bigint FROM pg_database WHERE datname = current_database())))
OR EXISTS (SELECT FROM outbox_shard WHERE pg_snapshot_xmax(done) > pg_snapshot_xmax(pg_current_snapshot()))
"""
"""Do the snapshots in our tables come from another server? Then they say nothing about the rows here."""

VERSION = "SELECT max(version) FROM outbox_schema"

IDENTITY = "SELECT system_identifier, database_oid, timeline, kafka_cluster_id FROM outbox_identity"

ADOPT_FIRST = """
INSERT INTO outbox_identity (system_identifier, database_oid, timeline, kafka_cluster_id)
VALUES (%(system)s, %(database)s, %(timeline)s, %(cluster)s)
ON CONFLICT (only_row) DO UPDATE SET kafka_cluster_id = excluded.kafka_cluster_id
WHERE outbox_identity.kafka_cluster_id IS NULL AND excluded.kafka_cluster_id IS NOT NULL
"""
"""Write down where the first event is numbered; a broker that did not tell its name may do so later."""

NUMBERED_ON = """
SELECT coalesce(s.timeline, i.timeline) FROM outbox_shard s, outbox_identity i WHERE s.shard = %(shard)s
"""
"""The timeline on which a shard's source began; the database's first one until a shard changes its own."""

UNCOVERED = """
SELECT count(*) FROM generate_series(0, 255) bucket
WHERE (SELECT count(*) FROM outbox_shard WHERE bucket BETWEEN lo AND hi) <> 1
"""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Which database this is, and whether its settings keep the order of events."""

    system_identifier: int
    database_oid: int
    timeline: int | None
    row_security: bool
    sequence_cache: int
    may_write_order: str | None
    server: int


def examine(connection: Connection, kafka_cluster_id: str | None) -> Surroundings:
    """Pass only where the events numbered so far were numbered; write the identity down the first time.

    Raises WrongDatabase naming what differs. `kafka_cluster_id` None: the broker does not tell.
    """
    require_version(connection)
    row = database.execute(connection, FACTS).fetchone()
    assert row is not None
    here = Surroundings(*row)
    if here.timeline is None:
        raise OutcomeUnknown("this server is a standby; waiting for the primary")
    if here.row_security:
        raise WrongDatabase(
            "row-level security is enabled on outbox_event and would hide events; run: "
            "ALTER TABLE outbox_event DISABLE ROW LEVEL SECURITY"
        )
    if here.sequence_cache != 1:
        raise WrongDatabase(
            f"the sequence of outbox_event.position caches {here.sequence_cache} numbers, which breaks the "
            "order of events; run: ALTER TABLE outbox_event ALTER COLUMN position SET CACHE 1"
        )
    uncovered = database.execute(connection, UNCOVERED).fetchone()
    if uncovered != (0,):
        raise SchemaError(
            "the shards in outbox_shard do not cover each of the 256 buckets once, so events would be lost "
            "or doubled; restore its rows from a backup; `outbox-relay shards set` changes their number"
        )
    if here.may_write_order is not None:
        log.warning(
            "%s may write xid, position or slot of outbox_event, or change its rows, which can lose events "
            "or their order; grant what `outbox-relay db roles --application` prints instead",
            here.may_write_order,
        )
    _compare(connection, here, kafka_cluster_id)
    return here


def require_version(connection: Connection) -> None:
    found = database.execute(connection, VERSION).fetchone()
    if found != (LATEST,):
        version = (found and found[0]) or 0
        remedy = "run: outbox-relay db upgrade" if version < LATEST else "upgrade the program"
        raise SchemaError(f"schema version {version} is not this release's {LATEST}; {remedy}")


def _compare(connection: Connection, here: Surroundings, cluster: str | None) -> None:
    database.execute(
        connection,
        ADOPT_FIRST,
        {
            "system": here.system_identifier,
            "database": here.database_oid,
            "timeline": here.timeline,
            "cluster": cluster,
        },
    )
    known = database.execute(connection, IDENTITY).fetchone()
    assert known is not None
    system, oid, _, known_cluster = known
    if (system, oid) != (here.system_identifier, here.database_oid):
        raise WrongDatabase(
            f"outbox_identity names database {oid} of system {system}, but here is {here.database_oid} of "
            f"{here.system_identifier}: the tables were copied or restored here and the transaction "
            "ids in them belong to the other server; publishing would lose or repeat events. If this copy "
            "takes the original's place, run: outbox-relay rebase"
        )
    if cluster is not None and known_cluster is not None and cluster != known_cluster:
        raise WrongDatabase(
            f"events of this database went to Kafka cluster {known_cluster}, this is {cluster}; "
            "correct OUTBOX_KAFKA_BOOTSTRAP_SERVERS or, to go on with this one, run: outbox-relay adopt"
        )


def compare_counters(connection: Connection, state: Progress) -> None:
    """Refuse a database whose counters lie before what its own row says; ask after the claim, not before it.

    Positions that go back (a sequence restarted by hand) would hide events below the floor.
    """
    row = database.execute(connection, COUNTERS).fetchone()
    assert row is not None
    xmax, floor, ahead = row
    if ahead:
        raise WrongDatabase(
            f"outbox_event holds events of transactions that this server (at {xmax}) has not begun: they "
            "were restored from another server; run: outbox-relay rebase"
        )
    planned = state.next or state.done
    if xmax < planned.xmax or xmax <= int(state.next_xid or state.done_xid):
        raise WrongDatabase(
            f"the transaction counter stands at {xmax}, but events up to {planned.xmax} were "
            "published: the outbox was restored from another server; run: outbox-relay rebase"
        )
    known = max(state.done_floor, state.next_floor or 0)
    if floor < known:
        raise WrongDatabase(
            f"the sequence of outbox_event.position stands at {floor}, but {known} was published: it was "
            f"restarted, and later events would be overlooked; stop the writers and run: "
            f"SELECT setval('outbox_event_position_seq', {known})"
        )


def failed_over(connection: Connection, here: Surroundings, shard: int) -> int | None:
    """The timeline on which the shard's source began, when it is another one than here."""
    known = database.execute(connection, NUMBERED_ON, {"shard": shard}).fetchone()
    return None if known is None or known[0] == here.timeline else int(known[0])


def after_fail_over(connection: Connection, here: Surroundings, row: ShardRow, state: Progress) -> Progress:
    """Number under a new source once the timeline has changed; `state` must have no planned delta.

    A promoted standby may lack the last numbers that were sent, and none may ever be used twice. Each shard
    changes on its own, once its own plan is finished.
    """
    known = failed_over(connection, here, state.shard)
    assert here.timeline is not None, "examined on a primary"
    if known is None:
        return state
    state = row.new_source(state, here.timeline)
    log.warning(
        "shard %d: timeline %d follows %d, so new events are of source %s",
        state.shard,
        here.timeline,
        known,
        state.source,
    )
    return state
