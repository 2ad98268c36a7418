"""`outbox-relay scheduled`: see the events that wait for their moment, and take one back."""

import sys
from typing import Any
from uuid import UUID

import click
from sqlalchemy import Connection, text

from outbox.storage import ddl
from relay.cli import options

LIST = """
SELECT id, due, due <= clock_timestamp() AS is_due, type, aggregatetype, aggregateid AS key,
       coalesce(topic, 'outbox.event.' || aggregatetype) AS topic, scheduled_at
FROM outbox_scheduled
WHERE CAST(:key AS text) IS NULL OR aggregateid = CAST(:key AS text)
ORDER BY due, seq LIMIT :limit
"""
"""The earliest first. Index (due, seq); with a key it reads on until `limit` of it are found."""

COUNT = "SELECT count(*) FROM (SELECT FROM outbox_scheduled LIMIT 100001) counted"

ONE = """
SELECT id, due, type, aggregateid AS key, coalesce(topic, 'outbox.event.' || aggregatetype) AS topic
FROM outbox_scheduled WHERE id = :id
"""

CANCEL = "SELECT outbox_cancel(:id)"


@click.group(short_help="See and cancel events that wait for their moment.")
def scheduled() -> None:
    """See and cancel events that wait for their moment (emit with `deliver_at`)."""


@scheduled.command(
    "list",
    short_help="What waits, the earliest first.",
    epilog="Example:  outbox-relay scheduled list --limit 20 --json",
)
@options.database_url
@options.as_json
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most.")
@click.option("--key", help="Only those of this aggregate.")
def list_(database_url: str | None, as_json_: bool, limit: int, key: str | None) -> None:
    """List what waits, the earliest first. Needs the rights of a reader."""
    with options.connected(database_url) as connection:
        ddl.check(connection)
        found = [dict(row._mapping) for row in connection.execute(text(LIST), {"limit": limit, "key": key})]
        count = connection.scalar(text(COUNT))
    if as_json_:
        options.echo_json({"scheduled": found, "count": count})
        return
    for event in found:
        late = "  DUE" if event["is_due"] else ""
        click.echo(f"{event['due']}  {event['id']}  {event['type']}  {event['topic']}  {event['key']}{late}")
    click.echo("nothing is scheduled" if not count else _counted(count))


@scheduled.command(
    short_help="Take events back before they are published.",
    epilog="Example:  outbox-relay scheduled cancel 0197f6a4-7c00-7000-8000-000000000001 --yes",
)
@click.argument("ids", type=click.UUID, nargs=-1, required=True, metavar="ID...")
@options.database_url
@options.as_json
@click.option("--dry-run", is_flag=True, help="Say what would be cancelled; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def cancel(ids: tuple[UUID, ...], database_url: str | None, as_json_: bool, dry_run: bool, yes: bool) -> None:
    """Take events back before they are published, all of them in one transaction.

    Exit 1 when it was too late for one of them (published, cancelled or never scheduled); the others are
    cancelled. Needs the rights of a reader and of the application.
    """
    with options.connected(database_url) as connection:
        ddl.check(connection)
        found = [event for id_ in ids if (event := _one(connection, id_)) is not None]
    if not as_json_:
        for event in found:
            click.echo(f"{event['due']}  {event['id']}  {event['type']}  {event['topic']}  {event['key']}")
    if found and not (dry_run or yes):
        _ask(len(found))
    gone = {event["id"] for event in found}
    if not dry_run:
        with options.connected(database_url) as connection:
            gone = {id_ for id_ in gone if connection.scalar(text(CANCEL), {"id": id_})}
    late = [id_ for id_ in ids if id_ not in gone]
    if as_json_:
        options.echo_json(
            {"cancelled": [id_ for id_ in ids if id_ in gone], "too_late": late, "dry_run": dry_run}
        )
    else:
        for id_ in late:
            click.echo(f"{id_}: too late, or never scheduled")
        click.echo(f"{len(gone)} {'would be cancelled' if dry_run else 'cancelled'}")
    sys.exit(1 if late else 0)


def _one(connection: Connection, id_: UUID) -> dict[str, Any] | None:
    row = connection.execute(text(ONE), {"id": id_}).first()
    return None if row is None else dict(row._mapping)


def _ask(count: int) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("pass --yes to cancel without being asked, or --dry-run to only look")
    click.confirm(f"Cancel {count}?", abort=True, err=True)


def _counted(count: int) -> str:
    return "more than 100,000 are scheduled" if count > 100_000 else f"{count:,} scheduled in all"
