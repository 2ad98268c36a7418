"""Step 8, frozen once released: the look into the inbox keeps to its indexes whatever the statistics say."""

from outbox.storage.ddl.pin import pinned

ADMIT = """
CREATE FUNCTION consumer_inbox_admit(
    of_group text, topics text[], partitions integer[], ids text[], offsets bigint[])
RETURNS TABLE (topic text, partition integer, record_offset bigint)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $function$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH judged AS MATERIALIZED (
        SELECT g.topic, g.partition, g.event_id, g.record_offset, earlier.found IS NOT NULL AS again
        FROM unnest(topics, partitions, ids, offsets) AS g (topic, partition, event_id, record_offset)
        LEFT JOIN LATERAL (
            SELECT true AS found FROM consumer_inbox i
            WHERE i.event_id = g.event_id AND i.grp = of_group AND i.topic = g.topic
              AND i.partition = g.partition AND i.record_offset < g.record_offset
            LIMIT 1) earlier ON true
    ), added AS (
        INSERT INTO consumer_inbox (grp, topic, partition, event_id, record_offset)
        SELECT of_group, j.topic, j.partition, j.event_id, j.record_offset FROM judged j WHERE NOT j.again
        ON CONFLICT DO NOTHING
    )
    SELECT j.topic, j.partition, j.record_offset FROM judged j WHERE j.again;
END $function$
"""
# A plan that is made while a leaf is empty would walk that leaf from end to end, and be kept while it fills:
# 500 ids against 50,000 rows each time. LIMIT keeps the planner from joining whole leaves.

NAME = "consumer_inbox_admit(text, text[], integer[], text[], bigint[])"

UP: tuple[str, ...] = (ADMIT, pinned((NAME,), public=True, prefix="consumer"))

DOWN: tuple[str, ...] = (f"DROP FUNCTION {NAME}",)

COLUMNS: dict[str, dict[str, str]] = {}

FUNCTIONS: tuple[str, ...] = (NAME,)
"""What `check` expects to find."""
