"""The schema goes up and down in numbered steps, and says exactly where it differs."""

import pytest
from sqlalchemy import Engine, text

from outbox import ConfigurationError, SchemaError, ddl
from tests.storage.catalog import contents

ONE_EVENT = "INSERT INTO outbox_event (id, aggregatetype, type) VALUES (gen_random_uuid(), 'a', 'a.b.v1')"
SCHEDULED = (
    "INSERT INTO outbox_scheduled (id, due, aggregatetype, type) "
    "VALUES (gen_random_uuid(), '2100-01-01', 'a', 'a.b.v1')"
)


def test_an_empty_database_is_brought_to_the_newest_version(empty_engine: Engine) -> None:
    with empty_engine.begin() as connection:
        assert ddl.version(connection) == 0
        assert ddl.problems(connection) == ["the outbox is not installed here; run: outbox-relay db upgrade"]
        assert ddl.apply(connection) == 0
        assert ddl.version(connection) == ddl.LATEST
        ddl.check(connection)


def test_what_is_installed_already_is_left_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        before = contents(connection)
        assert ddl.apply(connection) == ddl.LATEST
        assert contents(connection) == before


def test_going_down_leaves_nothing_behind(empty_engine: Engine) -> None:
    with empty_engine.begin() as connection:
        before = contents(connection)
        ddl.apply(connection)
        ddl.apply(connection, to=0)
        assert contents(connection) == before
        assert ddl.version(connection) == 0


def test_an_interrupted_installation_leaves_nothing_behind(empty_engine: Engine) -> None:
    with empty_engine.connect() as connection:
        ddl.apply(connection)
        connection.rollback()
        assert ddl.version(connection) == 0


def test_going_down_is_refused_while_events_wait(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(ONE_EVENT))
    with engine.begin() as connection:
        with pytest.raises(SchemaError, match=r"waiting to be published.*discard_pending=True"):
            ddl.apply(connection, to=0)
        assert connection.scalar(text("SELECT count(*) FROM outbox_event")) == 1


def test_events_that_a_shard_does_not_cover_wait_too(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(ONE_EVENT))
    with engine.begin() as connection:
        connection.execute(text("UPDATE outbox_shard SET done = pg_current_snapshot()"))
        connection.execute(text("UPDATE outbox_shard SET lo = 1"))  # a NULL key is in bucket 0
        with pytest.raises(SchemaError, match="waiting to be published"):
            ddl.apply(connection, to=0)


def test_going_down_is_allowed_when_all_is_acknowledged(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(ONE_EVENT))
    with engine.begin() as connection:
        connection.execute(text("UPDATE outbox_shard SET done = pg_current_snapshot()"))
        ddl.apply(connection, to=0)


def test_events_can_be_destroyed_on_purpose_only(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(ONE_EVENT))
        ddl.apply(connection, to=0, discard_pending=True)
        assert ddl.version(connection) == 0


def test_going_down_is_refused_while_events_are_scheduled(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(SCHEDULED))
    with engine.begin() as connection:
        with pytest.raises(SchemaError, match=r"scheduled.*discard_pending=True"):
            ddl.apply(connection, to=3)
    with engine.begin() as connection:
        ddl.apply(connection, to=3, discard_pending=True)


def test_a_version_that_does_not_exist_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        with pytest.raises(
            ConfigurationError, match=f"version 99 does not exist; this release knows 0 to {ddl.LATEST}"
        ):
            ddl.apply(connection, to=99)
        with pytest.raises(ConfigurationError, match="version -1 does not exist"):
            ddl.apply(connection, to=-1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "ALTER TABLE outbox_event DROP COLUMN headers",
            r"column outbox_event\.headers \(jsonb\) is missing",
        ),
        ("ALTER TABLE outbox_event ALTER payload TYPE text USING ''", "payload is text, it must be bytea"),
        ("ALTER TABLE consumer_offset DROP COLUMN sources", r"consumer_offset\.sources \(jsonb\) is missing"),
        ("DROP TABLE outbox_lease", "table outbox_lease is missing"),
        ("ALTER TABLE outbox_event DETACH PARTITION outbox_event_3", "has 7 partitions, it must have 8"),
        ("DROP FUNCTION outbox_move(integer)", r"function outbox_move\(integer\) is missing"),
        ("ALTER TABLE outbox_sealed DISABLE TRIGGER outbox_seal", "sealed events would be lost"),
        ("ALTER TABLE outbox_sealed_1 DISABLE TRIGGER ALL", "sealed events would be lost"),
        ("DROP TRIGGER outbox_seal ON outbox_sealed", "sealed events would be lost"),
        ("UPDATE outbox_schema SET version = 0", "not installed here; run: outbox-relay db upgrade"),
        ("UPDATE outbox_schema SET version = 1000", "version 1000 is newer than this release"),
        ("DELETE FROM outbox_schema", "outbox_schema is empty"),
    ],
)
def test_check_names_what_is_wrong(engine: Engine, damage: str, message: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(damage))
        with pytest.raises(SchemaError, match=message):
            ddl.check(connection)


@pytest.mark.parametrize(
    ("damage", "message", "remedy"),
    [
        (
            "ALTER TABLE outbox_event ALTER COLUMN position SET CACHE 20",
            "caches 20 numbers",
            "ALTER TABLE outbox_event ALTER COLUMN position SET CACHE 1",
        ),
        (
            "ALTER TABLE outbox_event ENABLE ROW LEVEL SECURITY",
            "row-level security is enabled",
            "ALTER TABLE outbox_event DISABLE ROW LEVEL SECURITY",
        ),
        (
            "DELETE FROM outbox_mover",
            "no scheduled event would ever leave",
            "INSERT INTO outbox_mover DEFAULT VALUES",
        ),
        ("DROP INDEX outbox_event_xid", "no valid index on xid", "CREATE INDEX ON outbox_event (xid)"),
        (
            "DROP INDEX outbox_event_position",
            "no valid index on position",
            "CREATE INDEX ON outbox_event (position)",
        ),
    ],
)
def test_the_remedy_that_check_prints_mends_it(
    engine: Engine, damage: str, message: str, remedy: str
) -> None:
    with engine.begin() as connection:
        connection.execute(text(damage))
        (problem,) = ddl.problems(connection)
        assert message in problem
        assert problem.endswith(remedy)
        connection.execute(text(problem.rpartition("run: ")[2]))
        ddl.check(connection)


def test_all_problems_are_told_at_once(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE outbox_lease"))
        connection.execute(text("ALTER TABLE outbox_event DROP COLUMN headers"))
        with pytest.raises(SchemaError) as failed:
            ddl.check(connection)
        assert "outbox_lease" in str(failed.value)
        assert "outbox_event.headers" in str(failed.value)
