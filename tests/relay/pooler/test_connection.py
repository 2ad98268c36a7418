"""Behind a pooler a connection is no session: nothing set there stays, and nothing of ours may stay there."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from outbox.storage import roles
from outbox.testing.servers import PgBouncer, PostgresServer, ServerUnavailable, start_pgbouncer
from relay import database as database_module
from relay.database import Connection, Database, OutcomeUnknown, execute

OURS = [*roles.RELAY_SETTINGS]


def settings_of(url: str) -> dict[str, str]:
    """What a neighbour in the same pool finds."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as neighbour:
        return {name: neighbour.execute(f"SHOW {name}".encode()).fetchall()[0][0] for name in OURS}


def test_a_pooler_is_told_from_a_direct_connection(database: str, pooled: str) -> None:
    for url, is_pooled, prepares in ((database, False, True), (pooled, True, False)):
        connection = Database(url).connect("test")
        assert connection.pooled is is_pooled
        assert (connection.prepare_threshold is not None) is prepares
        connection.close()


def test_no_setting_of_the_relay_leaks_to_its_neighbours(
    pooled: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_said", set())
    before = settings_of(pooled)
    Database(pooled).connect("test").close()
    assert settings_of(pooled) == before
    assert "db roles --relay postgres" in caplog.text, "whoever must mend it is told"


def test_the_test_finds_out_settings_that_leak(pooled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings_of(pooled)
    monkeypatch.setattr(Connection, "pooled", False)
    Database(pooled).connect("test").close()
    leaked = settings_of(pooled)
    assert leaked != before
    assert leaked["jit"] == "off"


def test_a_role_of_its_own_carries_the_settings_through_the_pooler(
    relay_role: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = Database(relay_role).connect("test")
    found = {name: connection.execute(f"SHOW {name}".encode()).fetchall()[0][0] for name in OURS}
    connection.close()
    assert found["jit"] == "off"
    assert found["row_security"] == "off"
    assert found["statement_timeout"] == "1min"
    assert "lacks" not in caplog.text


@pytest.fixture
def forgetful(postgres: PostgresServer) -> Iterator[PgBouncer]:
    """A pooler that cannot hold prepared statements, two clients of which share one backend."""
    settings = {"default_pool_size": "1"}
    with start_pgbouncer(postgres.url, settings) as pooler:
        if pooler.version >= (1, 21):
            pooler.close()
            with start_pgbouncer(postgres.url, {**settings, "max_prepared_statements": "0"}) as newer:
                yield newer
        else:
            yield pooler


def test_statements_prepared_where_they_cannot_stay_name_the_setting(
    forgetful: PgBouncer, database: str
) -> None:
    where = Database(forgetful.through(database), prepared=True)
    with closing(where.connect("test")) as one, closing(where.connect("test")) as other:
        with pytest.raises(OutcomeUnknown, match="leave OUTBOX_PREPARED_STATEMENTS unset"):
            for connection in (one, other):
                execute(connection, "SELECT count(*) FROM outbox_shard")
                execute(connection, "SELECT count(*) FROM outbox_shard")


def test_a_pooler_that_holds_prepared_statements_gets_them(postgres: PostgresServer, database: str) -> None:
    settings = {"default_pool_size": "1"}
    with start_pgbouncer(postgres.url, settings) as pooler:
        if pooler.version < (1, 21):
            raise ServerUnavailable("pgbouncer-1.21", "PgBouncer 1.21 or newer: make test-pgbouncer")
    with start_pgbouncer(postgres.url, {**settings, "max_prepared_statements": "50"}) as pooler:
        where = Database(pooler.through(database), prepared=True)
        with closing(where.connect("test")) as one, closing(where.connect("test")) as other:
            for _ in range(3):
                for connection in (one, other):
                    execute(connection, "SELECT count(*) FROM outbox_shard")
                held = one.execute("SELECT count(*) > 0 FROM pg_prepared_statements").fetchone()
                assert held == (True,)
                pooler.command("RECONNECT")


@pytest.fixture
def swallower() -> Iterator[str]:
    """The address of something that takes connections and every byte, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []

        def take() -> None:
            try:
                while True:
                    taken.append(listener.accept()[0])
            except OSError:
                return

        threading.Thread(target=take, daemon=True).start()
        yield f"postgresql://postgres@127.0.0.1:{listener.getsockname()[1]}/nowhere"
        listener.shutdown(socket.SHUT_RDWR)
        for line in taken:
            line.close()


def test_a_server_that_swallows_everything_is_given_up_within_seconds(swallower: str) -> None:
    began = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match="timeout"):
        Database(swallower).connect("test")
    assert time.monotonic() - began < 15


def test_a_pooler_that_falls_silent_holds_no_statement_for_ever(pooler: PgBouncer, pooled: str) -> None:
    connection = Database(pooled).connect("test", answer_within=0.5)
    pooler.pause()
    try:
        with pytest.raises(OutcomeUnknown, match="no answer in time"):
            execute(connection, "SELECT 1")
    finally:
        pooler.resume()
        connection.close()
