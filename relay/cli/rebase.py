"""`outbox-relay rebase`: let a copy of the database take the original's place."""

from datetime import datetime
from typing import Any

import click
import psycopg

from outbox.errors import ConfigurationError
from relay.cli import options
from relay.database import OutcomeUnknown

EXPLAINED = {
    "same": "this is the database whose events were numbered",
    "moved": "the data directory came along (pg_upgrade): ids and numbers stay",
    "copied": "the rows were restored or copied: their transaction ids belong to another server",
    "unclear": "how the rows came here cannot be told",
}


def _time(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or value == "infinity":
        return value
    try:
        return datetime.fromisoformat(value).astimezone().isoformat()
    except ValueError:
        raise click.BadParameter(f"{value} is no ISO 8601 time such as 2031-04-01T12:00:00+02:00") from None


@click.command(
    short_help="Let a copy of the database take the original's place.",
    epilog="Example:  outbox-relay rebase --database-url postgresql://owner@new/shop --dry-run",
)
@options.database_url
@click.option(
    "--identity-only",
    is_flag=True,
    help="Ids and numbers came along, only their place is new: after pg_upgrade, or a restored volume "
    "snapshot. Each shard then numbers under a new source.",
)
@click.option(
    "--pending-since",
    metavar="TIME",
    callback=_time,
    help="When services began to write here (ISO 8601; infinity: not yet). Asked for only where a row "
    "written in a savepoint cannot be told from a restored one.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done; nothing is locked or changed.")
@click.option("--yes", is_flag=True, help="Do it.")
@options.as_json
def rebase(
    database_url: str | None,
    identity_only: bool,
    pending_since: str | None,
    dry_run: bool,
    yes: bool,
    as_json_: bool,
) -> None:
    """Number what is pending anew after a restore, a logical copy, blue/green or pg_upgrade.

    Run it as the role that owns the tables, after all relays of this database were stopped and before
    services write. One transaction: interrupted anywhere, nothing happened, and it can be run again. What was
    published is not sent again and what is pending is sent in its order, exactly once if the old relay was
    drained and its writers stopped before the copy was taken; what the old side published after the copy goes
    out again.
    """
    from relay.disaster.rebase import Rebase

    if yes and dry_run:
        raise click.UsageError("--dry-run and --yes exclude each other")
    work = Rebase(options.url_of(database_url), identity_only=identity_only, pending_since=pending_since)
    try:
        done = work.run() if yes else work.survey()
    except (OutcomeUnknown, psycopg.OperationalError) as error:
        raise ConfigurationError(f"{error}; run it again: what is done already is not done twice") from error
    document: dict[str, Any] = {
        "changed": done.changed,
        "kind": done.kind,
        "identity": {"system_identifier": done.here[0], "database_oid": done.here[1]},
        "was": {"system_identifier": done.before[0], "database_oid": done.before[1]},
        "pending": done.pending,
        "written_here": done.written_here,
        "kept": done.kept,
        "source": done.source,
    }
    if as_json_:
        options.echo_json(document)
        return
    click.echo(EXPLAINED[done.kind])
    if done.kind == "same" and not identity_only:
        click.echo("nothing to do")
        return
    if not identity_only:
        verb = "go" if done.changed else "would go"
        click.echo(
            f"{done.pending} pending events {verb} out under new numbers ({done.written_here} of them "
            f"written here), {done.kept} published ones stay readable"
        )
    click.echo("done; start the relay" if done.changed else "nothing was changed; run it again with --yes")
