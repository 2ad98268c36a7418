"""What is new is planned by the statement that saw it, and by none that was overtaken."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from outbox.errors import Fenced
from relay import planner
from relay.database import OutcomeUnknown
from relay.look import Look
from relay.progress import Frozen, Progress
from tests.relay.conftest import Connect
from tests.relay.database.half import Half, Session, drain, ids, shard, wait_for, write
from tests.relay.database.memory_broker import MemoryBroker
from tests.relay.database.test_progress import WAITING, state_of

Own = Callable[..., Half]


def overtaken(half: Half, state: Progress, connect: Connect, by: str) -> tuple[Look, Progress | None]:
    """What a look brings that has seen its rows when somebody else changes the row in front of it."""
    other, watcher = connect(), connect(autocommit=True)
    other.execute("SELECT 1 FROM outbox_shard FOR UPDATE")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(half.planner.look, state, sent=state.next is not None)
        wait_for(watcher, WAITING.format(1))
        other.execute(by.encode())
        other.commit()
        return answer.result()


def test_the_delta_is_what_the_look_saw(half: Half, writer: Session, connect: Connect) -> None:
    late = connect()
    straggler = write(late)
    first = write(writer, 3)
    look, state = half.planner.look(half.row.claim(), sent=False)
    assert state is not None
    assert state == half.row.read(state), "what it returns is the row"
    assert (state.next, state.next_floor, state.low) == (look.snapshot, look.floor, 0)
    assert ids(look.rows) == half.planned(state) == first
    late.commit()
    second = write(writer, 2)
    look, following = half.planner.look(state, sent=True)
    assert following is not None
    assert (following.done, following.done_floor, following.done_xid) == (
        *(state.next, state.next_floor, state.next_xid),
    )
    assert ids(look.rows) == half.planned(following) == straggler + second


def test_the_row_stays_as_it_is_while_nothing_is_new(half: Half, writer: Session) -> None:
    write(writer)
    _, state = half.planner.look(half.row.claim(), sent=False)
    assert state is not None
    look, planned = half.planner.look(state, sent=True)
    assert (look.empty, planned) == (True, None)
    assert half.row.read(state) == state, "the same version of it"


def test_what_is_too_much_to_hold_is_planned_all_the_same(own: Own, writer: Session) -> None:
    half = own(limit=4)
    written = write(writer, 20)
    look, state = half.planner.look(half.row.claim(), sent=False)
    assert state is not None
    assert look.rows is None
    assert half.planned(state) == written


def test_a_look_whose_answer_is_lost_and_that_is_run_again_plans_once(half: Half, writer: Session) -> None:
    claimed = half.row.claim()
    write(writer)
    half.planner.look(claimed, sent=False)
    once = state_of(writer)
    write(writer)
    assert half.planner.look(claimed, sent=False)[1] is None
    assert state_of(writer) == once


def test_a_look_overtaken_by_a_claim_plans_nothing(
    half: Half, writer: Session, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = half.row.claim()
    write(writer)
    take = "UPDATE outbox_shard SET epoch = epoch + 1"
    look, planned = overtaken(half, claimed, connect, take)
    assert look.rows, "it had seen them"
    assert planned is None
    with pytest.raises(Fenced):
        half.row.plan(claimed, look)
    # Servers of before 2025 compare the new version of a row that is found by its place, later ones drop it.
    by_key = planner.LOOK_AND_PLAN.replace("ctid = %(ctid)s::tid AND ", "")
    monkeypatch.setattr(planner, "LOOK_AND_PLAN", by_key)
    assert overtaken(half, half.row.claim(), connect, take)[1] is None
    monkeypatch.setattr(planner, "LOOK_AND_PLAN", by_key.replace("AND epoch = %(epoch)s", ""))
    assert overtaken(half, half.row.claim(), connect, take)[1] is not None, "or the test proves nothing"


def test_a_confirming_look_overtaken_by_a_successor_confirms_nothing_of_its(
    half: Half, writer: Session, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_key = planner.LOOK_CONFIRM_AND_PLAN.replace("ctid = %(ctid)s::tid AND ", "")
    monkeypatch.setattr(planner, "LOOK_CONFIRM_AND_PLAN", by_key)
    write(writer)
    _, sent = half.planner.look(half.row.claim(), sent=False)
    assert sent is not None
    unsent = write(writer, 2)
    successor = """
        UPDATE outbox_shard SET epoch = epoch + 1, delta = delta + 1, done = next, done_floor = next_floor,
            done_xid = next_xid, next = pg_current_snapshot(), next_floor = next_floor + 2"""
    look, planned = overtaken(half, sent, connect, successor)
    assert ids(look.rows) == unsent
    assert planned is None
    assert half.planned(half.row.claim()) == unsent, "by the successor, who may not have sent them yet"


def test_a_look_overtaken_by_a_change_of_the_number_of_shards_plans_nothing(
    half: Half, writer: Session, connect: Connect
) -> None:
    claimed = half.row.claim()
    write(writer)
    look, planned = overtaken(half, claimed, connect, "UPDATE outbox_shard SET frozen = true")
    assert planned is None
    with pytest.raises(Frozen):
        half.row.plan(claimed, look)


def test_a_wish_written_into_the_row_shows_in_the_plan(half: Half, writer: Session, connect: Connect) -> None:
    claimed = half.row.claim()
    first = write(writer)
    wish = "UPDATE outbox_shard SET wanted_mode = 'sequenced'"
    look, planned = overtaken(half, claimed, connect, wish)
    planned = planned or half.row.plan(claimed, look)
    assert planned.wanted_mode == "sequenced"
    assert half.planned(planned) == first


def test_a_row_that_was_moved_is_found_by_its_key(
    database: str, writer: Session, broker: MemoryBroker
) -> None:
    carrying = shard(database, broker)
    drain(carrying)
    writer.execute("UPDATE outbox_shard SET timeline = timeline")
    written = write(writer, 3)
    assert carrying.run_once().published == 3
    assert [found.id for found in broker.once()] == written
    carrying.let_go()


def test_a_look_in_a_transaction_that_writes_plans_nothing(half: Half, writer: Session) -> None:
    claimed = half.row.claim()
    write(writer)
    before = state_of(writer)
    with half.connection.transaction():
        half.connection.execute("SELECT pg_current_xact_id()")
        with pytest.raises(OutcomeUnknown, match="inside a writing transaction"):
            half.planner.look(claimed, sent=False)
    assert state_of(writer) == before


def test_a_look_at_a_server_that_was_not_examined_plans_nothing(half: Half, writer: Session) -> None:
    claimed = half.row.claim()
    write(writer)
    half.planner._fixed["server"] = 1
    look, planned = half.planner.look(claimed, sent=False)
    assert (planned, look.empty) == (None, False)
    assert look.server != cast(int, half.planner._fixed["server"])


def test_a_plan_is_not_made_on_a_counter_that_went_back(
    half: Half, writer: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = half.row.claim()
    write(writer)
    writer.execute("UPDATE outbox_shard SET done = '4000000000:4000000000:'")
    state = half.row.read(claimed)
    monkeypatch.setattr(
        planner,
        "LOOK_AND_PLAN",
        planner.LOOK_AND_PLAN.replace(
            "WHERE xid >= pg_snapshot_xmax(%(done)s::pg_snapshot)", "WHERE xid >= '0'::xid8"
        ),
    )
    before = state_of(writer)
    with pytest.raises(OutcomeUnknown, match="went back"):
        half.planner.look(state, sent=False)
    assert state_of(writer) == before
