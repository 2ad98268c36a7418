"""What a user gets wrong is answered with what, where and what to do; no traceback, no secret is shown."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from outbox.storage.ddl import LATEST
from outbox.testing.servers import KafkaServer, PostgresServer
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene


def outbox_relay(
    *arguments: str, directory: Path | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run the program with nothing but `settings` in its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        cwd=directory,
        env=environment | {f"OUTBOX_{name}": value for name, value in settings.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(*arguments: str, **settings: Any) -> str:
    """What the program says of something to mend first."""
    return said(3, *arguments, **settings)


def said(code: int, *arguments: str, **settings: Any) -> str:
    """What the program says before it exits with `code`."""
    done = outbox_relay(*arguments, **settings)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr + done.stdout
    assert done.stdout == ""
    return done.stderr


@pytest.fixture
def run(scene: Scene) -> Callable[..., str]:
    """`outbox-relay run` on this test's scene, with changes, until it refuses."""

    def refuse(**changes: str) -> str:
        settings = {name.removeprefix("OUTBOX_"): value for name, value in scene.settings.items()}
        return refused("run", **{**settings, **changes})

    return refuse


def test_a_malformed_url(run: Callable[..., str]) -> None:
    assert "should look like postgresql://" in run(DATABASE_URL="postgres//u:s3cret@h/db")


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("shop:s3cret", "has no scheme"),
        ("mysql://u:s3cret@h/db", "has scheme mysql"),
        ("postgresql+asyncpg://u:s3cret@h/db", "has scheme postgresql+asyncpg"),
        ("postgresql://u:s3cret@h/db?sslmod=require", "a parameter that libpq does not know"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_as_far_as_it_is_no_secret(url: str, fault: str) -> None:
    assert fault in refused("db", "check", DATABASE_URL=url)


def test_commands_find_the_database_in_the_file_as_the_daemon_does(tmp_path: Path, database: str) -> None:
    (tmp_path / "outbox-relay.toml").write_text(f'database_url = "{database}"')
    assert outbox_relay("db", "check", directory=tmp_path).returncode == 0
    (tmp_path / "outbox-relay.toml").write_text("database_url =")
    assert "outbox-relay.toml cannot be read" in refused("db", "check", directory=tmp_path)


def test_no_url() -> None:
    assert "OUTBOX_DATABASE_URL" in refused("run", KAFKA_BOOTSTRAP_SERVERS="k:1")
    assert "OUTBOX_DATABASE_URL" in refused("status")


def test_no_broker_address(database: str) -> None:
    assert "OUTBOX_KAFKA_BOOTSTRAP_SERVERS" in refused("run", DATABASE_URL=database)


def test_an_unknown_or_impossible_kafka_property(run: Callable[..., str]) -> None:
    assert 'No such configuration property: "compresion.type"' in run(KAFKA__COMPRESION_TYPE="lz4")
    assert "zip" in run(KAFKA__COMPRESSION_TYPE="zip")


def test_a_kafka_property_that_breaks_a_guarantee(run: Callable[..., str]) -> None:
    answer = run(KAFKA__ENABLE_IDEMPOTENCE="false", KAFKA__SASL_PASSWORD="s3cret")
    assert "enable.idempotence=false is refused: without it a retried batch is written twice" in answer


def test_an_empty_database(empty_database: str, run: Callable[..., str]) -> None:
    answer = run(DATABASE_URL=empty_database)
    assert "outbox-relay db upgrade" in answer
    assert "lease" not in answer.replace("outbox_lease", ""), "it never held one"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("DROP TABLE outbox_topic", "outbox_topic"),
        ("ALTER TABLE outbox_event DROP COLUMN traceparent", "traceparent"),
        ("UPDATE outbox_schema SET version = 99", "schema version 99"),
        ("UPDATE outbox_schema SET version = 0", "outbox-relay db upgrade"),
    ],
)
def test_a_schema_that_does_not_fit(scene: Scene, run: Callable[..., str], damage: str, named: str) -> None:
    scene.session.execute(damage.encode())
    assert named in run()


@pytest.fixture
def login(postgres: PostgresServer) -> Iterator[str]:
    """A role that has to show its password."""
    name = "relay_with_password"
    with psycopg.connect(postgres.url, autocommit=True) as session:
        session.execute("CREATE ROLE outbox_password")
        session.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'right' IN ROLE outbox_password".encode())
        yield name
        session.execute(f"DROP OWNED BY {name}; DROP ROLE {name}; DROP ROLE outbox_password".encode())


def as_user(url: str, user: str, password: str) -> str:
    return url.replace("postgres@", f"{user}:{password}@", 1)


def test_a_wrong_password(database: str, login: str, run: Callable[..., str]) -> None:
    answer = run(DATABASE_URL=as_user(database, login, "s3cret"))
    assert "password authentication failed" in answer
    assert "OUTBOX_DATABASE_URL" in answer


def test_a_database_that_does_not_exist(database: str, run: Callable[..., str]) -> None:
    assert '"nowhere" does not exist' in run(DATABASE_URL=database.rpartition("/")[0] + "/nowhere")


def test_missing_rights(database: str, login: str, run: Callable[..., str]) -> None:
    answer = run(DATABASE_URL=as_user(database, login, "right"))
    assert "permission denied" in answer
    assert "outbox-relay db roles" in answer


def test_another_kafka_cluster(scene: Scene, run: Callable[..., str]) -> None:
    scene.session.execute(
        "INSERT INTO outbox_identity SELECT true, (SELECT system_identifier FROM pg_control_system()), "
        "(SELECT oid FROM pg_database WHERE datname = current_database()), 1, 'another-cluster'"
    )
    assert "went to Kafka cluster another-cluster" in run()


def test_a_configuration_file_that_is_not_there_or_broken(tmp_path: Path) -> None:
    assert "does not exist" in refused("run", "--config", str(tmp_path / "none.toml"))
    (tmp_path / "broken.toml").write_text("[kafka")
    assert "broken.toml cannot be read" in refused("run", "--config", str(tmp_path / "broken.toml"))


def test_wrong_usage_exits_with_2() -> None:
    assert "No such command 'rum'" in said(2, "rum")
    assert "--log-level" in said(2, "--log-level", "loud", "run")
    assert "name at least one role" in said(2, "db", "roles")


@pytest.mark.parametrize("command", [["status"], ["db", "check"], ["db", "upgrade"]])
def test_commands_do_not_wait_for_a_server(command: list[str]) -> None:
    answer = refused(*command, DATABASE_URL="postgresql://u:s3cret@127.0.0.1:1/shop")
    assert "127.0.0.1:1/shop" in answer
    assert "Connection refused" in answer


def test_commands_without_the_right(empty_database: str, login: str) -> None:
    answer = refused("db", "upgrade", DATABASE_URL=as_user(empty_database, login, "right"))
    assert "permission denied" in answer
    assert "as the role that owns" in answer


def test_the_schema_is_installed_checked_and_printed(empty_database: str) -> None:
    missing = outbox_relay("db", "check", DATABASE_URL=empty_database)
    assert missing.returncode == 1
    assert "outbox-relay db upgrade" in missing.stdout
    made = outbox_relay("db", "upgrade", "--json", DATABASE_URL=empty_database)
    assert (made.returncode, json.loads(made.stdout)["version"]) == (0, LATEST), made
    again = outbox_relay("db", "upgrade", DATABASE_URL=empty_database)
    assert (again.returncode, again.stdout.count(f"version {LATEST}")) == (0, 1)
    checked = outbox_relay("db", "check", "--json", DATABASE_URL=empty_database)
    assert (checked.returncode, json.loads(checked.stdout)["problems"]) == (0, [])
    printed = outbox_relay("db", "sql")
    assert printed.returncode == 0
    assert "CREATE TABLE outbox_event" in printed.stdout


def test_printed_sql_installs_the_schema(empty_database: str) -> None:
    printed = outbox_relay("db", "sql").stdout
    with psycopg.connect(empty_database, autocommit=True) as session:
        session.execute(printed.encode())
    assert outbox_relay("db", "check", DATABASE_URL=empty_database).returncode == 0


def test_roles_are_printed_and_with_yes_made(database: str, scene: Scene) -> None:
    arguments = ["db", "roles", "--relay", "relay_by_command", "--create"]
    printed = outbox_relay(*arguments, DATABASE_URL=database)
    assert 'GRANT SELECT, UPDATE ON outbox_shard, outbox_lease TO "relay_by_command";' in printed.stdout
    exists = "SELECT count(*) = 1 FROM pg_roles WHERE rolname = 'relay_by_command'"
    assert scene.value(exists) is False
    try:
        assert outbox_relay(*arguments, "--yes", DATABASE_URL=database).returncode == 0
        assert scene.value(exists) is True
    finally:
        scene.session.execute("DROP OWNED BY relay_by_command")
        scene.session.execute("DROP ROLE relay_by_command")


def test_rights_that_could_not_be_given_are_an_error(database: str, login: str, scene: Scene) -> None:
    arguments = ["db", "roles", "--reader", login, "--yes"]
    assert outbox_relay(*arguments, DATABASE_URL=database).returncode == 0
    answer = refused(*arguments, DATABASE_URL=as_user(database, login, "right"))
    assert "nothing was changed: no privileges were granted" in answer
    assert "as the role that owns" in answer
    scene.session.execute(f"DROP OWNED BY {login}".encode())
    answer = refused("db", "roles", "--reader", "nobody_here", "--yes", DATABASE_URL=database)
    assert 'role "nobody_here" does not exist; create it, or let --create do so' in answer


def test_status_shows_the_living_behind_any_number_of_dead(scene: Scene) -> None:
    """A relay that runs for days is halted, and its stand-by has crashed all the time."""
    scene.session.execute(
        "INSERT INTO outbox_relay (instance, started_at, state) "
        """VALUES ('old', now() - interval '3 days', '{"state": "halted", "alarm": "poison"}')"""
    )
    scene.session.execute(
        "INSERT INTO outbox_relay (instance, heartbeat, state) "
        "SELECT 'dead-' || i, now() - interval '1 minute', '{}' FROM generate_series(1, 60) i"
    )
    scene.session.execute("UPDATE outbox_lease SET owner = 'old', lease_until = now() + interval '1 hour'")
    shown = outbox_relay("status", DATABASE_URL=scene.database).stdout
    assert "relay old: alive, halted" in shown
    assert shown.endswith("and 46 more that ended (--json shows them)\nALARM old: poison\n")


def test_a_database_that_only_consumes_needs_no_relay(scene: Scene) -> None:
    assert outbox_relay("status", DATABASE_URL=scene.database).returncode == 0


def test_status_tells_who_carries_how_far_and_what_is_wrong(scene: Scene, start: StartRelay) -> None:
    scene.write(3)
    idle = outbox_relay("status", "--json", DATABASE_URL=scene.database)
    assert idle.returncode == 1
    document = json.loads(idle.stdout)
    assert document["shards"][0]["pending"] == 3
    assert document["alarms"] == ["shard 0 is carried by no relay"]
    relay = start(lease="30")
    scene.wait_until_through()
    scene.wait("SELECT state->>'state' = 'carrying' FROM outbox_relay", within=30)
    busy = outbox_relay("status", "--json", DATABASE_URL=scene.database)
    assert busy.returncode == 0, busy
    document = json.loads(busy.stdout)
    assert document["alarms"] == []
    assert document["shards"][0] | {"pending": 0, "owner": "relay-1"} == document["shards"][0]
    shown = outbox_relay("status", DATABASE_URL=scene.database).stdout
    assert "owner relay-1" in shown
    assert relay.stop() == 0


def test_the_daemon_runs_with_the_rights_that_db_roles_gives(
    scene: Scene, login: str, kafka: KafkaServer, start: StartRelay
) -> None:
    given = outbox_relay("db", "roles", "--relay", login, "--yes", DATABASE_URL=scene.database)
    assert given.returncode == 0, given
    scene.write(150)
    relay = start(database_url=as_user(scene.database, login, "right"))
    scene.wait_until_through()
    assert scene.complaints() == []
    assert relay.stop() == 0
    scene.session.execute(f"DROP OWNED BY {login}".encode())
