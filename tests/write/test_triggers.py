"""A trigger announces what became of a row: AFTER it is there, never BEFORE."""

import psycopg
import pytest
from sqlalchemy import Engine

from tests.write.orders import stored

TRIGGER = """
CREATE FUNCTION announce() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM outbox_emit(aggregatetype => 'zone', aggregateid => NEW.id::text, type => TG_OP,
        payload => to_jsonb(NEW));
    RETURN NEW;
END $$;
CREATE TRIGGER announce {when} INSERT OR UPDATE ON zones FOR EACH ROW EXECUTE FUNCTION announce();
"""
UPSERT = "INSERT INTO zones VALUES (1, 5) ON CONFLICT (id) DO {otherwise}"


def announced(engine: Engine, database: str, when: str, otherwise: str) -> list[tuple[str, bytes]]:
    """What is announced when a row that is there already is inserted again."""
    with psycopg.connect(database, autocommit=True) as session:
        session.execute("INSERT INTO zones VALUES (1, 0)")
        session.execute(TRIGGER.format(when=when).encode())
        session.execute(UPSERT.format(otherwise=otherwise).encode())
    return [(row["type"], bytes(row["payload"])) for row in stored(engine)]


@pytest.mark.parametrize(
    ("otherwise", "expected"),
    [
        ("NOTHING", []),
        ("UPDATE SET balance = 7", [("UPDATE", b'{"id": 1, "balance": 7}')]),
    ],
)
def test_after_row_announces_what_happened(
    engine: Engine, database: str, otherwise: str, expected: list[tuple[str, bytes]]
) -> None:
    assert announced(engine, database, "AFTER", otherwise) == expected


@pytest.mark.parametrize("otherwise", ["NOTHING", "UPDATE SET balance = 7"])
def test_before_insert_announces_a_row_that_never_was(engine: Engine, database: str, otherwise: str) -> None:
    """The broken form."""
    assert announced(engine, database, "BEFORE", otherwise)[0] == ("INSERT", b'{"id": 1, "balance": 5}')
