"""Step 6, frozen once released: the ids of foreign records, so that their producers' repeats are known."""

from outbox.storage.ddl.pin import HERE, pinned

INBOX = """
CREATE TABLE consumer_inbox (
    grp           text     NOT NULL,
    topic         text     NOT NULL,
    partition     integer  NOT NULL,
    event_id      text     NOT NULL COLLATE "C",
    record_offset bigint   NOT NULL,
    slot          smallint NOT NULL DEFAULT pg_catalog.mod(
        pg_catalog.floor(pg_catalog.date_part('epoch'::text, pg_catalog.clock_timestamp()))::bigint
            / 43200::bigint, 16::bigint),
    PRIMARY KEY (event_id, grp, topic, partition, record_offset, slot)
) PARTITION BY LIST (slot)
"""
# event_id first: the search is decided by its first column, compared as bytes.

LEAF = """
CREATE TABLE consumer_inbox_{slot} PARTITION OF consumer_inbox FOR VALUES IN ({slot}) WITH (
    autovacuum_vacuum_insert_threshold = 1000000, autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_analyze_threshold = 100000, autovacuum_analyze_scale_factor = 0,
    autovacuum_freeze_min_age = 0)
"""

NEEDED = """
SELECT FROM consumer_offset o
WHERE o.inbox_window IS NOT NULL
  AND (o.inbox_read_through >= ended + o.inbox_window + interval '1 minute') IS NOT TRUE
"""
"""Partitions that have not seen all that was appended until the leaf's last id is older than their window.
The minute covers a record that its partition's leader has, and its followers have not yet."""

_SWEEP = """
CREATE FUNCTION consumer_inbox_sweep() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '200ms' AS $function$
DECLARE
    turn   bigint := floor(date_part('epoch', clock_timestamp()))::bigint / 43200::bigint;
    leaf   text;
    ended  timestamptz;
    filled boolean;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_transaction_state', MESSAGE =
            'consumer_inbox_sweep() needs READ COMMITTED: it must see what committed while it waited';
    END IF;
    -- The leaf of this turn is being filled; the one behind it has been full for longest.
    FOR age IN REVERSE 15 .. 1 LOOP
        ended := to_timestamp(((turn - age::bigint + 1::bigint) * 43200::bigint)::double precision);
        CONTINUE WHEN EXISTS ({needed});
        leaf := {here}::text || '.consumer_inbox_'::text || mod(turn - age::bigint, 16::bigint)::text;
        EXECUTE 'SELECT EXISTS (SELECT FROM '::text || leaf || ')'::text INTO filled;
        CONTINUE WHEN NOT filled;
        BEGIN
            EXECUTE 'LOCK TABLE ONLY '::text || leaf || ' IN ACCESS EXCLUSIVE MODE'::text;
            -- Asked again: what held the lock may have changed the answer.
            IF NOT EXISTS ({needed}) THEN
                EXECUTE 'TRUNCATE ONLY '::text || leaf;
                RETURN true;
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            NULL;  -- batches that are under way; the next look finds it
        END;
    END LOOP;
    RETURN false;
END $function$
"""
SWEEP = _SWEEP.format(needed=NEEDED.strip(), here=HERE)
# One leaf a call, so that no more than one is ever locked.

UP: tuple[str, ...] = (
    """
ALTER TABLE consumer_offset
    ADD COLUMN inbox_window       interval CHECK (inbox_window > '0'::interval),
    ADD COLUMN inbox_seen_at      timestamptz,
    ADD COLUMN inbox_seen_high    bigint,
    ADD COLUMN inbox_read_through timestamptz
""",
    INBOX,
    *(LEAF.format(slot=slot) for slot in range(16)),
    SWEEP,
    pinned(("consumer_inbox_sweep()",), prefix="consumer"),
)

DOWN: tuple[str, ...] = (
    "DROP FUNCTION consumer_inbox_sweep()",
    "DROP TABLE consumer_inbox",
    """
ALTER TABLE consumer_offset
    DROP COLUMN inbox_window, DROP COLUMN inbox_seen_at, DROP COLUMN inbox_seen_high,
    DROP COLUMN inbox_read_through
""",
)

COLUMNS: dict[str, dict[str, str]] = {
    "consumer_offset": {
        "inbox_window": "interval",
        "inbox_seen_at": "timestamp with time zone",
        "inbox_seen_high": "bigint",
        "inbox_read_through": "timestamp with time zone",
    },
    "consumer_inbox": {
        "grp": "text",
        "topic": "text",
        "partition": "integer",
        "event_id": "text",
        "record_offset": "bigint",
        "slot": "smallint",
    },
}

FUNCTIONS: tuple[str, ...] = ("consumer_inbox_sweep()",)
"""What `check` expects to find."""
