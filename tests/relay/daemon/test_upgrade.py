"""An upgrade never makes the services queue behind somebody's long transaction, and says what to run."""

import threading

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import make_url

from outbox.storage import ddl
from relay.cli import db
from tests.conftest import create_engine
from tests.relay.daemon.test_command_line import refused


@pytest.fixture
def version_1(empty_database: str) -> str:
    engine = create_engine(empty_database)
    with engine.begin() as connection:
        ddl.apply(connection, to=1)
    engine.dispose()
    return empty_database


def plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def found(url: str) -> object:
    with psycopg.connect(plain(url)) as session:
        row = session.execute("SELECT version FROM outbox_schema").fetchone()
        assert row is not None
        return row[0]


def test_an_upgrade_gives_way_to_a_dump_and_changes_nothing(
    version_1: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "PATIENCE", 0)
    with psycopg.connect(plain(version_1)) as dump:
        dump.execute("LOCK TABLE outbox_shard IN ACCESS SHARE MODE")
        done = CliRunner().invoke(db.upgrade, ["--database-url", version_1])
        assert "a long transaction or pg_dump holds" in str(done.exception)
        assert "run again" in str(done.exception)
        with psycopg.connect(plain(version_1)) as service:
            service.execute("SET lock_timeout = '1s'")
            service.execute("UPDATE outbox_shard SET epoch = epoch")  # behind nobody
    assert found(version_1) == 1


def test_an_upgrade_tries_again_until_the_dump_has_ended(
    version_1: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "PAUSE", 0.1)
    held = psycopg.connect(plain(version_1))
    held.execute("LOCK TABLE outbox_shard IN ACCESS SHARE MODE")
    said = threading.Event()

    def let_go(*_: object) -> None:
        said.set()
        held.close()

    monkeypatch.setattr(db, "_say_locked", let_go)
    done = CliRunner().invoke(db.upgrade, ["--database-url", version_1])
    assert done.exit_code == 0, done
    assert said.is_set()
    assert "(was 1)" in done.stdout
    assert found(version_1) == ddl.LATEST


def test_a_relay_before_the_upgrade_says_what_to_run(version_1: str) -> None:
    answer = refused("run", DATABASE_URL=version_1, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", INSTANCE="before")
    assert f"schema version 1 is not this release's {ddl.LATEST}; run: outbox-relay db upgrade" in answer
    assert "column" not in answer
