"""How much waits and for how long, per shard, whatever the state of a delta; an alarm once it is too long."""

from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from relay.database import Database
from relay.telemetry.backlog import Backlog, ShardBacklog
from tests.relay.database.half import Half, Session, write


@pytest.fixture
def survey(database: str) -> Iterator[Backlog]:
    survey = Backlog(Database(database), limit=timedelta(seconds=10))
    yield survey
    survey.close()


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
