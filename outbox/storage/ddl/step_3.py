"""Step 3, frozen once released: parked rows and the jobs that send them again."""

from outbox.storage.ddl.pin import pinned

HOLD = """
CREATE TABLE outbox_hold (
    hold        bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    shard       integer     NOT NULL,
    topic       text        NOT NULL,
    aggregateid text        COLLATE "C",
    held_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    wanted_at   timestamptz,
    wanted_by   text,
    undecided   text        CHECK (undecided IN ('new', 'sent')),
    planned     bigint,
    note        text,
    CHECK (pg_catalog.num_nulls(wanted_at, wanted_by) IN (0, 2))
)
"""
# One row per (topic, key) that waits, made and removed by the relay only. No unique index: a key may be too
# long for an index entry, and the compare-and-set on the shard's row keeps two owners apart.

_EVENT = """
    id             uuid        NOT NULL,
    aggregatetype  text        NOT NULL,
    aggregateid    text        COLLATE "C",
    type           text        NOT NULL,
    payload        bytea,
    topic          text        NOT NULL,
    headers        jsonb,
    traceparent    text,
    occurred_at    timestamptz NOT NULL,
    position       bigint      NOT NULL,
    delta          bigint      NOT NULL,
    partition      integer,
    error          text,
    attempts       integer     NOT NULL DEFAULT 0,
    parked_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    edited_at      timestamptz,
    edited_by      text,
"""

PARKED = f"""
CREATE TABLE outbox_parked (
    parked         bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    hold           bigint      NOT NULL REFERENCES outbox_hold,
    state          text        NOT NULL CHECK (state IN ('failed', 'held')),
{_EVENT.strip(chr(10))}
    sent_topic     text        NOT NULL,
    numbers        text[]      NOT NULL,
    starts         bigint[]    NOT NULL,
    discarded_by   text,
    discard_reason text,
    CHECK (pg_catalog.num_nulls(discarded_by, discard_reason) IN (0, 2))
)
"""
# (delta, position) is the row's place in its key's order and never changes. numbers: under which it may have
# been sent to this partition of sent_topic, the lowest first; starts: the offset below which no record of
# that number can lie.

ARCHIVE = f"""
CREATE TABLE outbox_archive (
    parked         bigint      PRIMARY KEY,
    outcome        text        NOT NULL CHECK (outcome IN ('sent', 'landed', 'discarded')),
    seq            text        NOT NULL,
{_EVENT.strip(chr(10))}
    settled_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_by     text        NOT NULL,
    reason         text
)
"""

JOB = """
CREATE TABLE outbox_job (
    job            bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    shard          integer     NOT NULL,
    since          timestamptz,
    until          timestamptz,
    topic          text,
    aggregateid    text        COLLATE "C",
    to_topic       text,
    groups         text        NOT NULL,
    requested_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    requested_by   text        NOT NULL,
    canceled_by    text,
    upto           pg_snapshot,
    upto_floor     bigint,
    cursor         bigint      NOT NULL DEFAULT 0,
    sent           bigint      NOT NULL DEFAULT 0,
    refused        bigint      NOT NULL DEFAULT 0,
    error          text,
    ended_at       timestamptz,
    outcome        text
)
"""
# A replay. outbox_shard.job names it while one of its chunks is planned; 0 there is a release of held rows.

HOLDS_FOLLOW = """
CREATE OR REPLACE FUNCTION outbox_holds_follow() RETURNS void LANGUAGE sql AS $$
    LOCK TABLE outbox_job IN SHARE ROW EXCLUSIVE MODE;
    UPDATE outbox_hold h SET shard = s.shard FROM outbox_shard s
    WHERE coalesce(hashtextextended(h.aggregateid, 0) & 255, 0) BETWEEN s.lo AND s.hi;
    UPDATE outbox_job SET ended_at = clock_timestamp(), outcome = 'resharded' WHERE ended_at IS NULL
$$
"""
# Called where the shards of a new generation replace the old ones: a hold belongs to the shard of its key,
# and a replay's cursor to a shard that is gone. The lock lets nobody ask for one of the old shards unseen.

OBSTACLE = """
CREATE OR REPLACE FUNCTION outbox_reshard_obstacle() RETURNS text LANGUAGE sql VOLATILE AS $$
    LOCK TABLE outbox_job IN SHARE ROW EXCLUSIVE MODE;
    SELECT CASE WHEN EXISTS (SELECT FROM outbox_job JOIN outbox_shard USING (shard) WHERE ended_at IS NULL)
        THEN 'a replay is under way; let it end or cancel it (outbox-relay replay --list)' END
$$
"""
# Whoever asks for a replay while this looks waits, and then sees that the number of shards is being changed.
# A job of a shard that is gone can never end, and keeps nobody from anything.

UP: tuple[str, ...] = (
    "ALTER TABLE outbox_shard ADD COLUMN job bigint",
    """
ALTER TABLE outbox_topic
    ADD COLUMN ends bigint[],
    ADD COLUMN ends_delta bigint,
    ADD COLUMN earlier_ends bigint[],
    ADD COLUMN earlier_delta bigint
""",
    HOLD,
    PARKED,
    "CREATE INDEX outbox_parked_hold ON outbox_parked (hold, delta, position)",
    "CREATE INDEX outbox_parked_id ON outbox_parked (id)",
    ARCHIVE,
    "CREATE INDEX outbox_archive_id ON outbox_archive (id)",
    JOB,
    HOLDS_FOLLOW,
    OBSTACLE,
    pinned(("outbox_holds_follow()", "outbox_reshard_obstacle()"), public=True),
)

DOWN: tuple[str, ...] = (
    """
CREATE OR REPLACE FUNCTION outbox_reshard_obstacle() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT NULL::text
$$
""",
    """
CREATE OR REPLACE FUNCTION outbox_holds_follow() RETURNS void LANGUAGE sql AS $$ SELECT $$
""",
    "DROP TABLE outbox_job",
    "DROP TABLE outbox_archive",
    "DROP TABLE outbox_parked",
    "DROP TABLE outbox_hold",
    """
ALTER TABLE outbox_topic
    DROP COLUMN ends, DROP COLUMN ends_delta, DROP COLUMN earlier_ends, DROP COLUMN earlier_delta
""",
    "ALTER TABLE outbox_shard DROP COLUMN job",
)

_EVENT_COLUMNS = {
    "id": "uuid",
    "aggregatetype": "text",
    "aggregateid": "text",
    "type": "text",
    "payload": "bytea",
    "topic": "text",
    "headers": "jsonb",
    "traceparent": "text",
    "occurred_at": "timestamp with time zone",
    "position": "bigint",
    "delta": "bigint",
    "partition": "integer",
    "error": "text",
    "attempts": "integer",
    "parked_at": "timestamp with time zone",
    "edited_at": "timestamp with time zone",
    "edited_by": "text",
}

COLUMNS: dict[str, dict[str, str]] = {
    "outbox_shard": {"job": "bigint"},
    "outbox_topic": {
        "ends": "bigint[]",
        "ends_delta": "bigint",
        "earlier_ends": "bigint[]",
        "earlier_delta": "bigint",
    },
    "outbox_hold": {
        "hold": "bigint",
        "shard": "integer",
        "topic": "text",
        "aggregateid": "text",
        "held_at": "timestamp with time zone",
        "wanted_at": "timestamp with time zone",
        "wanted_by": "text",
        "undecided": "text",
        "planned": "bigint",
        "note": "text",
    },
    "outbox_parked": {
        "parked": "bigint",
        "hold": "bigint",
        "state": "text",
        **_EVENT_COLUMNS,
        "sent_topic": "text",
        "numbers": "text[]",
        "starts": "bigint[]",
        "discarded_by": "text",
        "discard_reason": "text",
    },
    "outbox_archive": {
        "parked": "bigint",
        "outcome": "text",
        "seq": "text",
        **_EVENT_COLUMNS,
        "settled_at": "timestamp with time zone",
        "settled_by": "text",
        "reason": "text",
    },
    "outbox_job": {
        "job": "bigint",
        "shard": "integer",
        "since": "timestamp with time zone",
        "until": "timestamp with time zone",
        "topic": "text",
        "aggregateid": "text",
        "to_topic": "text",
        "groups": "text",
        "requested_at": "timestamp with time zone",
        "requested_by": "text",
        "canceled_by": "text",
        "upto": "pg_snapshot",
        "upto_floor": "bigint",
        "cursor": "bigint",
        "sent": "bigint",
        "refused": "bigint",
        "error": "text",
        "ended_at": "timestamp with time zone",
        "outcome": "text",
    },
}
