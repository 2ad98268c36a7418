"""The statements of each batch and claim find their row by the primary key, and leave no index to clean."""

import json
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Row, TextClause, text

from outbox.consumer.batch import ADVANCE
from outbox.consumer.claim import CLAIM, KNOWN
from outbox.consumer.foreign.inbox import ADMIT
from outbox.consumer.place.move import HOLD, MOVE
from outbox.consumer.place.recall import MOVED
from outbox.consumer.place.run_up import STAGE
from outbox.storage import ring
from tests.consumer.stage import eventually

FILL = text("""
INSERT INTO consumer_offset (grp, topic, partition, next_offset)
SELECT 'g' || g, 't' || t, p, 0
FROM generate_series(1, 10) g, generate_series(1, 20) t, generate_series(0, 19) p
""")

KEY = {"grp": "g3", "topic": "t7", "partition": 11}
PARAMETERS: dict[str, dict[str, Any]] = {
    "advance": {
        "expected": 0,
        "next": 5,
        "epoch": 0,
        "leader_epoch": 0,
        "sources": "{}",
        "owner": "me",
        "idle": "1000",
    },
    "claim": {"owner": "me", "cluster_id": "c", "topic_id": None, "partitions": 3},
    "stage": {"epoch": 0, "expected": 0, "run_up": 5, "sources": "{}", "idle": "1000"},
    "hold": {},
    "move": {
        "to": 0,
        "empty": True,
        "run_up": True,
        "cluster_id": None,
        "topic_id": None,
        "partitions": None,
        "who": "me",
        "why": "so",
    },
    "moved": {},
    "known": {},
}
STATEMENTS = {
    "advance": ADVANCE,
    "claim": CLAIM,
    "stage": STAGE,
    "hold": HOLD,
    "move": MOVE,
    "moved": MOVED,
    "known": KNOWN,
}


def plan(connection: Connection, statement: TextClause, parameters: dict[str, Any]) -> str:
    explained = connection.execute(text(f"EXPLAIN (FORMAT JSON) {statement.text}"), parameters).scalar_one()
    return json.dumps(explained)


@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.parametrize("statistics", ["fresh", "none"])
def test_a_row_is_found_by_its_primary_key(engine: Engine, name: str, statistics: str) -> None:
    with engine.connect() as connection:
        connection.execute(FILL)
        if statistics == "fresh":
            connection.execute(text("ANALYZE consumer_offset"))
        found = plan(connection, STATEMENTS[name], {**KEY, **PARAMETERS[name]})
    assert "consumer_offset_pkey" in found
    assert "Seq Scan" not in found


FILL_INBOX = text("""
INSERT INTO consumer_inbox (grp, topic, partition, event_id, record_offset, slot)
SELECT 'g' || n % 3, 't' || n % 5, n % 7, gen_random_uuid()::text, n, n % 3 FROM generate_series(1, 30000) n
""")


SCANS = text("""
SELECT sum(seq_scan), sum(idx_scan) FROM pg_stat_xact_user_tables WHERE relname ~ '^consumer_inbox_'
""")


@pytest.mark.parametrize("statistics", ["fresh", "none", "of empty leaves"])
def test_ids_are_found_by_the_primary_key_of_each_leaf(engine: Engine, statistics: str) -> None:
    """Also by the plan that is kept from when the leaves were empty."""
    given = {
        "grp": "g1",
        "topics": ["t1"] * 500,
        "partitions": [1] * 500,
        "ids": [f"id {n}" for n in range(500)],
        "offsets": list(range(500)),
    }
    with engine.connect() as connection:
        if statistics == "of empty leaves":
            connection.execute(text("ANALYZE consumer_inbox"))
            for _ in range(7):
                connection.execute(ADMIT, given | {"ids": [], "topics": [], "partitions": [], "offsets": []})
        connection.execute(FILL_INBOX)
        if statistics == "fresh":
            connection.execute(text("ANALYZE consumer_inbox"))
        before = connection.execute(SCANS).one()
        assert connection.execute(ADMIT, given).all() == []
        after = connection.execute(SCANS).one()
    assert after[0] == before[0]
    assert after[1] - before[1] >= 500 * ring.INBOX_LEAVES


TOUCHED = text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'consumer_offset'")


def test_moving_the_offset_touches_no_index(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(FILL)
        connection.commit()
        for n in range(50):
            moved = {**KEY, **PARAMETERS["advance"], "expected": n * 5, "next": n * 5 + 5}
            assert connection.execute(ADVANCE, moved).rowcount == 1
            connection.commit()
    engine.dispose()  # a backend hands in its counts when it ends

    def counted() -> Row[Any] | None:
        with engine.connect() as connection:
            counts = connection.execute(TOUCHED).one()
            return counts if counts[0] >= 50 else None

    updated, heap_only = eventually(counted)
    assert heap_only >= updated - 2
