"""Connections of the relay: autocommit, named, with the settings that keep its plans on their indexes."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg
from psycopg import conninfo
from psycopg.rows import TupleRow

from outbox.errors import ConfigurationError, SchemaError
from outbox.storage import roles

log = logging.getLogger("relay")

T = TypeVar("T")

ANSWER_WITHIN = 65.0
"""Seconds for one statement's answer: the server itself ends a statement after 60 (`statement_timeout`). What
holds the line open and says nothing, a hung proxy or a frozen server, must not hold a thread for ever."""

SERVER = "(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint"
"""Which server answers: a pooler may lead one connection to several, and its own identity says nothing."""

DRIVER_PREFIXES = ("postgresql+psycopg://", "postgres://")


class Connection(psycopg.Connection[TupleRow]):
    """A connection whose every answer comes within a bound, and that remembers a warning of class 01000.

    With that warning COMMIT "succeeds" although its wait for the synchronous standby was cancelled.
    """

    warned: str | None = None
    answer_within = ANSWER_WITHIN

    def remember(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.sqlstate == "01000":
            self.warned = diagnostic.message_primary or "warning 01000"

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """psycopg's own wait for the server, which comes back every 0.1 s, ended after `answer_within`."""
        return super().wait(_until(gen, time.monotonic() + self.answer_within), *args, **kwargs)

    @property
    def pooled(self) -> bool:
        """Is there a pooler in between? It gives out process numbers of its own, for cancelling."""
        return self.execute("SELECT pg_backend_pid()").fetchone() != (self.info.backend_pid,)


def _until(gen: Generator[Any, Any, T], end: float) -> Generator[Any, Any, T]:
    """`gen`, which yields what it waits for, until `end` of the monotonic clock passes in silence."""
    try:
        waiting_for = next(gen)
        while True:
            ready = yield waiting_for
            if not ready and time.monotonic() > end:
                raise psycopg.OperationalError("no answer in time, although the connection stands")
            waiting_for = gen.send(ready)
    except StopIteration as ended:
        result: T = ended.value
        return result


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

    `url`: libpq or SQLAlchemy form. `prepared`: whether statements are prepared; None: on a direct
    connection, and not behind a pooler, which may not be able to hold them (PgBouncer before 1.21).
    """

    url: str
    prepared: bool | None = None

    def connect(self, purpose: str, *, answer_within: float = ANSWER_WITHIN) -> Connection:
        """A new autocommit connection, seen as `outbox-relay <purpose>` in pg_stat_activity.

        `answer_within`: seconds after which a statement without an answer fails.

        Raises psycopg.OperationalError when the server cannot be reached (worth another attempt) and
        SchemaError or ConfigurationError when another attempt cannot help.
        """
        connection = open_plain(
            self.url,
            autocommit=True,
            application_name=f"outbox-relay {purpose}",
            prepare_threshold=None,
        )
        try:
            connection.add_notice_handler(connection.remember)
            connection.answer_within = answer_within
            pooled = connection.pooled
            _settle(connection, pooled=pooled)
            if self.prepared or (self.prepared is None and not pooled):
                connection.prepare_threshold = 5
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


def name(url: str) -> str:
    """The database that `url` names."""
    return str(_parts(url).get("dbname", ""))


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


@contextlib.contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Several statements of `execute` as one; any failure undoes all, or raises OutcomeUnknown at COMMIT."""
    try:
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            yield
    except psycopg.Error as error:
        raise failed(error) from error
    if connection.warned is not None:
        raise OutcomeUnknown(connection.warned)


_LACKING = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InsufficientPrivilege,
)

_UNPREPARED = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)


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
    if isinstance(error, _UNPREPARED):
        said += "; the pooler cannot hold prepared statements: leave OUTBOX_PREPARED_STATEMENTS unset"
    elif "query_wait_timeout" in said:
        said += ": the pooler had no connection to the server to give; raise its default_pool_size"
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


_said: set[str] = set()
"""Roles whose missing settings were told."""


def _settle(connection: Connection, *, pooled: bool) -> None:
    """Make sure of the settings that `db roles` binds to the relay's role; set what is missing here.

    Not behind a pooler: it would leak such a SET to another client and forget it for us, so there only the
    role can carry them. Time-outs that somebody chose stay; warnings must arrive, for one of them says that a
    commit is not replicated.
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
    missing = {
        name: value
        for name, value in wanted.items()
        if found[name] != value and not (name.endswith("_timeout") and found[name] != "0")
    }
    if not pooled:
        for name, value in missing.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        return
    role = connection.info.user
    if missing and role not in _said:
        _said.add(role)
        log.warning(
            "role %s lacks %s behind a pooler, which cannot keep a session's own settings; run "
            "`outbox-relay db roles --relay %s --yes` and let the pooler reconnect",
            *(role, ", ".join(sorted(missing)), role),
        )
