"""The shard's row moves only for its owner, once, from the state that the owner believes in."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial

import pytest

from outbox.errors import Fenced
from outbox.storage.roles import Roles, statements
from relay import guards, progress, tenure
from relay.database import OutcomeUnknown
from relay.progress import Frozen, Progress
from relay.snapshot import Snapshot
from tests.relay.conftest import Connect
from tests.relay.database.half import Half, Session, drain, shard, wait_for, write
from tests.relay.database.memory_broker import MemoryBroker

WAITING = """
SELECT count(*) = {} FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()
"""
ROW = f"SELECT {progress.ROW} FROM outbox_shard"

Own = Callable[..., Half]


def state_of(session: Session) -> tuple[object, ...]:
    """The row without its place, which every version changes."""
    found = session.execute(ROW).fetchone()
    assert found is not None
    return tuple(found[1:])


def epoch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The naive compare-and-set: whoever has the epoch may write."""
    for name in ("PLAN", "CONFIRM_AND_PLAN", "CONFIRM", "ADVANCE"):
        naive = getattr(progress, name).replace(" AND delta = %(delta)s AND next IS NULL", "")
        naive = naive.replace(" AND delta = %(delta)s AND next IS NOT NULL", "")
        assert naive != getattr(progress, name)
        monkeypatch.setattr(progress, name, naive)


def test_a_claim_raises_the_epoch_and_nothing_else(half: Half, writer: Session) -> None:
    before = state_of(writer)
    claimed = half.row.claim()
    after = state_of(writer)
    assert claimed.epoch == 1
    assert (after[:5], after[6:]) == (before[:5], before[6:])


def test_a_plan_that_is_run_twice_changes_the_row_once(half: Half, writer: Session) -> None:
    claimed = half.row.claim()
    write(writer)
    look = half.looker.look(claimed.done)
    half.row.plan(claimed, look)
    once = state_of(writer)
    with pytest.raises(Fenced):
        half.row.plan(claimed, look)
    assert state_of(writer) == once


def test_a_confirm_with_a_plan_that_is_run_twice_loses_no_delta(
    half: Half, writer: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_delta(state: Progress) -> tuple[list[str], list[str]]:
        """Its events, and those that the row still plans after the statement was run again."""
        planned = half.row.plan(state, half.looker.look(state.done))
        written = write(writer, 3)
        look = half.looker.look(planned.next or planned.done)
        half.row.confirm_and_plan(planned, look)
        with suppress(Fenced):
            half.row.confirm_and_plan(planned, look)
        return written, half.planned(half.row.claim())

    write(writer)
    written, planned = second_delta(half.row.claim())
    assert planned == written
    epoch_only(monkeypatch)
    state = half.row.confirm(half.row.claim())
    write(writer)
    written, planned = second_delta(state)
    assert planned == [], "by the epoch alone the second run confirms what was never sent"


def test_a_late_plan_of_the_same_owner_changes_nothing(
    half: Half, writer: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = half.row.claim()
    write(writer)
    stale = half.looker.look(claimed.done)
    planned = half.row.plan(claimed, stale)
    write(writer)
    planned = half.row.confirm_and_plan(planned, half.looker.look(planned.next or planned.done))
    before = state_of(writer)
    with pytest.raises(Fenced):
        half.row.plan(claimed, stale)
    assert state_of(writer) == before
    epoch_only(monkeypatch)
    half.row.plan(claimed, stale)
    assert state_of(writer) != before, (
        "by the epoch alone a planned delta is planned anew under another number"
    )


def test_a_former_owner_changes_nothing(own: Own, writer: Session) -> None:
    former, owner = own(), own()
    claimed = former.row.claim()
    write(writer)
    look = former.looker.look(claimed.done)
    planned = former.row.plan(claimed, look)
    owner.row.claim()
    before = state_of(writer)
    moves: list[Callable[[], Progress]] = [
        partial(former.row.plan, claimed, look),
        partial(former.row.confirm_and_plan, planned, look),
        partial(former.row.confirm, planned),
        partial(former.row.mark_low, planned, 1),
        partial(former.row.advance, claimed, look),
        partial(former.row.new_source, claimed, 2),
    ]
    for move in moves:
        with pytest.raises(Fenced):
            move()
    assert state_of(writer) == before


def test_a_claim_waits_for_a_queued_statement_and_believes_what_it_left(own: Own, connect: Connect) -> None:
    former, owner, locker, watcher = own(), own(), connect(), connect(autocommit=True)
    claimed = former.row.claim()
    write(watcher)
    planned = former.row.plan(claimed, former.looker.look(claimed.done))
    locker.execute("SELECT 1 FROM outbox_shard FOR UPDATE")
    with ThreadPoolExecutor(2) as pool:
        confirmed = pool.submit(former.row.confirm, planned)
        wait_for(watcher, WAITING.format(1))
        taken = pool.submit(owner.row.claim)
        wait_for(watcher, WAITING.format(2))
        locker.rollback()
        state = taken.result()
    fenced = isinstance(confirmed.exception(), Fenced)
    assert (state.next is not None) == fenced, "either it came first and is believed, or it changed nothing"
    assert state.epoch == planned.epoch + 1


def test_a_new_owner_finds_the_plan_and_its_number(own: Own, writer: Session) -> None:
    former, owner = own(), own()
    claimed = former.row.claim()
    written = write(writer, 5)
    planned = former.row.plan(claimed, former.looker.look(claimed.done))
    write(writer, 5)
    taken = owner.row.claim()
    assert (taken.stream, taken.next, taken.next_floor) == (planned.stream, planned.next, planned.next_floor)
    assert owner.planned(taken) == written


def test_low_starts_anew_in_every_plan(half: Half, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    def straggle() -> tuple[list[str], list[str]]:
        late, early = connect(), connect()
        straggler = write(late)
        write(early, 5)
        early.commit()
        state = half.row.claim()
        state = half.row.plan(state, half.looker.look(state.done))
        state = half.row.mark_low(state, half.chunks(state)[-1][-1][0])
        late.commit()
        state = half.row.confirm_and_plan(state, half.looker.look(state.next or state.done))
        found = half.planned(state)
        half.row.confirm(state)
        return straggler, found

    straggler, found = straggle()
    assert found == straggler
    monkeypatch.setattr(progress, "CONFIRM_AND_PLAN", progress.CONFIRM_AND_PLAN.replace("low = 0, ", ""))
    straggler, found = straggle()
    assert found == [], "carried into the next delta, `low` hides a straggler below it"


def test_low_never_goes_back(half: Half, writer: Session) -> None:
    state = half.row.claim()
    write(writer, 5)
    state = half.row.plan(state, half.looker.look(state.done))
    state = half.row.mark_low(half.row.mark_low(state, 3), 3)
    with pytest.raises(Fenced):
        half.row.mark_low(state, 2)


def test_numbers_follow_the_clock_and_never_repeat(half: Half, writer: Session) -> None:
    clock = writer.execute("SELECT extract(epoch FROM clock_timestamp()) * 1000").fetchone()
    assert clock is not None
    state = half.row.claim()
    write(writer)
    state = half.row.plan(state, half.looker.look(state.done))
    assert abs(state.delta - clock[0]) < 60_000
    writer.execute("UPDATE outbox_shard SET delta = delta + 3600000")
    state = half.row.confirm(half.row.claim())
    write(writer)
    ahead = state.delta
    state = half.row.plan(state, half.looker.look(state.done))
    assert state.delta == ahead + 1


def test_the_row_is_found_again_when_it_was_moved(half: Half, writer: Session) -> None:
    state = half.row.claim()
    writer.execute("VACUUM FULL outbox_shard")
    write(writer)
    assert half.row.plan(state, half.looker.look(state.done)).next is not None


def test_a_terminated_backend_leaves_the_outcome_open(half: Half, writer: Session) -> None:
    state = half.row.claim()
    writer.execute("SELECT pg_terminate_backend(%s)", (half.connection.info.backend_pid,))
    with pytest.raises(OutcomeUnknown):
        half.row.advance(state, half.looker.look(state.done))


def test_a_plan_may_reach_another_backend_only_if_it_was_there_before_the_look(
    own: Own, database: str, writer: Session
) -> None:
    """Behind a pooler both may be: a swap of backends, or a crash of the server in between."""
    for statement in statements(Roles(relay=["pooled_relay"]), create=True):
        writer.execute(statement.encode())
    url = database.replace("postgres@", "pooled_relay@")
    with closing(Half(url)) as looking, closing(Half(url)) as older:
        state = older.row.claim()
        write(writer)
        look = looking.looker.look(state.done)
        with closing(Half(url)) as younger, pytest.raises(Fenced, match="the server was replaced"):
            younger.row.plan(state, look)
        assert older.row.plan(state, look).next == look.snapshot


def test_what_no_look_precedes_is_planned_only_on_the_server_that_was_examined(
    half: Half, writer: Session
) -> None:
    """Behind a pooler an idle session may have moved to a promoted standby."""
    server = guards.examine(half.connection, "memory").server
    state = half.row.claim()
    with pytest.raises(Fenced, match="the server was replaced"):
        half.row.plan_job(state, progress.RELEASE, server + 1)
    state = half.row.confirm_job(half.row.plan_job(state, progress.RELEASE, server))
    writer.execute("SELECT outbox_shards_set(2)")
    half.row.set_common_end(half.looker.look(state.done))
    upto = writer.execute("SELECT upto::text FROM outbox_reshard").fetchone()
    assert upto is not None
    with pytest.raises(Frozen):
        half.row.plan_end(state, upto[0], server + 1)
    assert half.row.plan_end(state, upto[0], server).next == Snapshot(upto[0])


def test_a_job_is_not_begun_where_the_pooler_led_an_idle_connection(
    database: str, writer: Session, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(writer, 3)
    carrying = shard(database, broker)
    drain(carrying)
    carrying.finish()
    monkeypatch.setattr(tenure, "REPLAYS_EVERY", 0.0)
    drain(carrying)
    writer.execute("INSERT INTO outbox_job (shard, groups, requested_by) VALUES (0, '*', 'operator')")
    monkeypatch.setattr(progress, "PLAN_JOB", progress.PLAN_JOB.replace("%(server)s", "%(server)s + 1"))
    for _ in range(3):
        carrying.run_once()
    assert writer.execute("SELECT count(*) FROM outbox_shard WHERE job IS NOT NULL").fetchone() == (0,)
    assert len(broker.log) == 3


def test_the_rights_of_the_relays_role_are_enough(
    database: str, writer: Session, broker: MemoryBroker
) -> None:
    for statement in statements(Roles(relay=["pooled_relay"]), create=True):
        writer.execute(statement.encode())
    written = write(writer, 10)
    carrying = shard(database.replace("postgres@", "pooled_relay@"), broker, look_rows=3)
    drain(carrying)
    carrying.finish()
    assert broker.ids() == written
