"""Options that several commands share, spelled once."""

import json
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import psycopg

from outbox.errors import ConfigurationError, SchemaError
from relay import database

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

F = TypeVar("F", bound=Callable[..., Any])

FILE = Path("outbox-relay.toml")


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


@contextmanager
def connected(url: str | None) -> "Iterator[Connection]":
    """One transaction for commands that are no daemon and wait for nothing. Raises as `engine` does."""
    with engine(url) as made, made.begin() as connection:
        yield connection


@contextmanager
def engine(url: str | None) -> "Iterator[Engine]":
    """For commands that begin their transactions themselves.

    Raises ConfigurationError for a missing or malformed URL and an unreachable server, SchemaError for what
    the server refuses.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    made = create_engine(
        "postgresql+psycopg://",
        creator=partial(_open, url_of(url)),
        poolclass=NullPool,
        # Whatever the server's default: a statement that waited has to see what it waited for.
        isolation_level="READ COMMITTED",
    )
    try:
        yield made
    except DBAPIError as error:
        said = str(error.orig).strip().splitlines()[0]
        raise SchemaError(f"the database refuses: {said}; {_remedy(error.orig)}") from error


def url_of(given: str | None) -> str:
    """The database's URL from argument or environment, else from the file. Raises ConfigurationError."""
    url = given or _url_in_file()
    if not url:
        raise ConfigurationError(
            f"no database; set OUTBOX_DATABASE_URL, pass --database-url or write database_url into {FILE}"
        )
    return url


def _url_in_file() -> str | None:
    """What the relay that is started here would take, too."""
    try:
        found = tomllib.loads(FILE.read_text()).get("database_url")
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"configuration file {FILE} cannot be read: {error}") from None
    return found if isinstance(found, str) else None


def _open(url: str) -> psycopg.Connection[Any]:
    where = database.describe(url)
    try:
        return database.open_plain(url)
    except psycopg.OperationalError as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigurationError(
            f"database {where}: {said}; start it or correct OUTBOX_DATABASE_URL"
        ) from error


def _remedy(error: BaseException | None) -> str:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return (
            "run `outbox-relay db` as the role that owns the outbox tables; `outbox-relay db roles` prints "
            "what other roles need"
        )
    if isinstance(error, psycopg.errors.UndefinedObject) and "role " in str(error):
        return "create it, or let --create do so"
    return "compare the schema with: outbox-relay db check"


def echo_json(document: Any) -> None:
    click.echo(json.dumps(document, default=str))
