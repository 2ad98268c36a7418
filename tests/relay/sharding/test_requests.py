"""What an operator asks for while the number of shards is changed is refused or waits: never half done."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, text

from relay.cli import main
from relay.cli.replay import REQUEST
from tests.relay.conftest import Connect
from tests.relay.database.half import Session, wait_for, write

SET = "SELECT outbox_shards_set(3)"
SWITCH = "SELECT outbox_shards_switch()"
JOBS = "SELECT shard FROM outbox_job WHERE ended_at IS NULL ORDER BY job"
SOMEBODY_WAITS = (
    "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'outbox_job'::regclass)"
)

ALL_AT_THE_END = """
WITH at AS (SELECT pg_current_snapshot() AS upto),
     goal AS (UPDATE outbox_reshard SET upto = at.upto, floor = 0, at_xid = pg_current_xact_id() FROM at)
UPDATE outbox_shard SET done = at.upto FROM at
"""
"""What relays do once the shards are frozen."""

WANTED: dict[str, Any] = {
    **dict.fromkeys(("since", "until", "topic", "aggregateid", "to_topic")),
    "latest_per_key": False,
}
WANTED |= {"groups": "billing", "by": "operator"}

Meanwhile = Callable[[Callable[[], Any]], Future[Any]]


@pytest.fixture
def meanwhile() -> Iterator[Meanwhile]:
    """Runs something in a thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit


@pytest.fixture
def other(connect: Connect) -> Session:
    """Whoever changes the number of shards, in a transaction that is still open."""
    return connect()


def operate(database: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"OUTBOX_DATABASE_URL": database})


def published(writer: Session) -> None:
    write(writer, 3)
    writer.execute("UPDATE outbox_shard SET done = pg_current_snapshot()")


def test_a_replay_asked_for_a_moment_before_is_an_obstacle(
    engine: Engine, writer: Session, other: Session, meanwhile: Meanwhile
) -> None:
    with engine.connect() as operator:
        operator.execute(text(REQUEST), WANTED)
        changed = meanwhile(lambda: other.execute(SET))
        wait_for(writer, SOMEBODY_WAITS)
        operator.commit()
    with pytest.raises(psycopg.Error, match="a replay is under way"):
        changed.result(20)


def test_a_replay_asked_for_a_moment_after_is_refused(
    database: str, writer: Session, other: Session, meanwhile: Meanwhile
) -> None:
    published(writer)
    other.execute(SET)
    asked = meanwhile(lambda: operate(database, "replay", "--for", "billing", "--yes"))
    wait_for(writer, SOMEBODY_WAITS)
    other.commit()
    result = asked.result(20)
    assert (result.exit_code, "number of shards is being changed" in result.output) == (3, True)
    assert writer.execute(JOBS).fetchall() == []
    assert operate(database, "replay", "--for", "billing", "--yes").exit_code == 3


def test_a_replay_asked_for_while_the_new_shards_come_is_one_of_all_new_shards(
    engine: Engine, writer: Session, other: Session, meanwhile: Meanwhile
) -> None:
    writer.execute(SET)
    writer.execute(ALL_AT_THE_END)
    assert other.execute(SWITCH).fetchone() == (True,)

    def ask() -> None:
        with engine.begin() as operator:
            operator.execute(text(REQUEST), WANTED)

    asked = meanwhile(ask)
    wait_for(writer, SOMEBODY_WAITS)
    other.commit()
    asked.result(20)
    assert writer.execute(JOBS).fetchall() == [(0,), (1,), (2,)]


def test_a_replay_of_a_shard_that_is_gone_keeps_nobody_from_anything(writer: Session) -> None:
    writer.execute("INSERT INTO outbox_job (shard, groups, requested_by) VALUES (7, '*', 'operator')")
    writer.execute(SET)


def test_another_mode_is_refused_meanwhile_and_the_one_they_have_is_not(
    database: str, writer: Session
) -> None:
    writer.execute(SET)
    for scope in ([], ["--shard", "0"]):
        refused = operate(database, "shards", "mode", "transactional", "--yes", "--timeout", "0", *scope)
        assert (refused.exit_code, "number of shards is being changed" in refused.output) == (3, True)
    assert writer.execute("SELECT wanted_mode FROM outbox_shard").fetchall() == [(None,)]
    assert operate(database, "shards", "mode", "sequenced", "--yes").exit_code == 0


def test_another_mode_asked_for_in_the_same_moment_is_refused_too(
    database: str, writer: Session, other: Session, meanwhile: Meanwhile
) -> None:
    other.execute(SET)
    asked = meanwhile(lambda: operate(database, "shards", "mode", "transactional", "--yes", "--timeout", "0"))
    wait_for(writer, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
    other.commit()
    assert asked.result(20).exit_code == 3
    assert writer.execute("SELECT wanted_mode FROM outbox_shard").fetchall() == [(None,)]


def test_one_old_shards_wish_does_not_become_that_of_all_new_ones(writer: Session) -> None:
    writer.execute(SET)
    writer.execute(ALL_AT_THE_END)
    writer.execute("UPDATE outbox_shard SET wanted_mode = 'transactional'")
    assert writer.execute(SWITCH).fetchone() == (True,)
    assert writer.execute("SELECT DISTINCT mode, wanted_mode FROM outbox_shard").fetchall() == [
        ("sequenced", None)
    ]
