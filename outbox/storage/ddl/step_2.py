"""Step 2, frozen once released: the mode of a shard, many shards and changing their number."""

from outbox.storage.ddl import reshard_functions

UP: tuple[str, ...] = (
    """
ALTER TABLE outbox_shard
    ADD COLUMN mode text NOT NULL DEFAULT 'sequenced' CHECK (mode IN ('sequenced', 'transactional')),
    ADD COLUMN wanted_mode text CHECK (wanted_mode IN ('sequenced', 'transactional')),
    ADD COLUMN frozen boolean NOT NULL DEFAULT false,
    ADD COLUMN timeline integer
""",
    "ALTER TABLE outbox_relay ADD COLUMN alive_until timestamptz",
    """
CREATE TABLE outbox_reshard (
    only_row     boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    shards       integer     NOT NULL CHECK (shards BETWEEN 1 AND 256),
    generation   integer     NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    frozen_by    xid8        NOT NULL DEFAULT pg_current_xact_id(),
    upto         pg_snapshot,
    floor        bigint,
    at_xid       xid8,
    CHECK (pg_catalog.num_nulls(upto, floor, at_xid) IN (0, 3))
)
""",
    *reshard_functions.UP,
)

DOWN: tuple[str, ...] = (
    *reshard_functions.DOWN,
    "DROP TABLE outbox_reshard",
    "ALTER TABLE outbox_relay DROP COLUMN alive_until",
    """
ALTER TABLE outbox_shard
    DROP COLUMN mode, DROP COLUMN wanted_mode, DROP COLUMN frozen, DROP COLUMN timeline
""",
)

COLUMNS: dict[str, dict[str, str]] = {
    "outbox_shard": {"mode": "text", "wanted_mode": "text", "frozen": "boolean", "timeline": "integer"},
    "outbox_relay": {"alive_until": "timestamp with time zone"},
    "outbox_reshard": {
        "only_row": "boolean",
        "shards": "integer",
        "generation": "integer",
        "requested_at": "timestamp with time zone",
        "frozen_by": "xid8",
        "upto": "pg_snapshot",
        "floor": "bigint",
        "at_xid": "xid8",
    },
}
