"""Options that several commands share, spelled once."""

import json
import os
import re
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

TIME = click.DateTime(["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M%z", "%Y-%m-%d %H:%M:%S%z"])
"""A moment with its zone."""


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
def connected(url: str | None, *, answer_within: float = database.ANSWER_WITHIN) -> "Iterator[Connection]":
    """One transaction for commands that are no daemon and wait for nothing. Raises as `engine` does."""
    with engine(url, answer_within=answer_within) as made, made.begin() as connection:
        yield connection


@contextmanager
def engine(url: str | None, *, answer_within: float = database.ANSWER_WITHIN) -> "Iterator[Engine]":
    """For commands that begin their transactions themselves.

    `answer_within`: seconds after which a statement without an answer fails.

    Raises ConfigurationError for a missing or malformed URL and an unreachable server, SchemaError for what
    the server refuses.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    made = create_engine(
        "postgresql+psycopg://",
        creator=partial(_open, url_of(url), answer_within),
        poolclass=NullPool,
        # Whatever the server's default: a statement that waited has to see what it waited for.
        isolation_level="READ COMMITTED",
    )
    try:
        yield made
    except DBAPIError as error:
        said = str(error.orig).strip().splitlines()[0]
        raise SchemaError(f"the database refuses: {said}; {_remedy(error.orig)}") from error


def url_of(given: str | None, file: Path | None = None) -> str:
    """The database's URL from argument or environment, else from the file. Raises ConfigurationError."""
    url = given or _in_file(file or FILE, required=file is not None).get("database_url")
    if not isinstance(url, str) or not url:
        raise ConfigurationError(
            f"no database; set OUTBOX_DATABASE_URL, pass --database-url or write database_url into {FILE}"
        )
    return url


def urls_of(given: str | None, file: Path | None) -> dict[str, str]:
    """The URL of each database by its section's name, as the relay that is started here would take them; a
    single one by the name "". Raises ConfigurationError."""
    if given:
        return {"": given}
    found = {
        name: section["url"]
        for name, section in _in_file(file or FILE, required=file is not None).get("databases", {}).items()
        if isinstance(section, dict) and isinstance(section.get("url"), str)
    }
    found |= {
        named[1].lower(): url
        for variable, url in os.environ.items()
        if (named := _SECTION.fullmatch(variable)) is not None
    }
    return found or {"": url_of(None, file)}


_SECTION = re.compile(r"OUTBOX_DATABASES__(.+)__URL", re.IGNORECASE)


def _in_file(file: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError:
        if not required:
            return {}
        raise ConfigurationError(f"there is no configuration file {file}") from None
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"configuration file {file} cannot be read: {error}") from None


def _open(url: str, answer_within: float) -> psycopg.Connection[Any]:
    where = database.describe(url)
    try:
        connection = database.open_plain(url)
    except psycopg.OperationalError as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigurationError(
            f"database {where}: {said}; start it or correct OUTBOX_DATABASE_URL"
        ) from error
    connection.answer_within = answer_within
    return connection


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
