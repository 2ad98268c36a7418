"""`outbox-relay consumers parked`: look at what failed for good, and mend it."""

import getpass
from collections.abc import Callable
from typing import Any, TypeVar

import click

from outbox.consumer.parking import wishes
from outbox.consumer.parking.wishes import Place
from outbox.storage import ddl
from relay.cli import options

F = TypeVar("F", bound=Callable[..., Any])

SHORT = 60
"""Characters of a key or error in a list."""


@click.group()
def parked() -> None:
    """Records that failed for good, and what waits behind them."""


@parked.command("list", epilog="Example:  outbox-relay consumers parked list --group billing --all")
@options.database_url
@click.option("--group", help="Only this group.")
@click.option("--topic", help="Only this topic.")
@click.option(
    "--all", "everything", is_flag=True, help="Also what waits behind them, and what was discarded."
)
@click.option("--limit", default=100, show_default=True, help="How many at most.")
@options.as_json
def list_parked(
    database_url: str | None,
    group: str | None,
    topic: str | None,
    everything: bool,
    limit: int,
    as_json_: bool,
) -> None:
    """Failed records, the earliest first. Exit 1 when there are any."""
    with options.connected(database_url) as connection:
        ddl.check(connection)
        rows = wishes.listed(connection, group=group, topic=topic, everything=everything, limit=limit)
        found = [dict(row._mapping) | {"key": _readable(row.key)} for row in rows]
    if as_json_:
        options.echo_json(found)
    for row in () if as_json_ else found:
        wish = f", {row['wish']} asked by {row['wished_by']}" if row["wish"] else ""
        click.echo(
            f"{row['grp']} {row['topic']}[{row['partition']}] offset {row['record_offset']}: {row['state']}, "
            f"key {_short(row['key'])}  {_short(row['error'] or row['reason'])}{wish}"
        )
    raise SystemExit(1 if any(row["state"] == "failed" for row in found) else 0)


def _place(command: F) -> F:
    for option in (
        click.option("--offset", type=int, required=True, help="The record's offset."),
        click.option("--partition", type=int, required=True, help="The record's partition."),
        click.option("--topic", required=True, help="The record's topic."),
        click.option("--group", required=True, help="The group that parked it."),
        options.database_url,
    ):
        command = option(command)
    return command


@parked.command(
    epilog="Example:  outbox-relay consumers parked show --group billing --topic orders --partition 3 "
    "--offset 42"
)
@_place
@options.as_json
def show(database_url: str | None, as_json_: bool, **where: Any) -> None:
    """One parked record: key, headers, value, error and attempts."""
    with options.connected(database_url) as connection:
        row = dict(wishes.shown(connection, Place(**where))._mapping)
    headers = zip(row.pop("header_names"), row.pop("header_values"), strict=True)
    row |= {"key": _readable(row["key"]), "value": _readable(row["value"])}
    row["headers"] = [[name, _readable(value)] for name, value in headers]
    if as_json_:
        options.echo_json(row)
        return
    for name, value in row.items():
        click.echo(f"{name}: {value}")


@parked.command(
    epilog="Example:  outbox-relay consumers parked release --group billing --topic orders --partition 3 "
    "--offset 42 --yes"
)
@options.database_url
@click.option("--group", required=True, help="The group that parked it.")
@click.option("--topic", help="The record's topic; with --all, only of this topic.")
@click.option("--partition", type=int, help="The record's partition.")
@click.option("--offset", type=int, help="The record's offset.")
@click.option("--all", "everything", is_flag=True, help="Every failed record of the group.")
@click.option("--yes", is_flag=True, help="Do it instead of saying what would be done.")
def release(
    database_url: str | None,
    group: str,
    topic: str | None,
    partition: int | None,
    offset: int | None,
    everything: bool,
    yes: bool,
) -> None:
    """Let failed records run again, each before what waits behind it. The partition's owner does it."""
    with options.connected(database_url) as connection:
        if everything:
            rows = wishes.listed(connection, group=group, topic=topic, limit=1_000_000)
            count = wishes.release_all(connection, group=group, topic=topic, who=_who()) if yes else len(rows)
            click.echo(f"{count} records {'will run' if yes else 'would run; add --yes'}")
            return
        if topic is None or partition is None or offset is None:
            raise click.UsageError("name one record (--topic, --partition, --offset), or all with --all")
        place = Place(group=group, topic=topic, partition=partition, offset=offset)
        owner = wishes.shown(connection, place).owner
        if yes:
            wishes.release(connection, place, who=_who())
    click.echo(f"{place} {'will run' if yes else 'would run; add --yes'}, by {owner or 'its next owner'}")


@parked.command(
    short_help="Never run a parked record; it stays stored with the reason.",
    epilog="Example:  outbox-relay consumers parked discard --group billing --topic orders --partition 3 "
    "--offset 42 --reason 'test order' --yes",
)
@_place
@click.option("--reason", required=True, help="Why; stored with the record.")
@click.option("--yes", is_flag=True, help="Do it instead of saying what would be done.")
def discard(database_url: str | None, reason: str, yes: bool, **where: Any) -> None:
    """Never run a parked record; it stays stored with the reason, and what waits behind it goes on."""
    place = Place(**where)
    with options.connected(database_url) as connection:
        wishes.shown(connection, place)
        if yes:
            wishes.discard(connection, place, reason=reason, who=_who())
    click.echo(f"{place} {'will be discarded' if yes else 'would be discarded; add --yes'}")


def _who() -> str:
    return getpass.getuser()


def _readable(value: Any) -> str | None:
    return None if value is None else bytes(value).decode("utf-8", "backslashreplace")


def _short(value: str | None) -> str:
    said = "none" if value is None else value
    return said if len(said) <= SHORT else said[: SHORT - 1] + "…"
