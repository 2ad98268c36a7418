"""Nothing that others put into the outbox's schema is run with the owner's rights."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Engine

from outbox import ddl

Connection = psycopg.Connection[tuple[object, ...]]

ROUTINES = (
    "mod(bigint, integer) RETURNS bigint",
    "hashtextextended(text, integer) RETURNS bigint",
    "num_nulls(pg_snapshot, bigint, xid8) RETURNS integer",
    "num_nulls(timestamptz, text) RETURNS integer",
    "num_nulls(text, text) RETURNS integer",
    "set_config(text, text, boolean) RETURNS text",
    "octet_length(varchar) RETURNS integer",
)
OPERATORS = (
    ("*", "numeric", "integer"),
    ("+", "bigint", "smallint"),
    ("&", "bigint", "integer"),
    ("=", "integer", "numeric"),
    ("||", "text", "bigint"),
    ("||", "text", "integer"),
)
BODY = (
    "LANGUAGE plpgsql AS $$ BEGIN "
    "INSERT INTO public.caught VALUES (current_user); RETURN (SELECT count(*) FROM public.caught); END $$"
)


@pytest.fixture
def attacker(empty_database: str) -> Iterator[str]:
    """A role that may create in schema public, and has done so before anything was installed there."""
    name = f"attacker_{uuid4().hex[:8]}"
    with psycopg.connect(empty_database, autocommit=True) as session:
        session.execute(f"CREATE ROLE {name} LOGIN; GRANT CREATE ON SCHEMA public TO {name}".encode())
        session.execute(f"SET ROLE {name}".encode())
        session.execute("CREATE TABLE public.caught (role text); GRANT ALL ON public.caught TO PUBLIC")
        for routine in ROUTINES:
            session.execute(f"CREATE FUNCTION public.{routine} {BODY}".encode())
        for number, (operator, left, right) in enumerate(OPERATORS):
            returns = {"=": "boolean", "||": "text"}.get(operator, left)
            session.execute(
                f"CREATE FUNCTION public.planted_{number}({left}, {right}) RETURNS {returns} {BODY}".encode()
            )
            session.execute(
                f"CREATE OPERATOR public.{operator} (LEFTARG = {left}, RIGHTARG = {right}, "
                f"FUNCTION = public.planted_{number})".encode()
            )
    yield name
    with psycopg.connect(empty_database, autocommit=True) as session:
        session.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}".encode())


def caught(session: Connection) -> int:
    row = session.execute("SELECT pg_catalog.count(*) FROM public.caught").fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]


CALLS = (
    "SELECT public.outbox_emit('a', 'k', 'b', 'x'::bytea, headers => '{\"n\": \"v\"}')",
    "SELECT public.outbox_emit('a', 'k', 'b', 'x'::text, sealed => true)",
    "SELECT public.outbox_emit('a', 'k', 'b', '{}'::jsonb, deliver_at => '2000-01-01')",
    "SELECT public.outbox_move(10)",
    "SELECT public.outbox_cancel(pg_catalog.gen_random_uuid())",
    "SELECT public.outbox_sweep()",
    "SELECT public.consumer_inbox_sweep()",
    "SELECT public.outbox_shards_set(2)",
    "SELECT public.outbox_shards_cancel()",
    "SELECT public.outbox_shards_set(2)",
    "INSERT INTO public.outbox_hold (shard, topic, aggregateid) VALUES (0, 't', 'k')",
    "UPDATE public.outbox_reshard SET upto = '9:9:', floor = 9, at_xid = '9'",
    "UPDATE public.outbox_shard SET done = '9:9:'",
)


def test_what_stands_in_for_postgresqls_own_functions_never_runs(attacker: str, empty_engine: Engine) -> None:
    """Each fits its arguments more exactly than PostgreSQL's own does, and stood there before the outbox."""
    with empty_engine.begin() as connection:
        ddl.apply(connection)
        ddl.check(connection)
        connection.exec_driver_sql("TRUNCATE public.caught")  # by the owner's session, not by what it made
    url = empty_engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("SET search_path = pg_catalog")
        for call in CALLS:
            session.execute(call.encode())
        assert session.execute("SELECT public.outbox_shards_switch()").fetchone() == (True,)
        assert session.execute("SELECT public.outbox_shards_set(1)").fetchone() is not None
        assert caught(session) == 0


def test_with_the_schema_on_the_path_it_would_run_as_the_owner(attacker: str, empty_engine: Engine) -> None:
    with empty_engine.begin() as connection:
        ddl.apply(connection)
        connection.exec_driver_sql("ALTER FUNCTION outbox_sweep() SET search_path = pg_catalog, public")
        connection.exec_driver_sql("DROP OPERATOR public.|| (text, bigint)")  # would make an unknown name
        connection.exec_driver_sql("TRUNCATE public.caught")
        connection.exec_driver_sql("SELECT outbox_sweep()")
        assert connection.exec_driver_sql("SELECT count(*) FROM public.caught").scalar() != 0


def test_a_default_that_was_taken_over_is_found(attacker: str, empty_engine: Engine) -> None:
    with empty_engine.begin() as connection:
        ddl.apply(connection)
        assert ddl.problems(connection) == []
        connection.exec_driver_sql("ALTER TABLE outbox_event ALTER COLUMN slot SET DEFAULT mod(1::bigint, 8)")
        problem, *_ = ddl.problems(connection)
        assert "table outbox_event calls mod(bigint,integer) of role " + attacker in problem


def test_whoever_else_may_create_in_the_schema_is_named(attacker: str, empty_engine: Engine) -> None:
    with empty_engine.begin() as connection:
        assert ddl.warnings(connection) == [], "nothing is installed"
        ddl.apply(connection)
        connection.exec_driver_sql("GRANT CREATE ON SCHEMA public TO PUBLIC")
        told = ddl.warnings(connection)
        assert len(told) == 2
        for warning, role in zip(told, ("PUBLIC", attacker), strict=True):
            assert warning.endswith(f"run: REVOKE CREATE ON SCHEMA public FROM {role}")
            connection.exec_driver_sql(warning.rpartition("run: ")[2])
        assert ddl.warnings(connection) == []
        assert ddl.problems(connection) == []
