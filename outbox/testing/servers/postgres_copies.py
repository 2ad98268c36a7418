"""Servers made from another one's data: a standby, a recovery to a point in time, an upgrade."""

import shutil
import subprocess
from pathlib import Path

import psycopg

from outbox.testing.servers import postgres_programs
from outbox.testing.servers.postgres import OwnPostgres, Settings, initdb

PAIR: Settings = {
    "wal_sender_timeout": "5s",
    "wal_receiver_timeout": "5s",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "100ms",
}
"""For both halves: a peer that is gone is noticed within seconds, not a minute."""


def start_standby(primary: OwnPostgres, name: str, settings: Settings | None = None) -> OwnPostgres:
    """A hot standby that streams from `primary` and is called `name` in its pg_stat_replication."""

    def fill(server: OwnPostgres) -> None:
        back_up(primary, server.data, by=server)
        (server.data / "standby.signal").touch()

    following: Settings = {"primary_conninfo": _conninfo(primary, name), "cluster_name": name}
    return OwnPostgres(primary.programs, {**PAIR, **following, **(settings or {})}, tcp=True, fill=fill)


def promote(server: OwnPostgres) -> None:
    """Make a standby the primary of a new timeline; returns when it takes writers."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("SELECT pg_promote(wait => true)")


def back_up(server: OwnPostgres, to: Path, *, by: OwnPostgres | None = None) -> None:
    """pg_basebackup of the running `server` into the new directory `to`."""
    (by or server).run(
        *("pg_basebackup", "-D", str(to), "-d", _conninfo(server, "backup"), "--checkpoint=fast", "--no-sync")
    )


def start_recovered(server: OwnPostgres, backup: Path, archive: Path, settings: Settings) -> OwnPostgres:
    """Recovery of `backup` along the log in `archive`, to the target that `settings` name, then promoted."""

    def fill(recovered: OwnPostgres) -> None:
        copy(backup, recovered.data)
        signal = recovered.data / "recovery.signal"
        signal.touch()
        signal.chmod(0o666)

    recovery: Settings = {
        "restore_command": f'cp "{archive}/%f" "%p"',
        "recovery_target_action": "promote",
        "archive_mode": "off",
    }
    recovered = OwnPostgres(server.programs, {**recovery, **settings}, tcp=True, fill=fill)
    with psycopg.connect(recovered.url, autocommit=True) as connection:
        while connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
            pass
    return recovered


def start_upgraded(old: OwnPostgres, settings: Settings | None = None) -> OwnPostgres:
    """The stopped `old`'s data under the wheel's PostgreSQL, by pg_upgrade; `old` keeps its own."""

    def fill(server: OwnPostgres) -> None:
        modern = int(server.version.split(".")[0]) >= 18  # checksums became the default
        initdb(server, *(["--no-data-checksums"] if modern else []))
        (server.data / "pg_hba.conf").write_text("local all all trust\n")
        server.run(
            *("pg_upgrade", "-U", "postgres", "-b", str(old.programs.bin), "-B", str(server.programs.bin)),
            *("-d", str(old.data), "-D", str(server.data), "-s", str(server.data.parent)),
        )

    return OwnPostgres(postgres_programs.in_a_wheel(), settings or {}, tcp=True, fill=fill)


def copy(data: Path, to: Path) -> None:
    """A data directory as a snapshot of its volume would hold it; its server is stopped, or was killed."""
    shutil.rmtree(to, ignore_errors=True)
    subprocess.run(["cp", "-a", str(data), str(to)], check=True, timeout=120)
    (to / "postmaster.pid").unlink(missing_ok=True)


def _conninfo(server: OwnPostgres, name: str) -> str:
    with psycopg.connect(server.url) as connection:
        return f"host=127.0.0.1 port={connection.info.port} user=postgres application_name={name}"
