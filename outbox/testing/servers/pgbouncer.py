"""A real PgBouncer of one's own before a PostgreSQL: kill it, exhaust it, switch it to another server."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit

import psycopg

from outbox.testing.servers import workspace
from outbox.testing.servers.account import unprivileged
from outbox.testing.servers.failure import ServerFailed, ServerUnavailable
from outbox.testing.servers.ports import Port
from outbox.testing.servers.program import Program

HOW = (
    "PgBouncer is not on this machine. Install it (Debian: apt install pgbouncer), or name the program in "
    "OUTBOX_PGBOUNCER."
)

SETTINGS = {
    "pool_mode": "transaction",
    "default_pool_size": "5",
    "max_client_conn": "200",
    "server_login_retry": "0.2",
    "server_connect_timeout": "5",
    "query_wait_timeout": "10",
    "ignore_startup_parameters": "extra_float_digits",
}
"""In transaction mode, with time-outs for a test: after a failed login the server is asked again at once."""


class PgBouncer:
    """A pooler on 127.0.0.1 whose clients need no password. Its address stays the same over restarts."""

    def __init__(self, server: str, settings: Mapping[str, str]) -> None:
        program = os.environ.get("OUTBOX_PGBOUNCER") or shutil.which("pgbouncer", path=_PATH)
        if program is None:
            raise ServerUnavailable("pgbouncer", HOW)
        account = unprivileged()
        self.version = _version(program)
        self._server = server
        self._settings = {**SETTINGS, **settings}
        self._directory = workspace.create("pgbouncer", account)
        self._port = Port()
        self._program = Program(
            f"PgBouncer {'.'.join(map(str, self.version))}",
            [program, str(self._directory / "pgbouncer.ini")],
            log=self._directory / "log",
            farewell=signal.SIGTERM,
            account=account,
            directory=self._directory,
        )
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def url_of(self, database: str, user: str = "postgres") -> str:
        """The URL of `database` through the pooler, for `user` of the server."""
        return f"postgresql://{quote(user)}@127.0.0.1:{self._port.number}/{quote(database)}"

    def through(self, url: str) -> str:
        """`url` of a database on the server, by way of the pooler."""
        parts = urlsplit(url)
        return self.url_of(parts.path.lstrip("/"), parts.username or "postgres")

    def start(self) -> None:
        """Start it again after `stop` or `kill`; returns when it takes connections."""
        self._write()
        self._program.start()
        self._program.wait_until(self._answers, within=30)

    def stop(self) -> None:
        """End it at once: every client's connection breaks, in the middle of whatever it does."""
        self._program.stop(within=10)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._program.kill()

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing answers."""
        self._program.pause()

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._program.resume()

    def switch(self, server: str) -> None:
        """Go on with `server` (a URL): clients keep their connections and get backends of the other one."""
        self._server = server
        self._write()
        self.command("RELOAD")
        self.command("RECONNECT")

    def command(self, statement: str) -> None:
        """Run one command of its administration console, such as RECONNECT or KILL."""
        with psycopg.connect(self.url_of("pgbouncer"), autocommit=True) as console:
            console.execute(statement.encode())

    def log(self) -> str:
        """What it has logged so far."""
        return self._program.log.read_text(errors="replace")

    def close(self) -> None:
        """Done with it; every trace is removed."""
        self._program.stop(within=10)
        self._port.release()
        workspace.remove(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self) -> None:
        to = urlsplit(self._server)
        sections = {
            "databases": {"*": f"host={to.hostname} port={to.port} auth_user={to.username}"},
            "pgbouncer": {
                "listen_addr": "127.0.0.1",
                "listen_port": str(self._port.number),
                "unix_socket_dir": "",
                "auth_type": "trust",
                "auth_file": str(self._directory / "users"),
                "admin_users": str(to.username),
                **self._settings,
            },
        }
        lines = [
            line
            for section, values in sections.items()
            for line in (f"[{section}]", *(f"{name} = {value}" for name, value in values.items()))
        ]
        (self._directory / "users").write_text(f'"{to.username}" ""\n')
        (self._directory / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        for name in ("users", "pgbouncer.ini"):
            (self._directory / name).chmod(0o644)

    def _answers(self) -> bool:
        try:
            self.command("SHOW VERSION")
        except psycopg.OperationalError:
            return False
        return True


_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
"""Debian installs it where only root looks."""


def start_pgbouncer(server: str, settings: Mapping[str, str] | None = None) -> PgBouncer:
    """A running PgBouncer in transaction mode in front of the PostgreSQL at `server`, a superuser's URL.

    `settings` go into its section [pgbouncer]. Raises ServerUnavailable, with what to install, when the
    machine has none.
    """
    return PgBouncer(server, settings or {})


def _version(program: str) -> tuple[int, int]:
    said = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=False, timeout=30
    ).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", said)
    if found is None:
        raise ServerFailed(f"{program} does not say which PgBouncer it is: {said.strip()!r}")
    return int(found[1]), int(found[2])
