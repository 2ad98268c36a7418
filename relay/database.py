"""Connections of the relay: autocommit, named, with the settings that keep its plans on their indexes."""

import contextlib
import logging
import os
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import conninfo
from psycopg.rows import TupleRow

from outbox.errors import ConfigurationError, SchemaError
from outbox.storage import roles

log = logging.getLogger("relay")

DRIVER_PREFIXES = ("postgresql+psycopg://", "postgres://")


class Connection(psycopg.Connection[TupleRow]):
    """A connection that remembers the server's last warning of class 01000.

    With it COMMIT "succeeds" although its wait for the synchronous standby was cancelled.
    """

    warned: str | None = None

    def remember(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.sqlstate == "01000":
            self.warned = diagnostic.message_primary or "warning 01000"


REFUSED_FOR_GOOD: dict[type[psycopg.Error], str] = {
    psycopg.errors.InvalidPassword: "check user and password in OUTBOX_DATABASE_URL",
    psycopg.errors.InvalidAuthorizationSpecification: "check the user in OUTBOX_DATABASE_URL and pg_hba.conf",
    psycopg.errors.InvalidCatalogName: "create the database or correct its name in OUTBOX_DATABASE_URL",
}


class OutcomeUnknown(Exception):
    """A statement may or may not have taken effect: only the row itself can tell."""


@dataclass(frozen=True, slots=True)
class Database:
    """Where the outbox lives and how to reach it.

    `url`: libpq or SQLAlchemy form. `prepared`: False behind a transaction pooler that cannot hold
    prepared statements (PgBouncer before 1.21).
    """

    url: str
    prepared: bool = True

    def connect(self, purpose: str) -> Connection:
        """A new autocommit connection, seen as `outbox-relay <purpose>` in pg_stat_activity.

        Raises psycopg.OperationalError when the server cannot be reached (worth another attempt) and
        SchemaError or ConfigurationError when another attempt cannot help.
        """
        connection = open_plain(
            self.url,
            autocommit=True,
            application_name=f"outbox-relay {purpose}",
            prepare_threshold=5 if self.prepared else None,
        )
        try:
            connection.add_notice_handler(connection.remember)
            _settle(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def __str__(self) -> str:
        return describe(self.url)


def open_plain(url: str, **options: Any) -> Connection:
    """A connection that gives up within seconds; raises what `Database.connect` raises.

    Texts arrive as UTF-8 whatever the database's encoding, for they go to the broker as they are. Of several
    hosts in `url` the one that can be written to is taken.
    """
    parts = _parts(url)
    if "," in str(parts.get("host") or ""):
        options["target_session_attrs"] = parts.get("target_session_attrs") or "read-write"
    try:
        return Connection.connect(
            plain_url(url),
            client_encoding="UTF8",
            connect_timeout=5,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=20_000,
            **options,
        )
    except psycopg.OperationalError as error:
        raise _explained(error, url) from error


def break_off(connection: Connection) -> None:
    """From another thread: whoever waits for an answer on `connection` gets an error instead.

    A frozen server answers neither the statement nor a request to cancel it.
    """
    with (
        contextlib.suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(connection.fileno())) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


def plain_url(url: str) -> str:
    """`url` without SQLAlchemy's driver suffix, as libpq reads it."""
    for prefix in DRIVER_PREFIXES:
        if url.startswith(prefix):
            return "postgresql://" + url.removeprefix(prefix)
    return url


def describe(url: str) -> str:
    """Host, port and database of `url`, never its password."""
    parts = _parts(url)
    return f"{parts.get('host', 'local socket')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def _parts(url: str) -> dict[str, Any]:
    try:
        return dict(conninfo.conninfo_to_dict(plain_url(url)))
    except psycopg.Error as error:
        raise ConfigurationError(_malformed(url)) from error


def _malformed(url: str) -> str:
    """What is wrong with `url`, as far as it can be said without showing a part of it that may be secret."""
    scheme = urlsplit(url).scheme if "://" in url else ""
    if not scheme:
        fault = "has no scheme"
    elif scheme not in {"postgresql", "postgres", "postgresql+psycopg"}:
        fault = f"has scheme {scheme}"
    else:
        fault = "is malformed, or has a parameter that libpq does not know"
    return f"the database URL {fault}; it should look like postgresql://user:password@host:5432/database"


def execute(
    connection: Connection, query: str, parameters: dict[str, Any] | None = None
) -> psycopg.Cursor[TupleRow]:
    """Run one statement on its own; any failure that leaves its outcome open raises OutcomeUnknown."""
    connection.warned = None
    try:
        cursor = connection.execute(
            query.encode(), parameters, prepare=connection.prepare_threshold is not None
        )
    except psycopg.Error as error:
        raise failed(error) from error
    if connection.warned is not None:
        raise OutcomeUnknown(connection.warned)
    return cursor


_LACKING = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InsufficientPrivilege,
)


def failed(error: psycopg.Error) -> OutcomeUnknown | SchemaError:
    """What a failed statement means: the schema does not fit, or its outcome is open."""
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "row-level security" in said:
        return SchemaError(f"{said}; run: ALTER TABLE outbox_event DISABLE ROW LEVEL SECURITY")
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return SchemaError(f"{said}; grant the relay's rights with: outbox-relay db roles --relay <role>")
    if isinstance(error, psycopg.errors.UndefinedTable):
        return SchemaError(
            f"{said}; see what is missing with outbox-relay db check, install it with outbox-relay db upgrade"
        )
    if isinstance(error, _LACKING):
        return SchemaError(f"{said}; compare the schema with: outbox-relay db check")
    return OutcomeUnknown(said)


def _explained(error: psycopg.OperationalError, url: str) -> Exception:
    database = describe(url)
    said = str(error).strip().splitlines()[-1]
    for kind, remedy in REFUSED_FOR_GOOD.items():
        if isinstance(error, kind):
            return ConfigurationError(f"{database}: {said}; {remedy}")
    # libpq reports refusals during start-up without an SQLSTATE.
    if "password authentication failed" in said or "no password supplied" in said:
        return ConfigurationError(f"{database}: {said}; check user and password in OUTBOX_DATABASE_URL")
    if "does not exist" in said and ("database" in said or "role" in said):
        return ConfigurationError(f"{database}: {said}; create it or correct OUTBOX_DATABASE_URL")
    return error


SETTINGS = "SELECT name, setting FROM pg_settings WHERE name = ANY(%(names)s)"


def _settle(connection: Connection) -> None:
    """Make sure of the settings that `db roles` binds to the relay's role; set what is missing here.

    A pooler may leak such a SET to another client, which is why the role should carry them. Time-outs that
    somebody chose stay; warnings must arrive, for one of them says that a commit is not replicated.
    """
    if connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
        raise OutcomeUnknown(
            "this server is a standby, where running transactions look ended; waiting for the primary"
        )
    names = [*roles.RELAY_SETTINGS, "client_min_messages"]
    found: dict[str, str] = dict(connection.execute(SETTINGS, {"names": names}).fetchall())
    wanted = dict(roles.RELAY_SETTINGS)
    if found["client_min_messages"] == "error":
        wanted["client_min_messages"] = "warning"
    for name, value in wanted.items():
        chosen = name.endswith("_timeout") and found[name] != "0"
        if found[name] != value and not chosen:
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
