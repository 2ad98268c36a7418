"""How much waits and for how long, per shard, whatever the state of a delta; an alarm once it is too long."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from outbox.storage import bucket
from relay.database import Database, execute
from relay.row import POSITION
from relay.telemetry import backlog
from relay.telemetry.backlog import Backlog, ShardBacklog
from tests.relay.database.half import Half, Session, write
from tests.relay.sharding.several import key_of, split

BUCKETS = [(0, 84), (85, 169), (170, 255)]

OF_SHARD = f"""
SELECT count(*) / 2 FROM outbox_event e, outbox_shard s WHERE s.shard = %(shard)s AND {bucket.IN_SHARD}
"""


@pytest.fixture
def survey(database: str) -> Iterator[Backlog]:
    survey = Backlog(Database(database), limit=timedelta(seconds=10))
    yield survey
    survey.connection.close()


@pytest.fixture
def writer(database: str) -> Iterator[Session]:
    with psycopg.connect(database, autocommit=True) as session:
        yield session


@pytest.fixture
def half(database: str) -> Iterator[Half]:
    half = Half(database)
    yield half
    half.close()


def seen(survey: Backlog) -> ShardBacklog:
    survey.run_once()
    assert survey.shards is not None
    return survey.shards[0]


def test_what_is_acknowledged_is_not_counted_wherever_the_delta_stands(
    survey: Backlog, writer: Session, half: Half, database: str
) -> None:
    assert (seen(survey).pending, seen(survey).oldest_pending) == (0, None)
    write(writer, 10)
    assert seen(survey).pending == 10
    state = half.row.claim()
    state = half.row.plan(state, half.looker.look(state.done))
    assert seen(survey).pending == 10, "planned is not acknowledged"
    with psycopg.connect(database) as late:
        write(late, 2)
        write(writer, 3)
        assert seen(survey).pending == 13, "what is not committed does not wait yet"
        assert state.next_floor is not None
        state = half.row.mark_low(state, state.next_floor - 4)
        assert seen(survey).pending == 4 + 3
    assert seen(survey).pending == 4 + 3 + 2
    assert state.next_floor is not None
    state = half.row.confirm(half.row.mark_low(state, state.next_floor))
    assert seen(survey).pending == 3 + 2
    assert seen(survey).epoch == state.epoch


def test_each_of_several_shards_counts_its_own_wherever_its_delta_stands(
    survey: Backlog, writer: Session, database: str
) -> None:
    split(database, 3)
    for n in range(60):
        write(writer, key=f"key-{n}")
    halves = [Half(database, number, buckets=BUCKETS[number]) for number in range(3)]
    _, begun, done = (half.row.claim() for half in halves)
    begun = halves[1].row.plan(begun, halves[1].looker.look(begun.done))
    ours = [row[POSITION] for chunk in halves[1].chunks(begun) for row in chunk]
    done = halves[2].row.confirm(halves[2].row.plan(done, halves[2].looker.look(done.done)))
    for n in range(60):
        write(writer, key=f"key-{n}")
    begun = halves[1].row.mark_low(begun, ours[-4])
    survey.run_once()
    for half in halves:
        half.close()
    assert survey.shards is not None
    each = [writer.execute(OF_SHARD, {"shard": n}).fetchall()[0][0] for n in range(3)]
    assert [found.pending for found in survey.shards] == [2 * each[0], 3 + each[1], each[2]]
    assert not any(found.more for found in survey.shards)


def test_a_shard_far_behind_hides_no_other_and_its_backlog_is_read_once_for_all(
    writer: Session, database: str, half: Half, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "MOST", 20)
    split(database, 3)
    for n in range(90):
        write(writer, key=f"key-{n}")
    for number in (1, 2):
        other = Half(database, number, buckets=BUCKETS[number])
        state = other.row.claim()
        other.row.confirm(other.row.plan(state, other.looker.look(state.done)))
        other.close()
    write(writer, 7, key=key_of(writer, 2))
    asked: list[list[int] | None] = []

    def ask(statement: str, values: dict[str, Any]) -> list[Any]:
        asked.append(values.get("shards"))
        return execute(half.connection, statement, values).fetchall()

    behind, idle, busy = backlog.survey(ask)
    assert (idle.pending, idle.more, busy.pending, busy.more) == (0, False, 7, False)
    assert behind.more
    assert 10 < behind.pending < 60, "its own among the oldest sixty"
    assert behind.oldest_pending is not None
    assert asked == [None, None, [1, 2]], "their number, all, and those that begin behind the bound"


def test_the_oldest_that_waits_is_an_alarm_once_it_is_too_old(survey: Backlog, writer: Session) -> None:
    write(writer)
    assert seen(survey).oldest_pending is not None
    assert survey.alarm(0) is None
    writer.execute(
        "INSERT INTO outbox_event (id, aggregatetype, type, occurred_at) "
        "VALUES (gen_random_uuid(), 'order', 'order.placed.v1', clock_timestamp() - interval '20 s')"
    )
    assert 19 < (seen(survey).oldest_pending or 0) < 60
    assert survey.alarm(0) == "the oldest pending event is more than 10 s old"
    assert survey.alarm(1) is None


def test_a_database_that_is_away_is_told_from_one_without_events() -> None:
    away = Backlog(Database("postgresql://127.0.0.1:1/nowhere"), limit=timedelta(seconds=10))
    away.run_once()
    assert away.shards is None
    assert away.alarm(0) is None
