"""Each role can do its work and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Engine, make_url, text
from sqlalchemy.orm import sessionmaker

from outbox import Outbox, roles
from outbox.storage import ring
from tests.conftest import create_engine
from tests.write.orders import step, steps

Connection = psycopg.Connection[tuple[object, ...]]

LEAVES = [ring.leaf(slot) for slot in range(ring.LEAVES)]
EVENT = """
INSERT INTO outbox_event (id, aggregatetype, type{more}) {over} VALUES (gen_random_uuid(), 'a', 'b'{value})
"""
SCHEDULED = """
INSERT INTO outbox_scheduled (id, due, aggregatetype, type{more}) {over}
VALUES (gen_random_uuid(), '2000-01-01', 'a', 'b'{value})
"""
RELAY_TABLES = ("outbox_shard", "outbox_topic", "outbox_lease", "outbox_relay", "outbox_identity")


@dataclass(frozen=True)
class Cast:
    """A URL for each role on one database."""

    application: str
    relay: str
    consumer: str
    reader: str


@pytest.fixture
def cast(engine: Engine, database: str) -> Iterator[Cast]:
    suffix = uuid4().hex[:8]
    names = {part: f'{part}_"{suffix}:x' for part in ("application", "relay", "consumer", "reader")}
    granted = roles.Roles(
        application=[names["application"]],
        relay=[names["relay"]],
        consumer=[names["consumer"]],
        reader=[names["reader"]],
    )
    with psycopg.connect(database, autocommit=True) as owner:
        for _ in range(2):  # repeatable
            for statement in roles.statements(granted, create=True):
                owner.execute(statement.encode())
    url = make_url(database)
    yield Cast(
        **{part: url.set(username=name).render_as_string(hide_password=False) for part, name in names.items()}
    )
    with psycopg.connect(database, autocommit=True) as owner:
        for name in names.values():
            owner.execute(f"DROP OWNED BY {roles.quote(name)}".encode())
            owner.execute(f"DROP ROLE {roles.quote(name)}".encode())


def may(url: str, *statements: str) -> None:
    """Every statement works for this role; nothing of it stays."""
    for statement in statements:
        with psycopg.connect(url) as connection:
            connection.execute(statement.encode())
            connection.rollback()


def may_not(url: str, *statements: str) -> None:
    """Every statement is refused for want of a right."""
    for statement in statements:
        with psycopg.connect(url) as connection:
            with pytest.raises(InsufficientPrivilege) as refused:
                connection.execute(statement.encode())
            assert "permission denied" in str(refused.value) or "must be owner" in str(refused.value), (
                statement
            )
            connection.rollback()


def test_the_application_can_emit(engine: Engine, cast: Cast) -> None:
    application = create_engine(cast.application)
    outbox = Outbox(sessionmaker(application))
    with outbox.sessions.begin() as session:
        outbox.emit(session, step(1))
    with outbox.sessions.begin() as session:
        for number in (2, 3):
            outbox.emit(session, step(number), headers={"a": "b"})
    application.dispose()
    assert steps(engine) == [1, 2, 3]
    may(cast.application, "SELECT version FROM outbox_schema")


def test_the_application_can_schedule_and_cancel(engine: Engine, cast: Cast) -> None:
    application = create_engine(cast.application)
    outbox = Outbox(sessionmaker(application))
    with outbox.sessions.begin() as session:
        kept, gone = (
            outbox.emit(session, step(n), deliver_at=datetime.max.replace(tzinfo=UTC)) for n in (1, 2)
        )
    with outbox.sessions.begin() as session:
        assert outbox.cancel(session, gone)
    application.dispose()
    with engine.connect() as connection:
        assert connection.scalars(text("SELECT id FROM outbox_scheduled")).all() == [kept]


def test_the_application_can_emit_from_sql_and_seal(engine: Engine, cast: Cast) -> None:
    call = (
        "SELECT outbox_emit(aggregatetype => 'a', aggregateid => 'k', type => 't', "
        "payload => {payload}{more})"
    )
    with psycopg.connect(cast.application) as session:
        for payload in ("'x'", "'x'::bytea", "'1'::jsonb", "NULL"):
            session.execute(call.format(payload=payload, more="").encode())
        session.execute(call.format(payload="'x'", more=", sealed => true").encode())
        session.execute(call.format(payload="'x'", more=", deliver_at => now()").encode())
        session.execute(
            EVENT.format(more="", over="", value="").replace("outbox_event", "outbox_sealed").encode()
        )
        session.commit()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM outbox_event")) == 6
    may_not(cast.relay, call.format(payload="'x'", more=""))
    may_not(
        cast.application,
        "SELECT 1 FROM outbox_sealed",
        "DELETE FROM outbox_sealed",
        "TRUNCATE outbox_sealed",
        "SELECT outbox_sweep()",
        "INSERT INTO outbox_sealed (id, xid) VALUES (gen_random_uuid(), '1')",
        "INSERT INTO outbox_sealed_0 (id) VALUES (gen_random_uuid())",
    )
    may(cast.relay, "SELECT outbox_sweep()")


def test_the_application_does_nothing_else_with_what_is_scheduled(cast: Cast) -> None:
    may_not(
        cast.application,
        SCHEDULED.format(more=", seq", over="OVERRIDING SYSTEM VALUE", value=", 1"),
        SCHEDULED.format(more=", scheduled_at", over="", value=", now()"),
        "SELECT 1 FROM outbox_scheduled",
        "UPDATE outbox_scheduled SET due = now()",
        "DELETE FROM outbox_scheduled",
        "SELECT outbox_move()",
        "SELECT 1 FROM outbox_mover FOR UPDATE",
    )


def test_a_function_with_the_owners_rights_uses_the_owners_tables(engine: Engine, cast: Cast) -> None:
    """A temporary table in its place would let whoever may call it read or write as the owner."""
    with engine.begin() as connection:
        connection.execute(text(SCHEDULED.format(more="", over="", value="")))
    for url, call in (
        (cast.application, "SELECT outbox_cancel(gen_random_uuid())"),
        (cast.relay, "SELECT outbox_move()"),
    ):
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TEMPORARY TABLE outbox_scheduled (trap int)")
            connection.execute("CREATE TEMPORARY TABLE outbox_mover (trap int)")
            connection.execute("SET search_path = pg_temp")
            connection.execute(f"SELECT public.{call.removeprefix('SELECT ')}".encode())
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM outbox_event")) == 1


def test_the_relay_moves_what_is_due_and_changes_nothing_that_waits(cast: Cast) -> None:
    may(
        cast.relay,
        "SELECT * FROM outbox_scheduled",
        "SELECT last_value FROM outbox_scheduled_seq_seq",
        "SELECT outbox_move()",
    )
    may_not(
        cast.relay,
        SCHEDULED.format(more="", over="", value=""),
        "UPDATE outbox_scheduled SET due = now()",
        "DELETE FROM outbox_scheduled",
        "SELECT outbox_cancel(gen_random_uuid())",
        "SELECT nextval('outbox_scheduled_seq_seq')",
    )


def test_the_application_cannot_choose_what_carries_the_order(cast: Cast) -> None:
    may_not(
        cast.application,
        EVENT.format(more=", xid", over="", value=", '1'"),
        EVENT.format(more=", position", over="OVERRIDING SYSTEM VALUE", value=", 1"),
        EVENT.format(more=", slot", over="", value=", 1"),
        "SELECT nextval('outbox_event_position_seq')",
        "SELECT setval('outbox_event_position_seq', 1)",
        "ALTER SEQUENCE outbox_event_position_seq CACHE 100",
    )


def test_the_application_can_neither_read_nor_change_events(cast: Cast) -> None:
    may_not(
        cast.application,
        "SELECT 1 FROM outbox_event",
        EVENT.format(more="", over="", value="") + " RETURNING id",
        "UPDATE outbox_event SET payload = NULL",
        "DELETE FROM outbox_event",
        "TRUNCATE outbox_event",
        "LOCK TABLE outbox_event IN ACCESS EXCLUSIVE MODE",
        *(f"INSERT INTO {leaf} (id) VALUES (gen_random_uuid())" for leaf in LEAVES),
        *(f"SELECT 1 FROM {leaf}" for leaf in LEAVES),
    )


def test_the_application_sees_nothing_of_the_relay_or_the_consumers(cast: Cast) -> None:
    for table in (*RELAY_TABLES, "consumer_offset"):
        may_not(
            cast.application,
            f"SELECT 1 FROM {table}",
            f"DELETE FROM {table}",
            f"INSERT INTO {table} DEFAULT VALUES",
        )
    may_not(cast.application, "UPDATE outbox_schema SET version = 0")


@pytest.mark.parametrize("part", ["application", "relay", "consumer", "reader"])
def test_nobody_owns_the_tables(cast: Cast, part: str) -> None:
    may_not(
        getattr(cast, part),
        "ALTER TABLE outbox_event DISABLE TRIGGER ALL",
        "ALTER TABLE outbox_event DROP COLUMN xid",
        "ALTER TABLE consumer_offset DROP COLUMN owner_epoch",
        "DROP TABLE outbox_event",
        "CREATE INDEX ON outbox_event (id)",
    )


def test_the_relay_can_read_plan_beat_and_truncate(cast: Cast) -> None:
    may(
        cast.relay,
        "SELECT * FROM outbox_event",
        "SELECT last_value FROM outbox_event_position_seq",
        "UPDATE outbox_shard SET epoch = epoch + 1",
        "UPDATE outbox_lease SET owner = 'me'",
        "INSERT INTO outbox_topic VALUES (0, 'orders', 6)",
        "INSERT INTO outbox_relay (instance) VALUES ('me')",
        "DELETE FROM outbox_relay",
        "INSERT INTO outbox_identity (system_identifier, database_oid, timeline) VALUES (1, 1, 1)",
        "SELECT version FROM outbox_schema",
        *(f"LOCK TABLE ONLY {leaf} IN ACCESS EXCLUSIVE MODE NOWAIT" for leaf in LEAVES),
        *(f"TRUNCATE ONLY {leaf}" for leaf in LEAVES),
    )


def test_the_relay_can_neither_make_nor_change_an_event(cast: Cast) -> None:
    may_not(
        cast.relay,
        EVENT.format(more="", over="", value=""),
        "UPDATE outbox_event SET payload = NULL",
        "DELETE FROM outbox_event",
        "SELECT nextval('outbox_event_position_seq')",
        "SELECT setval('outbox_event_position_seq', 1)",
        *(f"INSERT INTO {leaf} (id) VALUES (gen_random_uuid())" for leaf in LEAVES),
        *(f"UPDATE {leaf} SET payload = NULL" for leaf in LEAVES),
        *(f"DELETE FROM {leaf}" for leaf in LEAVES),
    )


def test_the_relay_changes_the_number_of_shards_by_functions_that_nobody_else_may_run(cast: Cast) -> None:
    may(
        cast.relay,
        "SELECT outbox_shards_set(3)",
        "SELECT outbox_shards_cancel()",
        "SELECT outbox_shards_switch()",
        "UPDATE outbox_reshard SET upto = NULL, floor = NULL, at_xid = NULL",
    )
    for other in (cast.application, cast.consumer, cast.reader):
        may_not(
            other,
            "SELECT outbox_shards_set(3)",
            "SELECT outbox_shards_cancel()",
            "SELECT outbox_shards_switch()",
        )
    may_not(cast.relay, "UPDATE outbox_reshard SET shards = 2", "DELETE FROM outbox_reshard")


def test_nobodys_search_path_misleads_what_runs_with_the_owners_rights(cast: Cast) -> None:
    with psycopg.connect(cast.relay) as connection:
        connection.execute("CREATE TEMP TABLE outbox_shard AS SELECT * FROM outbox_shard")
        connection.execute("SET search_path = pg_temp, public")
        connection.execute("SELECT public.outbox_shards_set(3)")
        frozen = connection.execute(
            "SELECT frozen FROM pg_temp.outbox_shard, public.outbox_reshard"
        ).fetchall()
        assert frozen == [(False,)], "the table that the caller made stays as it was"
        connection.rollback()


def test_the_relay_can_neither_make_nor_remove_a_shard(cast: Cast) -> None:
    for table in ("outbox_shard", "outbox_lease"):
        may_not(cast.relay, f"DELETE FROM {table}", f"INSERT INTO {table} (shard) VALUES (1)")
    may_not(cast.relay, "SELECT 1 FROM consumer_offset", "UPDATE outbox_schema SET version = 0")


def test_the_consumer_keeps_its_offsets(cast: Cast) -> None:
    may(
        cast.consumer,
        "INSERT INTO consumer_offset (grp, topic, partition, next_offset) VALUES ('g', 't', 0, 0)",
        "UPDATE consumer_offset SET next_offset = 5",
        "SELECT * FROM consumer_offset",
        "INSERT INTO consumer_inbox (grp, topic, partition, event_id, record_offset) "
        "VALUES ('g', 't', 0, 'i', 0)",
        "SELECT * FROM consumer_inbox",
        "SELECT consumer_inbox_sweep()",
        "SELECT version FROM outbox_schema",
    )


def test_the_consumer_touches_nothing_else(cast: Cast) -> None:
    may_not(
        cast.consumer,
        "DELETE FROM consumer_offset",
        "TRUNCATE consumer_offset",
        "TRUNCATE consumer_inbox",
        "TRUNCATE consumer_inbox_3",
        "DELETE FROM consumer_inbox",
        "UPDATE consumer_inbox SET record_offset = 0",
        EVENT.format(more="", over="", value=""),
        "SELECT 1 FROM outbox_event",
        "DELETE FROM outbox_event",
        "TRUNCATE outbox_event",
        *(f"SELECT 1 FROM {table}" for table in RELAY_TABLES),
        *(f"DELETE FROM {table}" for table in RELAY_TABLES),
    )


def test_the_reader_reads_everything_and_writes_nothing(cast: Cast) -> None:
    everything = ("outbox_event", "outbox_scheduled", *RELAY_TABLES, "consumer_offset", "outbox_schema")
    may(cast.reader, *(f"SELECT * FROM {table}" for table in everything))
    for table in everything:
        may_not(
            cast.reader,
            f"INSERT INTO {table} DEFAULT VALUES",
            f"DELETE FROM {table}",
            f"TRUNCATE {table}",
        )


def test_settings_come_with_the_role_and_not_from_the_session(cast: Cast) -> None:
    """A pooler may hand the relay any connection of its role: each is set as the relay needs it."""
    for url, expected in (
        (cast.relay, roles.RELAY_SETTINGS),
        (cast.consumer, roles.CONSUMER_SETTINGS),
    ):
        with psycopg.connect(url) as connection:
            for name, value in expected.items():
                source = connection.execute("SELECT source FROM pg_settings WHERE name = %s", (name,))
                assert source.fetchone() == ("user",), name
                shown = connection.execute(f"SHOW {name}".encode()).fetchone()
                wanted = connection.execute("SELECT set_config(%s, %s, true)", (name, value)).fetchone()
                assert shown == wanted, name


def test_a_superuser_who_inserts_positions_is_what_the_grants_prevent(engine: Engine) -> None:
    """The broken variant: without column grants a writer could put an event behind the relay's back."""
    with engine.begin() as connection:
        connection.execute(
            text(EVENT.format(more=", xid, position", over="OVERRIDING SYSTEM VALUE", value=", '3', 1"))
        )
        assert connection.scalar(text("SELECT position FROM outbox_event")) == 1
