"""However often the number of shards changes, whatever fails: each event is applied once, in key order."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from outbox.storage.ddl import reshard_functions
from outbox.testing.servers import PostgresServer
from relay import progress, reshard
from tests.relay.database.schedule import Violation
from tests.relay.sharding.schedule import ReshardSchedule

STEPS = 600
SEEDS = range(4)


class Run:
    """Runs schedules on databases of their own; `naive` is run in each of them first."""

    def __init__(self, postgres: PostgresServer, template: str) -> None:
        self._postgres, self._template = postgres, template
        self.naive = ""

    def __call__(self, seed: int, **how: Any) -> int:
        name = f"outbox_reshard_{seed}_{uuid4().hex[:8]}"
        url = self._postgres.database(name, template=self._template)
        try:
            if self.naive:
                with psycopg.connect(url, autocommit=True) as session:
                    session.execute(self.naive.encode())
            ran = ReshardSchedule(url, seed, **how)
            ran.run(STEPS)
            return ran.generations
        finally:
            self._postgres.drop(name)


@pytest.fixture
def run(postgres: PostgresServer, template: str) -> Run:
    return Run(postgres, template)


@pytest.mark.parametrize("seed", SEEDS)
def test_re_sharding_loses_doubles_and_reorders_nothing(run: Run, seed: int) -> None:
    assert run(seed) > 1, "the number of shards never changed"


def switch_without(*removed: str) -> str:
    statement = reshard_functions.SWITCH.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
    for part in removed:
        assert part in statement
        statement = statement.replace(part, "")
    return statement


AT_END = " OR done::text <> goal.upto::text"
PLANNED = " OR next IS NOT NULL"


def unchecked(statement: str) -> str:
    return statement.replace(" AND NOT frozen", "")


def does_not_wait(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """The first shard at the end lets the new ones begin: it hands over alone."""
    goal = reshard.GOAL.replace("bool_and(s.next IS NULL AND s.done::text = r.upto::text)", "bool_and(true)")
    monkeypatch.setattr(reshard, "GOAL", goal)
    run.naive = switch_without(AT_END, PLANNED)


def ends_where_it_is(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Each shard ends at a snapshot of its own: whatever it has acknowledged when the others are ready."""
    goal = reshard.GOAL.replace("s.done::text = r.upto::text", "true")
    monkeypatch.setattr(reshard, "GOAL", goal)
    run.naive = switch_without(AT_END)


def plans_on(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """A plan may be open at the switch."""
    goal = reshard.GOAL.replace("s.next IS NULL AND", "")
    monkeypatch.setattr(reshard, "GOAL", goal)
    for name in ("PLAN", "CONFIRM_AND_PLAN"):
        monkeypatch.setattr(progress, name, unchecked(getattr(progress, name)))
    run.naive = switch_without(PLANNED)


def takes_an_older_look(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """The common snapshot is one from before the freeze."""
    end = progress.COMMON_END.replace("pg_visible_in_snapshot(frozen_by, %(next)s::pg_snapshot)", "true")
    assert end != progress.COMMON_END
    monkeypatch.setattr(progress, "COMMON_END", end)


def advances_all(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """A look that found nothing of its own moves the start of every shard."""
    everybody = progress.ADVANCE.replace("{where} AND epoch = %(epoch)s AND delta = %(delta)s AND", "")
    assert everybody != progress.ADVANCE
    monkeypatch.setattr(progress, "ADVANCE", everybody)


NAIVE: dict[str, Callable[[pytest.MonkeyPatch, Run], None]] = {
    work.__name__: work
    for work in (does_not_wait, ends_where_it_is, plans_on, takes_an_older_look, advances_all)
}


SHOWS = {
    "does_not_wait": 100,
    "ends_where_it_is": 107,
    "plans_on": 103,
    "takes_an_older_look": 105,
    "advances_all": 109,
}
"""The first seed from 100 on that shows it; a schedule with other steps may need one of the next."""


@pytest.mark.parametrize("name", NAIVE)
def test_the_schedules_find_out_one_that(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    NAIVE[name](monkeypatch, run)
    with pytest.raises(Violation):
        for seed in range(SHOWS[name], SHOWS[name] + 40):
            run(seed, remembers=name == "takes_an_older_look", ignores=name == "plans_on")
