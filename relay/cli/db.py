"""`outbox-relay db`: install, check and print the schema; give roles their rights."""

import sys
from collections.abc import Sequence
from typing import Any

import click
import psycopg
from sqlalchemy import Connection, text
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_fixed

from outbox.errors import SchemaError
from outbox.storage import ddl
from outbox.storage.roles import Roles, statements
from relay.cli import options

NOT_GRANTED = "01007"

LOCK_TIMEOUT = 3
"""Seconds that a statement of the upgrade waits for a lock: so long everybody behind it waits too."""

PAUSE = 5
PATIENCE = 45
"""Seconds between attempts, and after which none is begun."""

_HELD = "a long transaction or pg_dump holds a table of the outbox"


@click.group()
def db() -> None:
    """Install and check the outbox schema."""


@db.command(epilog="Example:  outbox-relay db upgrade --database-url postgresql://owner@db/shop")
@options.database_url
@options.as_json
def upgrade(database_url: str | None, as_json_: bool) -> None:
    """Bring the schema to the version of this program. Repeatable.

    Run it as the role that shall own the tables: neither the application's nor the relay's.
    """
    for attempt in Retrying(
        retry=retry_if_exception(_locked),
        wait=wait_fixed(PAUSE),
        stop=stop_after_delay(PATIENCE),
        before_sleep=_say_locked,
        retry_error_callback=_give_up,
    ):
        with attempt, options.connected(database_url) as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'"))
            before = ddl.apply(connection)
            ddl.check(connection)
            warnings = ddl.warnings(connection)
    _warn(warnings)
    if as_json_:
        options.echo_json({"before": before, "version": ddl.LATEST})
    else:
        click.echo(f"outbox schema: version {ddl.LATEST} (was {before})")


@db.command(epilog="Example:  outbox-relay db check --json")
@options.database_url
@options.as_json
def check(database_url: str | None, as_json_: bool) -> None:
    """Compare the schema with what this program needs. Exit 1 when it does not fit."""
    with options.connected(database_url) as connection:
        problems = ddl.problems(connection)
        warnings = ddl.warnings(connection)
    if as_json_:
        options.echo_json({"version": ddl.LATEST, "problems": problems, "warnings": warnings})
    else:
        _warn(warnings)
        for problem in problems:
            click.echo(problem)
        if not problems:
            click.echo(f"outbox schema: version {ddl.LATEST}, nothing to mend")
    sys.exit(1 if problems else 0)


@db.command(epilog="Example:  outbox-relay db sql > outbox.sql")
def sql() -> None:
    """Print the SQL of `db upgrade` for an empty database."""
    for statement in ddl.statements(frm=0, to=ddl.LATEST):
        click.echo(f"{statement};\n")


@db.command(
    short_help="Give each role exactly the rights and settings it needs.",
    epilog="Example:  outbox-relay db roles --application shop --relay outbox_relay --create --yes",
)
@options.database_url
@click.option("--application", multiple=True, help="Role that records events.")
@click.option("--relay", multiple=True, help="Role of outbox-relay.")
@click.option(
    "--consumer", multiple=True, help="Role that consumes (name it as --application too if it emits)."
)
@click.option("--reader", multiple=True, help="Role that may look at everything.")
@click.option("--operator", multiple=True, help="Role that releases, discards, edits and replays.")
@click.option(
    "--wait-for-standby",
    "standbys",
    is_flag=True,
    help="Let the relay see how far standbys have flushed. To be run as a superuser or a member of "
    "pg_read_all_stats.",
)
@click.option("--create", is_flag=True, help="Create roles that do not exist (LOGIN, without password).")
@click.option("--yes", is_flag=True, help="Run the statements instead of printing them.")
def roles(database_url: str | None, create: bool, yes: bool, **names: Any) -> None:
    """Give each role exactly the rights and session settings it needs; without --yes only print the SQL."""
    sql = statements(Roles(**names), create=create)
    if not sql:
        raise click.UsageError(
            "name at least one role: --application, --relay, --consumer, --reader or --operator"
        )
    if not yes:
        for statement in sql:
            click.echo(f"{statement};")
        return
    with options.connected(database_url) as connection:
        _grant(connection, sql)
    click.echo(f"{len(sql)} statements done")


def _locked(error: BaseException) -> bool:
    return isinstance(
        getattr(error.__cause__, "orig", None),
        (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected),
    )


def _say_locked(_state: RetryCallState) -> None:
    click.echo(f"{_HELD}; nothing was changed, trying again in {PAUSE} s", err=True)


def _give_up(state: RetryCallState) -> None:
    assert state.outcome is not None
    raise SchemaError(
        f"{_HELD}, and nothing was changed; let it end (pg_stat_activity shows it), then run again"
    ) from state.outcome.exception()


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def _grant(connection: Connection, sql: Sequence[str]) -> None:
    """PostgreSQL only warns of a GRANT that the role may not give; here it is an error, and undoes all."""
    refused: list[str] = []

    def notice(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.sqlstate == NOT_GRANTED:
            refused.append(diagnostic.message_primary or "a privilege was not granted")

    session = connection.connection.driver_connection
    assert isinstance(session, psycopg.Connection)
    session.add_notice_handler(notice)
    connection.execute(text("SET LOCAL client_min_messages = warning"))
    for statement in sql:
        connection.execute(text(statement.replace(":", "\\:")))
    if refused:
        raise SchemaError(
            f"nothing was changed: {refused[0]}; run `outbox-relay db` as the role that owns the tables"
        )
