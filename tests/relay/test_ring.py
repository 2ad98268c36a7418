"""A leaf of the ring is truncated exactly when nothing in it is needed any more."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from outbox import hooks
from outbox.storage import ring as leaves
from relay import ring
from relay.database import Database
from relay.loop import Bell
from relay.ring import Ring
from relay.telemetry.report import Report
from tests.relay.conftest import Connect
from tests.relay.scene import Session

NOW = timedelta(0)

INSERT = """
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload, slot)
VALUES (gen_random_uuid(), 'order', %(key)s, 'order.placed.v1', '\\x01', %(slot)s)
"""
ACKNOWLEDGE = "UPDATE outbox_shard SET done = pg_current_snapshot()"


@pytest.fixture
def quiet_slot(engine: Engine) -> int:
    """The slot whose next turn is farthest away."""
    with engine.connect() as connection:
        turn = connection.exec_driver_sql(
            f"SELECT (date_part('epoch', clock_timestamp())::bigint / {leaves.SECONDS_PER_LEAF})"
        ).scalar_one()
    return int((turn - 3) % leaves.LEAVES)


@pytest.fixture
def turner(database: str) -> Iterator[Ring]:
    made = Ring(Database(database), retention=NOW)
    yield made
    made.connection.close()


def insert(connection: Session, slot: int, key: str | None = "k") -> None:
    connection.execute(INSERT, {"key": key, "slot": slot})


def rows(connection: Session) -> int:
    found = connection.execute("SELECT count(*) FROM outbox_event").fetchone()
    assert found is not None
    return int(found[0])


def test_a_leaf_whose_events_are_all_acknowledged_is_truncated(
    connect: Connect, quiet_slot: int, turner: Ring
) -> None:
    session = connect(autocommit=True)
    insert(session, quiet_slot)
    session.execute(ACKNOWLEDGE)
    assert turner.run_once() == [leaves.leaf(quiet_slot)]
    assert rows(session) == 0


def test_an_event_that_waits_to_be_published_keeps_its_leaf(
    connect: Connect, quiet_slot: int, turner: Ring
) -> None:
    session = connect(autocommit=True)
    session.execute(ACKNOWLEDGE)
    insert(session, quiet_slot)
    assert turner.run_once() == []
    assert rows(session) == 1


def test_a_transaction_older_than_the_whole_ring_loses_nothing(
    connect: Connect, quiet_slot: int, turner: Ring
) -> None:
    late, session = connect(), connect(autocommit=True)
    insert(late, quiet_slot)
    insert(session, quiet_slot)
    session.execute(ACKNOWLEDGE)
    assert turner.run_once(attempts=1) == []
    late.commit()
    assert turner.run_once() == []
    assert rows(session) == 2


def test_asking_for_visible_rows_without_the_lock_would_lose_the_late_transaction(
    connect: Connect, quiet_slot: int, turner: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken form: no lock, so the open transaction is not noticed by the check."""
    monkeypatch.setattr(ring, "LOCK", "SELECT '{leaf}'")
    monkeypatch.setattr(ring, "IN_USE", "SELECT false AS {leaf}")
    late, session = connect(), connect(autocommit=True)
    insert(late, quiet_slot)
    insert(session, quiet_slot)
    session.execute(ACKNOWLEDGE)
    monkeypatch.setattr(ring, "TRUNCATE", "SELECT '{leaf}'")
    assert turner.run_once() == [leaves.leaf(quiet_slot)]


def test_a_row_of_no_shard_keeps_its_leaf(connect: Connect, quiet_slot: int, turner: Ring) -> None:
    session = connect(autocommit=True)
    insert(session, quiet_slot, key=None)
    session.execute(ACKNOWLEDGE)
    session.execute("UPDATE outbox_shard SET lo = 1")
    assert turner.run_once() == []
    assert rows(session) == 1


def test_a_reader_such_as_pg_dump_postpones_truncation_and_nobody_waits_behind_us(
    connect: Connect, quiet_slot: int, turner: Ring
) -> None:
    dump, session = connect(), connect(autocommit=True)
    insert(session, quiet_slot)
    session.execute(ACKNOWLEDGE)
    dump.execute("LOCK TABLE outbox_event IN ACCESS SHARE MODE")
    assert turner.run_once(attempts=3) == []
    session.execute("SET lock_timeout = '100ms'")
    insert(session, quiet_slot)
    dump.rollback()
    session.execute(ACKNOWLEDGE)
    assert turner.run_once() == [leaves.leaf(quiet_slot)]


class Pauses(Bell):
    """The `last` pause is one in which `free` happens."""

    def __init__(self, last: int, free: Callable[[], None]) -> None:
        super().__init__()
        self.left, self.free = last, free

    def sleep(self, seconds: float) -> bool:
        assert 0.001 <= seconds <= 0.010
        self.left -= 1
        if self.left == 0:
            self.free()
        return super().sleep(0)


def test_a_leaf_that_is_read_nearly_all_the_time_is_had_in_a_moment_without_readers(
    connect: Connect, quiet_slot: int, turner: Ring
) -> None:
    look, session = connect(), connect(autocommit=True)
    insert(session, quiet_slot)
    session.execute(ACKNOWLEDGE)
    look.execute("LOCK TABLE outbox_event IN ACCESS SHARE MODE")
    turner.bell = Pauses(5, look.rollback)
    assert turner.run_once() == [leaves.leaf(quiet_slot)]
    assert turner.trouble is None


def test_told_to_stop_it_does_not_wait_for_such_a_moment(
    connect: Connect, quiet_slot: int, turner: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, session = connect(), connect(autocommit=True)
    insert(session, quiet_slot)
    look.execute("LOCK TABLE outbox_event IN ACCESS SHARE MODE")
    monkeypatch.setattr(ring, "PAUSE", (3600, 3600))
    turner.bell.stop()
    assert turner.run_once() == []


def test_a_leaf_that_cannot_be_had_before_its_next_turn_is_an_alarm_until_it_is(
    connect: Connect,
    quiet_slot: int,
    turner: Ring,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    look, session = connect(), connect(autocommit=True)
    insert(session, quiet_slot)
    session.execute(ACKNOWLEDGE)
    look.execute("LOCK TABLE outbox_event IN ACCESS SHARE MODE")
    turner.run_once(attempts=2)
    assert turner.trouble is None, "there is time left"
    monkeypatch.setattr(ring, "SOON", leaves.LEAVES * leaves.SECONDS_PER_LEAF)
    for _ in range(3):
        turner.run_once(attempts=2)
    assert [r.levelname for r in caplog.records if r.name == "relay.ring"] == ["WARNING"]
    assert leaves.leaf(quiet_slot) in str(turner.trouble)
    look.rollback()
    turner.run_once()
    assert turner.trouble is None


def test_space_that_is_not_given_back_is_an_alarm_of_a_relay_that_works() -> None:
    report = Report()
    report.shard(0)["state"] = "carrying"
    report.space = "not given back"
    whole = report.whole()
    assert (whole["state"], whole["alarm"]) == ("carrying", "not given back")


def test_the_check_sees_what_the_lock_waited_for_even_where_repeatable_read_is_the_default(
    connect: Connect, quiet_slot: int, turner: Ring
) -> None:
    late, session = connect(), connect(autocommit=True)
    insert(session, quiet_slot)
    session.execute(ACKNOWLEDGE)
    insert(late, quiet_slot)

    def commit_late(point: str, _facts: dict[str, object]) -> None:
        assert point != "relay.ring.locked", "the lock must not be granted while the writer is open"

    unsubscribe = hooks.subscribe(commit_late)
    try:
        assert turner.run_once(attempts=1) == []
    finally:
        unsubscribe()
    late.commit()
    session.execute("ALTER ROLE CURRENT_USER SET default_transaction_isolation = 'repeatable read'")
    try:
        turner.connection.close()
        assert turner.run_once() == []
    finally:
        session.execute("ALTER ROLE CURRENT_USER RESET default_transaction_isolation")
    assert rows(session) == 2


def test_published_events_stay_readable_for_the_retention(
    connect: Connect, database: str, quiet_slot: int
) -> None:
    session = connect(autocommit=True)
    insert(session, quiet_slot)
    session.execute(ACKNOWLEDGE)
    patient = Ring(Database(database), retention=timedelta(hours=2))
    try:
        assert patient.run_once() == []
    finally:
        patient.connection.close()
    assert rows(session) == 1
