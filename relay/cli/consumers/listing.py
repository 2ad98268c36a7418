"""`outbox-relay consumers list`: how far each group is, and why it stands where it stands."""

from typing import Any

import click
from sqlalchemy import text

from outbox.storage import ddl
from relay.cli import options

OFFSETS = """
SELECT grp, topic, partition, next_offset, owner, owner_epoch, parked, updated_at, run_up, moved_at, moved_by,
    moved_why, moved_from, moved_to, retired
FROM consumer_offset WHERE (CAST(:grp AS text) IS NULL OR grp = :grp) ORDER BY grp, topic, partition
"""


@click.command("list", epilog="Example:  outbox-relay consumers list --group billing")
@options.database_url
@click.option("--group", help="Only this group.")
@options.as_json
def list_(database_url: str | None, group: str | None, as_json_: bool) -> None:
    """Each group's partitions: next offset, owner, parked records, the last time it was moved and why."""
    with options.connected(database_url) as connection:
        ddl.check(connection)
        rows = [dict(row._mapping) for row in connection.execute(text(OFFSETS), {"grp": group})]
    if as_json_:
        options.echo_json(rows)
        return
    for row in rows:
        click.echo(
            f"{row['grp']}  {row['topic']}[{row['partition']}]  next offset {row['next_offset']}, "
            f"owner {row['owner'] or 'none'} (epoch {row['owner_epoch']}){_more(row)}"
        )
    if not rows:
        click.echo("no group has read anything yet")


def _more(row: dict[str, Any]) -> str:
    said = f", {row['parked']} parked" if row["parked"] else ""
    if row["run_up"] is not None:
        said += ", rebuilding its marks"
    if row["retired"] is not None:
        said += f", retired: {row['retired']}"
    if row["moved_from"] is not None:
        said += (
            f"; moved from {row['moved_from']} to {row['moved_to']} at {row['moved_at']:%Y-%m-%d %H:%M:%S} "
            f"by {row['moved_by']}: {row['moved_why']}"
        )
    return said
