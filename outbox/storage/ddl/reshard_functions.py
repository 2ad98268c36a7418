"""Changing the number of shards, part of step 2: functions for the relay, which may not make a shard itself.

Each checks everything itself. All take their locks in one order: the table of outbox_reshard, so that one
of them runs at a time, its row, the shards by number, the leases, the table of outbox_job. There is no
percent sign in them, which drivers and Alembic read their own way.
"""

from outbox.storage.ddl.pin import pinned

NAMES = ("outbox_shards_set(integer)", "outbox_shards_cancel()", "outbox_shards_switch()")

HOOKS = (
    """
CREATE FUNCTION outbox_reshard_obstacle() RETURNS text LANGUAGE sql STABLE AS $$ SELECT NULL::text $$
""",
    """
CREATE FUNCTION outbox_holds_follow() RETURNS void LANGUAGE sql AS $$ SELECT $$
""",
)
"""What later steps replace: why the shards must stay as they are for now (in words, NULL: they need not), and
what of theirs goes by a shard's number and has to follow its bucket once the new shards stand."""

SET = """
CREATE FUNCTION outbox_shards_set(wanted integer) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    obstacle text;
    opened integer;
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    IF wanted IS NULL OR wanted NOT BETWEEN 1 AND 256 THEN
        RAISE EXCEPTION USING ERRCODE = 'OB001', MESSAGE =
            'there can be 1 to 256 shards, not ' || coalesce(wanted::text, 'NULL');
    END IF;
    LOCK TABLE outbox_reshard IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM outbox_reshard) THEN
        RAISE EXCEPTION USING ERRCODE = 'OB001', MESSAGE =
            'the number of shards is being changed to ' || (SELECT shards FROM outbox_reshard) || ' already';
    END IF;
    PERFORM FROM outbox_shard ORDER BY shard FOR UPDATE;
    SELECT CASE WHEN count(DISTINCT mode) > 1 OR count(nullif(wanted_mode, mode)) > 0
                THEN 'their mode is being changed, or differs' END,
           max(generation) + 1
        INTO obstacle, opened FROM outbox_shard;
    obstacle := coalesce(obstacle, outbox_reshard_obstacle());
    IF obstacle IS NOT NULL OR opened IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'OB001', MESSAGE =
            'the number of shards cannot be changed now: ' || coalesce(obstacle, 'there is none');
    END IF;
    INSERT INTO outbox_reshard (shards, generation) VALUES (wanted, opened);
    UPDATE outbox_shard SET frozen = true;
    RETURN opened;
END $$
"""
"""Freeze every shard: what is planned is finished, nothing more is planned but the common end."""

CANCEL = """
CREATE FUNCTION outbox_shards_cancel() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    LOCK TABLE outbox_reshard IN SHARE ROW EXCLUSIVE MODE;
    PERFORM FROM outbox_reshard FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM FROM outbox_shard ORDER BY shard FOR UPDATE;
    UPDATE outbox_shard SET frozen = false WHERE frozen;
    DELETE FROM outbox_reshard;
    RETURN true;
END $$
"""
"""Let the shards go on as they were; one that has reached the common end already just did a delta more."""

SWITCH = """
CREATE FUNCTION outbox_shards_switch() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    goal record;
    old record;
    here integer := ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer;
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    LOCK TABLE outbox_reshard IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO goal FROM outbox_reshard WHERE upto IS NOT NULL FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM FROM outbox_shard ORDER BY shard FOR UPDATE;
    IF EXISTS (SELECT FROM outbox_shard
               WHERE NOT frozen OR next IS NOT NULL OR done::text <> goal.upto::text)
       OR (SELECT sum(hi - lo + 1) FROM outbox_shard) IS DISTINCT FROM 256
       OR (SELECT count(DISTINCT mode) FROM outbox_shard) <> 1 THEN
        RETURN false;
    END IF;
    SELECT max(generation) + 1 AS generation, max(epoch) + 1 AS epoch, min(mode) AS mode,
           -- A transactional shard begins with a record of where it stands, as if changed to that mode.
           nullif(min(mode), 'sequenced') AS wanted_mode,
           greatest(max(delta) + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint) AS delta,
           CASE WHEN count(DISTINCT source) = 1
                 AND bool_and(coalesce(s.timeline, (SELECT i.timeline FROM outbox_identity i)) = here)
                THEN min(source) ELSE left(replace(gen_random_uuid()::text, '-', ''), 12) END AS source
        INTO old FROM outbox_shard s;
    DELETE FROM outbox_shard;
    INSERT INTO outbox_shard (shard, source, generation, lo, hi, epoch, delta, done, done_floor, done_xid,
                              mode, wanted_mode, timeline)
        SELECT n, old.source, old.generation, n * 256 / goal.shards, (n + 1) * 256 / goal.shards - 1,
               old.epoch, old.delta, goal.upto, goal.floor, goal.at_xid, old.mode,
               old.wanted_mode, here
        FROM generate_series(0, goal.shards - 1) n;
    WITH known AS (DELETE FROM outbox_topic RETURNING topic, partitions)
    INSERT INTO outbox_topic (shard, topic, partitions)
        SELECT n, topic, max(partitions) FROM known, generate_series(0, goal.shards - 1) n
        GROUP BY n, topic;
    LOCK TABLE outbox_lease IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM outbox_lease WHERE shard >= goal.shards;
    INSERT INTO outbox_lease (shard)
        SELECT n FROM generate_series(0, goal.shards - 1) n ON CONFLICT DO NOTHING;
    PERFORM outbox_holds_follow();
    DELETE FROM outbox_reshard;
    RETURN true;
END $$
"""
"""Every record of the old generation is acknowledged: put the new shards in place of the old ones, or do
nothing and say so. They begin where all old ones ended, under an epoch and delta above each of theirs, so
that no statement of a former owner fits. The source stays if all had one, and it began on this timeline."""

UP = (*HOOKS, SET, CANCEL, SWITCH, pinned(NAMES))

ONE_SHARD = """
DO $$ BEGIN
    IF (SELECT count(*) FROM outbox_shard) <> 1 THEN
        RAISE EXCEPTION 'version 1 knows one shard only; run first: outbox-relay shards set 1';
    END IF;
END $$
"""

DOWN = (
    ONE_SHARD,
    *(f"DROP FUNCTION {name}" for name in NAMES),
    "DROP FUNCTION outbox_holds_follow()",
    "DROP FUNCTION outbox_reshard_obstacle()",
)
