"""Step 4, frozen once released: scheduled events, and events that SQL writes."""

from outbox.storage.ddl.pin import pinned
from outbox.storage.ddl.step_4_writers import (
    EMIT,
    EMIT_ARGUMENTS,
    EMIT_TEXT,
    EMITS,
    SEAL,
    SEAL_TRIGGER,
    SEALED,
    SEALED_LEAF,
    SWEEP,
)

SCHEDULED = """
CREATE TABLE outbox_scheduled (
    id            uuid        PRIMARY KEY,
    due           timestamptz NOT NULL CHECK (isfinite(due)),
    seq           bigint      NOT NULL GENERATED ALWAYS AS IDENTITY (CACHE 1),
    aggregatetype text        NOT NULL,
    aggregateid   text        COLLATE "C",
    type          text        NOT NULL,
    payload       bytea,
    topic         text,
    headers       jsonb,
    traceparent   text,
    scheduled_at  timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.02)
"""

MOVER = "CREATE TABLE outbox_mover (only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row))"

MOVE_WINDOW = """
WITH seen AS MATERIALIZED (
    SELECT s.id, s.due, s.seq,
        CASE WHEN s.aggregateid IS NOT NULL
             THEN ROW(coalesce(s.topic, 'outbox.event.' || s.aggregatetype), s.aggregateid)::text END AS line
    FROM outbox_scheduled s
    WHERE s.due <= upto AND (s.due, s.seq) > (last_due, last_seq)
    ORDER BY s.due, s.seq LIMIT batch
), locked AS MATERIALIZED (
    SELECT s.id FROM outbox_scheduled s WHERE s.id = ANY (ARRAY(SELECT seen.id FROM seen))
    FOR UPDATE SKIP LOCKED
), judged AS MATERIALIZED (
    SELECT seen.id, seen.due, seen.seq, seen.line,
        locked.id IS NOT NULL AND (seen.line IS NULL OR NOT (
            seen.line = ANY (held)
            OR bool_or(locked.id IS NULL) OVER (PARTITION BY seen.line ORDER BY seen.due, seen.seq))) AS free
    FROM seen LEFT JOIN locked USING (id)
), moved AS (
    DELETE FROM outbox_scheduled s USING judged WHERE s.id = judged.id AND judged.free RETURNING s.*
), written AS (
    INSERT INTO outbox_event
        (id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent, occurred_at)
    SELECT id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent,
        greatest(due, scheduled_at)
    FROM moved ORDER BY due, seq
)
SELECT count(*), count(*) FILTER (WHERE free),
    (array_agg(due ORDER BY due DESC, seq DESC))[1], (array_agg(seq ORDER BY due DESC, seq DESC))[1],
    array_agg(DISTINCT line) FILTER (WHERE NOT free AND line IS NOT NULL)
"""
"""The next `batch` rows that are due, in order: those are moved that nobody holds and that stand behind no
row of their topic and key that somebody holds. Indexes: (due, seq), then the primary key."""

MOVE = f"""
CREATE FUNCTION outbox_move(batch integer DEFAULT 200) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER AS $function$
DECLARE
    upto     timestamptz;
    last_due timestamptz := '-infinity';
    last_seq bigint := 0;
    held     text[] := ARRAY[]::text[];
    behind   text[];
    looked   bigint;
    freed    bigint;
    total    bigint := 0;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_transaction_state', MESSAGE =
            'outbox_move() needs READ COMMITTED: each of its statements must see what committed before it';
    END IF;
    PERFORM FROM outbox_mover FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- Before the snapshot that looks for rows: what was committed before it was due is then seen.
    upto := clock_timestamp();
    LOOP
        {MOVE_WINDOW.strip().replace(chr(10), chr(10) + " " * 8)}
        INTO looked, freed, last_due, last_seq, behind
        FROM judged;
        total := total + freed;
        EXIT WHEN looked < batch OR total >= batch;
        -- A full window with rows that somebody holds: what lies behind it may be another key's.
        held := held || behind;
    END LOOP;
    RETURN total;
END $function$
"""

CANCEL = """
CREATE FUNCTION outbox_cancel(event_id uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER AS $function$
BEGIN
    DELETE FROM outbox_scheduled WHERE id = event_id;
    RETURN FOUND;
END $function$
"""

OWNERS = (
    "outbox_move(integer)",
    "outbox_cancel(uuid)",
    "outbox_seal()",
    "outbox_sweep()",
)
"""What runs with the owner's rights."""

UP: tuple[str, ...] = (
    SCHEDULED,
    "CREATE INDEX outbox_scheduled_due ON outbox_scheduled (due, seq)",
    MOVER,
    "INSERT INTO outbox_mover DEFAULT VALUES",
    MOVE,
    CANCEL,
    SEALED,
    *(SEALED_LEAF.format(slot=slot) for slot in range(2)),
    SEAL,
    SEAL_TRIGGER,
    SWEEP,
    EMIT.format(arguments=EMIT_ARGUMENTS.format(payload="bytea")),
    EMIT_TEXT.format(arguments=EMIT_ARGUMENTS.format(payload="text"), cast=""),
    EMIT_TEXT.format(arguments=EMIT_ARGUMENTS.format(payload="jsonb"), cast="::text"),
    pinned(OWNERS),
    pinned(EMITS, public=True),
)

DOWN: tuple[str, ...] = (
    *(f"DROP FUNCTION {function}" for function in EMITS),
    "DROP FUNCTION outbox_sweep()",
    "DROP TABLE outbox_sealed",
    "DROP FUNCTION outbox_seal()",
    "DROP FUNCTION outbox_cancel(uuid)",
    "DROP FUNCTION outbox_move(integer)",
    "DROP TABLE outbox_mover",
    "DROP TABLE outbox_scheduled",
)

COLUMNS: dict[str, dict[str, str]] = {
    "outbox_scheduled": {
        "id": "uuid",
        "due": "timestamp with time zone",
        "seq": "bigint",
        "aggregatetype": "text",
        "aggregateid": "text",
        "type": "text",
        "payload": "bytea",
        "topic": "text",
        "headers": "jsonb",
        "traceparent": "text",
        "scheduled_at": "timestamp with time zone",
    },
    "outbox_mover": {"only_row": "boolean"},
    "outbox_sealed": {
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
        "slot": "smallint",
    },
}

FUNCTIONS: tuple[str, ...] = (*OWNERS, *EMITS)
"""What `check` expects to find."""
