"""`outbox-relay consumers switch`: let a group that built a new version take the place of the old one."""

from datetime import timedelta
from pathlib import Path

import click
import psycopg
from sqlalchemy import Connection

from outbox.consumer.place import switch as switching
from outbox.errors import ConfigurationError, SchemaError
from relay.cli import options
from relay.cli.consumers import reach


@click.command(
    short_help="Let a new version's group take the place of the old one.",
    epilog="Example:  outbox-relay consumers switch --from billing --to billing-v2 --sql swap.sql --yes",
)
@options.database_url
@options.as_json
@click.option("--from", "old", required=True, help="The group that is retired.")
@click.option("--to", "new", required=True, help="The group that has built the new version.")
@click.option(
    "--sql",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File of statements that lead readers to the new tables, run in the same transaction.",
)
@click.option(
    "--catch-up",
    type=float,
    default=switching.CATCH_UP.total_seconds(),
    show_default=True,
    help="Seconds that the old group is held while the new one comes up to it.",
)
@reach.deed
def switch(
    database_url: str | None,
    as_json_: bool,
    old: str,
    new: str,
    sql: Path,
    catch_up: float,
    dry_run: bool,
    yes: bool,
) -> None:
    """Retire a group once another has applied all that it has, and lead readers over, in one transaction.

    Run it as the role that owns the views or tables that the file changes. Nothing is changed while the new
    group is behind on any partition, rebuilds its marks, or has parked records.
    """
    done = yes and not dry_run
    try:
        statements = sql.read_text()
    except OSError as error:
        raise ConfigurationError(f"{sql} cannot be read: {error}") from None

    def swap(connection: Connection) -> None:
        plain = connection.connection.driver_connection
        assert plain is not None
        try:
            plain.execute(statements)
        except psycopg.Error as error:
            raise SchemaError(f"{sql}: {str(error).splitlines()[0]}; nothing was changed") from error

    with reach.database(database_url) as database:
        switched = switching.switch(
            database, old=old, new=new, swap=swap, catch_up=timedelta(seconds=catch_up), dry_run=not done
        )
    if as_json_:
        options.echo_json({"done": done, "partitions": switched.partitions})
        return
    for topic, partition, before, after in switched.partitions:
        click.echo(f"{topic}[{partition}]: {old} at {before}, {new} at {after}")
    click.echo(f"{old} is retired, {new} has its place" if done else "nothing was changed, add --yes")
