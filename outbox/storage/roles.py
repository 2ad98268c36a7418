"""Give each program exactly the rights it needs: application, relay, consumer, reader, operator.

The five are login roles that exist already (or `create=True`); the tables stay with whoever ran the DDL,
which must be none of the five. The relay's and the consumer's session settings are bound to their roles
with ALTER ROLE, because a connection pooler leaks or refuses what a session sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from outbox.storage import ring

RELAY_SETTINGS = {
    "synchronous_commit": "on",
    "row_security": "off",
    "default_transaction_isolation": "read committed",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "statement_timeout": "60s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "30s",
}
"""row_security off makes a policy an error instead of silently hidden events; the planner settings keep
every statement of the hot path on its index whatever the statistics say."""

CONSUMER_SETTINGS = {"idle_in_transaction_session_timeout": "60s"}
"""An owner frozen between its UPDATE and its COMMIT must not block the next claim for ever."""

STANDBYS = (
    "CREATE OR REPLACE FUNCTION outbox_standbys(OUT name text, OUT state text, OUT flushed pg_lsn) "
    "RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp "
    "AS 'SELECT application_name, state, flush_lsn FROM pg_stat_replication'"
)
"""Who streams from this server and how far it has flushed; a role of its own sees neither."""

APPLICATION_COLUMNS = (
    "id",
    "aggregatetype",
    "aggregateid",
    "type",
    "payload",
    "topic",
    "headers",
    "traceparent",
    "occurred_at",
)
"""What an application may write: never xid, position or slot, which carry the order."""

SCHEDULED_COLUMNS = ("due", *(column for column in APPLICATION_COLUMNS if column != "occurred_at"))
"""The same of an event that is scheduled: never seq, which decides between two of one moment."""

EMITS = tuple(
    f"outbox_emit(text, text, text, {payload}, text, jsonb, text, uuid, timestamptz, timestamptz, boolean, "
    "integer)"
    for payload in ("bytea", "text", "jsonb")
)

EXECUTED_BY_THE_RELAY = (
    "outbox_shards_set(integer)",
    "outbox_shards_cancel()",
    "outbox_shards_switch()",
)
"""Functions that do with the owner's rights what the relay may not do itself, and check everything."""

OPERATOR_COLUMNS = (
    "payload",
    "topic",
    "headers",
    "edited_at",
    "edited_by",
    "discarded_by",
    "discard_reason",
)
"""What an operator may change of a parked row: never its key, its number or its place."""

JOB_COLUMNS = (
    "shard",
    "since",
    "until",
    "topic",
    "aggregateid",
    "to_topic",
    "groups",
    "latest_per_key",
    "requested_by",
)
"""What an operator may say of a replay; how far it is, the relay writes."""

_RELAY_STATE = ("outbox_topic", "outbox_relay", "outbox_identity")
_TABLES = (
    "outbox_event",
    "outbox_shard",
    "outbox_reshard",
    "outbox_topic",
    "outbox_lease",
    "outbox_relay",
    "outbox_identity",
    "outbox_schema",
    "outbox_scheduled",
    "outbox_mover",
    "outbox_sealed",
    "outbox_hold",
    "outbox_parked",
    "outbox_archive",
    "outbox_job",
    "consumer_offset",
    "consumer_parked",
    "consumer_inbox",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Names of login roles. An application that also consumes is named twice.

    `standbys`: the relay may ask how far each standby has flushed, and no more of the server's statistics.
    """

    application: Sequence[str] = ()
    relay: Sequence[str] = ()
    consumer: Sequence[str] = ()
    reader: Sequence[str] = ()
    standbys: bool = False
    operator: Sequence[str] = ()


def statements(roles: Roles, *, create: bool = False) -> list[str]:
    """The SQL that gives each role its rights and settings; repeatable."""
    sql: list[str] = []
    if create:
        named = dict.fromkeys(
            [*roles.application, *roles.relay, *roles.consumer, *roles.reader, *roles.operator]
        )
        sql += [_create(role) for role in named]
    for role in roles.application:
        sql += _application(quote(role))
    for role in roles.relay:
        sql += _relay(quote(role))
    if roles.standbys:
        sql += _standbys([quote(role) for role in roles.relay])
    for role in roles.consumer:
        sql += _consumer(quote(role))
    for role in roles.reader:
        sql.append(_reader(quote(role)))
    for role in roles.operator:
        sql += _operator(quote(role))
    return sql


def quote(identifier: str) -> str:
    """`identifier` as SQL, whatever characters it holds."""
    return '"' + identifier.replace('"', '""') + '"'


def _create(role: str) -> str:
    literal = "'" + role.replace("'", "''") + "'"
    create = "'" + f"CREATE ROLE {quote(role)} LOGIN".replace("'", "''") + "'"
    return (
        "DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = "
        f"{literal}) THEN EXECUTE {create}; END IF; END $do$"
    )


def _application(role: str) -> list[str]:
    return [
        f"GRANT INSERT ({', '.join(APPLICATION_COLUMNS)}) ON outbox_event TO {role}",
        f"GRANT INSERT ({', '.join(APPLICATION_COLUMNS)}) ON outbox_sealed TO {role}",
        f"GRANT INSERT ({', '.join(SCHEDULED_COLUMNS)}) ON outbox_scheduled TO {role}",
        f"GRANT EXECUTE ON FUNCTION outbox_cancel(uuid), {', '.join(EMITS)} TO {role}",
        f"GRANT SELECT ON outbox_schema TO {role}",
    ]


def _relay(role: str) -> list[str]:
    leaves = ", ".join(ring.leaf(slot) for slot in range(ring.LEAVES))
    return [
        f"GRANT SELECT, TRUNCATE ON outbox_event, {leaves} TO {role}",
        f"GRANT SELECT ON SEQUENCE outbox_event_position_seq TO {role}",
        f"GRANT SELECT, UPDATE ON outbox_shard, outbox_lease TO {role}",
        f"GRANT SELECT, UPDATE (upto, floor, at_xid) ON outbox_reshard TO {role}",
        f"GRANT EXECUTE ON FUNCTION {', '.join(EXECUTED_BY_THE_RELAY)} TO {role}",
        f"GRANT SELECT, INSERT, UPDATE ON {', '.join(_RELAY_STATE)} TO {role}",
        f"GRANT DELETE ON outbox_relay TO {role}",
        f"GRANT SELECT ON outbox_scheduled, outbox_scheduled_seq_seq TO {role}",
        f"GRANT EXECUTE ON FUNCTION outbox_move(integer), outbox_sweep() TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_hold, outbox_parked TO {role}",
        f"GRANT SELECT, INSERT ON outbox_archive TO {role}",
        f"GRANT SELECT, UPDATE ON outbox_job TO {role}",
        f"GRANT SELECT ON outbox_schema TO {role}",
        *_settings(role, RELAY_SETTINGS),
    ]


def _standbys(relays: Sequence[str]) -> list[str]:
    """To be run by a superuser or a member of pg_read_all_stats, whose right the function lends."""
    return [
        STANDBYS,
        "REVOKE ALL ON FUNCTION outbox_standbys() FROM PUBLIC",
        *(f"GRANT EXECUTE ON FUNCTION outbox_standbys() TO {relay}" for relay in relays),
    ]


def _reader(role: str) -> str:
    return f"GRANT SELECT ON {', '.join(_TABLES)} TO {role}"


def _operator(role: str) -> list[str]:
    """Marks what shall be released, discarded or replayed; only the relay executes it."""
    return [
        _reader(role),
        f"GRANT UPDATE (wanted_at, wanted_by, undecided) ON outbox_hold TO {role}",
        f"GRANT UPDATE ({', '.join(OPERATOR_COLUMNS)}) ON outbox_parked TO {role}",
        f"GRANT INSERT ({', '.join(JOB_COLUMNS)}), UPDATE (canceled_by) ON outbox_job TO {role}",
    ]


def _consumer(role: str) -> list[str]:
    return [
        f"GRANT SELECT, INSERT, UPDATE ON consumer_offset TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON consumer_parked TO {role}",
        f"GRANT SELECT, INSERT ON consumer_inbox TO {role}",
        f"GRANT EXECUTE ON FUNCTION consumer_inbox_sweep() TO {role}",
        f"GRANT SELECT ON outbox_schema TO {role}",
        *_settings(role, CONSUMER_SETTINGS),
    ]


def _settings(role: str, settings: dict[str, str]) -> list[str]:
    return [f"ALTER ROLE {role} SET {name} = '{value}'" for name, value in settings.items()]
