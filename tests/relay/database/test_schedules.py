"""Whatever answers are lost, run twice or late: each committed event is in exactly one delta, in order."""

from collections.abc import Callable
from types import ModuleType
from uuid import uuid4

import pytest

from outbox.testing.servers import PostgresServer
from relay import look, planner, progress, reader
from tests.relay.database.schedule import Schedule, Violation

STEPS = 300
SEEDS = range(100, 105)


@pytest.fixture
def run(postgres: PostgresServer, template: str) -> Callable[[int], None]:
    def run_one(seed: int) -> None:
        name = f"outbox_schedule_{seed}_{uuid4().hex[:8]}"
        url = postgres.database(name, template=template)
        try:
            Schedule(url, seed).run(STEPS)
        finally:
            postgres.drop(name)

    return run_one


@pytest.mark.parametrize("seed", SEEDS)
def test_every_committed_event_is_in_exactly_one_delta_in_order(
    run: Callable[[int], None], seed: int
) -> None:
    run(seed)


def without(*removed: str) -> Callable[[str], str]:
    def remove(statement: str) -> str:
        for part in removed:
            statement = statement.replace(part, "")
        return statement

    return remove


PLANNING = ("LOOK_AND_PLAN", "LOOK_CONFIRM_AND_PLAN")

BROKEN: dict[str, tuple[dict[ModuleType, tuple[str, ...]], Callable[[str], str]]] = {
    "the compare-and-set asks for the epoch alone": (
        {progress: ("PLAN", "CONFIRM_AND_PLAN", "CONFIRM"), planner: PLANNING},
        without(" AND delta = %(delta)s", " AND next IS NULL"),
    ),
    "low is carried into the next delta": (
        {progress: ("CONFIRM_AND_PLAN",), planner: PLANNING},
        without("low = 0, "),
    ),
    "a delta ends at the look's floor, whatever was visible": (
        {reader: ("CHUNK",)},
        without("AND pg_visible_in_snapshot(xid, %(next)s::pg_snapshot)"),
    ),
    "stragglers are not sought": (
        {reader: ("FEW_STRAGGLERS",)},
        lambda s: s.replace("WHERE before", "WHERE false AND before"),
    ),
    "late transactions are not looked for": (
        {look: ("LOOK",), planner: PLANNING},
        lambda s: s.replace("WHERE xid = ANY", "WHERE false AND xid = ANY"),
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_the_schedules_find_out_if(
    run: Callable[[int], None], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements, change = BROKEN[broken]
    for module, name in ((module, name) for module, names in statements.items() for name in names):
        statement = getattr(module, name)
        assert change(statement) != statement, f"{name} stayed as it was"
        monkeypatch.setattr(module, name, change(statement))
    with pytest.raises(Violation):
        for seed in range(200, 230):
            run(seed)
