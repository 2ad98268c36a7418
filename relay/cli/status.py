"""`outbox-relay status`: who carries the shards, how far, and what is wrong."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Connection, text

from outbox.errors import OutboxError
from outbox.storage import ddl
from relay.cli import options
from relay.telemetry import backlog

SHARDS = "SELECT shard, mode, source, generation, delta FROM outbox_shard"
"""What the survey of the backlog does not say of each."""

BEHIND = ("epoch", "owner", "lease_held", "pending", "more", "oldest_pending")

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


ANSWER_WITHIN = 15.0
"""Seconds for each answer of a server that takes connections: one that is frozen is said to be."""


@click.command(epilog="Example:  outbox-relay status --json")
@options.config_file
@options.database_url
@options.as_json
def status(config: Path | None, database_url: str | None, as_json_: bool) -> None:
    """Shards, relays and alarms; of every database in the settings, when they name several.

    Exit 1 while there is an alarm: a shard that no relay carries, what a relay waits for or is halted by, an
    old pending or an overdue scheduled event, parked events, which nobody but an operator can send; of
    several databases one that does not answer.
    """
    urls = options.urls_of(database_url, config)
    if "" in urls:
        found = _ask(urls[""])
        alarms = found["alarms"]
        if as_json_:
            options.echo_json(found)
        else:
            _print(found)
    else:
        with ThreadPoolExecutor(len(urls)) as together:
            every = dict(zip(urls, together.map(_ask_one, urls.values()), strict=True))
        alarms = [f"{name}: {alarm}" for name, found in every.items() for alarm in found["alarms"]]
        if as_json_:
            options.echo_json({"databases": every, "alarms": alarms})
        for name, found in () if as_json_ else every.items():
            click.echo(f"[{name}]")
            _print(found)
    raise SystemExit(1 if alarms else 0)


def _ask_one(url: str) -> dict[str, Any]:
    """What `_ask` finds; of a database that cannot be asked that and why."""
    try:
        return _ask(url)
    except OutboxError as error:
        return {"shards": [], "relays": [], "scheduled": 0, "parked": [], "alarms": [str(error)]}


def _ask(url: str) -> dict[str, Any]:
    with options.connected(url, answer_within=ANSWER_WITHIN) as connection:
        ddl.check(connection)
        shards = _shards(connection)
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
    return {"shards": shards, "relays": relays, "scheduled": scheduled, "parked": parked, "alarms": alarms}


def _shards(connection: Connection) -> list[dict[str, Any]]:
    """What each shard's row says and how far it is behind."""
    rows = {row.shard: dict(row._mapping) for row in connection.execute(text(SHARDS))}

    def ask(statement: str, values: dict[str, Any]) -> Sequence[Sequence[Any]]:
        return connection.exec_driver_sql(statement, values).all()

    return [
        rows[found.shard] | {name: getattr(found, name) for name in BEHIND}
        for found in backlog.survey(ask)
        if found.shard in rows
    ]


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


def _print(found: dict[str, Any]) -> None:
    if found["scheduled"]:
        click.echo(f"scheduled: {found['scheduled']:,}")
    for s in found["shards"]:
        pending = f"more than {s['pending']:,}" if s["more"] else f"{s['pending']:,}"
        if s["oldest_pending"] is not None:
            pending += f", the oldest {s['oldest_pending']:.1f} s old"
        owner = s["owner"] or "none"
        click.echo(f"shard {s['shard']}: {s['mode']}, owner {owner}, epoch {s['epoch']}, pending {pending}")
    relays = found["relays"]
    ended = [r for r in relays if not r["alive"]]
    for r in [r for r in relays if r["alive"]] + ended[:ENDED]:
        life = "alive" if r["alive"] else f"stopped {r['stopped_at']}" if r["stopped_at"] else "silent"
        click.echo(f"relay {r['instance']}: {life}, {r['state'].get('state')}, heartbeat {r['heartbeat']}")
    if len(ended) > ENDED:
        click.echo(f"… and {len(ended) - ENDED} more that ended (--json shows them)")
    for alarm in found["alarms"]:
        click.echo(f"ALARM {alarm}")
