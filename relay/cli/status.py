"""`outbox-relay status`: who carries the shards, how far, and what is wrong."""

from typing import Any

import click
from sqlalchemy import text

from outbox.storage import ddl
from relay.cli import options
from relay.telemetry.backlog import BACKLOG, MOST

SHARDS = f"""
SELECT s.shard, s.mode, s.source, s.generation, s.epoch, s.delta, behind.owner, behind.lease_held,
       behind.pending, behind.oldest_pending
FROM outbox_shard s JOIN ({BACKLOG.format(more="")}) behind USING (shard) ORDER BY s.shard
"""
"""Pending is counted to 100,000 at most, its age in seconds."""

PARKED = """
SELECT h.shard, count(*) AS keys, min(h.held_at) AS oldest,
       (SELECT count(*) FROM (
            SELECT FROM outbox_parked JOIN outbox_hold o USING (hold)
            WHERE o.shard = h.shard LIMIT 100001) few) AS events
FROM outbox_hold h GROUP BY h.shard ORDER BY h.shard
"""

RELAYS = """
SELECT instance, started_at, heartbeat, stopped_at, state,
       stopped_at IS NULL AND heartbeat > clock_timestamp() - interval '30 seconds' AS alive
FROM outbox_relay ORDER BY alive DESC, heartbeat DESC LIMIT 50
"""
"""The living first: an alarm of theirs must not fall off the end behind a crash loop's dead."""

SCHEDULED = """
SELECT (SELECT count(*) FROM (SELECT FROM outbox_scheduled LIMIT 100001) some_) AS scheduled,
       (SELECT extract(epoch FROM clock_timestamp() - due)::float8
        FROM outbox_scheduled ORDER BY due, seq LIMIT 1) AS overdue_by
"""
"""How many events wait for their moment (to 100,000), and by how many seconds the earliest is due."""

OVERDUE = 60.0
"""Seconds after its moment from which an event that was not moved is an alarm."""

ENDED = 3
"""How many that ended are shown to a person."""


@click.command(epilog="Example:  outbox-relay status --json")
@options.database_url
@options.as_json
def status(database_url: str | None, as_json_: bool) -> None:
    """Shards, relays and alarms of one database.

    Exit 1 while there is an alarm: a shard that no relay carries, what a relay waits for or is halted by, an
    old pending or an overdue scheduled event, parked events, which nobody but an operator can send.
    """
    with options.connected(database_url) as connection:
        ddl.check(connection)
        shards = [dict(row._mapping) for row in connection.execute(text(SHARDS))]
        parked = [dict(row._mapping) for row in connection.execute(text(PARKED))]
        relays = [dict(row._mapping) for row in connection.execute(text(RELAYS))]
        scheduled, overdue_by = connection.execute(text(SCHEDULED)).one()
    alarms = _alarms(shards, relays)
    if overdue_by is not None and overdue_by > OVERDUE:
        alarms.append(
            f"a scheduled event is overdue by {overdue_by:.0f} s: no relay moves it, or an open cancel holds "
            "it; see outbox-relay scheduled list"
        )
    alarms += [
        f"shard {p['shard']}: {p['events']} events of {p['keys']} keys are parked since "
        f"{p['oldest']:%Y-%m-%d %H:%M:%S}; see: outbox-relay parked list"
        for p in parked
    ]
    if as_json_:
        options.echo_json(
            {"shards": shards, "relays": relays, "scheduled": scheduled, "parked": parked, "alarms": alarms}
        )
    else:
        if scheduled:
            click.echo(f"scheduled: {scheduled:,}")
        _print(shards, relays, alarms)
    raise SystemExit(1 if alarms else 0)


def _alarms(shards: list[dict[str, Any]], relays: list[dict[str, Any]]) -> list[str]:
    # A database that only consumes has no relay and nothing to carry.
    alarms = [
        f"shard {s['shard']} is carried by no relay"
        for s in shards
        if not s["lease_held"] and (relays or s["pending"])
    ]
    alarms += [
        f"{r['instance']}: {r['state']['alarm']}" for r in relays if r["alive"] and r["state"].get("alarm")
    ]
    return alarms


def _print(shards: list[dict[str, Any]], relays: list[dict[str, Any]], alarms: list[str]) -> None:
    for s in shards:
        pending = f"more than {MOST:,}" if s["pending"] > MOST else f"{s['pending']:,}"
        if s["oldest_pending"] is not None:
            pending += f", the oldest {s['oldest_pending']:.1f} s old"
        owner = s["owner"] or "none"
        click.echo(f"shard {s['shard']}: {s['mode']}, owner {owner}, epoch {s['epoch']}, pending {pending}")
    ended = [r for r in relays if not r["alive"]]
    for r in [r for r in relays if r["alive"]] + ended[:ENDED]:
        life = "alive" if r["alive"] else f"stopped {r['stopped_at']}" if r["stopped_at"] else "silent"
        click.echo(f"relay {r['instance']}: {life}, {r['state'].get('state')}, heartbeat {r['heartbeat']}")
    if len(ended) > ENDED:
        click.echo(f"… and {len(ended) - ENDED} more that ended (--json shows them)")
    for alarm in alarms:
        click.echo(f"ALARM {alarm}")
