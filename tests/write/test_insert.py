"""What the application hands over is what the table holds, character by character, one event or many."""

from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from outbox.row import COLUMNS, INSERT_MANY, INSERT_ONE, Row, insert
from tests.write.orders import stored

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
JSON = st.sampled_from(['{"a": "b"}', '{"a\\"b": "c\\\\d"}', '{"ü": "NULL"}', "{}"])
ROW = st.builds(
    Row,
    id=st.uuids(),
    aggregatetype=TEXT,
    aggregateid=st.none() | TEXT | st.sampled_from(["NULL", "null", "{}", ",", '"', "\\", "a b ", " "]),
    type=TEXT,
    payload=st.none() | st.binary(max_size=50),
    topic=st.none() | TEXT,
    headers=st.none() | JSON,
    traceparent=st.none() | TEXT,
)


@given(rows=st.lists(ROW, min_size=1, max_size=8))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_arrives_as_it_left(engine: Engine, rows: list[Row]) -> None:
    import json

    with engine.connect() as connection:
        connection.exec_driver_sql(*insert(rows))
        found = stored(connection)
        connection.rollback()
    names = [name for name in Row._fields[:COLUMNS] if name != "headers"]
    assert [[row[name] for name in names] for row in found] == [
        [getattr(row, name) for name in names] for row in rows
    ]
    assert [row["headers"] for row in found] == [
        None if row.headers is None else json.loads(row.headers) for row in rows
    ]


def test_there_are_two_constant_statements() -> None:
    """So that psycopg prepares them, and the server plans them once."""
    row = Row(UUID(int=0), "a", None, "t", None, None, None, None)
    assert insert([row])[0] is INSERT_ONE
    assert insert([row] * 2)[0] is insert([row] * 200)[0] is INSERT_MANY


@pytest.mark.parametrize("statement", [INSERT_ONE, INSERT_MANY])
def test_the_application_never_writes_what_carries_the_order(statement: str) -> None:
    columns = statement.partition("(")[2].partition(")")[0]
    assert columns.split(", ") == list(Row._fields[:COLUMNS])
