"""Whatever is refused, released, cut off or late: each event takes effect once, in its key's order."""

from collections.abc import Callable
from uuid import uuid4

import pytest

import relay.outgoing
import relay.parking.release
import relay.tenure
from outbox import hooks
from outbox.testing.servers import PostgresServer
from relay import database, points
from relay.parking import parking
from relay.parking.landing import Verdict
from relay.parking.parking import Parking
from relay.progress import Progress, ShardRow
from tests.relay.database.memory_broker import MemoryLandings
from tests.relay.parking.schedule import Killed, Schedule, Violation

STEPS = 200
SEEDS = range(4)


@pytest.fixture
def run(
    postgres: PostgresServer, template: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Schedule]:
    """Everything in pieces so small that each schedule meets every seam."""
    for module, name, value in (
        (relay.tenure, "JOBS_EVERY", 0.0),
        (relay.tenure, "CONFIRM_AFTER", 0.0),
        (relay.tenure, "LOW_EVERY", 0.0),
        (relay.outgoing, "MOST_WITHHELD", 2),
        (relay.parking.release, "MOST_ROWS", 3),
    ):
        monkeypatch.setattr(module, name, value)

    def run_one(seed: int) -> Schedule:
        name = f"outbox_parking_{seed}_{uuid4().hex[:8]}"
        schedule = Schedule(postgres.database(name, template=template), seed)
        try:
            schedule.run(STEPS)
        finally:
            postgres.drop(name)
        return schedule

    return run_one


@pytest.mark.parametrize("seed", SEEDS)
def test_every_event_takes_effect_once_in_its_keys_order(run: Callable[[int], Schedule], seed: int) -> None:
    assert run(seed).releases > 2


def keeps_after_low_moved(patch: pytest.MonkeyPatch) -> None:
    def keep(self: Parking, state: Progress, low: int, waiting: object) -> Progress:
        moved = self._row.mark_low(state, low)
        if low % 3 == 0:
            raise Killed
        with database.transaction(self._connection):
            self._store(moved, waiting)  # type: ignore[arg-type]
        return moved

    patch.setattr(Parking, "keep", keep)


def always(verdict: Verdict) -> Callable[[pytest.MonkeyPatch], None]:
    def change(patch: pytest.MonkeyPatch) -> None:
        def answer(*_: object) -> Verdict:
            return verdict

        patch.setattr(MemoryLandings, "verdict", answer)

    return change


def loads_holds_before_the_claim(patch: pytest.MonkeyPatch) -> None:
    load, claim = Parking.load, ShardRow.claim
    early: dict[int, list[tuple[object, ...]]] = {}

    def claim_late(self: ShardRow) -> Progress:
        early[id(self)] = self._connection.execute(parking.LOAD.encode(), {"shard": 0}).fetchall()
        for _ in range(5):
            hooks.fire(points.CLAIMED)  # where the other relay may go on
        return claim(self)

    def load_early(self: Parking) -> None:
        load(self)
        found = early.pop(id(self._row), None)
        if found is not None:
            self._holds = {(topic, key): hold for hold, topic, key in found if key is not None}  # type: ignore[misc]

    patch.setattr(ShardRow, "claim", claim_late)
    patch.setattr(Parking, "load", load_early)


def forgets_who_waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Parking, "withhold", lambda _, rows: (rows, []))


def moves_low_before_it_parks(patch: pytest.MonkeyPatch) -> None:
    park = ShardRow.park

    def park_apart(self: ShardRow, state: Progress, low: int) -> Progress:
        moved = park(self, state, low)
        self._connection.execute(b"COMMIT AND CHAIN")
        if low % 3 == 0:
            raise Killed
        return moved

    patch.setattr(ShardRow, "park", park_apart)


def sends_in_the_order_of_the_last_number(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        relay.parking.release,
        "FROZEN",
        relay.parking.release.FROZEN.replace("ORDER BY p.delta, p.position", "ORDER BY p.numbers"),
    )


NAIVE = {
    "a held row is stored after low has moved": keeps_after_low_moved,
    "the refused row is stored after low has moved": moves_low_before_it_parks,
    "a release sends every row under its old number": always(Verdict.OPEN),
    "a release sends every row anew without a look": always(Verdict.PASSED),
    "holds are loaded before the claim": loads_holds_before_the_claim,
    "the key does not wait": forgets_who_waits,
    "what was refused again falls behind its key": sends_in_the_order_of_the_last_number,
}


@pytest.mark.parametrize("naive", NAIVE)
def test_the_schedules_find_out_if(
    run: Callable[[int], Schedule], naive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    NAIVE[naive](monkeypatch)
    with pytest.raises(Violation):
        for seed in range(200, 230):
            run(seed)
