"""Step 2, frozen once released: the mode of a shard, many shards and changing their number."""

UP: tuple[str, ...] = (
    """
ALTER TABLE outbox_shard
    ADD COLUMN mode text NOT NULL DEFAULT 'sequenced' CHECK (mode IN ('sequenced', 'transactional')),
    ADD COLUMN wanted_mode text CHECK (wanted_mode IN ('sequenced', 'transactional')),
    ADD COLUMN frozen boolean NOT NULL DEFAULT false,
    ADD COLUMN timeline integer
""",
    """
CREATE TABLE outbox_reshard (
    only_row     boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    generation   integer     NOT NULL,
    shards       integer     NOT NULL CHECK (shards BETWEEN 1 AND 256),
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    upto         pg_snapshot,
    floor        bigint,
    at_xid       xid8,
    CHECK (num_nulls(upto, floor, at_xid) IN (0, 3))
)
""",
)

DOWN: tuple[str, ...] = (
    "DROP TABLE outbox_reshard",
    """
ALTER TABLE outbox_shard
    DROP COLUMN mode, DROP COLUMN wanted_mode, DROP COLUMN frozen, DROP COLUMN timeline
""",
)

COLUMNS: dict[str, dict[str, str]] = {
    "outbox_shard": {"mode": "text", "wanted_mode": "text", "frozen": "boolean", "timeline": "integer"},
    "outbox_reshard": {
        "only_row": "boolean",
        "generation": "integer",
        "shards": "integer",
        "requested_at": "timestamp with time zone",
        "upto": "pg_snapshot",
        "floor": "bigint",
        "at_xid": "xid8",
    },
}
