"""What is due is moved once and per key in the order of its times; what is not due stays."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from outbox import SchemaError, hooks
from outbox.storage.ddl import step_4
from relay import database, points
from relay import mover as module
from relay.database import Connection, Database
from relay.mover import BUSY, HELD, IDLE, Mover
from tests.relay.scene import until
from tests.relay.scheduled.conftest import Connect
from tests.relay.scheduled.scheduling import (
    PLAIN_SKIP_LOCKED,
    SEVERAL_MOVERS,
    Session,
    cancel,
    left,
    moved,
    schedule,
    use,
)


def turn(mover: Mover) -> int:
    """Rounds until nothing more can be moved; how many were."""
    total = 0
    while count := mover.run_once().count:
        total += count
    return total


def test_what_is_due_is_moved_in_the_order_of_its_times_whatever_order_it_was_scheduled_in(
    session: Session, mover: Mover
) -> None:
    third = schedule(session, -1)
    first = schedule(session, -3)
    tomorrow = schedule(session, 86_400)
    second = schedule(session, -2, key="other")
    assert turn(mover) == 3
    assert moved(session) == [first, second, third]
    assert session.execute("SELECT id FROM outbox_scheduled").fetchall() == [(tomorrow,)]


def test_events_of_one_moment_leave_in_the_order_in_which_they_were_scheduled(
    session: Session, mover: Mover
) -> None:
    with session.transaction():
        session.execute("SET LOCAL timezone = 'UTC'")
        ids = [schedule(session, -5) for _ in range(20)]
        session.execute("UPDATE outbox_scheduled SET due = '2020-01-01 00:00:00+00'")
    assert turn(mover) == 20
    assert moved(session) == ids


def test_an_event_arrives_whole_and_bears_the_moment_it_was_meant_for(session: Session, mover: Mover) -> None:
    row = (
        "'5b1ac7b8-6c53-7d4e-8f0a-0123456789ab', 'order', 'k', 'order.placed.v1', '\\x00ff', 'orders', "
        "'{\"a\": \"b\"}', '00-0123456789abcdef0123456789abcdef-0123456789abcdef-01'"
    )
    columns = "id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent"
    session.execute(
        f"INSERT INTO outbox_scheduled ({columns}, due, scheduled_at) "
        f"VALUES ({row}, '2020-02-02 10:00:00.123456+00', '2020-01-01 00:00:00+00')".encode()
    )
    assert turn(mover) == 1
    assert session.execute(
        f"SELECT ({columns})::text = ({row})::text, occurred_at = '2020-02-02 10:00:00.123456+00' "
        "FROM (SELECT id::text, aggregatetype, aggregateid, type, payload::text, topic, headers::text, "
        "traceparent, occurred_at FROM outbox_event) event".encode()
    ).fetchone() == (True, True)


def test_what_is_scheduled_for_the_past_leaves_at_once_and_bears_the_time_of_its_scheduling(
    session: Session, mover: Mover
) -> None:
    schedule(session, -86_400)
    assert turn(mover) == 1
    assert session.execute(
        "SELECT occurred_at > clock_timestamp() - interval '1 minute' FROM outbox_event"
    ).fetchone() == (True,)


def test_an_open_cancel_delays_its_own_key_only(connect: Connect, session: Session, mover: Mover) -> None:
    first, second = schedule(session, -3), schedule(session, -2)
    elsewhere = schedule(session, -3, topic="other")
    other, none, none_too = (
        schedule(session, -1, key="other"),
        schedule(session, -3, key=None),
        schedule(session, -1, key=None),
    )
    undecided = connect()
    assert cancel(undecided, first)
    assert cancel(undecided, none)
    assert turn(mover) == 3
    assert set(moved(session)) == {elsewhere, other, none_too}
    assert mover.run_once().rest == HELD.total_seconds()
    undecided.rollback()
    assert turn(mover) == 3
    assert [id_ for id_ in moved(session) if id_ in {first, second}] == [first, second]


def test_plain_skip_locked_would_invert_the_key(connect: Connect, session: Session, mover: Mover) -> None:
    """The broken form: it is the queue that one finds in tutorials."""
    use(session, PLAIN_SKIP_LOCKED)
    first, second = schedule(session, -3), schedule(session, -2)
    undecided = connect()
    assert cancel(undecided, first)
    turn(mover)
    undecided.rollback()
    turn(mover)
    assert moved(session) == [second, first]


def test_an_open_cancel_with_any_number_of_events_behind_it_delays_no_other_key(
    connect: Connect, session: Session, mover: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    first = schedule(session, -100)
    behind = [schedule(session, -99 + n) for n in range(10)]
    others = [schedule(session, -50 + n, key="other") for n in range(5)]
    undecided = connect()
    assert cancel(undecided, first)
    assert turn(mover) == 5
    assert moved(session) == others
    undecided.commit()
    assert turn(mover) == 10
    assert moved(session) == [*others, *behind]


def test_while_one_moves_another_relay_moves_nothing(
    connect: Connect, session: Session, mover: Mover, another: Callable[[], Mover]
) -> None:
    ids = [schedule(session, -10 + n) for n in range(4)]
    first = connect()
    assert first.execute("SELECT outbox_move(2)").fetchone() == (2,)
    assert another().run_once().count == 0
    first.rollback()
    assert turn(mover) == 4
    assert moved(session) == ids


def test_several_movers_at_once_would_invert(connect: Connect, session: Session) -> None:
    """The broken form: the second mover's events are published before the first one's."""
    use(session, SEVERAL_MOVERS)
    early, late = schedule(session, -2), schedule(session, -1)
    first, second = connect(), connect()
    taken = "SELECT FROM outbox_scheduled WHERE id = %s FOR UPDATE"
    first.execute(taken, [early])
    assert second.execute("SELECT outbox_move(1)").fetchone() == (1,)
    second.commit()
    assert first.execute("SELECT outbox_move(1)").fetchone() == (1,)
    first.commit()
    assert moved(session) == [late, early]


def test_an_event_committed_before_its_moment_is_seen_before_a_later_one_of_its_key(
    connect: Connect, session: Session, another: Callable[[], Mover]
) -> None:
    """The clock is read before the snapshot is taken; here the mover is stopped between the two."""
    assert _moved_around_a_commit(connect, session, step_4.MOVE.replace(CLOCK, f"{STOP} {CLOCK}")) == [1, 2]


def test_a_clock_read_after_the_snapshot_would_invert_them(connect: Connect, session: Session) -> None:
    """The broken form: what is due by now, among what was committed a moment ago."""
    naive = step_4.MOVE.replace("s.due <= upto", "s.due <= (SELECT clock_timestamp() FROM stopped)")
    naive = naive.replace("WITH seen", "WITH stopped AS MATERIALIZED (SELECT pg_advisory_xact_lock(1)), seen")
    assert _moved_around_a_commit(connect, session, naive) == [2, 1]


CLOCK = "upto := clock_timestamp();"
STOP = "PERFORM pg_advisory_xact_lock(1);"


def _moved_around_a_commit(connect: Connect, session: Session, function: str) -> list[int]:
    """Event 1 is committed while the mover is stopped, before it is due; event 2, due later, was there."""
    use(session, function)
    gate, moving = connect(), connect(autocommit=True)
    gate.execute("SELECT pg_advisory_xact_lock(1)")
    two = schedule(session, 1.0)
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(moving.execute, "SELECT outbox_move()")
        until(lambda: _waits(session, moving), 20, lambda: "the mover was not stopped")
        (moment,) = session.execute("SELECT due FROM outbox_scheduled").fetchone() or (None,)
        one = schedule(session, 0.2)
        session.execute("UPDATE outbox_scheduled SET due = %s - interval '1 ms' WHERE id = %s", [moment, one])
        session.execute("SELECT pg_sleep_until(%s)", [moment])
        gate.rollback()
        done.result(20)
    session.execute("SELECT outbox_move()")
    return [{one: 1, two: 2}[id_] for id_ in moved(session)]


def _waits(session: Session, other: Session) -> bool:
    return session.execute(
        "SELECT cardinality(pg_blocking_pids(%s)) > 0", [other.info.backend_pid]
    ).fetchone() == (True,)


def test_a_backend_that_is_killed_while_it_moves_has_moved_nothing(
    connect: Connect, session: Session, mover: Mover
) -> None:
    ids = [schedule(session, -10 + n) for n in range(3)]
    doomed = connect()
    assert doomed.execute("SELECT outbox_move()").fetchone() == (3,)
    session.execute("SELECT pg_terminate_backend(%s)", [doomed.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        doomed.execute("SELECT 1")
    turn(mover)
    assert moved(session) == ids
    assert left(session) == 0


def test_a_cancel_that_races_the_mover_is_too_late_or_in_time_never_both(
    connect: Connect, session: Session, mover: Mover
) -> None:
    """Whoever holds the row first wins; the other learns of it."""
    early, late = schedule(session, -2, key="a"), schedule(session, -1, key="b")
    assert cancel(session, early)
    assert turn(mover) == 1
    assert not cancel(session, late)
    assert moved(session) == [late]

    third = schedule(session, -1)
    moving = connect()
    assert moving.execute("SELECT outbox_move()").fetchone() == (1,)
    session.execute("SET lock_timeout = '100ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):  # it waits for the mover, and does not guess
        cancel(session, third)
    moving.commit()
    assert not cancel(session, third)


def test_the_mover_sees_each_commit_before_it_whatever_isolation_is_the_default(
    connect: Connect, session: Session, mover: Mover
) -> None:
    strict = connect()
    strict.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    with pytest.raises(psycopg.errors.InvalidTransactionState, match="READ COMMITTED"):
        strict.execute("SELECT outbox_move()")


def test_an_observer_hears_of_it_and_the_round_ends_at_once(session: Session, mover: Mover) -> None:
    heard: list[int] = []
    unsubscribe = hooks.subscribe(
        lambda point, facts: heard.extend([facts["count"]] if point == points.MOVED else [])
    )
    try:
        schedule(session, -1)
        schedule(session, -1)
        assert mover.run_once() == module.Moved(2, 0.0)
    finally:
        unsubscribe()
    assert heard == [2]


def test_it_sleeps_until_the_earliest_is_due_and_looks_seldom_while_nothing_is_scheduled(
    session: Session, mover: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mover.run_once() == module.Moved(0, IDLE.total_seconds())
    schedule(session, 3600)
    assert mover.run_once().rest == BUSY.total_seconds(), "something was scheduled: more may follow soon"
    schedule(session, 0.5)
    assert 0 < mover.run_once().rest <= 0.5
    schedule(session, -5)
    assert mover.run_once() == module.Moved(1, 0.0)
    monkeypatch.setattr(mover, "_busy_until", 0.0)
    session.execute("DELETE FROM outbox_scheduled WHERE due < clock_timestamp() + interval '1 minute'")
    assert mover.run_once().rest == IDLE.total_seconds()


def test_an_idle_round_is_one_short_query(
    session: Session, mover: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule(session, 3600)
    asked: list[str] = []

    def execute(connection: Connection, query: str, *rest: Any) -> Any:
        asked.append(query)
        return plain(connection, query, *rest)

    plain = database.execute
    monkeypatch.setattr(database, "execute", execute)
    for _ in range(3):
        mover.run_once()
    assert asked == [module.LOOK] * 3


def test_an_outage_is_waited_out(session: Session, mover: Mover) -> None:
    event_id = schedule(session, 60)
    mover.run_once()
    session.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outbox-relay mover'"
        " AND datname = current_database()"
    )
    assert mover.run_once() == module.Moved(0, BUSY.total_seconds())
    session.execute("UPDATE outbox_scheduled SET due = clock_timestamp()")
    assert turn(mover) == 1
    assert moved(session) == [event_id]
    assert Mover(Database("postgresql://nobody@127.0.0.1:1/nowhere")).run_once().count == 0


def test_a_schema_without_the_function_is_said(session: Session, mover: Mover) -> None:
    schedule(session, -1)
    session.execute("DROP FUNCTION outbox_move(integer)")
    with pytest.raises(SchemaError, match="outbox_move"):
        mover.run_once()


def test_the_look_stays_on_its_index_behind_many_events(session: Session) -> None:
    session.execute(
        "INSERT INTO outbox_scheduled (id, due, aggregatetype, type) SELECT gen_random_uuid(), "
        "clock_timestamp() + n * interval '1 minute', 'a', 'b' FROM generate_series(1, 20000) n"
    )
    plan = "\n".join(
        line
        for (line,) in session.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) {module.LOOK}".encode()
        )
    )
    assert "outbox_scheduled_due" in plan
    assert "Seq Scan on outbox_scheduled\n" not in plan


def test_a_round_reads_few_pages_however_many_wait(session: Session, mover: Mover) -> None:
    session.execute(
        "INSERT INTO outbox_scheduled (id, due, aggregatetype, type) SELECT gen_random_uuid(), "
        "clock_timestamp() + n * interval '1 minute', 'a', 'b' FROM generate_series(-300, 20000) n"
    )
    session.execute("VACUUM ANALYZE outbox_scheduled")
    session.execute("SET enable_seqscan = off")
    plan = "\n".join(
        line
        for (line,) in session.execute(
            "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) SELECT outbox_move(200)"
        )
    )
    (hit,) = [int(word.partition("=")[2]) for word in plan.split() if word.startswith("hit=")][:1]
    assert hit < 6_000, plan
    assert moved(session) != []
