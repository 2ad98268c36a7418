"""`outbox_emit` records an event from any language, and refuses what `emit` refuses."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb
from sqlalchemy import Engine

from outbox import EventRejected, preflight
from outbox.record import default_topic
from tests.write.orders import stored
from tests.write.test_scheduled import waiting

Session = psycopg.Connection[tuple[Any, ...]]

EMIT = """
SELECT outbox_emit(aggregatetype => %(aggregatetype)s, aggregateid => %(aggregateid)s, type => %(type)s,
    payload => %(payload)s, topic => %(topic)s, headers => %(headers)s, max_record_bytes => %(limit)s)
"""
ORDER = "aggregatetype => 'order', aggregateid => '7', type => 'order.placed.v1'"


@pytest.fixture
def session(engine: Engine, database: str) -> Iterator[Session]:
    with psycopg.connect(database, autocommit=True) as session:
        yield session


def call(session: Session, arguments: str) -> UUID:
    row = session.execute(f"SELECT outbox_emit({ORDER}, {arguments})".encode()).fetchone()
    assert row is not None
    return UUID(str(row[0]))


def test_an_event_is_recorded_in_the_transaction_that_calls(engine: Engine, session: Session) -> None:
    with session.transaction(force_rollback=True):
        call(session, "payload => 'gone'")
    with session.transaction():
        event_id = call(
            session,
            'payload => \'{"total": "9.90"}\', topic => \'orders\', headers => \'{"tenant": "ü"}\', '
            "traceparent => '00-0123456789abcdef0123456789abcdef-0123456789abcdef-01'",
        )
        assert stored(engine) == []
    (row,) = stored(engine)
    assert (row["id"], row["aggregatetype"], row["aggregateid"], row["type"], row["topic"]) == (
        event_id, "order", "7", "order.placed.v1", "orders",
    )  # fmt: skip
    assert bytes(row["payload"]) == b'{"total": "9.90"}'
    assert row["headers"] == {"tenant": "ü"}
    assert row["traceparent"].endswith("-01")
    assert abs(row["occurred_at"] - datetime.now(UTC)) < timedelta(minutes=5)


@pytest.mark.parametrize(
    ("payload", "arrives"),
    [
        ("'ä'", "ä".encode()),
        ("'{\"a\":  1}'::text", b'{"a":  1}'),
        ("'{\"a\":  1}'::jsonb", b'{"a": 1}'),
        ("jsonb_build_object('a', 'ä')", '{"a": "ä"}'.encode()),
        ("'\\x00ff'::bytea", b"\x00\xff"),
        ("''::bytea", b""),
        ("NULL", None),
        ("NULL::jsonb", None),
    ],
)
def test_a_payload_is_bytes_text_or_jsonb(
    engine: Engine, session: Session, payload: str, arrives: bytes | None
) -> None:
    call(session, f"payload => {payload}")
    (row,) = stored(engine)
    assert row["payload"] == arrives


def test_its_id_is_a_uuid_of_version_7_in_the_order_of_time_or_the_callers(
    engine: Engine, session: Session
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=60)
    made = call(session, "payload => ''")
    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    stamped = datetime.fromtimestamp((made.int >> 80) / 1000, UTC)
    assert before < stamped < before + timedelta(seconds=120)
    own = uuid4()
    assert call(session, f"payload => '', id => '{own}', occurred_at => '2020-02-02 00:00+00'") == own
    assert [row["id"] for row in stored(engine)] == [made, own]
    assert stored(engine)[1]["occurred_at"] == datetime(2020, 2, 2, tzinfo=UTC)


def test_it_schedules_and_seals_too(engine: Engine, session: Session) -> None:
    event_id = call(session, "payload => 'x', deliver_at => '2100-01-01 00:00+00'")
    assert [(row["id"], row["payload"]) for row in waiting(engine)] == [(event_id, b"x")]
    assert session.execute("SELECT outbox_cancel(%s)", [event_id]).fetchone() == (True,)
    assert (waiting(engine), stored(engine)) == ([], [])
    with session.transaction():
        sealed = call(session, "payload => 'x', sealed => true")
        plain = call(session, "payload => 'x'")
    assert [row["id"] for row in stored(engine)] == [plain, sealed]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ("payload => '', headers => '{\"id\": \"x\"}'", "header 'id' is written by the relay"),
        ("payload => '', headers => '{\"outbox-replay\": \"x\"}'", "header 'outbox-replay' is written by"),
        ("payload => '', headers => '{\"n\": 1}'", "header 'n' is a number, not a string"),
        ("payload => '', headers => '[]'", "headers are an object of names and texts, not array"),
        ("payload => '', topic => 'a b'", "topic 'a b' is not 1 to 249 of the characters"),
        ("payload => '', topic => '..'", "topic '..' is not"),
        (
            "payload => '', topic => 'outbox.progress.7.5'",
            "'outbox.progress.7.5': .* the relays' own records",
        ),
        ("payload => repeat('x', 1000000)", "has 1000257 bytes .* and the limit is 1000000"),
        ("payload => '', deliver_at => now(), occurred_at => now()", "leave occurred_at away"),
        ("payload => '', deliver_at => now(), sealed => true", "leave sealed away"),
        ("payload => '', deliver_at => 'infinity'", "deliver_at is no moment"),
        ("payload => '', occurred_at => '-infinity'", "occurred_at is no moment"),
    ],
)
def test_what_cannot_travel_fails_the_transaction_and_says_why(
    engine: Engine, session: Session, arguments: str, fault: str
) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"not recorded: .*{fault}"):
        call(session, arguments)
    assert (stored(engine), waiting(engine)) == ([], [])


@pytest.mark.parametrize("missing", ["aggregatetype", "type"])
def test_what_is_missing_is_said(session: Session, missing: str) -> None:
    given = {"aggregatetype": "a", "aggregateid": None, "type": "t", "payload": b"", "topic": "t"}
    for nothing in (None, ""):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"{missing} is missing"):
            session.execute(EMIT, {**given, missing: nothing, "headers": None, "limit": 1000})


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
NAME = TEXT | st.sampled_from(
    ["id", "type", "outbox-seq", "outbox-replay", "traceparent", "content-type", ""]
)


@given(
    aggregate=st.sampled_from(["order", "or der", "x" * 236, "x" * 237, "a.b_c-D"]) | TEXT.filter(bool),
    key=st.none() | TEXT,
    topic=st.none()
    | TEXT
    | st.sampled_from([".", "..", "orders", "orders\n", "x" * 249, "x" * 250, "ä", ""])
    | st.sampled_from(["outbox.progress", "outbox.progress.", "outbox.progress.7.5", "outbox_progress.7"]),
    payload=st.none() | st.binary(max_size=40),
    headers=st.none() | st.dictionaries(NAME, TEXT | st.integers() | st.none(), max_size=3),
    limit=st.integers(250, 330),
)
@example("order", "k", "outbox.progress.7.5", b"", None, 330)
@example("order", "kä", None, b"x" * 10, {"ä": "ü"}, 256 + 3 + 10 + 4)
@example("order", "kä", None, b"x" * 10, {"ä": "ü"}, 256 + 3 + 10 + 3)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_refuses_exactly_what_emit_refuses(
    session: Session,
    aggregate: str,
    key: str | None,
    topic: str | None,
    payload: bytes | None,
    headers: Any,
    limit: int,
) -> None:
    effective = topic if topic is not None else default_topic(aggregate)
    try:
        preflight.check(
            "x", topic=effective, key=key, payload=payload, headers=headers, max_record_bytes=limit
        )
        expected = None
    except EventRejected as refused:
        expected = str(refused)
    given = {"aggregatetype": aggregate, "aggregateid": key, "type": "t", "payload": payload, "topic": topic}
    try:
        session.execute(
            EMIT.replace("%(payload)s", "%(payload)s::bytea"),
            {**given, "headers": None if headers is None else Jsonb(headers), "limit": limit},
        )
        found = None
    except psycopg.errors.InvalidParameterValue as refused:
        found = str(refused)
    assert (found is None) == (expected is None), (found, expected)


def test_it_finds_the_outbox_whatever_schema_it_lives_in_and_whatever_the_caller_looks_at(
    empty_database: str,
) -> None:
    from outbox import ddl
    from tests.conftest import create_engine

    engine = create_engine(empty_database)
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "Out box"; SET LOCAL search_path = "Out box"')
        ddl.apply(connection)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE outbox_event (trap int)")
        connection.exec_driver_sql(f"SELECT \"Out box\".outbox_emit({ORDER}, payload => 'x')")
        connection.exec_driver_sql(f"SELECT \"Out box\".outbox_emit({ORDER}, payload => 'x', sealed => true)")
        connection.exec_driver_sql(
            f"SELECT \"Out box\".outbox_emit({ORDER}, payload => 'x', deliver_at => now())"
        )
        assert connection.exec_driver_sql('SELECT "Out box".outbox_move()').scalar_one() == 1
    with engine.begin() as connection:
        assert connection.exec_driver_sql('SELECT count(*) FROM "Out box".outbox_event').scalar_one() == 3
    engine.dispose()
