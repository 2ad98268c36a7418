"""`outbox-relay consumers accept`: go on in a topic that is not the one the offsets were stored for."""

from dataclasses import asdict
from pathlib import Path

import click

from outbox.consumer.place import accept as accepting
from outbox.consumer.place.seek import parse
from relay.cli import options
from relay.cli.consumers import reach


@click.command(
    short_help="Go on in a topic that was made again or grew.",
    epilog="Example:  outbox-relay consumers accept --group billing --topic orders --yes",
)
@reach.where
@click.option("--group", required=True, help="The group that stopped.")
@click.option("--topic", required=True, help="The topic that is not what it was.")
@click.option(
    "--to",
    default="beginning",
    show_default=True,
    metavar="PLACE",
    help="Where partitions begin whose offset meant another topic: beginning, end, or a time with its zone.",
)
@reach.deed
def accept(
    config: Path | None,
    database_url: str | None,
    kafka_bootstrap_servers: str | None,
    group: str,
    topic: str,
    to: str,
    dry_run: bool,
    yes: bool,
    as_json_: bool,
) -> None:
    """Let a group read the topic that is there now: made again, in another cluster, or with more partitions.

    What was applied is dropped if its relay sends it again, unless the number of partitions is another: then
    keys moved, and all of the new topic is applied. Parked records keep waiting. Partitions that were added
    are read from their beginning; accept them once the group has read the old ones to the end, or order
    within a key is not kept.
    """
    url, access = reach.access(group, config, database_url, kafka_bootstrap_servers)
    goal, done = parse(to), yes and not dry_run
    with reach.database(url) as database:
        accepted = accepting.accept(database, access, group=group, topic=topic, to=goal, dry_run=not done)
    if as_json_:
        options.echo_json({"done": done, "partitions": [asdict(each) for each in accepted]})
        return
    for each in accepted:
        place = f"stays at {each.origin}" if each.to is None else f"{each.origin} -> {each.to}"
        click.echo(f"{each.topic}[{each.partition}]: {place} ({each.why})")
    if not done:
        click.echo("nothing was changed, add --yes")
