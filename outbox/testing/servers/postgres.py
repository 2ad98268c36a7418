"""A real PostgreSQL of one's own: kill it, start it again, throw it away."""

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from outbox.testing.servers import kernel, postgres_programs, workspace
from outbox.testing.servers.account import unprivileged
from outbox.testing.servers.failure import ServerFailed, ServerUnavailable
from outbox.testing.servers.ports import Port
from outbox.testing.servers.postgres_programs import PostgresPrograms
from outbox.testing.servers.program import Program

Settings = Mapping[str, str | int | float | bool]

SETTINGS: Settings = {
    "fsync": "off",
    "max_connections": 200,
    "max_prepared_transactions": 50,
    "shared_buffers": "64MB",
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "lc_messages": "C",
    "log_line_prefix": "%m [%p] %q%u@%d/%a ",
}
"""For ordinary tests: `fsync=off` survives the death of every process, kill -9 included, as the page cache
stays; only a test that is about the disk itself needs `fsync=on`. Shared memory lies in the data directory
(`mmap`), so that a killed server leaves nothing in /dev/shm."""

SMALL: Settings = {"max_wal_size": "256MB"}
"""For a server in memory: a log that is kept for recovery takes no more of it."""

LEAVING = 0.1
"""Seconds that a session which was closed may take to end."""

ACCESS = """\
local all all trust
host all +outbox_password 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""
"""Members of a role `outbox_password`, which a test may create, must show their password."""


INCLUDE = "include 'outbox.conf'\n"


class PostgresServer:
    """A server with databases for the asking. Closing it removes every trace."""

    url: str
    """The superuser's URL of the database `postgres`."""

    version: str
    """As in "17.2"."""

    def database(self, name: str, *, template: str | None = None) -> str:
        """Create database `name`, a copy of `template` if given; returns its URL."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)
        return self.url_of(name)

    def drop(self, name: str) -> None:
        """Drop database `name`, whoever is connected."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            _let_leave(connection, name)
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def url_of(self, name: str) -> str:
        """The superuser's URL of database `name`."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=f"/{quote(name)}"))

    def start(self) -> None:
        """Start it again after `stop` or `kill`; returns when it takes connections."""
        raise self._not_ours("start")

    def stop(self) -> None:
        """End it in good order; its data stay."""
        raise self._not_ours("stop")

    def kill(self) -> None:
        """End the postmaster and every backend by SIGKILL, as a power cut would."""
        raise self._not_ours("kill")

    def restart(self, settings: Settings | None = None) -> None:
        """Stop and start, with `settings` changed."""
        raise self._not_ours("restart", settings)

    def reload(self, settings: Settings) -> None:
        """Change `settings` while it runs; returns when they hold for new statements."""
        raise self._not_ours("reload", settings)

    def log(self) -> str:
        """What it has logged so far."""
        raise self._not_ours("read the log of")

    def close(self) -> None:
        """Done with it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _not_ours(self, verb: str, settings: Settings | None = None) -> ServerUnavailable:
        change = f" with {dict(settings)}" if settings else ""
        return ServerUnavailable(
            "pg",
            f"cannot {verb} a server that was given by OUTBOX_DATABASE_URL{change}; "
            "unset it to let the test start its own",
        )


class GivenPostgres(PostgresServer):
    """The server behind an address. It is left running."""

    def __init__(self, url: str) -> None:
        self.url = url.replace("postgresql+psycopg://", "postgresql://", 1)
        try:
            with psycopg.connect(self.url, connect_timeout=10) as connection:
                self.version = str(connection.info.server_version // 10000)
        except psycopg.Error as error:
            shown = urlsplit(self.url)
            raise ServerFailed(
                f"OUTBOX_DATABASE_URL names {shown.hostname or 'a local socket'}, which does not answer: "
                f"{str(error).strip()}"
            ) from error


class OwnPostgres(PostgresServer):
    """A server started here: under TCP and a unix socket, or under the socket alone."""

    def __init__(
        self,
        programs: PostgresPrograms,
        settings: Settings,
        *,
        tcp: bool,
        fill: Callable[["OwnPostgres"], None] | None = None,
        memory: bool = False,
    ) -> None:
        """`fill` makes the data directory: initdb, unless it comes from another server."""
        account = unprivileged()
        self._directory = workspace.create("pg", account, memory=memory)
        self._data = self._directory / "data"
        self._port = Port()
        self._settings = {**SETTINGS, **settings}
        self._account = account
        self._programs = programs.usable_by(account, self._directory)
        self.version = programs.version
        self._program = Program(
            f"PostgreSQL {programs.version}",
            [self._programs["postgres"], "-D", str(self._data)],
            log=self._directory / "log",
            farewell=signal.SIGQUIT,  # the fastest that still removes shared memory
            account=account,
            environment=self._programs.environment,
            directory=self._directory,
        )
        number = self._port.number
        host = f"127.0.0.1:{number}" if tcp else ""
        query = "" if tcp else f"?host={quote(str(self._directory), safe='/')}&port={number}"
        self.url = f"postgresql://postgres@{host}/postgres{query}"
        try:
            (fill or initdb)(self)
            self._adapt(tcp=tcp)
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return self._program.pid

    @property
    def data(self) -> Path:
        """Its data directory, which is also `postgresql.conf`'s."""
        return self._data

    @property
    def programs(self) -> PostgresPrograms:
        """The installation that it runs."""
        return self._programs

    def run(self, program: str, *arguments: str) -> str:
        """Run one of its version's programs as its account, in its directory; returns what it said."""
        account = self._account
        done = subprocess.run(
            [self._programs[program], *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
            cwd=self._directory,
            env={**os.environ, **self._programs.environment},
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )
        if done.returncode != 0:
            raise ServerFailed(f"{program} of PostgreSQL {self.version} failed.\n{done.stdout}{done.stderr}")
        return done.stdout

    @property
    def log_file(self) -> Path:
        """What it logs to, in its directory."""
        return self._program.log

    def start(self) -> None:
        self._program.start()
        self._program.wait_until(self._accepts_connections, within=60)

    def stop(self) -> None:
        self._program.stop(by=signal.SIGINT, within=30)

    def kill(self) -> None:
        kernel.kill_family(self._program.pid)
        self._program.kill()

    def restart(self, settings: Settings | None = None) -> None:
        self.stop()
        self._configure(settings or {})
        self.start()

    def reload(self, settings: Settings) -> None:
        self._configure(settings)
        with psycopg.connect(self.url, autocommit=True) as connection:
            loaded = "SELECT pg_conf_load_time()"
            before = connection.execute(loaded).fetchone()
            self._program.send(signal.SIGHUP)
            self._program.wait_until(
                lambda: connection.execute(loaded).fetchone() != before, within=10, what="load its settings"
            )

    def log(self) -> str:
        return self._program.log.read_text(errors="replace")

    def close(self) -> None:
        self._program.stop(within=10)
        kernel.remove_shared_memory(self._shared_memory())
        self._port.release()
        workspace.remove(self._directory)

    def _adapt(self, *, tcp: bool) -> None:
        (self._data / "pg_hba.conf").write_text(ACCESS)
        address = {
            "listen_addresses": "127.0.0.1" if tcp else "",
            "port": self._port.number,
            "unix_socket_directories": str(self._directory),
        }
        self._configure({**address, **self._settings})
        conf = self._data / "postgresql.conf"
        if INCLUDE not in conf.read_text():
            with conf.open("a") as writing:
                writing.write(INCLUDE)

    def _configure(self, changes: Settings) -> None:
        self._settings = {**self._settings, **changes}
        path = self._data / "outbox.conf"
        path.write_text("".join(f"{name} = {_literal(value)}\n" for name, value in self._settings.items()))
        path.chmod(0o644)

    def _accepts_connections(self) -> bool:
        """What pg_ctl waits for: the eighth line of postmaster.pid; a hot standby takes readers."""
        lines = self._postmaster_file()
        state = lines[7].strip() if len(lines) >= 8 else ""
        return state in ("ready", "standby") and lines[0] == str(self._program.pid)

    def _shared_memory(self) -> int | None:
        """The System V segment of a server that could not remove it itself."""
        for line in itertools.islice(self._postmaster_file(), 6, 7):
            return int(line.split()[1])
        return None

    def _postmaster_file(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self._data / "postmaster.pid").read_text().splitlines()
        return []


def _let_leave(connection: psycopg.Connection[TupleRow], name: str) -> None:
    """Until nobody is connected to `name`, or LEAVING is over: DROP itself looks ten times a second only."""
    there = "SELECT FROM pg_stat_activity WHERE datname = %s LIMIT 1"
    until = time.monotonic() + LEAVING
    while connection.execute(there, [name]).fetchone() is not None and time.monotonic() < until:
        time.sleep(0.002)


def initdb(server: OwnPostgres, *options: str) -> None:
    """A new data directory."""
    server.run(
        *("initdb", "-D", str(server.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"),
        *("--no-sync", "--no-instructions", *options),
    )


def start_postgres(
    settings: Settings | None = None, *, embedded: bool = False, own: bool = False, memory: bool = False
) -> PostgresServer:
    """A running PostgreSQL: the one OUTBOX_DATABASE_URL names, else a new one from this machine's programs.

    `settings` (which an address cannot promise), `own` and `embedded` (the wheel's, on a unix socket alone)
    each mean: a new one. With `memory` its files lie in memory where there is room for them: making and
    dropping a database, which is hundreds of files, costs a third of the processor time then. Raises
    ServerUnavailable, with what to install, when the machine has none.
    """
    address = os.environ.get("OUTBOX_DATABASE_URL")
    if address and not (settings or embedded or own):
        return GivenPostgres(address)
    programs = postgres_programs.in_a_wheel() if embedded else postgres_programs.on_this_machine()
    changes = {**SMALL, **(settings or {})} if memory else settings or {}
    return OwnPostgres(programs, changes, tcp=not embedded, memory=memory)


def _literal(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "'" + str(value).replace("'", "''") + "'"
