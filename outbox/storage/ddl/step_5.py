"""Step 5, frozen once released: records that a consumer group parked, and tries that outlive a process."""

UP: tuple[str, ...] = (
    """
ALTER TABLE consumer_offset
    ADD COLUMN parked         integer NOT NULL DEFAULT 0 CHECK (parked >= 0),
    ADD COLUMN claimed_offset bigint,
    ADD COLUMN claims         integer NOT NULL DEFAULT 0,
    ADD COLUMN tried_offset   bigint,
    ADD COLUMN tries          integer NOT NULL DEFAULT 0
""",
    """
CREATE TABLE consumer_parked (
    grp            text        NOT NULL,
    topic          text        NOT NULL,
    partition      integer     NOT NULL,
    record_offset  bigint      NOT NULL,
    key            bytea,
    value          bytea,
    header_names   text[]      NOT NULL,
    header_values  bytea[]     NOT NULL,
    timestamp_kind smallint    NOT NULL,
    timestamp_ms   bigint      NOT NULL,
    state          text        NOT NULL CHECK (state IN ('failed', 'queued', 'discarded')),
    error          text,
    attempts       integer     NOT NULL DEFAULT 0,
    parked_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    wish           text        CHECK (wish IN ('release', 'discard')),
    reason         text,
    wished_by      text,
    wished_at      timestamptz,
    PRIMARY KEY (grp, topic, partition, record_offset)
)
""",
    """
CREATE INDEX consumer_parked_key ON consumer_parked (grp, topic, partition, key) WHERE state <> 'discarded'
""",
)

DOWN: tuple[str, ...] = (
    "DROP TABLE consumer_parked",
    """
ALTER TABLE consumer_offset
    DROP COLUMN parked, DROP COLUMN claimed_offset, DROP COLUMN claims, DROP COLUMN tried_offset,
    DROP COLUMN tries
""",
)

COLUMNS: dict[str, dict[str, str]] = {
    "consumer_offset": {
        "parked": "integer",
        "claimed_offset": "bigint",
        "claims": "integer",
        "tried_offset": "bigint",
        "tries": "integer",
    },
    "consumer_parked": {
        "grp": "text",
        "topic": "text",
        "partition": "integer",
        "record_offset": "bigint",
        "key": "bytea",
        "value": "bytea",
        "header_names": "text[]",
        "header_values": "bytea[]",
        "timestamp_kind": "smallint",
        "timestamp_ms": "bigint",
        "state": "text",
        "error": "text",
        "attempts": "integer",
        "parked_at": "timestamp with time zone",
        "wish": "text",
        "reason": "text",
        "wished_by": "text",
        "wished_at": "timestamp with time zone",
    },
}
