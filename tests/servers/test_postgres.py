"""PostgreSQL started for a test: what it survives, and that it leaves nothing behind."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from outbox.testing.servers import PostgresServer, start_postgres
from outbox.testing.servers.postgres import OwnPostgres


@pytest.fixture(scope="module")
def installed() -> Iterator[PostgresServer]:
    with start_postgres(own=True) as server:
        yield server


@pytest.fixture(scope="module", params=[False, True], ids=["installed", "embedded"])
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    with start_postgres(embedded=request.param, own=True) as server:
        yield server


def test_a_committed_row_survives_a_kill(server: PostgresServer) -> None:
    url = server.database("survivor")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE row (n int)")
        connection.execute("INSERT INTO row VALUES (1)")
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO row VALUES (2)")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    server.start()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT n FROM row").fetchall() == [(1,)]


def test_a_clone_holds_what_its_template_held(server: PostgresServer) -> None:
    with psycopg.connect(server.database("original")) as connection:
        connection.execute("CREATE TABLE here ()")
    with psycopg.connect(server.database("copy", template="original")) as connection:
        assert connection.execute("SELECT to_regclass('here') IS NOT NULL").fetchone() == (True,)
    server.drop("copy")


def test_settings_hold_when_reload_returns(server: PostgresServer) -> None:
    server.reload({"work_mem": "5MB"})
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("5MB",)
    server.restart({"max_connections": 33})
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SHOW max_connections").fetchone() == ("33",)


def test_a_member_of_the_password_role_must_show_it(installed: PostgresServer) -> None:
    server = installed
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE outbox_password")
        connection.execute("CREATE ROLE careful LOGIN PASSWORD 'secret' IN ROLE outbox_password")
    psycopg.connect(server.url, user="careful", password="secret").close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.url, user="careful", password="wrong")


def test_a_killed_server_leaves_no_directory_and_no_shared_memory() -> None:
    segments = Path("/proc/sysvipc/shm")
    server = start_postgres(own=True)
    assert isinstance(server, OwnPostgres)
    directory = Path(server.log_file).parent
    before = segments.read_text().count("\n")
    server.kill()
    assert segments.read_text().count("\n") == before, "a killed server does not remove it itself"
    server.close()
    assert not directory.exists()
    assert segments.read_text().count("\n") == before - 1
