"""Whenever a replay is asked for, whatever fails: all that was sent goes out again, once and in order."""

from collections.abc import Callable
from uuid import uuid4

import pytest

import relay.outgoing
import relay.parking.release
import relay.replay.replay
import relay.tenure
from outbox.testing.servers import PostgresServer
from relay.progress import Progress
from relay.replay import window
from relay.replay.replay import Replay
from tests.relay.parking.schedule import Killed, Violation
from tests.relay.replay.schedule import ReplaySchedule

STEPS = 250
SEEDS = range(4)


@pytest.fixture
def run(
    postgres: PostgresServer, template: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], ReplaySchedule]:
    """Everything in pieces so small that each schedule meets every seam."""
    for module, name, value in (
        (relay.tenure, "JOBS_EVERY", 0.0),
        (relay.tenure, "REPLAYS_EVERY", 0.0),
        (relay.tenure, "CONFIRM_AFTER", 0.0),
        (relay.tenure, "LOW_EVERY", 0.0),
        (relay.outgoing, "MOST_WITHHELD", 2),
        (relay.parking.release, "MOST_ROWS", 3),
        (relay.replay.replay, "WINDOW", 5),
    ):
        monkeypatch.setattr(module, name, value)

    def run_one(seed: int) -> ReplaySchedule:
        name = f"outbox_replay_{seed}_{uuid4().hex[:8]}"
        schedule = ReplaySchedule(postgres.database(name, template=template), seed)
        try:
            schedule.run(STEPS)
        finally:
            postgres.drop(name)
        return schedule

    return run_one


@pytest.mark.parametrize("seed", SEEDS)
def test_a_replay_holds_all_that_was_sent_once_in_its_keys_order(
    run: Callable[[int], ReplaySchedule], seed: int
) -> None:
    assert run(seed).replayed > 10


def freezes_before_it_confirms(patch: pytest.MonkeyPatch) -> None:
    due = Replay.due

    def ask(self: Replay, state: Progress) -> int | None:
        job = asked(self, state)
        return None if job is None else due(self, state, job)

    asked = Replay.asked
    patch.setattr(Replay, "asked", ask)
    patch.setattr(Replay, "due", lambda *_: True)


def takes_what_comes_later_too(patch: pytest.MonkeyPatch) -> None:
    """The bound moves along with what is acknowledged."""
    unfrozen = relay.replay.replay.FREEZE.replace(
        "coalesce(upto, %(done)s::pg_snapshot)", "%(done)s::pg_snapshot"
    )
    unfrozen = unfrozen.replace("coalesce(upto_floor, %(floor)s)", "%(floor)s")
    assert unfrozen != relay.replay.replay.FREEZE
    patch.setattr(relay.replay.replay, "FREEZE", unfrozen)


def sends_what_is_parked(patch: pytest.MonkeyPatch) -> None:
    for name in ("ANY_IN", "COUNT_IN", "PAGE"):
        found = getattr(window, name)
        naive = found.replace("AND NOT EXISTS (SELECT FROM outbox_parked p WHERE p.id = e.id)", "")
        assert naive != found
        patch.setattr(window, name, naive)


def moves_the_cursor_before_it_sends(patch: pytest.MonkeyPatch) -> None:
    carry = Replay.carry

    def moved(self: Replay, state: Progress) -> Progress:
        job = self._connection.execute(
            b"UPDATE outbox_job SET cursor = cursor + 5 WHERE job = %s RETURNING cursor", [state.job]
        ).fetchone()
        if job is not None and job[0] % 2:
            raise Killed
        return carry(self, state)

    patch.setattr(Replay, "carry", moved)


def uses_the_first_number_again(patch: pytest.MonkeyPatch) -> None:
    """Under a number that consumers have seen, nothing takes effect."""
    plan = Replay.plan

    def low(self: Replay, state: Progress, job: int, server: int) -> Progress:
        planned = plan(self, state, job, server)
        self._connection.execute(
            b"UPDATE outbox_shard SET delta = delta - 1000000 WHERE shard = %s", [state.shard]
        )
        return self._row.read(planned)

    patch.setattr(Replay, "plan", low)


def reads_the_cursor_of_whoever_came_after_it(patch: pytest.MonkeyPatch) -> None:
    """A replaced owner then sends the next window under the number of its own."""
    naive = relay.replay.replay.JOB.replace("AND s.epoch = %(epoch)s AND s.delta = %(delta)s", "")
    naive = naive.replace("JOIN outbox_shard s USING (shard, job)", "")
    assert "outbox_shard" not in naive
    patch.setattr(relay.replay.replay, "JOB", naive)
    patch.setattr(window, "PAGE", window.PAGE.replace("s.delta = %(delta)s AND s.job = j.job", "true"))


NAIVE: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    freezes_before_it_confirms: "lacks",
    takes_what_comes_later_too: "had not been sent when it began",
    sends_what_is_parked: "before it was sent first",
    moves_the_cursor_before_it_sends: "lacks",
    uses_the_first_number_again: "lacks",
    reads_the_cursor_of_whoever_came_after_it: "repeats|lacks",
}


@pytest.mark.parametrize("naive", NAIVE, ids=lambda naive: str(naive.__name__))
def test_the_schedules_find_out_one_that(
    run: Callable[[int], ReplaySchedule],
    naive: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    naive(monkeypatch)
    with pytest.raises(Violation, match=NAIVE[naive]):
        for seed in range(300, 340):
            run(seed)
