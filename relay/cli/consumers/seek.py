"""`outbox-relay consumers seek`: let a group read again from a place, or go on further ahead."""

from dataclasses import asdict
from pathlib import Path

import click

from outbox.consumer.place import seek as seeking
from relay.cli import options
from relay.cli.consumers import reach


@click.command(
    short_help="Read again from a place, or go on further ahead.",
    epilog="Example:  outbox-relay consumers seek --group billing --topic orders --to "
    "2026-05-01T00:00Z --yes",
)
@reach.where
@click.option("--group", required=True, help="The group to move.")
@click.option("--topic", required=True, help="The topic it is moved in.")
@click.option("--partition", type=int, help="Only this partition; needed with an offset.")
@click.option(
    "--to",
    required=True,
    metavar="PLACE",
    help="beginning, end, an offset, a time with its zone, or event:ID.",
)
@reach.deed
def seek(
    config: Path | None,
    database_url: str | None,
    kafka_bootstrap_servers: str | None,
    group: str,
    topic: str,
    partition: int | None,
    to: str,
    dry_run: bool,
    yes: bool,
    as_json_: bool,
) -> None:
    """Move a group's offsets, whether it runs or not, so that everything from there is applied once more.

    Members notice within a second. What their handlers stored of it before stays: see `consumers rebuild`.
    Parked records from there on come again; what was discarded stays so. Before the first record, an hour of
    those before it is read without handlers, so that old repeats are known for what they are.
    """
    url, access = reach.access(group, config, database_url, kafka_bootstrap_servers)
    goal = seeking.parse(to)
    with reach.database(url) as database:
        moved = seeking.seek(
            database,
            access,
            group=group,
            topic=topic,
            to=goal,
            partition=partition,
            dry_run=dry_run or not yes,
        )
    done = yes and not dry_run
    if as_json_:
        options.echo_json({"done": done, "moved": [asdict(each) for each in moved]})
        return
    for each in moved:
        begun = "never read" if each.origin is None else f"offset {each.origin}"
        again = f", {each.forgotten} parked records come again" if each.forgotten else ""
        click.echo(f"{each.topic}[{each.partition}]: {begun} -> {each.to}{again}")
    if not done:
        click.echo("nothing was changed, add --yes")
    elif any(each.owner for each in moved):
        click.echo("moved; whoever runs the group reads there within a second or so")
    else:
        click.echo("moved; nobody runs the group now, it begins there")
