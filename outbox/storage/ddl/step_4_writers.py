"""The part of step 4 for other writers: a function that any language calls, and the seal."""

from outbox.storage.ddl.pin import HERE

SEALED = """
CREATE TABLE outbox_sealed (
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
    slot          smallint    NOT NULL
        DEFAULT mod(date_part('epoch', statement_timestamp())::bigint / 600, 2::bigint)
) PARTITION BY LIST (slot)
"""

SEALED_LEAF = """
CREATE UNLOGGED TABLE outbox_sealed_{slot} PARTITION OF outbox_sealed FOR VALUES IN ({slot})
"""
# Of no use once its transaction has ended: not logged, not indexed, never read, truncated as a whole.

SEAL = """
CREATE FUNCTION outbox_seal() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $function$
BEGIN
    INSERT INTO outbox_event
        (id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent, occurred_at)
    VALUES (NEW.id, NEW.aggregatetype, NEW.aggregateid, NEW.type, NEW.payload, NEW.topic, NEW.headers,
        NEW.traceparent, NEW.occurred_at);
    RETURN NULL;
END $function$
"""

SEAL_TRIGGER = """
CREATE CONSTRAINT TRIGGER outbox_seal AFTER INSERT ON outbox_sealed
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (NEW.xid = pg_current_xact_id()) EXECUTE FUNCTION outbox_seal()
"""
"""Position is drawn at COMMIT, under every lock the transaction took. A row that a restore brings back bears
another transaction's id: it was published by its own."""

SWEEP = f"""
CREATE FUNCTION outbox_sweep() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER AS $function$
DECLARE
    leaf text := {HERE} || '.outbox_sealed_'
        || mod(date_part('epoch', clock_timestamp())::bigint / 600 + 1, 2);
BEGIN
    IF pg_relation_size(leaf::regclass) = 0 THEN
        RETURN false;
    END IF;
    BEGIN
        -- Granted at once or not at all: whoever inserted there has ended, and nobody queues behind us.
        EXECUTE 'LOCK TABLE ONLY ' || leaf || ' IN ACCESS EXCLUSIVE MODE NOWAIT';
    EXCEPTION WHEN lock_not_available THEN
        RETURN false;
    END;
    EXECUTE 'TRUNCATE ONLY ' || leaf;
    RETURN true;
END $function$
"""

EMIT_ARGUMENTS = """
    aggregatetype    text,
    aggregateid      text,
    type             text,
    payload          {payload},
    topic            text        DEFAULT NULL,
    headers          jsonb       DEFAULT NULL,
    traceparent      text        DEFAULT NULL,
    id               uuid        DEFAULT NULL,
    occurred_at      timestamptz DEFAULT NULL,
    deliver_at       timestamptz DEFAULT NULL,
    sealed           boolean     DEFAULT false,
    max_record_bytes integer     DEFAULT 1000000
"""

EMIT = """
CREATE FUNCTION outbox_emit({arguments}) RETURNS uuid
LANGUAGE plpgsql AS $function$
#variable_conflict use_variable
DECLARE
    target text := coalesce(topic, 'outbox.event.' || aggregatetype);
    bytes  bigint := 256 + coalesce(octet_length(payload), 0)
        + coalesce(octet_length(convert_to(aggregateid, 'UTF8')), 0);
    fault  text := CASE
        WHEN aggregatetype IS NULL OR aggregatetype = '' THEN 'aggregatetype is missing'
        WHEN type IS NULL OR type = '' THEN 'type is missing'
        -- A repetition of 1 to 249 in the pattern would cost 120 µs.
        WHEN target IN ('.', '..') OR length(target) > 249 OR target !~ '^[A-Za-z0-9._-]+$' THEN
            'topic ' || quote_literal(target) || ' is not 1 to 249 of the characters A-Z a-z 0-9 . _ -'
        WHEN starts_with(target, 'outbox.progress.') THEN
            'topic ' || quote_literal(target)
            || ': outbox.progress.* holds the relays'' own records; choose another name'
        WHEN occurred_at IS NOT NULL AND deliver_at IS NOT NULL THEN
            'an event that is scheduled bears the moment of its delivery; leave occurred_at away'
        WHEN sealed AND deliver_at IS NOT NULL THEN
            'an event that is scheduled is ordered by its moment; leave sealed away'
        WHEN NOT isfinite(deliver_at) THEN 'deliver_at is no moment'
        WHEN NOT isfinite(occurred_at) THEN 'occurred_at is no moment'
    END;
    header record;
BEGIN
    headers := nullif(nullif(headers, 'null'), '{{}}');
    IF fault IS NULL AND jsonb_typeof(headers) <> 'object' THEN
        fault := 'headers are an object of names and texts, not ' || jsonb_typeof(headers);
    ELSIF fault IS NULL AND headers IS NOT NULL THEN
        FOR header IN SELECT key, value, jsonb_typeof(value) AS kind FROM jsonb_each(headers) LOOP
            bytes := bytes + octet_length(convert_to(header.key, 'UTF8'))
                + octet_length(convert_to(header.value #>> '{{}}', 'UTF8'));
            fault := CASE
                WHEN header.key = '' THEN 'a header has no name'
                WHEN header.key IN ('id', 'type', 'outbox-seq', 'outbox-replay', 'traceparent') THEN
                    'header ' || quote_literal(header.key) || ' is written by the relay; choose another name'
                WHEN header.kind <> 'string' THEN
                    'header ' || quote_literal(header.key) || ' is a ' || header.kind || ', not a string'
            END;
            EXIT WHEN fault IS NOT NULL;
        END LOOP;
    END IF;
    IF fault IS NULL AND bytes > max_record_bytes THEN
        fault := 'the record has ' || bytes || ' bytes (key, payload, headers) and the limit is '
            || max_record_bytes || '; keep large data elsewhere and send a reference, or raise the topic''s '
            || 'max.message.bytes and max_record_bytes together';
    END IF;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'event ' || coalesce(type, '') || ' was not recorded: ' || fault;
    END IF;
    IF traceparent !~ '^[0-9a-f]{{2}}-[0-9a-f]{{32}}-[0-9a-f]{{16}}-[0-9a-f]{{2}}$' THEN
        traceparent := NULL;
    END IF;
    -- UUIDv7: 48 bits of milliseconds before 74 of chance (RFC 9562).
    id := coalesce(id, encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
        FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid);
    occurred_at := coalesce(occurred_at, clock_timestamp());
    IF deliver_at IS NOT NULL THEN
        INSERT INTO outbox_scheduled
            (due, id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent)
        VALUES (deliver_at, id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent);
    ELSIF sealed THEN
        INSERT INTO outbox_sealed
            (id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent, occurred_at)
        VALUES (id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent, occurred_at);
    ELSE
        INSERT INTO outbox_event
            (id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent, occurred_at)
        VALUES (id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent, occurred_at);
    END IF;
    RETURN id;
END $function$
"""

EMIT_TEXT = """
CREATE FUNCTION outbox_emit({arguments}) RETURNS uuid
LANGUAGE plpgsql AS $function$
#variable_conflict use_variable
BEGIN
    RETURN outbox_emit(aggregatetype, aggregateid, type, convert_to(payload{cast}, 'UTF8'), topic, headers,
        traceparent, id, occurred_at, deliver_at, sealed, max_record_bytes);
END $function$
"""

EMIT_SIGNATURE = (
    "outbox_emit(text, text, text, {payload}, text, jsonb, text, uuid, timestamptz, timestamptz, boolean, "
    "integer)"
)
EMITS = tuple(EMIT_SIGNATURE.format(payload=payload) for payload in ("bytea", "text", "jsonb"))
