"""No event is numbered where numbers would be wrong: another database, another cluster, a broken setting."""

import logging
from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy import Engine

from outbox.errors import ConfigurationError, GuardViolation, SchemaError
from outbox.storage import ddl
from outbox.storage.roles import Roles, statements
from relay import guards
from relay.database import Database, OutcomeUnknown, failed
from relay.snapshot import Snapshot
from tests.relay.conftest import Connect
from tests.relay.database.half import Half, Session, drain, shard, write
from tests.relay.database.memory_broker import MemoryBroker


def change_identity(writer: Session, column: str, value: str) -> None:
    writer.execute(f"UPDATE outbox_identity SET {column} = {value}".encode())


def test_the_first_relay_writes_down_where_it_is_and_the_next_agrees(half: Half, writer: Session) -> None:
    here = guards.examine(half.connection, "cluster-1")
    assert guards.examine(half.connection, "cluster-1") == here
    found = writer.execute(guards.IDENTITY).fetchone()
    assert found == (here.system_identifier, here.database_oid, here.timeline, "cluster-1")


def test_a_broker_that_told_its_name_late_is_remembered(half: Half) -> None:
    guards.examine(half.connection, None)
    guards.examine(half.connection, "cluster-1")
    with pytest.raises(GuardViolation, match="cluster-1"):
        guards.examine(half.connection, "cluster-2")


def test_another_kafka_cluster_is_refused(half: Half) -> None:
    guards.examine(half.connection, "cluster-1")
    with pytest.raises(GuardViolation, match="run: outbox-relay adopt"):
        guards.examine(half.connection, "cluster-2")
    guards.examine(half.connection, None)


@pytest.mark.parametrize("column", ["system_identifier", "database_oid"])
def test_a_copy_of_the_database_is_refused(half: Half, writer: Session, column: str) -> None:
    guards.examine(half.connection, None)
    change_identity(writer, column, "12345")
    with pytest.raises(GuardViolation, match="run: outbox-relay rebase"):
        guards.examine(half.connection, None)


def test_row_level_security_is_refused_at_the_start(half: Half, writer: Session) -> None:
    writer.execute("ALTER TABLE outbox_event ENABLE ROW LEVEL SECURITY")
    with pytest.raises(GuardViolation, match="DISABLE ROW LEVEL SECURITY"):
        guards.examine(half.connection, None)


def test_row_level_security_that_comes_later_is_an_error_and_hides_nothing(
    database: str, writer: Session
) -> None:
    for statement in statements(Roles(relay=["secured_relay"]), create=True):
        writer.execute(statement.encode())
    write(writer, 3)
    writer.execute("ALTER TABLE outbox_event ENABLE ROW LEVEL SECURITY")
    url = database.replace("postgres@", "secured_relay@")
    secured = Half(url)
    with pytest.raises(SchemaError, match="row-level security"):
        secured.looker.look(Snapshot("1:1:"))
    secured.connection.execute("SET row_security = on")
    assert secured.looker.look(Snapshot("1:1:")).rows == [], "otherwise three events are silently not there"
    secured.close()


def test_a_sequence_that_caches_is_refused(half: Half, connect: Connect, writer: Session) -> None:
    writer.execute("ALTER SEQUENCE outbox_event_position_seq CACHE 20")
    with pytest.raises(GuardViolation, match="SET CACHE 1"):
        guards.examine(half.connection, None)
    first, second = connect(autocommit=True), connect(autocommit=True)
    first_ids, second_ids = write(first), write(second)
    after = write(first)
    rows = half.looker.look(half.row.claim().done).rows
    assert rows is not None
    by_position = [row[5].decode() for row in rows]
    assert by_position == first_ids + after + second_ids, "what began later would be published earlier"


def test_the_broken_settings_are_looked_for_while_it_runs(
    database: str, writer: Session, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    carrying = shard(database, broker)
    drain(carrying)
    writer.execute("ALTER SEQUENCE outbox_event_position_seq CACHE 20")
    drain(carrying)
    monkeypatch.setattr("relay.tenure.EXAMINE_EVERY", 0.0)
    with pytest.raises(GuardViolation, match="SET CACHE 1"):
        carrying.run_once()
    carrying.let_go()


def test_a_role_that_may_write_the_order_is_named(
    half: Half, writer: Session, caplog: pytest.LogCaptureFixture
) -> None:
    for statement in statements(Roles(application=["careful_shop"]), create=True):
        writer.execute(statement.encode())
    with caplog.at_level(logging.WARNING, "relay.guards"):
        guards.examine(half.connection, None)
        assert caplog.messages == []
        writer.execute("CREATE ROLE careless_shop")
        writer.execute("GRANT INSERT ON outbox_event TO careless_shop")
        writer.execute("GRANT INSERT (id, xid) ON outbox_event TO careful_shop")
        guards.examine(half.connection, None)
    [message] = caplog.messages
    assert "careful_shop, careless_shop may write xid, position or slot" in message
    writer.execute("DROP OWNED BY careless_shop")
    writer.execute("DROP ROLE careless_shop")


def test_an_older_transaction_counter_is_refused(half: Half, writer: Session) -> None:
    guards.compare_counters(half.connection, half.row.claim())
    writer.execute(
        "UPDATE outbox_shard SET done = '4000000007:4000000007:', done_floor = 1, done_xid = '4000000009'"
    )
    with pytest.raises(GuardViolation, match="run: outbox-relay rebase"):
        guards.compare_counters(half.connection, half.row.claim())


def test_positions_that_begin_anew_are_refused(half: Half, writer: Session, own: Callable[..., Half]) -> None:
    write(writer, 5)
    state = half.row.claim()
    state = half.row.confirm(half.row.plan(state, half.looker.look(state.done)))
    writer.execute("TRUNCATE outbox_event RESTART IDENTITY")
    with pytest.raises(GuardViolation, match=r"SELECT setval\('outbox_event_position_seq', 5\)"):
        guards.compare_counters(half.connection, half.row.claim())
    small, state = own(limit=0), half.row.claim()
    written = write(writer, 3)
    state = half.row.plan(state, small.looker.look(state.done))
    assert (len(written), half.planned(state)) == (3, []), "below the floor they would not be found"


def test_a_predecessor_still_planning_is_no_restored_database(
    own: Callable[..., Half], writer: Session
) -> None:
    """The counter is read after the claim: before it, the row may move on to what was not seen yet."""
    former, owner = own(), own()
    guards.examine(owner.connection, None)
    state = former.row.claim()
    for _ in range(3):
        write(writer)
        state = former.row.confirm(former.row.plan(state, former.looker.look(state.done)))
    guards.compare_counters(owner.connection, owner.row.claim())


def test_a_bucket_of_two_shards_or_of_none_is_refused(half: Half, writer: Session) -> None:
    writer.execute(
        "INSERT INTO outbox_shard (shard, source, generation, lo, hi, done, done_floor, done_xid)"
        " SELECT 1, source, generation, 200, hi, done, done_floor, done_xid FROM outbox_shard"
    )
    with pytest.raises(SchemaError, match="cover each of the 256 buckets once"):
        guards.examine(half.connection, None)
    writer.execute("UPDATE outbox_shard SET hi = 198 WHERE shard = 0")
    with pytest.raises(SchemaError, match="cover each of the 256 buckets once"):
        guards.examine(half.connection, None)
    writer.execute("UPDATE outbox_shard SET hi = 199 WHERE shard = 0")
    guards.examine(half.connection, None)


def test_missing_shards_say_what_to_do(half: Half, writer: Session) -> None:
    writer.execute("DELETE FROM outbox_shard")
    with pytest.raises(SchemaError, match="restore its rows from a backup"):
        guards.examine(half.connection, None)


def test_going_down_is_refused_while_events_wait(
    engine: Engine, database: str, writer: Session, broker: MemoryBroker
) -> None:
    write(writer, 3)
    with engine.connect() as connection, pytest.raises(SchemaError, match="waiting to be published"):
        ddl.apply(connection, to=0)
    carrying = shard(database, broker)
    drain(carrying)
    carrying.finish()
    with engine.begin() as connection:
        ddl.apply(connection, to=0)
        assert ddl.version(connection) == 0


def test_a_missing_table_names_the_command_that_compares(half: Half, writer: Session) -> None:
    writer.execute("DROP TABLE outbox_topic")
    writer.execute("DROP TABLE outbox_identity")
    with pytest.raises(SchemaError, match="outbox-relay db check"):
        guards.examine(half.connection, None)


def test_a_missing_right_names_the_command_that_grants(database: str, writer: Session) -> None:
    writer.execute("DROP ROLE IF EXISTS stranger")
    writer.execute("CREATE ROLE stranger LOGIN")
    with (
        Database(database.replace("postgres@", "stranger@")).connect("test") as connection,
        pytest.raises(SchemaError, match="outbox-relay db roles"),
    ):
        guards.examine(connection, None)
    writer.execute("DROP ROLE stranger")


def test_what_nobody_can_mend_by_waiting_is_told_at_once(database: str) -> None:
    missing = database.rsplit("/", 1)[0] + "/no_such_database"
    with pytest.raises(ConfigurationError, match="no_such_database"):
        Database(missing).connect("test")
    with pytest.raises(ConfigurationError, match="no_such_role"):
        Database(database.replace("postgres@", "no_such_role@")).connect("test")
    with pytest.raises(psycopg.OperationalError):
        Database("postgresql://postgres@127.0.0.1:1/postgres").connect("test")


def test_an_error_without_words_is_an_unknown_outcome_too() -> None:
    assert isinstance(failed(psycopg.OperationalError()), OutcomeUnknown)
