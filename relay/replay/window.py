"""Which rows a window of a replay holds: the same whenever it is asked, until the window is confirmed.

The set is frozen (`upto`), and while the window's delta is planned the shard's `done` stays as it is and
nothing is parked, released or discarded. Whoever asks later finds no row: under that delta's numbers an owner
who was replaced would send what the next window sends again. `only`: positions that are sent, NULL for all.
"""

from outbox.storage import bucket
from relay import row
from relay.row import NAMES

_MATCHES = f"""
e.position > %(low)s AND e.position <= %(last)s
AND pg_visible_in_snapshot(e.xid, %(upto)s::pg_snapshot)
AND (j.since IS NULL OR e.occurred_at >= j.since) AND (j.until IS NULL OR e.occurred_at < j.until)
AND (j.topic IS NULL OR coalesce(e.topic, 'outbox.event.' || e.aggregatetype) = j.topic)
AND (j.aggregateid IS NULL OR e.aggregateid = j.aggregateid)
AND {bucket.IN_SHARD}
AND (%(only)s::bigint[] IS NULL OR e.position = ANY(%(only)s))
AND NOT EXISTS (SELECT FROM outbox_parked p WHERE p.id = e.id)
AND NOT EXISTS (SELECT FROM outbox_archive a WHERE a.id = e.id AND a.outcome = 'discarded')
"""

FIRST = """
SELECT position FROM outbox_event
WHERE position > %(cursor)s AND position <= %(floor)s AND pg_visible_in_snapshot(xid, %(upto)s::pg_snapshot)
ORDER BY position LIMIT 1
"""
"""Where the next window begins, whatever is committed below it later. Index outbox_event_position."""

_PLANNED = "s.delta = %(delta)s AND s.job = j.job"

_IN = f"""
FROM outbox_event e, outbox_job j, outbox_shard s
WHERE j.job = %(job)s AND s.shard = j.shard AND {_MATCHES}
"""

ANY_IN = f"SELECT EXISTS (SELECT {_IN})"
"""Is a window worth a delta? Index outbox_event_position."""

COUNT_IN = f"SELECT count(*) {_IN}"

PAGE = f"""
SELECT {NAMES} FROM (
  SELECT *, sum(coalesce(octet_length(payload), 0)) OVER (ORDER BY position)
    - coalesce(octet_length(payload), 0) AS before
  FROM (
    SELECT {row.COLUMNS} FROM (
      SELECT e.position, e.occurred_at, coalesce(j.to_topic, a.topic, e.topic) AS topic, e.aggregatetype,
             e.aggregateid, CASE WHEN a.parked IS NULL THEN e.payload ELSE a.payload END AS payload, e.id,
             e.type, e.traceparent,
             coalesce(CASE WHEN a.parked IS NULL THEN e.headers ELSE a.headers END, '{{}}')
                 || jsonb_build_object(%(header)s::text, %(replay)s::text) AS headers
      FROM outbox_job j CROSS JOIN outbox_shard s CROSS JOIN outbox_event e
      LEFT JOIN outbox_archive a ON a.id = e.id AND a.outcome = 'sent'
      WHERE j.job = %(job)s AND s.shard = j.shard AND {_PLANNED} AND {_MATCHES}
      ORDER BY e.position LIMIT %(limit)s) found
  ) few
) bounded
WHERE before < %(bytes)s ORDER BY position
"""
"""Rows of a window as they were sent, a released one as it was released. Index outbox_event_position."""

NEWEST = f"""
WITH found AS (
    SELECT e.position, coalesce(a.topic, e.topic, 'outbox.event.' || e.aggregatetype) AS topic,
           e.aggregateid AS key
    FROM outbox_job j CROSS JOIN outbox_shard s CROSS JOIN outbox_event e
    LEFT JOIN outbox_archive a ON a.id = e.id AND a.outcome = 'sent'
    WHERE j.job = %(job)s AND s.shard = j.shard AND {_PLANNED} AND {_MATCHES}
), newest AS (
    SELECT k.topic, k.key, max(e.position) AS position
    FROM outbox_job j JOIN outbox_shard s USING (shard)
    CROSS JOIN (SELECT DISTINCT topic, key FROM found WHERE key IS NOT NULL) k
    JOIN outbox_event e ON e.aggregateid = k.key
    LEFT JOIN outbox_archive a ON a.id = e.id AND a.outcome = 'sent'
    WHERE j.job = %(job)s AND e.position > %(low)s
      AND coalesce(a.topic, e.topic, 'outbox.event.' || e.aggregatetype) = k.topic
      AND CASE WHEN j.to_topic IS NULL THEN pg_visible_in_snapshot(e.xid, s.done)
          ELSE pg_visible_in_snapshot(e.xid, %(upto)s::pg_snapshot)
               AND (j.since IS NULL OR e.occurred_at >= j.since)
               AND (j.until IS NULL OR e.occurred_at < j.until) END
      AND NOT EXISTS (SELECT FROM outbox_parked p WHERE p.id = e.id)
      AND NOT EXISTS (SELECT FROM outbox_archive d WHERE d.id = e.id AND d.outcome = 'discarded')
    GROUP BY k.topic, k.key
)
SELECT position FROM found WHERE key IS NULL
UNION ALL
SELECT f.position FROM found f JOIN newest n USING (topic, key) WHERE f.position = n.position
"""
"""Rows of a window behind which nothing of their key was sent; rows without a key are all of them.

In their own topic whatever was sent by now counts, or an old value would stay as the last one; in another
topic only what this replay sends there. Reads the ring behind the window once. Index outbox_event_position.
"""
