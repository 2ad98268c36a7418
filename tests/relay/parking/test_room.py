"""A shard that halts because too many keys wait goes on once an operator discards some."""

from collections.abc import Iterator

import pytest

from relay import tenure
from relay.row import PAYLOAD, Row
from relay.shard import HALTED, Shard
from tests.relay.conftest import Connect
from tests.relay.database.half import Session, shard, write
from tests.relay.database.memory_broker import MemoryBroker

DISCARD = """
WITH marked AS (
    UPDATE outbox_parked SET discarded_by = 'operator', discard_reason = 'a test order'
    WHERE aggregateid = 'a' RETURNING hold)
UPDATE outbox_hold SET wanted_at = now(), wanted_by = 'operator' WHERE hold IN (SELECT hold FROM marked)
"""


@pytest.fixture
def session(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(tenure, "JOBS_EVERY", 0.0)
    return connect(autocommit=True)


def refuses(row: Row) -> bool:
    return row[PAYLOAD] == b"poison"


@pytest.fixture
def carrying(database: str) -> Iterator[tuple[Shard, MemoryBroker]]:
    broker = MemoryBroker(refuses=refuses)
    one = shard(database, broker, max_parked=1)
    yield one, broker
    one.let_go()


def go_on(carrying: Shard) -> str:
    """Rounds until nothing moves; what came of them."""
    for _ in range(30):
        if carrying.run_once().rest == HALTED:
            return "halted"
    return "carried"


def test_what_is_discarded_takes_no_room_and_its_key_waits_until_the_delta_is_over(
    carrying: tuple[Shard, MemoryBroker], session: Session
) -> None:
    one, broker = carrying
    session.execute("BEGIN")
    write(session, key="a", payload=b"poison")
    before = write(session, key="a")
    write(session, key="b", payload=b"poison")
    behind = write(session, key="a") + write(session, key="c")
    session.execute("COMMIT")
    assert go_on(one) == "halted"
    session.execute(DISCARD)
    assert go_on(one) == "carried"
    arrived = broker.ids()
    assert sorted(arrived) == sorted(before + behind)
    assert arrived.index(before[0]) < arrived.index(behind[0]), "in their key's order"
    found = session.execute("SELECT aggregateid FROM outbox_hold").fetchall()
    assert found == [("b",)], "the next one waits in its place"
    assert session.execute(
        "SELECT outcome, count(*) FROM outbox_archive GROUP BY 1 ORDER BY 1"
    ).fetchall() == [
        ("discarded", 1),
        ("sent", 2),
    ]


def test_a_mark_on_an_event_that_waits_behind_makes_no_room(
    carrying: tuple[Shard, MemoryBroker], session: Session
) -> None:
    one, _ = carrying
    session.execute("BEGIN")
    write(session, key="a", payload=b"poison")
    write(session, key="a")
    write(session, key="b", payload=b"poison")
    session.execute("COMMIT")
    assert go_on(one) == "halted"
    session.execute(DISCARD.replace("aggregateid = 'a'", "state = 'held'"))
    assert go_on(one) == "halted"
