"""A take-over goes on behind what Kafka has committed: never before it, and never beyond."""

import random
from dataclasses import dataclass, field, replace

import pytest

from outbox.errors import GuardViolation
from outbox.record import Seq
from relay.producers import Recorded
from relay.progress import RELEASE, SEQUENCED, TRANSACTIONAL, Progress
from relay.snapshot import Snapshot
from relay.takeover import reconcile, recorded, switchable

ROW = Progress(
    ctid="(0,1)",
    shard=0,
    source="s",
    generation=1,
    epoch=5,
    delta=10,
    done=Snapshot("5:5:"),
    done_floor=100,
    done_xid="5",
    next=Snapshot("9:9:"),
    next_floor=200,
    next_xid="9",
    low=120,
    mode=TRANSACTIONAL,
    wanted_mode=None,
    lo=0,
    hi=255,
    frozen=False,
)
IDLE = replace(ROW, next=None, next_floor=None, next_xid=None, low=0)
FRESH = replace(IDLE, delta=0, mode=SEQUENCED)


def said(
    delta: int, position: int, *, source: str = "s", generation: int = 1, following: str | None = "9:9:"
) -> Recorded:
    return Recorded(Seq(source, generation, 0, delta, position), "5:5:", following)


@pytest.mark.parametrize(
    ("row", "record", "low"),
    [
        (ROW, said(10, 150), 150),  # committed beyond what the row was told
        (ROW, said(10, 110), 120),  # the row was told more: something was parked
        (replace(ROW, low=0), said(9, 90), 0),  # planned, nothing of it committed
        (replace(ROW, low=0, source="t"), said(12, 150), 0),  # another source's numbers say nothing
        (replace(ROW, low=0, generation=2), said(12, 150), 0),
        (IDLE, said(10, 150), 0),  # confirmed
    ],
)
def test_the_row_is_a_lower_bound(row: Progress, record: Recorded, low: int) -> None:
    assert reconcile(row, record, failed_over=False).low == low


@pytest.mark.parametrize(
    "record",
    [said(11, 5), said(10, 150, following="8:8:"), said(10, 150, following=None), said(3, 5, generation=2)],
)
def test_a_record_that_the_row_cannot_have_led_to_stops_the_shard(record: Recorded) -> None:
    with pytest.raises(GuardViolation, match="--from-row --shard 0"):
        reconcile(ROW, record, failed_over=False)


def test_after_a_fail_over_that_lost_plans_the_last_known_one_is_in() -> None:
    assert reconcile(ROW, said(12, 300), failed_over=True).low == 200
    assert reconcile(IDLE, said(12, 300), failed_over=True) == IDLE


def test_after_a_fail_over_that_lost_a_change_of_the_shards_number_the_last_known_plan_is_in() -> None:
    """The first record of a generation is committed before any standby is waited for: it holds no event."""
    begun = said(3, 0, generation=2, following=None)
    assert reconcile(ROW, begun, failed_over=True).low == 200
    assert reconcile(replace(ROW, frozen=True), begun, failed_over=True).low == 200
    assert reconcile(IDLE, begun, failed_over=True) == IDLE
    assert reconcile(ROW, begun, failed_over=True, lossy=True) == ROW


def test_a_server_that_may_lack_what_was_set_aside_repeats_instead_of_passing_it_over() -> None:
    for record in (said(12, 300), said(ROW.delta, 150)):
        assert reconcile(ROW, record, failed_over=True, lossy=True).low == ROW.low


@pytest.mark.parametrize("job", [RELEASE, 7])
def test_after_a_fail_over_that_lost_plans_nothing_of_an_operators_job_is_taken_as_sent(job: int) -> None:
    planned = replace(ROW, job=job, low=0)
    assert reconcile(planned, said(12, 300), failed_over=True) == planned
    assert reconcile(planned, said(10, 2), failed_over=True).low == 2, "this much is committed"


def test_the_first_record_of_a_row_agrees_with_it_wherever_it_stands() -> None:
    for row in (ROW, IDLE):
        assert reconcile(row, recorded(row), failed_over=False) == row


def test_the_mode_changes_between_deltas_or_where_its_owner_stands() -> None:
    wanted = replace(ROW, mode=SEQUENCED, wanted_mode=TRANSACTIONAL)
    assert switchable(replace(IDLE, wanted_mode=TRANSACTIONAL), None)
    assert not switchable(IDLE, None)
    assert not switchable(wanted, None)
    assert switchable(wanted, replace(wanted, epoch=4))
    assert not switchable(wanted, replace(wanted, epoch=3)), "somebody was there in between"
    assert not switchable(wanted, replace(wanted, epoch=4, low=119))
    assert switchable(replace(ROW, wanted_mode=TRANSACTIONAL), None), "to go on from the row, as told"


# Random histories: the row, the log that a plain reader sees, and relays that die at every step.


@dataclass
class Stage:
    """One shard: its row, its last progress record, and the log that a plain reader sees.

    What is decided is decided by the product's own functions; only database and broker are made up here.
    """

    choose: random.Random
    mid_delta: bool
    records: bool
    row: Progress = FRESH
    record: Recorded | None = None
    planned: list[int] = field(default_factory=list)
    rows: int = 0
    log: list[int] = field(default_factory=list)
    exact_from: int | None = None

    def live(self) -> None:
        """One relay from its claim until it dies, or claims anew. Raises GuardViolation as it would."""
        self.row = replace(self.row, epoch=self.row.epoch + 1)
        if self.may_switch():
            self.switch()
            return
        state = self.row
        if state.mode == TRANSACTIONAL:
            if self.record is None:
                raise GuardViolation("holds no record")
            state = reconcile(state, self.record, failed_over=False)
        while not self.dies(0.1):
            if self.row.next is None:
                if self.row.wanted_mode is not None:
                    return
                self.plan()
                state = self.row
            if not self.send(state):
                return
            self.row = replace(self.row, next=None, low=0)

    def may_switch(self) -> bool:
        return switchable(self.row, None) or (self.mid_delta and self.row.wanted_mode is not None)

    def switch(self) -> None:
        wanted = self.row.wanted_mode
        assert wanted is not None
        if wanted == TRANSACTIONAL and self.records:
            self.record = recorded(self.row)
        if not self.dies(0.3):
            self.row = replace(self.row, mode=wanted, wanted_mode=None)
            self.exact_from = len(self.log)

    def plan(self) -> None:
        new = self.choose.randint(1, 6)
        self.planned = list(range(self.rows + 1, self.rows + new + 1))
        self.rows += new
        following = Snapshot(f"{self.rows}:{self.rows}:")
        self.row = replace(self.row, delta=self.row.delta + 1, low=0, next=following)

    def send(self, state: Progress) -> bool:
        """False when it dies on the way."""
        assert state.next is not None
        for row in [row for row in self.planned if row > state.low]:
            if self.dies(0.1):
                return False
            self.log.append(row)
            if state.mode == TRANSACTIONAL:
                self.record = said(state.delta, row, following=state.next.text)
            if self.dies(0.3):
                self.row = replace(self.row, low=row)
        return True

    def dies(self, share: float) -> bool:
        return self.choose.random() < share


def wrong(seed: int, *, mid_delta: bool = False, records: bool = True) -> bool:
    """Was something lost, did it stop for ever, or did a transactional shard repeat what was seen before?"""
    choose = random.Random(seed)
    stage = Stage(choose, mid_delta, records)
    try:
        for _ in range(60):
            if choose.random() < 0.2:
                other = SEQUENCED if stage.row.mode == TRANSACTIONAL else TRANSACTIONAL
                stage.row = replace(stage.row, wanted_mode=other)
            stage.live()
            if stage.row.mode == TRANSACTIONAL:
                assert stage.exact_from is not None
                before, since = stage.log[: stage.exact_from], stage.log[stage.exact_from :]
                if len(set(since)) != len(since) or set(since) & set(before):
                    return True
    except GuardViolation:
        return True
    return set(stage.log) != set(range(1, max(stage.log, default=0) + 1))


def test_over_random_histories_nothing_is_repeated_once_the_mode_is_transactional() -> None:
    assert [seed for seed in range(500) if wrong(seed)] == []


def test_the_histories_find_out_a_change_inside_a_delta() -> None:
    assert any(wrong(seed, mid_delta=True) for seed in range(500))


def test_the_histories_find_out_a_change_without_a_first_record() -> None:
    assert any(wrong(seed, records=False) for seed in range(500))
