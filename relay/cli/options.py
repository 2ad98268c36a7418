"""Options that several commands share, spelled once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from outbox.errors import ConfigurationError
from relay import database

if TYPE_CHECKING:
    from sqlalchemy import Engine

F = TypeVar("F", bound=Callable[..., Any])


def as_json(command: F) -> F:
    """`--json`: one JSON document on stdout and nothing else."""
    return click.option(
        "--json", "as_json_", is_flag=True, help="One JSON document on stdout, nothing else."
    )(command)


def config_file(command: F) -> F:
    return click.option(
        "--config",
        "config",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Settings file (TOML).  [default: outbox-relay.toml, when it is there]",
    )(command)


def database_url(command: F) -> F:
    return click.option(
        "--database-url",
        envvar="OUTBOX_DATABASE_URL",
        help="PostgreSQL that holds the outbox.  [env: OUTBOX_DATABASE_URL]",
    )(command)


def engine(url: str | None) -> "Engine":
    """For commands that are no daemon. Raises ConfigurationError for a missing or malformed URL."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    if not url:
        raise ConfigurationError("no database; set OUTBOX_DATABASE_URL or pass --database-url")
    database.describe(url)
    plain = database.plain_url(url)
    return create_engine(
        "postgresql+psycopg://", creator=lambda: database.open_plain(plain), poolclass=NullPool
    )


def echo_json(document: Any) -> None:
    click.echo(json.dumps(document, default=str))
