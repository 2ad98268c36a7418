"""What the page for other writers shows runs as it stands there."""

import re
from pathlib import Path

import psycopg
from sqlalchemy import Engine

PAGE = Path(__file__).parents[2] / "docs" / "other-writers.md"


def test_every_block_runs_in_the_order_of_the_page(engine: Engine, database: str) -> None:
    blocks = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    with psycopg.connect(database, autocommit=True) as session:
        session.execute("CREATE TABLE orders (id bigint PRIMARY KEY, total numeric NOT NULL)")
        for block in blocks:
            session.execute(block.encode())
            session.execute("INSERT INTO orders VALUES (4711, 9) ON CONFLICT DO NOTHING")
        rows = session.execute(
            "SELECT aggregateid, type, convert_from(payload, 'UTF8'), headers FROM outbox_event "
            "ORDER BY position"
        ).fetchall()
    assert rows == [
        ("4711", "order.placed.v1", '{"total": "9.90"}', {"tenant": "north"}),
        ("4711", "order.placed.v1", '{"total": "9.90"}', None),
        ("4711", "order.changed.v1", '{"id": 4711, "total": 10}', None),
        ("4711", "order.placed.v1", "{}", None),
    ]
