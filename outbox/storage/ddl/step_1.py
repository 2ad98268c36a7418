"""Step 1, frozen: the outbox ring, the relay's state and the consumer's offsets."""

EVENT = """
CREATE TABLE outbox_event (
    id            uuid        NOT NULL,
    aggregatetype text        NOT NULL,
    aggregateid   text        COLLATE "C",
    type          text        NOT NULL,
    payload       bytea,
    topic         text,
    headers       jsonb,
    traceparent   text,
    occurred_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    xid           xid8        NOT NULL DEFAULT pg_current_xact_id(),
    position      bigint      NOT NULL GENERATED ALWAYS AS IDENTITY (CACHE 1),
    slot          smallint    NOT NULL
        DEFAULT mod(date_part('epoch', statement_timestamp())::bigint / 600, 8::bigint)
) PARTITION BY LIST (slot)
"""
# xid stands before position: the transaction id is assigned first, the number is drawn second.

LEAF = """
CREATE TABLE outbox_event_{slot} PARTITION OF outbox_event FOR VALUES IN ({slot}) WITH (
    autovacuum_vacuum_insert_threshold = 1000000, autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_analyze_threshold = 100000, autovacuum_analyze_scale_factor = 0,
    autovacuum_freeze_min_age = 0)
"""

SHARD = """
CREATE TABLE outbox_shard (
    shard      integer     PRIMARY KEY,
    source     text        NOT NULL CHECK (source !~ '[/:]'),
    generation integer     NOT NULL,
    lo         smallint    NOT NULL,
    hi         smallint    NOT NULL,
    epoch      bigint      NOT NULL DEFAULT 0,
    delta      bigint      NOT NULL DEFAULT 0,
    done       pg_snapshot NOT NULL,
    done_floor bigint      NOT NULL,
    done_xid   xid8        NOT NULL,
    next       pg_snapshot,
    next_floor bigint,
    next_xid   xid8,
    low        bigint      NOT NULL DEFAULT 0,
    CHECK (0 <= lo AND lo <= hi AND hi <= 255),
    CHECK (pg_catalog.num_nulls(next, next_floor, next_xid) IN (0, 3))
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0)
"""

FIRST_SHARD = """
INSERT INTO outbox_shard (shard, source, generation, lo, hi, done, done_floor, done_xid)
VALUES (0, left(replace(gen_random_uuid()::text, '-', ''), 12), 1, 0, 255, '1:1:', 0, '1')
"""
# '1:1:' sees nothing: whatever is ever committed into the table lies after it.

OTHERS = (
    """
CREATE TABLE outbox_topic (
    shard      integer NOT NULL,
    topic      text    NOT NULL,
    partitions integer NOT NULL CHECK (partitions > 0),
    PRIMARY KEY (shard, topic)
)
""",
    """
CREATE TABLE outbox_lease (
    shard       integer PRIMARY KEY,
    owner       text,
    lease_until timestamptz
) WITH (fillfactor = 50)
""",
    "INSERT INTO outbox_lease (shard) VALUES (0)",
    """
CREATE TABLE outbox_relay (
    instance   text        PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat  timestamptz NOT NULL DEFAULT clock_timestamp(),
    stopped_at timestamptz,
    state      jsonb       NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50)
""",
    """
CREATE TABLE outbox_identity (
    only_row          boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    system_identifier bigint  NOT NULL,
    database_oid      bigint  NOT NULL,
    timeline          integer NOT NULL,
    kafka_cluster_id  text
)
""",
    """
CREATE TABLE consumer_offset (
    grp          text        NOT NULL,
    topic        text        NOT NULL,
    partition    integer     NOT NULL,
    cluster_id   text,
    topic_id     text,
    next_offset  bigint      NOT NULL CHECK (next_offset >= 0),
    leader_epoch integer,
    owner_epoch  bigint      NOT NULL DEFAULT 0,
    owner        text,
    backend_pid  integer,
    sources      jsonb       NOT NULL DEFAULT '{}',
    updated_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (grp, topic, partition)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0)
""",
)

UP: tuple[str, ...] = (
    EVENT,
    *(LEAF.format(slot=slot) for slot in range(8)),
    "CREATE INDEX outbox_event_xid ON outbox_event (xid)",
    "CREATE INDEX outbox_event_position ON outbox_event (position)",
    SHARD,
    FIRST_SHARD,
    *OTHERS,
)

DOWN: tuple[str, ...] = (
    "DROP TABLE consumer_offset",
    "DROP TABLE outbox_identity",
    "DROP TABLE outbox_relay",
    "DROP TABLE outbox_lease",
    "DROP TABLE outbox_topic",
    "DROP TABLE outbox_shard",
    "DROP TABLE outbox_event",
)

COLUMNS: dict[str, dict[str, str]] = {
    "outbox_event": {
        "id": "uuid",
        "aggregatetype": "text",
        "aggregateid": "text",
        "type": "text",
        "payload": "bytea",
        "topic": "text",
        "headers": "jsonb",
        "traceparent": "text",
        "occurred_at": "timestamp with time zone",
        "xid": "xid8",
        "position": "bigint",
        "slot": "smallint",
    },
    "outbox_shard": {
        "shard": "integer",
        "source": "text",
        "generation": "integer",
        "lo": "smallint",
        "hi": "smallint",
        "epoch": "bigint",
        "delta": "bigint",
        "done": "pg_snapshot",
        "done_floor": "bigint",
        "done_xid": "xid8",
        "next": "pg_snapshot",
        "next_floor": "bigint",
        "next_xid": "xid8",
        "low": "bigint",
    },
    "outbox_topic": {"shard": "integer", "topic": "text", "partitions": "integer"},
    "outbox_lease": {"shard": "integer", "owner": "text", "lease_until": "timestamp with time zone"},
    "outbox_relay": {
        "instance": "text",
        "started_at": "timestamp with time zone",
        "heartbeat": "timestamp with time zone",
        "stopped_at": "timestamp with time zone",
        "state": "jsonb",
    },
    "outbox_identity": {
        "only_row": "boolean",
        "system_identifier": "bigint",
        "database_oid": "bigint",
        "timeline": "integer",
        "kafka_cluster_id": "text",
    },
    "consumer_offset": {
        "grp": "text",
        "topic": "text",
        "partition": "integer",
        "cluster_id": "text",
        "topic_id": "text",
        "next_offset": "bigint",
        "leader_epoch": "integer",
        "owner_epoch": "bigint",
        "owner": "text",
        "backend_pid": "integer",
        "sources": "jsonb",
        "updated_at": "timestamp with time zone",
    },
}
"""What `check` expects after this step: table → column → type as PostgreSQL prints it."""
