"""`outbox-relay events`: look into the outbox, at what is published and still kept and at what waits."""

from datetime import datetime
from uuid import UUID

import click
from sqlalchemy import text

from outbox.storage import bucket, ddl
from relay.cli import options, shown

_STATE = """
CASE WHEN p.parked IS NOT NULL THEN CASE p.state WHEN 'failed' THEN 'parked' ELSE 'held' END
     WHEN EXISTS (SELECT FROM outbox_archive a WHERE a.id = e.id AND a.outcome = 'discarded') THEN 'discarded'
     WHEN s.shard IS NULL THEN 'pending'
     WHEN pg_visible_in_snapshot(e.xid, s.done) THEN 'published'
     WHEN s.next IS NULL OR NOT pg_visible_in_snapshot(e.xid, s.next) THEN 'pending'
     WHEN e.position <= s.low THEN 'published' ELSE 'planned' END
"""

_SEQ = """
CASE WHEN p.parked IS NOT NULL THEN p.numbers[cardinality(p.numbers)]
     WHEN s.next IS NOT NULL AND s.job IS NULL AND NOT pg_visible_in_snapshot(e.xid, s.done)
          AND pg_visible_in_snapshot(e.xid, s.next)
     THEN s.source || '/' || s.generation || '/' || s.shard || ':' || s.delta || '.' || e.position
     ELSE (SELECT a.seq FROM outbox_archive a WHERE a.id = e.id ORDER BY a.settled_at DESC LIMIT 1) END
"""
"""Under which number readers see it. That of a published event is in its header only: nobody stores it."""

_EVENTS = f"""
SELECT e.id, e.type, e.aggregatetype AS aggregate, e.aggregateid AS key,
       coalesce(e.topic, 'outbox.event.' || e.aggregatetype) AS topic, e.occurred_at, {_STATE} AS state,
       s.shard, e.position, {_SEQ} AS seq, octet_length(e.payload) AS bytes, p.parked, p.error{{more}}
FROM {{events}} e
LEFT JOIN outbox_shard s ON {bucket.IN_SHARD}
LEFT JOIN LATERAL (SELECT * FROM outbox_parked q WHERE q.id = e.id ORDER BY parked LIMIT 1) p ON true
"""

_PENDING = """
(SELECT found.* FROM outbox_shard t CROSS JOIN LATERAL (
    SELECT e.* FROM outbox_event e
    WHERE e.xid >= pg_snapshot_xmin(t.done) AND NOT pg_visible_in_snapshot(e.xid, t.done)
      AND coalesce(hashtextextended(e.aggregateid, 0) & 255, 0) BETWEEN t.lo AND t.hi) found)
"""
"""What no confirmed delta holds. Index outbox_event_xid."""

_WHERE = """
WHERE (CAST(:aggregate AS text) IS NULL OR e.aggregatetype = :aggregate)
  AND (CAST(:type AS text) IS NULL OR e.type = :type)
  AND (CAST(:key AS text) IS NULL OR e.aggregateid = :key)
  AND (CAST(:topic AS text) IS NULL OR coalesce(e.topic, 'outbox.event.' || e.aggregatetype) = :topic)
  AND (CAST(:since AS timestamptz) IS NULL OR e.occurred_at >= :since)
  AND (CAST(:until AS timestamptz) IS NULL OR e.occurred_at < :until)
"""

LIST = f"{_EVENTS.format(more='', events='outbox_event')} {_WHERE} ORDER BY e.position DESC LIMIT :limit"
"""The newest first. Index outbox_event_position; with a filter it reads on until `limit` are found."""

PENDING = f"""
SELECT * FROM ({_EVENTS.format(more="", events=_PENDING)} {_WHERE}) waiting
WHERE state IN ('pending', 'planned') ORDER BY position LIMIT :limit
"""
"""The oldest first. Index outbox_event_xid."""

_MORE = ", e.headers, e.traceparent, e.payload"

SHOW = f"{_EVENTS.format(more=_MORE, events='outbox_event')} WHERE e.id = :id"
"""Reads the whole ring once: its ids have no index, which every event would pay for."""

SET_ASIDE = """
SELECT p.id, p.type, p.aggregatetype AS aggregate, p.aggregateid AS key, p.topic, p.occurred_at,
       CASE p.state WHEN 'failed' THEN 'parked' ELSE 'held' END AS state, h.shard, p.position,
       p.numbers[cardinality(p.numbers)] AS seq, octet_length(p.payload) AS bytes, p.parked, p.error,
       p.headers, p.traceparent, p.payload
FROM outbox_parked p JOIN outbox_hold h USING (hold) WHERE p.id = :id
UNION ALL
SELECT a.id, a.type, a.aggregatetype, a.aggregateid, a.topic, a.occurred_at,
       CASE a.outcome WHEN 'discarded' THEN 'discarded' ELSE 'published' END, NULL, a.position,
       a.seq, octet_length(a.payload), a.parked, a.error, a.headers, a.traceparent, a.payload
FROM outbox_archive a WHERE a.id = :id
LIMIT 1
"""
"""What outlives the ring. Indexes outbox_parked_id, outbox_archive_id."""


@click.group(short_help="Look at events: published and kept, planned, pending, parked.")
def events() -> None:
    """Look into the outbox; nothing is changed. Needs the rights of a reader.

    An event is `pending` (committed, not planned), `planned` (part of the delta that is being sent),
    `published` (acknowledged by Kafka), `parked` (refused), `held` (behind a refused one of its key) or
    `discarded`. Published ones stay for OUTBOX_RETENTION at least.
    """


@events.command(
    "list",
    short_help="Events, the newest first; --pending: what waits, the oldest first.",
    epilog="Example:  outbox-relay events list --type order.placed.v1 --key 42 --since 2026-05-01T00:00Z",
)
@options.database_url
@options.as_json
@click.option("--aggregate", help="Only of this aggregate, by its name (order).")
@click.option("--type", "type_", help="Only of this type (order.placed.v1).")
@click.option("--key", help="Only of this key, the aggregate's id.")
@click.option("--topic", help="Only for this topic.")
@click.option("--since", type=options.TIME, help="Events that occurred at this time or later, with its zone.")
@click.option("--until", type=options.TIME, help="Events that occurred before this time.")
@click.option("--pending", is_flag=True, help="Only what Kafka has not acknowledged, the oldest first.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
def list_(
    database_url: str | None,
    as_json_: bool,
    aggregate: str | None,
    type_: str | None,
    key: str | None,
    topic: str | None,
    since: datetime | None,
    until: datetime | None,
    pending: bool,
    limit: int,
) -> None:
    """Events that the outbox holds, the newest first."""
    wanted = {
        "aggregate": aggregate,
        "type": type_,
        "key": key,
        "topic": topic,
        "since": since,
        "until": until,
        "limit": limit,
    }
    with options.connected(database_url) as connection:
        ddl.check(connection)
        rows = connection.execute(text(PENDING if pending else LIST), wanted)
        found = [dict(row._mapping) for row in rows]
    if as_json_:
        options.echo_json({"events": found})
        return
    for event in found:
        click.echo(
            f"{event['occurred_at']:%Y-%m-%d %H:%M:%S}  {event['state']:9}  {event['position']}  "
            f"{event['id']}  {event['type']}  {event['topic']}  key {event['key']}"
        )
    if not found:
        click.echo("no such event waits" if pending else "the outbox holds no such event")


@events.command(epilog="Example:  outbox-relay events show 0197f6a4-7c00-7000-8000-000000000001 --json")
@options.database_url
@options.as_json
@click.argument("id_", type=click.UUID, metavar="ID")
def show(database_url: str | None, as_json_: bool, id_: UUID) -> None:
    """One event with its headers and payload, its state, place and number.

    Exit 1 when there is none: it was never committed, or is published and older than the ring reaches back.
    """
    with options.connected(database_url) as connection:
        ddl.check(connection)
        row = connection.execute(text(SHOW), {"id": id_}).first()
        row = row or connection.execute(text(SET_ASIDE), {"id": id_}).first()
    if row is None:
        click.echo(
            f"the outbox holds no event {id_}: it was not committed, still waits for its moment "
            "(outbox-relay scheduled list), or was published before what the ring still holds",
            err=True,
        )
        raise SystemExit(1)
    shown.show(dict(row._mapping), as_json=as_json_)
